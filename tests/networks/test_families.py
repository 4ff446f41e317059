"""What is special to the networks of libraries; what all networks share is in test_every_network.py."""

import pytest
import torch
from torch import nn

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.any_size import AnySize, mirrored
from geoseg.networks.families import Patches, encoder_name
from geoseg.networks.measuring import count_parameters, measure_size
from geoseg.networks.pooled_norm import PooledBatchNorm2d, allow_single_values

# One for each way in which decoders take their features and heads enlarge.
_SMP = ("unet", "linknet", "fpn", "pspnet", "deeplabv3+")
_SMALL_DPT = {
    "encoder": "test_vit",
    "decoder_intermediate_channels": [8, 8, 16, 16],
    "decoder_fusion_channels": 16,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """On maps this small threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _built(name, bands=4, classes=6, **options):
    torch.manual_seed(0)
    return networks.create(name, in_channels=bands, num_classes=classes, **options).eval()


def _scores(network, pixels):
    with torch.inference_mode():
        return network(pixels)


def _noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "millions"),
    # Survey sheet, section 2: resnet34, 4 bands, 6 classes.
    [
        *(("linknet", 21.78), ("unet", 24.44), ("unet++", 26.08), ("fpn", 23.16)),
        *(("upernet", 29.60), ("deeplabv3", 26.01), ("deeplabv3+", 22.44), ("pan", 21.48), ("manet", 31.79)),
    ],
)
def test_as_many_parameters_as_the_library_gives(name, millions):
    counted = measure_size(name, encoder="resnet34", in_channels=4, num_classes=6, side=128).parameters / 1e6
    assert counted == pytest.approx(millions, abs=0.005)


def test_stages_that_are_not_read_are_not_built():
    # PSPNet reads the first three; the library's own encoder keeps the others and comes to 21.46 million.
    assert measure_size("pspnet", encoder="resnet34", in_channels=4, num_classes=6, side=64).parameters == 1_527_398


@pytest.mark.parametrize(
    ("name", "encoder", "millions"),
    [
        ("torchvision-fcn", "resnet50", 32.95),
        ("torchvision-fcn", "resnet101", 51.94),
        ("torchvision-deeplabv3", "resnet50", 39.64),
        ("torchvision-deeplabv3", "mobilenet_v3_large", 11.02),
        ("torchvision-lraspp", "mobilenet_v3_large", 3.22),
    ],
)
def test_as_many_parameters_as_torchvision_gives(name, encoder, millions):
    size = measure_size(name, encoder=encoder, in_channels=3, num_classes=6, side=64)
    assert size.parameters / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overlap"), [("plainconv", 3), ("unet", 192), ("unet++", 192), ("linknet", 192)], ids=lambda v: str(v)
)
def test_exact_networks_agree_tiled_and_whole(name, overlap):
    """Survey sheet, check 6.2: to 1e-4 of the scores' deviation with enough overlap, whatever surrounds the tile."""
    network = _built(name)
    stride = network.stride
    size = 2 * overlap + 4 * stride
    scene = _noise(1, 4, size + stride * 2, size)
    whole = _scores(network, scene)
    tile = _scores(network, scene[..., stride : stride + size, :])
    core = slice(overlap, size - overlap)
    shifted = whole[..., stride : stride + size, :]
    difference = (tile[..., core, core] - shifted[..., core, core]).abs().max()
    assert difference < 1e-4 * whole.std()


@pytest.mark.parametrize("name", ["fpn", "deeplabv3+", "segformer"])
def test_networks_not_called_exact_are_not(name):
    network = _built(name)
    scene = _noise(1, 4, 320, 320)
    whole = _scores(network, scene)
    tile = _scores(network, scene[..., :256, :256])
    difference = (tile[..., 112:144, 112:144] - whole[..., 112:144, 112:144]).abs().max()
    assert difference > 1e-4 * whole.std()


@pytest.mark.parametrize(
    "encoder", ["test_resnet", "hrnet_w18_small", "test_convnext", "test_efficientnet", "mit_b0", "tu-resnet18.a1_in1k"]
)
def test_encoders_by_plain_name(encoder):
    network = _built("unet", encoder=encoder)
    assert _scores(network, _noise(1, 4, 40, 40)).shape == (1, 6, 40, 40)


def test_an_encoder_deeper_than_its_decoder_says_its_true_stride():
    # HRNet works at stride 32 inside, although this decoder asks for 8.
    network = _built("pspnet", encoder="hrnet_w18_small")
    assert network.stride == 32
    assert _scores(network, _noise(1, 4, 40, 72)).shape == (1, 6, 40, 72)


def test_encoder_names_prefer_timm():
    assert encoder_name("resnet18") == encoder_name("tu-resnet18") == "tu-resnet18"
    assert encoder_name("mobilenet_v2") == "mobilenet_v2"


def test_options_reach_the_library():
    assert _built("unet", encoder_depth=3, decoder_channels=[32, 16, 8]).stride == 8


@pytest.mark.parametrize("name", _SMP)
def test_the_scale_aware_module_fits_behind_every_decoder(name):
    plain = _built(name, encoder="test_resnet")
    network = _built(name, encoder="test_resnet", scale_aware={"reference_size": 256})
    module = network.network.decoder.scale_aware
    factor = network.network.segmentation_head[1]
    stride = int(getattr(factor, "scale_factor", 1))
    assert module.reference_size == (256 // stride, 256 // stride)
    pixels = _noise(1, 4, 70, 40)
    scores = _scores(network, pixels)
    assert scores.shape == (1, 6, 70, 40)
    assert count_parameters(network) - count_parameters(plain) == count_parameters(module) > 0
    assert network.stride == plain.stride
    assert not torch.allclose(scores, _scores(plain, pixels))
    network.train()(_noise(2, 4, 64, 64)).square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters())


# DPT


def test_a_vision_transformer_takes_any_size_unless_given_one():
    network = _built("dpt", **_SMALL_DPT)
    assert (network.stride, network.min_size) == (32, 32)
    for size in ((32, 32), (200, 33)):
        assert _scores(network, _noise(1, 4, *size)).shape == (1, 6, *size)


def test_a_vision_transformer_of_one_tile_size():
    network = _built("dpt", **_SMALL_DPT, tile_size=64)
    assert network.fixed_size == network.min_size == 64
    for size in ((64, 64), (50, 33)):
        assert _scores(network, _noise(1, 4, *size)).shape == (1, 6, *size)
    with pytest.raises(ConfigError, match="takes tiles of 64 pixels and was given 65 × 20"):
        network(_noise(1, 4, 20, 65))


def test_the_interpolated_places_of_a_transformer_are_those_of_its_tile_size():
    # At the very size it was built for, both forms are the same network.
    moving, fixed = (_built("dpt", **_SMALL_DPT, **more) for more in ({}, {"tile_size": 160}))
    fixed.load_state_dict(moving.state_dict())
    pixels = _noise(1, 4, 160, 160)
    torch.testing.assert_close(_scores(moving, pixels), _scores(fixed, pixels))


@pytest.mark.parametrize("bands", [1, 4, 16])
def test_patches_are_the_convolution_they_stand_for(bands):
    network = nn.Sequential(nn.Conv2d(bands, 8, 16, 16), nn.Conv2d(8, 8, 3, 3, padding=1))
    pixels = _noise(2, bands, 96, 96)
    expected = network(pixels)
    Patches.replace_in(network)
    assert [type(layer) for layer in network] == [Patches, nn.Conv2d]
    torch.testing.assert_close(network(pixels), expected)
    # The library's own convolution fails this on some CPUs.
    half = network[:1].bfloat16()(pixels.bfloat16()).float()
    whole = network[:1].float()(pixels)
    assert float((half - whole).detach().square().mean().sqrt()) < 0.01 * float(whole.detach().std())


# torchvision


def test_state_dicts_of_torchvision_fit():
    from torchvision.models import segmentation

    source = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=6).eval()
    network = _built("torchvision-lraspp", 3)
    network.network.load_state_dict(source.state_dict())
    pixels = _noise(1, 3, 64, 96)
    assert torch.equal(_scores(network, pixels), _scores(source, pixels)["out"])


def test_torchvision_answers_with_its_auxiliary_head_in_training():
    network = _built("torchvision-deeplabv3", 2, 3, encoder="mobilenet_v3_large", auxiliary=True).train()
    output = network(_noise(1, 2, 70, 50))
    assert {key: tuple(value.shape[-2:]) for key, value in output.items()} == {"scores": (70, 50), "aux": (70, 50)}
    assert isinstance(network.eval()(_noise(1, 2, 70, 50)), torch.Tensor)


@pytest.mark.parametrize("encoder", ["mobilenet_v3_large", "resnet50"])
def test_pretrained_weights_are_adapted_to_the_bands(monkeypatch, encoder):
    from torchvision import models

    torch.manual_seed(1)
    source = models.get_model(encoder, weights=None)
    monkeypatch.setattr("geoseg.networks.torchvision_families.get_model", lambda *a, **k: source)
    network = _built("torchvision-deeplabv3", 5, encoder=encoder, pretrained=True).network
    first = next(layer for layer in network.backbone.modules() if isinstance(layer, nn.Conv2d))
    original = next(layer for layer in source.modules() if isinstance(layer, nn.Conv2d))
    # Bands take the colours in turn, scaled so that the sum over bands stays what it was for three.
    torch.testing.assert_close(first.weight, original.weight[:, [0, 1, 2, 0, 1]] * 3 / 5)
    own = dict(network.backbone.state_dict())
    known = dict(getattr(source, "features", source).state_dict())
    assert sum(torch.equal(own[key], known[key]) for key in own) == len(own) - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "torchvision-fcn", "encoder": "resnet18"}, "no encoder of torchvision's fcn named 'resnet18'"),
        ({"name": "torchvision-lraspp", "auxiliary": True}, "lraspp has no auxiliary head"),
        ({"name": "dpt", "encoder": "resnet18"}, "resnet18 is no vision transformer"),
        ({"name": "dpt", "encoder": "test_vit", "tile_size": 70}, "does not take tiles of 70 pixels"),
        ({"name": "dpt", "encoder": "test_vit", "decoder_chanels": 3}, "no option of DPT named 'decoder_chanels'"),
        ({"name": "unet", "scale_aware": {"mode": "z"}}, "no mode of the scale-aware module named 'z'"),
        ({"name": "unet", "scale_aware": {"mood": "xy"}}, "cannot be built with scale_aware=.*mood"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        networks.create(**{"in_channels": 3, "num_classes": 2, **arguments})
    assert "\n" not in str(caught.value)


def test_weights_of_torchvision_that_cannot_be_downloaded_leave_a_way_on(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("geoseg.networks.torchvision_families.get_model", offline)
    with pytest.raises(ConfigError, match=r"mobilenet_v3_large cannot be had \(no route to host\).*leave out"):
        networks.create("torchvision-lraspp", in_channels=3, num_classes=2, pretrained=True)


# padding and norms


def test_mirrored_repeats_as_often_as_needed():
    assert mirrored(3, 8, torch.device("cpu")).tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert mirrored(1, 3, torch.device("cpu")).tolist() == [0, 0, 0]
    assert mirrored(4, 4, torch.device("cpu")).tolist() == [0, 1, 2, 3]


def test_padding_mirrors_below_and_right():
    echo = AnySize(torch.nn.Identity(), stride=4)
    seen = []
    echo.network.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pixels = torch.arange(15.0).reshape(1, 1, 3, 5)
    assert torch.equal(echo(pixels), pixels)
    assert torch.equal(seen[0], torch.nn.functional.pad(pixels, (0, 3, 0, 1), mode="reflect"))


def test_a_norm_of_one_value_takes_its_running_statistics():
    plain = nn.BatchNorm2d(3)
    plain.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    plain.running_var.fill_(4.0)
    network = nn.Sequential(plain)
    allow_single_values(network)
    assert type(network[0]) is PooledBatchNorm2d
    values = torch.tensor([3.0, 2.0, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(network.train()(values).flatten(), torch.tensor([1.0, 0.0, -1.0]), atol=1e-5, rtol=0)
    assert network[0].running_mean.tolist() == [1.0, 2.0, 3.0]
    many = _noise(2, 3, 4, 4)
    torch.testing.assert_close(network(many), plain.train()(many))
