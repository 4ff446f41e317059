"""The scale-aware module: what it reads, how far it reaches, its gradients and its use in other decoders."""

import itertools
import math

import pytest
import torch
from torch import nn

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.receptive_field import measure_halo
from geoseg.networks.scale_aware import ScaleAwareModule, ScaleAwareStage, read_at, scale_aware_stage

MODES = ("tile", "xy", "authors")


def _noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _lively(channels=4, *, seed=0, dtype=torch.float64, **options):
    """A module in evaluation mode whose offsets have about unit variance, as after training from ``offset_init`` 1."""
    torch.manual_seed(seed)
    module = ScaleAwareModule(channels, offset_init=1.0, **options).to(dtype)
    for norm in (module.sampling_conv[1], module.sampling_conv[4]):
        norm.momentum = None
    module(_noise(4, channels, 32, 32).to(dtype))
    return module.eval()


def _zeroed(**options):
    module = ScaleAwareModule(4, **options).double().eval()
    nn.init.zeros_(module.sampling_conv[3].weight)
    return module


@pytest.mark.parametrize(
    ("channels", "parameters"), [(128, 75012), (256, 297476), (512, 1184772), (1024, 4728836), (2048, 18894852)]
)
def test_parameters_of_the_paper(channels, parameters):
    with torch.device("meta"):
        module = ScaleAwareModule(channels)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def test_bilinear_reading_by_hand():
    features = _noise(2, 3, 5, 7)
    generator = torch.Generator().manual_seed(3)
    columns = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64) * 6
    rows = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64) * 4
    columns[0, 0] = torch.tensor([0, 6, 3, 5.5])
    rows[0, 0] = torch.tensor([4, 0, 2, 4])
    expected = torch.empty(2, 3, 4, 4, dtype=torch.float64)
    for n, i, j in itertools.product(range(2), range(4), range(4)):
        x, y = float(columns[n, i, j]), float(rows[n, i, j])
        x0, y0 = math.floor(x), math.floor(y)
        x1, y1 = min(x0 + 1, 6), min(y0 + 1, 4)
        top = (1 - x + x0) * features[n, :, y0, x0] + (x - x0) * features[n, :, y0, x1]
        bottom = (1 - x + x0) * features[n, :, y1, x0] + (x - x0) * features[n, :, y1, x1]
        expected[n, :, i, j] = (1 - y + y0) * top + (y - y0) * bottom
    torch.testing.assert_close(read_at(features, columns, rows), expected)


@pytest.mark.parametrize("mode", ["tile", "xy"])
def test_without_offsets_a_pixel_weighs_itself(mode):
    features = _noise(2, 4, 9, 13)
    torch.testing.assert_close(_zeroed(mode=mode)(features), features * (1 + features.sigmoid()), rtol=0, atol=1e-6)


def test_without_offsets_the_authors_mode_reads_the_transposed_map():
    features = _noise(2, 4, 9, 9)
    expected = features * (1 + features.mT.sigmoid())
    torch.testing.assert_close(_zeroed(mode="authors")(features), expected, rtol=0, atol=1e-6)


def test_the_first_offset_is_the_column():
    module = _zeroed(reference_size=(3, 5))
    with torch.no_grad():
        module.sampling_conv[4].bias.copy_(torch.tensor([1.0, -1.0]))
    columns, rows = module.positions(_noise(1, 4, 6, 8))
    # An offset of 1 is half of the reference map less one feature: 2 columns on, 1 row up.
    assert columns[0, 0].tolist() == [2, 3, 4, 5, 6, 7, 7, 7]
    assert rows[0, :, 0].tolist() == [0, 0, 1, 2, 3, 4]


def test_unbounded_tile_mode_of_the_maps_own_size_is_xy():
    features = _noise(2, 4, 12, 10)
    tile = _lively(mode="tile", reference_size=(12, 10), bound=None)
    xy = _lively(mode="xy")
    torch.testing.assert_close(tile(features), xy(features), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bound", [0.0, 1.0, 2.5, 4.0])
def test_tiles_agree_with_the_whole_map_at_the_halo_and_not_below(bound):
    module = _lively(reference_size=(16, 16), bound=bound)
    features = _noise(1, 4, 40, 48)
    whole = module(features)[..., 12:28, 14:30]
    exact = max(2, math.ceil(bound))

    def tile(halo):
        inner = module(features[..., 12 - halo : 28 + halo, 14 - halo : 30 + halo])
        return inner[..., halo : halo + 16, halo : halo + 16]

    torch.testing.assert_close(tile(exact), whole, rtol=0, atol=1e-5)
    # Without a bound to reach, only the offsets' own convolutions look around, and a bound of 0 discards them.
    needed = 0 if bound == 0 else exact
    if needed:
        assert (tile(needed - 1) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_only_tile_mode_does_not_know_the_size_of_the_map(mode):
    module = _lively(mode=mode, reference_size=(16, 16))
    features = _noise(1, 4, 40, 40)
    difference = (module(features[..., :32])[..., 10:20] - module(features)[..., 10:20]).abs().max()
    assert (difference < 1e-5) == (mode == "tile")


def test_a_shifted_map_gives_a_shifted_output():
    module = _lively(reference_size=(16, 16), dtype=torch.float32)
    features = _noise(1, 4, 30, 30).float()
    moved = features.roll((3, 5), dims=(2, 3))
    inner = (..., slice(8, -8), slice(10, -10))
    expected = module(features).roll((3, 5), dims=(2, 3))
    torch.testing.assert_close(module(moved)[inner], expected[inner], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("options", "radius"), [({}, 4), ({"bound": 2.5}, 3), ({"bound": 1.0}, 2)])
def test_the_reach_is_known_from_structure(options, radius):
    reach = measure_halo(ScaleAwareModule(3, **options), 3, 1, maximum=8)
    assert (reach.radius, reach.exact) == (radius, True)


@pytest.mark.parametrize("options", [{"mode": "xy"}, {"mode": "authors"}, {"bound": None}])
def test_without_a_bound_there_is_no_reach(options):
    assert not measure_halo(ScaleAwareModule(3, **options), 3, 1, maximum=8).bounded


@pytest.mark.parametrize("mode", MODES)
def test_gradients_agree_with_finite_differences(mode):
    module = _lively(3, mode=mode, reference_size=(8, 8), bound=2.0)
    features = _noise(1, 3, 5, 6, seed=4).requires_grad_()
    parameters = dict(module.named_parameters())
    names = ["sampling_conv.0.weight", "sampling_conv.3.weight", "sampling_conv.4.weight", "sampling_conv.4.bias"]

    def run(pixels, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (pixels,))

    values = [parameters[name] for name in names]
    assert torch.autograd.gradcheck(run, (features, *values), eps=1e-7, atol=1e-6, rtol=1e-5)


def test_no_gradient_reaches_offsets_at_their_bound():
    module = _zeroed()
    with torch.no_grad():
        module.sampling_conv[4].bias.fill_(100.0)
    module(_noise(1, 4, 12, 12)).sum().backward()
    assert torch.equal(module.sampling_conv[4].bias.grad, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("training", [True, False])
def test_it_starts_by_reading_each_pixel_at_its_own_place(training):
    torch.manual_seed(0)
    module = ScaleAwareModule(4).double().train(training)
    features = _noise(2, 4, 8, 9)
    torch.testing.assert_close(module(features), features * (1 + features.sigmoid()))
    assert torch.count_nonzero(module.with_offset(features)[1]) == 0
    # From there it can learn: the scale of the offsets has a gradient.
    module(features).square().sum().backward()
    assert (module.sampling_conv[4].weight.grad != 0).all()


def test_the_papers_start_reads_all_over_the_map():
    torch.manual_seed(0)
    offset = ScaleAwareModule(8, mode="xy", offset_init=1.0).with_offset(_noise(2, 8, 32, 32).float())[1]
    assert offset.abs().mean() > 5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (2, 3)])
def test_maps_of_any_size(mode, size):
    weighted, offset = _lively(mode=mode).with_offset(_noise(2, 4, *size))
    assert weighted.shape == (2, 4, *size)
    assert offset.shape == (2, 2, *size)
    assert torch.isfinite(weighted).all()


def test_a_single_channel():
    assert ScaleAwareModule(1).eval()(torch.ones(1, 1, 4, 4)).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("mode", ["tile", "xy"])
def test_half_precision_reads_at_the_places_of_single_precision(mode):
    # In bfloat16 itself, column 999 would be 1000 and -1 to 1 would have steps of two columns.
    module = _zeroed(mode=mode).float()
    features = _noise(1, 4, 3, 1000).float()
    expected = features * (1 + features.sigmoid())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(features)
    torch.testing.assert_close(mixed, expected, rtol=1e-3, atol=1e-3)
    columns, rows = module.bfloat16().positions(features.bfloat16())
    assert columns.dtype == rows.dtype == torch.float32
    half = module(features.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=2e-2, atol=2e-2)


def test_traced_and_exported_it_says_the_same():
    module = _lively(dtype=torch.float32, reference_size=(8, 8))
    features = _noise(1, 4, 8, 10).float()
    expected = module(features)
    torch.testing.assert_close(torch.jit.trace(module, features)(features), expected)
    torch.testing.assert_close(torch.export.export(module, (features,)).module()(features), expected)


class _Join(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(5, 6, 1)

    def forward(self, coarse, *, skip):
        return self.convolution(torch.cat([coarse, skip], dim=1))


def test_a_wrapped_stage_takes_what_the_stage_takes():
    torch.manual_seed(0)
    stage = _Join()
    wrapped = scale_aware_stage(stage, 6, stride=4, reference_size=(256, 500), bound=3).eval()
    assert isinstance(wrapped, ScaleAwareStage)
    assert wrapped.stage is stage
    assert wrapped.scale_aware.reference_size == (64, 128)
    assert wrapped.scale_aware.bound == 3
    coarse, skip = torch.randn(1, 2, 8, 8), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(wrapped(coarse, skip=skip), wrapped.scale_aware(stage(coarse, skip=skip)))


def test_in_the_decoder_of_another_family():
    torch.manual_seed(0)
    network = networks.create("unet", in_channels=3, num_classes=4, decoder_channels=[32, 16, 8, 8, 8]).eval()
    unet = network.network
    plain = unet.decoder
    unet.decoder = scale_aware_stage(plain, 8, stride=1, bound=4.0).eval()
    pixels = torch.randn(1, 3, 40, 70)
    scores = network(pixels)
    assert scores.shape == (1, 4, 40, 70)
    features = plain(unet.encoder(network._padded(pixels)))
    expected = unet.segmentation_head(features * (1 + features.sigmoid()))[..., :40, :70]
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tiles"}, "no mode of the scale-aware module named 'tiles'; did you mean tile"),
        ({"reference_size": (0, 5)}, r"reference size is \(0, 5\)"),
        ({"reference_size": (5,)}, r"reference size is \(5,\)"),
        ({"bound": -1.0}, "bound of the offsets is -1.0"),
        ({"bound": float("inf")}, "or None for no bound"),
        ({"channels": 0}, "channels of a scale-aware module are 0"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ScaleAwareModule(**{"channels": 4, **options})


@pytest.mark.parametrize("size", [0, 63, 1.5, (512,), (512, 512, 3), True, (512, "512"), 70000])
def test_reference_sizes_that_are_refused(size):
    with pytest.raises(ConfigError, match="the reference size is"):
        scale_aware_stage(nn.Identity(), 4, stride=8, reference_size=size)
