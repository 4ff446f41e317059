"""Tiles against one pass: what a halo costs, and the halo that is chosen for it."""

import math

import pytest
import torch
from torch import nn

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.one_pass import Difference, OnePass
from geoseg.networks.pictures import scene_like
from geoseg.networks.tiling import (
    EXACT,
    Comparison,
    choose_halo,
    choose_halo_on,
    compare,
    halos,
    measure_at,
    opened,
    picture_side,
)


class _Smooth(nn.Module):
    """Two classes told apart by the mean over ``2 * reach + 1`` pixels, most of its weight near the middle."""

    def __init__(self, reach, decay, shift=0.0):
        super().__init__()
        row = torch.exp(-torch.arange(-reach, reach + 1).abs() / decay)
        self.kernel = nn.Parameter((row / row.sum())[None, None, None])
        self.reach = reach
        self.shift = shift

    def forward(self, pixels):
        mean = nn.functional.conv2d(pixels[:, :1], self.kernel, padding=(0, self.reach))
        mean = nn.functional.conv2d(mean, self.kernel.mT, padding=(self.reach, 0))
        return torch.cat([mean + self.shift, -mean], 1)


class _Pooled(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, pixels):
        level = pixels.mean(dim=(2, 3), keepdim=True)
        return torch.cat([pixels, self.share * level - pixels], 1)


def test_the_smallest_halo_that_keeps_the_bound_is_chosen():
    network = _Smooth(reach=40, decay=3.0)
    found = choose_halo(network, 1, 1, bound=1e-3, maximum=32)
    assert found.decision == "labels"
    assert found.limit == 40
    assert 0 < found.halo < 32
    assert found.difference.disagreement <= 1e-3
    assert not found.exact
    # One step less would not have kept it.
    pixels = scene_like(1, 400)
    curve = compare(network, pixels, 1, halos(32, 1), None)
    assert curve.decision == "labels"
    assert [d.disagreement for d in curve.differences] == sorted(
        (d.disagreement for d in curve.differences), reverse=True
    )
    assert choose_halo(network, 1, 1, bound=1e-9, maximum=32).halo == 32
    assert choose_halo(network, 1, 1, bound=0.5, maximum=32).halo == 0


@pytest.mark.parametrize(
    ("name", "stride", "options"),
    [("plainconv", 1, {}), ("linknet", 8, {"encoder_depth": 3})],
)
def test_what_can_be_exact_is(name, stride, options):
    torch.manual_seed(0)
    network = networks.create(name, in_channels=2, num_classes=3, **options)
    found = choose_halo(network, 2, stride, maximum=160)
    assert found.decision == "structure"
    assert found.exact
    assert found.difference.score_error <= EXACT
    assert found.halo == found.limit


def test_rounding_in_a_deep_network_that_says_little_is_no_error():
    torch.manual_seed(0)
    found = choose_halo(networks.create("plainconv", in_channels=1, num_classes=2, depth=10), 1, 1)
    assert found.decision == "structure"
    assert found.exact


def test_scores_decide_where_all_labels_are_the_same():
    found = choose_halo(_Smooth(reach=40, decay=3.0, shift=100.0), 1, 1, bound=1e-3, maximum=32)
    assert found.decision == "scores"
    assert found.difference.disagreement == 0
    assert 0 < found.halo <= 32
    assert math.atan(found.difference.score_error) / math.pi <= 1e-3


def test_an_error_of_scores_is_worth_the_labels_it_turns_over():
    generator = torch.Generator().manual_seed(0)
    margin, noise = torch.randn(2, 1_000_000, generator=generator)
    error = 0.05
    turned = ((margin + error * noise > 0) != (margin > 0)).float().mean()
    assert Difference(0, 0.0, error, 0.0).expected("scores") == pytest.approx(float(turned), rel=0.03)


def test_networks_that_pool_are_measured_in_tiles_of_their_size():
    slight, strong = (choose_halo(_Pooled(share), 1, 1, maximum=64, tile=128) for share in (0.2, 5.0))
    assert slight.limit is None
    assert not slight.exact
    assert 0 < slight.difference.score_error < strong.difference.score_error
    # No halo helps against the mean of the tile.
    assert strong.halo == 32
    assert strong.difference.disagreement > 1e-4


def test_a_network_that_says_nothing_gets_the_largest_halo():
    network = networks.create("plainconv", in_channels=1, num_classes=2, depth=9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    found = choose_halo(network, 1, 1, maximum=8)
    assert (found.halo, found.decision) == (8, "nothing")


def test_branches_that_wait_at_zero_are_opened_in_a_copy():
    network = networks.create("unet", in_channels=1, num_classes=2)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    shut = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and float(m.weight.detach().abs().max()) == 0]
    assert shut  # timm's ResNets start so
    copy = opened(network)
    assert all(float(m.weight.detach().abs().max()) > 0 for m in copy.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())
    # What was hidden shows: at the same halo the tiles of the copy differ more.
    hidden, shown = (compare(n, scene_like(1, 512), 32, [64], None).differences[0] for n in (network, copy))
    assert shown.score_error > 5 * hidden.score_error


def test_measuring_leaves_the_network_and_the_callers_numbers_alone():
    network = networks.create("plainconv", in_channels=1, num_classes=2)
    network.train()
    random = torch.random.get_rng_state()
    choose_halo(network, 1, 1)
    assert network.training
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_given_halo_is_measured_as_it_is():
    network = _Smooth(reach=24, decay=4.0)
    short, long = (measure_at(network, 1, 1, halo, limit=24) for halo in (4, 24))
    assert (short.halo, long.halo) == (4, 24)
    assert short.difference.score_error > 0.01
    assert not short.exact
    assert long.exact
    assert long.decision == "structure"


def test_sizes_that_depend_on_the_tile_are_not_exact_whatever_the_structure():
    class Stretched(nn.Module):
        def forward(self, pixels):
            half = nn.functional.interpolate(pixels, scale_factor=0.5, mode="bilinear", align_corners=True)
            return nn.functional.interpolate(half, size=pixels.shape[-2:], mode="bilinear", align_corners=True)

    found = measure_at(Stretched(), 1, 2, 64, limit=64)
    assert not found.exact
    assert found.difference.score_error > 1e-4


def test_the_smallest_halo_is_one_that_larger_ones_do_not_contradict():
    rows = tuple(Difference(halo, share, 0.0, 0.0) for halo, share in ((0, 0.0), (8, 0.5), (16, 0.001), (24, 0.0)))
    comparison = Comparison(rows, "labels")
    assert comparison.smallest(0.01) == rows[2]
    assert comparison.smallest(0.9) == rows[0]
    assert Comparison(rows[:2], "labels").smallest(0.1) is None


def test_pictures_are_standardised_and_follow_their_seed():
    one, same, other = scene_like(3, 96, seed=1), scene_like(3, 96, seed=1), scene_like(3, 96, seed=2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(one.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    # Coarse structure: neighbours are alike.
    assert float((one[..., 1:] - one[..., :-1]).std()) < 0.7


@pytest.mark.parametrize("bound", [0.0, 1.0, -1.0])
def test_senseless_bounds_are_refused(bound):
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        choose_halo(nn.Identity(), 1, 1, bound=bound)


@pytest.mark.parametrize(("steps", "tile"), [([0, 400], None), ([0], 700), ([300], 512)])
def test_pictures_that_are_too_small_are_refused(steps, tile):
    with pytest.raises(ConfigError, match="larger picture or smaller halos"):
        compare(nn.Identity(), scene_like(2, 512), 1, steps, tile)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_what_a_tile_shows_by_distance_is_what_it_shows_with_halos(shift):
    whole = OnePass(_Smooth(40, 6.0, shift), scene_like(1, 400), 1, core=240)
    profile = whole.by_distance()
    for found in whole.tile_differences(240, [0, 8, 16, 40, 100]):
        told = profile.difference(found.halo, 240 - 2 * found.halo)
        assert (told.disagreement, told.worst) == pytest.approx((found.disagreement, found.worst), rel=1e-9)
        assert told.score_error == pytest.approx(found.score_error, rel=1e-9)


def test_what_a_small_tile_shows_tells_of_larger_ones():
    # Alike everywhere, or tiles in different places would differ for that alone.
    network, picture = _Smooth(100, 12.0), torch.randn(1, 1, 1000, 1000, generator=torch.Generator().manual_seed(0))
    profile = OnePass(network, picture, 1, core=160).by_distance()
    for found in OnePass(network, picture, 1, core=700).tile_differences(700, [0, 16, 32]):
        told = profile.difference(found.halo, 700 - 2 * found.halo)
        assert told.disagreement == pytest.approx(found.disagreement, rel=0.35)
        assert told.score_error == pytest.approx(found.score_error, rel=0.35)


def test_on_scenes_of_its_own_a_network_gets_the_smallest_halo_that_keeps_the_bound():
    network, pictures = _Smooth(300, 12.0), [scene_like(1, picture_side(1), seed=seed) for seed in (0, 1)]
    found = choose_halo_on(network, pictures, 1, 1024, bound=2e-3)
    assert found.decision == "labels"
    assert 0 < found.halo < 128
    assert found.difference.disagreement <= 2e-3
    less = choose_halo_on(network, pictures, 1, 1024, bound=0.9 * found.difference.disagreement)
    assert less.halo > found.halo
    # The larger the tiles, the less of them lies near an edge.
    assert choose_halo_on(network, pictures, 1, 4096, bound=2e-3).halo < found.halo


def test_what_is_exact_or_pools_is_not_judged_on_scenes():
    pictures = [scene_like(1, picture_side(1))]
    assert choose_halo_on(_Smooth(40, 3.0), pictures, 1, 1024) is None
    assert choose_halo_on(_Pooled(0.2), pictures, 1, 1024) is None
