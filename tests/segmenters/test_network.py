"""A network behind the tile interface, its bundles, and the folding of batch norm."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from geoseg import networks
from geoseg.bundle import Description, read_bundle, write_bundle
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError
from geoseg.grid import Window
from geoseg.networks.inference import fold_batch_norm
from geoseg.normalisation import Normalisation, Statistics
from geoseg.segmenters.interface import Spec, State, Tiles
from geoseg.segmenters.network import (
    NetworkState,
    PlainNetwork,
    load_tensors,
    new_bundle,
    spec_of,
    tensors_of,
)

CPU = torch.device("cpu")
CLASSES = Classes.parse("background,road,roof")
SCALING = Normalisation((100.0, 90.0), (50.0, 40.0), -10.0, 10.0)
SPEC = Spec(("red", "green"), 0.5, CLASSES, tile=64, halo=0, normalisation=SCALING)


def _tiles(count=2, bands=2, side=64, seed=0):
    pixels = torch.randint(0, 256, (count, bands, side, side), generator=torch.Generator().manual_seed(seed))
    valid = torch.ones(count, side, side, dtype=torch.bool)
    valid[0, :5] = False
    return Tiles(pixels.to(torch.uint8) * valid[:, None], valid, (Window(0, 0, side, side),) * count)


def _network(name="unet", **options):
    torch.manual_seed(0)
    module = networks.create(name, in_channels=2, num_classes=3, **options)
    _trained(module)
    return module.eval()


def _trained(module):
    """Give batch norms statistics and weights that do something, as training would."""
    generator = torch.Generator().manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            shape = layer.running_mean.shape
            layer.running_mean.copy_(torch.randn(shape, generator=generator) * 0.2)
            layer.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)


def _norms(module):
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


class _Scene:
    def statistics(self):
        return Statistics((100.0, 90.0), (50.0, 0.0), (0.0, 0.0), (255.0, 255.0))


def test_scores_are_those_of_the_module_on_scaled_pixels():
    module = _network("plainconv")
    tiles = _tiles()
    scores = PlainNetwork(module, SPEC).segment(tiles, State())
    scaled = (tiles.pixels.float() - torch.tensor([100.0, 90.0])[:, None, None]) / torch.tensor([50.0, 40.0])[
        :, None, None
    ]
    with torch.no_grad():
        expected = module(scaled * tiles.valid[:, None])
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert scores.dtype == torch.float32


def test_scaling_is_measured_only_where_the_spec_has_none():
    module = _network("plainconv")
    assert PlainNetwork(module, SPEC).prepare(_Scene()) == NetworkState()
    state = PlainNetwork(module, replace(SPEC, normalisation=None)).prepare(_Scene())
    # A band without contrast is only shifted.
    assert state.normalisation == Normalisation((100.0, 90.0), (50.0, 1.0), -10.0, 10.0)
    with pytest.raises(ConfigError, match="no scaling"):
        PlainNetwork(module, replace(SPEC, normalisation=None)).segment(_tiles(), State())


class _Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, pixels):
        return self.wrap(pixels[:, :1].repeat(1, 3, 1, 1))


@pytest.mark.parametrize(
    "wrap", [lambda x: (x, 0), lambda x: [x], lambda x: {"aux": 0, "out": x}, lambda x: {"main": x}, lambda x: x]
)
def test_the_main_output_is_taken(wrap):
    assert PlainNetwork(_Returns(wrap), SPEC).segment(_tiles(), State()).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [(lambda x: x[..., ::2, ::2], r"\(2, 3, 32, 32\)"), (lambda x: x[:, :2], r"\(2, 2,"), (lambda x: None, "NoneType")],
)
def test_scores_of_another_shape_are_refused(wrap, message):
    with pytest.raises(ConfigError, match=message):
        PlainNetwork(_Returns(wrap), SPEC).segment(_tiles(), State())


@pytest.mark.parametrize("name", ["plainconv", "unet", "linknet", "deeplabv3+", "segformer"])
def test_placing_changes_speed_and_not_scores(name):
    module = _network(name)
    reference = copy.deepcopy(module.state_dict())
    plain, placed = PlainNetwork(module, SPEC), PlainNetwork(module.train(), SPEC)
    placed.place(CPU)
    module.eval()
    with torch.inference_mode():
        before, after = plain.segment(_tiles(), State()), placed.segment(_tiles(), State())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.std()))
    assert not placed.module.training
    assert not any(parameter.requires_grad for parameter in placed.module.parameters())
    # The module that was given can still be trained and saved.
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in reference.items())
    assert all(parameter.requires_grad for parameter in module.parameters())
    placed.place(CPU)
    assert torch.equal(placed.segment(_tiles(), State()), after)


def test_bfloat16_runs_on_the_cpu():
    segmenter = PlainNetwork(_network("unet"), SPEC)
    segmenter.place(CPU)
    with torch.inference_mode():
        exact = segmenter.segment(_tiles(), State())
        with torch.autocast("cpu", torch.bfloat16):
            rough = segmenter.segment(_tiles(), State())
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("encoder", ["resnet18", "tf_efficientnet_lite0", "hrnet_w18"])
def test_every_batch_norm_of_a_convolutional_network_folds(encoder):
    module = _network("unet", encoder=encoder)
    folded = fold_batch_norm(copy.deepcopy(module), (1, 2, 64, 64))
    assert _norms(module) > 0
    assert _norms(folded) == 0
    pixels = torch.randn(1, 2, 96, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = module(pixels)
        assert (folded(pixels) - expected).abs().max() < 1e-4 * expected.abs().max()


class _Awkward(nn.Module):
    """Batch norms that must not fold: after an activation in place, of a tensor used twice, of a layer used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(c, 3, 3, padding=1) for c in (2, 3, 3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, pixels):
        values = self.norms[0](self.relu(self.first(pixels)))
        values = self.second(values)
        values = self.norms[1](values) + values
        values = self.norms[2](self.third(values))
        return self.norms[2](self.third(values))


def test_what_does_not_fold_is_left_alone():
    module = _Awkward().eval()
    _trained(module)
    folded = fold_batch_norm(copy.deepcopy(module), (1, 2, 16, 16))
    pixels = torch.randn(1, 2, 16, 16)
    assert torch.equal(folded(pixels), module(pixels))
    assert _norms(folded) == 3


def test_a_network_that_cannot_take_the_trial_input_is_left_alone():
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 1)).eval()
    assert _norms(fold_batch_norm(module, (1, 2, 16, 16))) == 1


class _Peeking(nn.Module):
    """Uses the weights of a convolution beside it, so that folding changes the scores."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 1, bias=False)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels):
        return self.norm(self.convolution(pixels)) * self.convolution.weight.sum()


def test_a_network_that_folding_would_change_is_put_back_as_it_was():
    module = _Peeking().eval()
    _trained(module)
    before = copy.deepcopy(module)
    folded = fold_batch_norm(module, (1, 2, 16, 16))
    assert _norms(folded) == 1
    assert folded.convolution.bias is None
    pixels = torch.randn(1, 2, 16, 16)
    assert torch.equal(folded(pixels), before(pixels))


@pytest.mark.parametrize(("name", "options"), [("unet", {}), ("linknet", {"encoder": "test_resnet"}), ("gsn", {})])
def test_loading_draws_no_random_numbers_and_keeps_the_number_of_threads(tmp_path, name, options):
    description, tensors = new_bundle(name, bands=["red", "green"], classes=CLASSES, tile=64, halo=0, seed=4, **options)
    write_bundle(tmp_path / "m.safetensors", description, tensors)
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    loaded = PlainNetwork.from_bundle(read_bundle(tmp_path / "m.safetensors")).module
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    for key, value in tensors_of(loaded).items():
        np.testing.assert_array_equal(value, tensors[key])


@pytest.mark.parametrize(("name", "halo"), [("plainconv", "auto"), ("unet", 64), ("fpn", 64)])
def test_a_new_bundle_gives_the_scores_of_its_network(tmp_path, name, halo):
    description, tensors = new_bundle(name, bands=["red", "green"], classes=CLASSES, halo=halo, seed=7)
    write_bundle(tmp_path / "m.safetensors", description, tensors)
    segmenter = PlainNetwork.from_bundle(read_bundle(tmp_path / "m.safetensors"))
    torch.manual_seed(7)
    module = networks.create(name, in_channels=2, num_classes=3).eval()
    state = NetworkState(normalisation=SCALING)
    segmenter.module.eval()
    expected = PlainNetwork(module, SPEC).segment(_tiles(), State())
    assert torch.equal(segmenter.segment(_tiles(), state), expected)
    assert segmenter.spec.classes == CLASSES
    assert segmenter.spec.normalisation is None
    assert description.tile % description.stride == description.halo % description.stride == 0


def test_what_a_new_bundle_says():
    classes = Classes.parse("background,road,roof")
    description, _ = new_bundle("plainconv", bands=["a"], classes=classes, resolution=0.3, options={"depth": 5})
    assert description.settings == {"name": "plainconv", "encoder": None, "options": {"depth": 5}}
    assert (description.tile, description.halo, description.stride) == (2048, 5, 1)
    assert description.tile_exact
    assert description.resolution == 0.3
    description, _ = new_bundle("pspnet", bands=["a"], classes=classes, halo=64)
    assert (description.tile, description.halo, description.tile_exact) == (512, 64, False)
    description, _ = new_bundle("plainconv", bands=["a"], classes=classes, halo=300)
    assert (description.tile, description.halo) == (2048, 300)
    # Attention to whole channels takes exactness away from a family that has it.
    description, _ = new_bundle("unet", bands=["a"], classes=classes, encoder="mobilenetv3_small_100")
    assert not description.tile_exact
    assert description.tile - 2 * description.halo >= 256


def test_a_new_bundle_tells_how_its_tiles_compare_with_one_pass(tmp_path):
    exact, tensors = new_bundle("linknet", bands=["a"], classes=CLASSES, options={"encoder_depth": 3})
    assert exact.tile_exact
    assert exact.tiling.decided_by == "structure"
    assert exact.halo == exact.tiling.halo_exact
    assert exact.tiling.score_error <= 1e-5
    assert exact.tile >= 4 * exact.halo
    write_bundle(tmp_path / "m.safetensors", exact, tensors)
    assert read_bundle(tmp_path / "m.safetensors").description == exact
    # A halo that is given, and too short: tiles of other sizes will do all the same.
    short, _ = new_bundle("linknet", bands=["a"], classes=CLASSES, options={"encoder_depth": 3}, halo=8, tile=128)
    assert not short.tile_exact
    assert short.tiling.bound is None
    assert short.tiling.score_error > 1e-3
    assert not spec_of(short).fixed_tile
    # One that pools has its disagreement in the bundle, and one size.
    pooled, _ = new_bundle("pspnet", bands=["a"], classes=CLASSES, tile=128)
    assert pooled.tiling.halo_exact is None
    assert pooled.tiling.score_error > 1e-3
    assert pooled.halo <= 32
    assert spec_of(pooled).fixed_tile


def test_bundles_from_before_tiles_were_measured_still_mean_the_same():
    description, _ = new_bundle("plainconv", bands=["a"], classes=CLASSES)
    record = description.model_dump()
    del record["tiling"]
    old = Description.model_validate(record)
    assert old.tiling is None
    assert not spec_of(old).fixed_tile
    assert spec_of(old.model_copy(update={"tile_exact": False})).fixed_tile


def test_equal_seeds_give_equal_bundles_and_leave_the_callers_numbers_alone():
    before = torch.random.get_rng_state()
    (_, one), (_, same), (_, other) = (
        new_bundle("plainconv", bands=["a"], classes=CLASSES, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(np.array_equal(one[key], same[key]) for key in one)
    assert not all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"halo": -1}, "cannot be negative"),
        ({"tile": 64, "halo": 32}, "does not fit a halo of 32"),
        ({"tile": 20000}, "at most 16384"),
        ({"name": "linknet", "tile": 100, "halo": 0}, "stride 32 does not divide: use 128"),
        ({"options": {"depth": {1, 2}}}, "cannot be kept in a bundle"),
        ({"options": {"in_channels": 2}}, "in_channels is no option"),
        ({"name": "nothing"}, "no network named 'nothing'"),
    ],
)
def test_bundles_that_cannot_be_made(arguments, message):
    with pytest.raises(ConfigError, match=message):
        new_bundle(**{"name": "plainconv", "bands": ["a"], "classes": CLASSES, **arguments})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("network.0.bias"), r"m\.st lacks network\.0\.bias: its weights"),
        (lambda t: t.update(extra=np.zeros(1)), "has extra, which the network does not"),
        (lambda t: t.update({"network.0.bias": np.zeros(5)}), r"network\.0\.bias of shape \(5,\) where \(16,\)"),
        (lambda t: t.clear(), r"lacks network\.0\.bias, .* and 5 more"),
    ],
)
def test_weights_of_another_network_are_refused(change, message):
    module = networks.create("plainconv", in_channels=1, num_classes=2)
    tensors = tensors_of(module)
    change(tensors)
    with pytest.raises(BundleError, match=message):
        load_tensors(module, tensors, "m.st")


@pytest.mark.parametrize(
    "settings",
    [{}, {"name": "nothing"}, {"name": "plainconv", "options": {"in_channels": 1}}, {"name": "unet", "encoder": 5}],
)
def test_a_bundle_of_an_unknown_network_is_refused(tmp_path, settings):
    description, tensors = new_bundle("plainconv", bands=["a"], classes=CLASSES)
    write_bundle(tmp_path / "m.safetensors", description.model_copy(update={"settings": settings}), tensors)
    with pytest.raises(BundleError, match="does not make"):
        PlainNetwork.from_bundle(read_bundle(tmp_path / "m.safetensors"))
