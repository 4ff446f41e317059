"""GLNet's networks: what each mode has, and what depends on what; their numbers are held in tests/golden."""

import pytest
import torch

from geoseg.errors import ConfigError
from geoseg.networks.glnet import CollaborativeNet, GlobalNet, GlobalToLocalNet, build_glnet
from geoseg.networks.glnet_exchange import Merging, crops
from geoseg.networks.glnet_fpn import BranchPyramid, resized
from geoseg.networks.patch_grid import patch_grid

BANDS, CLASSES = 4, 3
GRID = patch_grid((150, 130), (64, 64), [(16, 16), (8, 8), (4, 4), (2, 2)], min_overlap=20)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(mode, seed=0, **options):
    torch.manual_seed(seed)
    options.setdefault("encoder", "resnet18")
    return build_glnet(in_channels=BANDS, num_classes=CLASSES, mode=mode, **options).eval()


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(network):
    return sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize(
    ("mode", "count"), [("global", 28_064_839), ("local", 65_435_285), ("collaborative", 102_741_212)]
)
def test_parameters_of_the_three_modes(mode, count):
    """The authors' networks with seven classes; no mode has weights that it does not use."""
    with torch.device("meta"):
        assert parameters(build_glnet(in_channels=3, num_classes=7, mode=mode)) == count


@pytest.mark.parametrize("mode", ["global", "local", "collaborative"])
def test_every_weight_has_a_gradient(mode):
    network = made(mode)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # some begin at 0
            torch.nn.init.ones_(layer.weight)
    overview, patches = noise(1, BANDS, 64, 64), noise(2, BANDS, 64, 64, seed=2)
    corners = GRID.corners[:2]
    maps = network.overview(overview)
    total = network.overview_scores(maps).square().sum()
    if mode != "global":
        local = network.local(patches, maps, GRID, corners)
        joined = maps.joined
        total = total + network.local_scores(local).square().sum()
        if mode == "collaborative":
            merging = Merging(maps.stages, GRID)
            with torch.no_grad():
                merging.add(corners, local.stages)
            further = network.extended(overview, merging.maps())
            joined = further.joined
            total = total + network.extended_scores(further).square().sum()
        share = network.local_share(local)
        scores = share + network.global_share(joined, GRID, corners, share.shape[-2:])
        total = total + scores.square().sum()
    total.backward()
    assert not [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]


def test_shares_add_up_to_the_convolution_over_both():
    network = made("local")
    maps, joined = network.overview(noise(1, BANDS, 64, 64)), noise(1, 512, 16, 16, seed=5)
    local = network.local(noise(3, BANDS, 64, 64, seed=2), maps, GRID, GRID.corners[4:7])
    share = network.local_share(local)
    found = share + network.global_share(joined, GRID, GRID.corners[4:7], share.shape[-2:])
    under = resized(crops(joined, GRID, GRID.corners[4:7]), share.shape[-2:])
    expected = network.ensemble_conv(torch.cat([local.joined, under], 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_patch_is_given_the_cells_under_it_alone():
    network = made("local")
    patches = noise(2, BANDS, 64, 64, seed=2)
    overview = noise(1, BANDS, 64, 64)
    corners = [GRID.corners[0], GRID.corners[-1]]
    with torch.no_grad():
        maps = network.overview(overview)
        before = network.local(patches, maps, GRID, corners).joined
        for levels in maps.stages:
            for each in levels:
                rows, cols = GRID.cells(corners[0], tuple(each.shape[-2:]))
                each[..., rows, cols] += 1
        after = network.local(patches, maps, GRID, corners).joined
    assert not torch.equal(before[0], after[0])
    # The last patch shares no cell with the first at any stride but the coarsest.
    coarse = [GRID.cells(corner, (2, 2)) for corner in corners]
    assert coarse[0] != coarse[1]
    assert torch.equal(before[1], after[1])


def test_batches_do_not_matter():
    network = made("local")
    patches = noise(3, BANDS, 64, 64, seed=2)
    corners = GRID.corners[:3]
    with torch.no_grad():
        maps = network.overview(noise(1, BANDS, 64, 64))
        together = network.local(patches, maps, GRID, corners).joined
        apart = [network.local(patches[i : i + 1], maps, GRID, corners[i : i + 1]).joined for i in range(3)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


def test_the_further_look_has_weights_of_its_own():
    network = made("collaborative")
    assert isinstance(network, CollaborativeNet)
    overview = noise(1, BANDS, 64, 64)
    with torch.no_grad():
        maps = network.overview(overview)
        alone = made("global", seed=7)
        network.fixed.load_state_dict(alone.state_dict())
        changed = network.overview(overview)
        assert not torch.equal(maps.joined, changed.joined)
        assert torch.equal(changed.joined, alone.overview(overview).joined)
        first = network.extended(overview, maps.stages)
        assert not torch.equal(first.joined, network.extended(overview, changed.stages).joined)
    # Pixels reach it through its own encoder.
    assert not torch.equal(first.stages[0][0], changed.stages[0][0])


def test_heads_have_neither_norm_nor_activation():
    head = made("collaborative").fpn_local
    assert {type(layer) for layer in head.children()} == {torch.nn.Conv2d}
    pyramid = BranchPyramid([8, 16, 24, 32], 2)
    features = [noise(1, channels, 32 // 2**i, 32 // 2**i) for i, channels in enumerate((8, 16, 24, 32))]
    with torch.no_grad():
        for layer in pyramid.children():
            layer.bias.zero_()
        once = pyramid(features).joined
        torch.testing.assert_close(pyramid([-2 * each for each in features]).joined, -2 * once, rtol=1e-4, atol=1e-8)


def test_first_weights():
    torch.manual_seed(0)
    head = BranchPyramid([256, 512, 1024, 2048], 2, beside=True)
    weights = torch.cat([layer.weight.detach().flatten() for layer in head.children()])
    assert float(weights.std()) == pytest.approx(0.01, rel=1e-2)
    assert not any(layer.bias.any() for layer in head.children())


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenetv3_small_100", "convnext_atto"])
def test_any_encoder_with_four_strides(encoder):
    network = made("local", encoder=encoder)
    assert isinstance(network, GlobalToLocalNet)
    with torch.no_grad():
        maps = network.overview(noise(1, BANDS, 76, 76))
        sizes = [tuple(each.shape[-2:]) for each in maps.stages[0]]
        grid = patch_grid((150, 130), (76, 76), sizes)
        local = network.local(noise(2, BANDS, 76, 76, seed=2), maps, grid, grid.corners[:2])
        assert network.local_scores(local).shape == (2, CLASSES, 19, 19)
        assert network.overview_scores(maps).shape == (1, CLASSES, 19, 19)


def test_refusals():
    with pytest.raises(ConfigError, match="there is no mode of GLNet named 'locla'; did you mean local"):
        build_glnet(in_channels=3, num_classes=2, mode="locla")
    with pytest.raises(ConfigError, match="encoder"):
        build_glnet(in_channels=3, num_classes=2, encoder="resnet51")
    assert isinstance(made("global"), GlobalNet)
