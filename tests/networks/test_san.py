"""SAN: the sizes of the paper, any bands, classes and encoders, its layers, and tiles against one pass."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.inference import fold_batch_norm
from geoseg.networks.receptive_field import measure_halo
from geoseg.networks.san import authors_name
from geoseg.networks.scale_aware import ScaleAwareModule, ScaleAwareStage

MODES = ("tile", "xy", "authors")


def _noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _built(bands=3, classes=4, seed=0, **options):
    torch.manual_seed(seed)
    return networks.create(
        "san", in_channels=bands, num_classes=classes, **{"encoder": "test_resnet", **options}
    ).eval()


def _lively(*, opened=True, **options):
    """A network as after training: batch norms know their input, offsets differ by pixel, no branch is shut."""
    network = _built(offset_init=1.0, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            if opened:
                nn.init.ones_(module.weight)
    network.train()(_noise(2, 3, 96, 96, seed=5))
    return network.eval()


@pytest.mark.parametrize(
    ("encoder", "modules", "parameters", "gmacs"),
    [
        ("resnet34", "M", 23_059_282, 20.338835456),
        ("resnet101", "M", 70_783_058, 59.843),
        ("resnet34", "S", 21_577_034, 19.731316736),
    ],
)
def test_parameters_and_multiplications_of_the_paper(encoder, modules, parameters, gmacs):
    with torch.device("meta"):
        network = networks.create("san", in_channels=3, num_classes=6, encoder=encoder, modules=modules).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 512, 512))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    # The counter counts a multiplication and an addition for each.
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=5e-4)
    modules = [module for module in network.modules() if isinstance(module, ScaleAwareModule)]
    assert len(modules) == len(network.layers)


@pytest.mark.parametrize(
    ("encoder", "modules", "trainable"),
    [("resnet34", "M", 1_791_634), ("resnet101", "M", 28_388_242), ("resnet34", "S", 309_386)],
)
def test_freezing_leaves_what_the_authors_train(encoder, modules, trainable):
    with torch.device("meta"):
        network = networks.create(
            "san", in_channels=3, num_classes=6, encoder=encoder, modules=modules, freeze_encoder=True
        )
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == trainable


@pytest.mark.parametrize(("bands", "classes", "size"), [(1, 2, (1, 1)), (4, 7, (33, 70)), (13, 20, (64, 31))])
@pytest.mark.parametrize("modules", ["M", "S"])
def test_any_bands_classes_and_size(bands, classes, size, modules):
    network = _built(bands, classes, modules=modules)
    with torch.inference_mode():
        scores, layers = network.with_layers(_noise(1, bands, *size))
    assert scores.shape == (1, classes, *size)
    assert layers.shape == (1, len(network.layers), *size)
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize(
    ("encoder", "modules"), [("mobilenetv2_100", "M"), ("convnext_atto", "S"), ("hrnet_w18_small", "M")]
)
def test_other_encoders(encoder, modules):
    network = _built(encoder=encoder, modules=modules, sam_channels=64)
    with torch.inference_mode():
        assert network(_noise(1, 3, 40, 72)).shape == (1, 4, 40, 72)


def test_channels_can_be_capped():
    network = _built(sam_channels=40).network
    modules = [module for module in network.modules() if isinstance(module, ScaleAwareModule)]
    assert [module.sampling_conv[0].in_channels for module in modules] == [40, 40, 40]
    # Where no map is wider, nothing is reduced.
    names = {name for name, _ in _built(sam_channels=512).named_parameters()}
    assert names == {name for name, _ in _built().named_parameters()}


def test_reference_sizes_by_level():
    network = _built(reference_size=(300, 512)).network
    stages = (network.sampling_conv1, network.sampling_conv2, network.sampling_conv3)
    assert all(isinstance(stage, ScaleAwareStage) for stage in stages)
    # 300 pixels are padded to 320.
    assert [stage.scale_aware.reference_size for stage in stages] == [(40, 64), (20, 32), (10, 16)]


@pytest.mark.parametrize("modules", ["M", "S"])
@pytest.mark.parametrize("training", [True, False])
def test_untrained_it_equals_itself_without_resampling(modules, training):
    pixels = _noise(2, 3, 64, 96)
    with torch.no_grad():
        resampling = _built(modules=modules).train(training)(pixels)
        plain = _built(modules=modules, bound=0.0).train(training)(pixels)
    torch.testing.assert_close(resampling, plain)


@pytest.mark.parametrize(("modules", "strides"), [("M", (32, 16, 8)), ("S", (8,))])
def test_layers_are_offset_lengths_in_pixels(modules, strides):
    bound = 1.5
    network = _lively(modules=modules, bound=bound)
    assert network.layers == tuple(f"offset_{stride}" for stride in strides)
    pixels = _noise(1, 3, 64, 96)
    with torch.inference_mode():
        scores, layers = network.with_layers(pixels)
        assert torch.equal(scores, network(pixels))
    assert layers.dtype == torch.float32
    for layer, stride in zip(layers[0], strides, strict=True):
        cells = layer[::stride, ::stride]
        assert torch.equal(layer, cells.repeat_interleave(stride, 0).repeat_interleave(stride, 1))
        assert 0 < cells.max() <= 2**0.5 * bound * stride * (1 + 1e-6)
        assert cells.max() > bound * stride / 4


def test_layers_of_an_untrained_network_are_zero():
    with torch.inference_mode():
        assert torch.count_nonzero(_built().with_layers(_noise(1, 3, 64, 64))[1]) == 0


@pytest.mark.parametrize("mode", MODES)
def test_it_learns_everywhere(mode):
    # Of small tiles offsets are small, so that not all of them are at their bound.
    network = _lively(mode=mode, reference_size=64).train()
    network(_noise(2, 3, 96, 128)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert torch.count_nonzero(parameter.grad) > 0, name


def test_folding_batch_norm_keeps_the_scores():
    network = _lively()
    pixels = _noise(1, 3, 64, 64)
    with torch.inference_mode():
        expected = network(pixels)
    folded = fold_batch_norm(network, (1, 3, 64, 64))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"mode": "xy"}, {"mode": "authors"}, {"bound": None}])
def test_whether_tiles_can_be_exact_shows_in_the_structure(options):
    network = _built(1, 2, sam_channels=8, **options)
    assert measure_halo(network, 1, 32, maximum=32).bounded == (not options)


def test_names_of_the_released_code():
    names = {authors_name(name) for name in _built(modules="S", encoder="resnet18").network.state_dict()}
    assert {"conv0.weight", "bn0.bias", "layer4.1.bn2.weight", "ada_layer2.weight"} <= names
    assert {"sampling_conv1.sampling_conv.4.bias", "score_layer.conv1x1.weight"} <= names
    assert not any("scale_aware" in name or "stage" in name or "encoder" in name for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": "L"}, "no variant of network san named 'L'; known: M, S"),
        ({"mode": "til"}, "did you mean tile"),
        ({"sam_channels": 0}, "sam_channels of network san is 0"),
        ({"reference_size": 16}, "reference size is 16"),
        ({"bound": -1.0}, "bound of the offsets is -1.0"),
        ({"encoder": "resnet19"}, "no encoder named 'resnet19'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        _built(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_tiles_converge_on_one_pass_in_tile_mode_alone(mode):
    """A 64 pixel window with a growing halo; differences in parts of the largest score.

    The encoder's residual branches are shut as they are at the start; with all of them open it takes a larger halo.
    """
    network = _lively(mode=mode, encoder="resnet34", opened=False)
    scene = _noise(1, 3, 704, 704)
    with torch.inference_mode():
        whole = network(scene)[..., 320:384, 320:384]

        def error(halo):
            tile = network(scene[..., 320 - halo : 384 + halo, 320 - halo : 384 + halo])
            inner = tile[..., halo : halo + 64, halo : halo + 64]
            return float((inner - whole).abs().max() / whole.abs().max())

        errors = {halo: error(halo) for halo in (0, 128, 288)}
    assert errors[0] > 0.1
    if mode == "tile":
        assert errors[128] < 0.2
        assert errors[288] < 5e-3
    else:
        assert errors[288] > 2e-2
