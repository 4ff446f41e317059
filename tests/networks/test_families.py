"""One conformance suite that every registered network must pass."""

import pytest
import torch

from geoseg import networks
from geoseg.networks.any_size import AnySize, mirrored
from geoseg.networks.families import encoder_name

# Every number of bands and of classes is met by some network, and every network by some of them.
_BANDS = (1, 3, 4, 13)
_CLASSES = (2, 6)


def _built(name, position=0, **options):
    torch.manual_seed(0)
    bands = _BANDS[position % len(_BANDS)]
    classes = _CLASSES[position % len(_CLASSES)]
    return networks.create(name, in_channels=bands, num_classes=classes, **options).eval(), bands, classes


@pytest.fixture(params=list(enumerate(networks.names())), ids=lambda pair: pair[1])
def built(request):
    position, name = request.param
    return name, *_built(name, position)


def _scores(network, pixels):
    with torch.inference_mode():
        return network(pixels)


def _noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bands", _BANDS)
@pytest.mark.parametrize("classes", _CLASSES)
@pytest.mark.parametrize("name", ["plainconv", "unet", "segformer"])
def test_any_number_of_bands_and_classes(name, bands, classes):
    network = networks.create(name, in_channels=bands, num_classes=classes).eval()
    assert _scores(network, _noise(1, bands, 32, 32)).shape == (1, classes, 32, 32)


@pytest.mark.parametrize("size", [(64, 96), (45, 70), (3, 1), (1, 1)])
def test_scores_have_the_size_of_the_input(built, size):
    _, network, bands, classes = built
    scores = _scores(network, _noise(2, bands, *size))
    assert scores.shape == (2, classes, *size)
    assert torch.isfinite(scores).all()


def test_evaluation_is_deterministic_and_leaves_the_weights_alone(built):
    _, network, bands, _ = built
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pixels = _noise(1, bands, 64, 64)
    assert torch.equal(_scores(network, pixels), _scores(network, pixels))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_facts_agree_with_the_network(built):
    name, network, _, _ = built
    assert network.stride == networks.info(name).stride
    assert all(key.startswith("network.") for key in network.state_dict())
    assert networks.create(name, in_channels=1, num_classes=2).training


def test_one_sample_does_not_depend_on_the_others(built):
    _, network, bands, _ = built
    pixels = _noise(2, bands, 64, 64)
    torch.testing.assert_close(_scores(network, pixels)[1:], _scores(network, pixels[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "overlap"), [("plainconv", 3), ("unet", 192), ("unet++", 192), ("linknet", 192)], ids=lambda v: str(v)
)
def test_exact_networks_agree_tiled_and_whole(name, overlap):
    """Survey sheet, check 6.2: to 1e-4 of the scores' deviation with enough overlap, whatever surrounds the tile."""
    network, bands, _ = _built(name, 1)
    stride = network.stride
    size = 2 * overlap + 4 * stride
    scene = _noise(1, bands, size + stride * 2, size)
    whole = _scores(network, scene)
    tile = _scores(network, scene[..., stride : stride + size, :])
    core = slice(overlap, size - overlap)
    shifted = whole[..., stride : stride + size, :]
    difference = (tile[..., core, core] - shifted[..., core, core]).abs().max()
    assert difference < 1e-4 * whole.std()


@pytest.mark.parametrize("name", ["fpn", "deeplabv3+"])
def test_networks_not_called_exact_are_not(name):
    network, bands, _ = _built(name, 1)
    scene = _noise(1, bands, 320, 320)
    whole = _scores(network, scene)
    tile = _scores(network, scene[..., :256, :256])
    difference = (tile[..., 112:144, 112:144] - whole[..., 112:144, 112:144]).abs().max()
    assert difference > 1e-4 * whole.std()


@pytest.mark.parametrize(
    "encoder", ["resnet18", "hrnet_w18", "convnext_tiny", "tf_efficientnet_lite0", "mit_b0", "tu-resnet18.a1_in1k"]
)
def test_encoders_by_plain_name(encoder):
    network, bands, classes = _built("unet", 2, encoder=encoder)
    assert _scores(network, _noise(1, bands, 40, 40)).shape == (1, classes, 40, 40)


def test_an_encoder_deeper_than_its_decoder_says_its_true_stride():
    # HRNet works at stride 32 inside, although this decoder asks for 8.
    network, bands, classes = _built("pspnet", 1, encoder="hrnet_w18")
    assert network.stride == 32
    assert _scores(network, _noise(1, bands, 40, 72)).shape == (1, classes, 40, 72)


def test_encoder_names_prefer_timm():
    assert encoder_name("resnet18") == encoder_name("tu-resnet18") == "tu-resnet18"
    assert encoder_name("mobilenet_v2") == "mobilenet_v2"


def test_options_reach_the_library():
    network, _, _ = _built("unet", 1, encoder_depth=3, decoder_channels=[32, 16, 8])
    assert network.stride == 8


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
