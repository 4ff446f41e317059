"""The reach of networks whose receptive field is known by hand."""

import pytest
import torch
from torch import nn

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.receptive_field import SHARE, Reach, exact_halo, measure_halo


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_plain_convolutions_reach_their_depth(depth):
    network = networks.create("plainconv", in_channels=2, num_classes=3, depth=depth)
    assert measure_halo(network, 2, 1) == Reach(depth, exact=True, bounded=True, share=1.0, limit=depth)


def test_dead_and_zero_weights_do_not_hide_reach():
    network = networks.create("plainconv", in_channels=1, num_classes=2, depth=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert measure_halo(network, 1, 1).radius == 2


def test_larger_axis_counts():
    # 1 × 9 convolution: 4 columns on each side, no rows.
    assert measure_halo(nn.Conv2d(1, 2, (1, 9), padding=(0, 4)), 1, 1).radius == 4
    assert measure_halo(nn.Conv2d(1, 2, (9, 1), padding=(4, 0)), 1, 1).radius == 4


def test_reach_across_a_stride_is_rounded_up_to_it():
    # Pooling by 4, a 3 × 3 convolution there, and back: pixel 3 of a cell reaches the next cell's end, 7 pixels on
    # both sides of the lattice, which is rounded up to 8.
    network = nn.Sequential(
        nn.MaxPool2d(4), nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Upsample(scale_factor=4)
    )
    assert measure_halo(network, 1, 4) == Reach(8, exact=True, bounded=True, share=1.0, limit=8)


def test_beyond_the_maximum_influence_decides():
    torch.manual_seed(0)
    network = networks.create("plainconv", in_channels=1, num_classes=2, depth=24)
    reach = measure_halo(network, 1, 1, maximum=20)
    assert not reach.exact
    assert reach.bounded
    assert 3 < reach.radius < 20
    assert reach.share >= SHARE
    assert measure_halo(network, 1, 1, maximum=20) == reach
    assert measure_halo(network, 1, 1, maximum=24) == Reach(24, exact=True, bounded=True, share=1.0, limit=24)


def test_a_maximum_that_is_too_small_says_what_it_holds():
    network = nn.Conv2d(1, 1, 41, padding=20)
    nn.init.constant_(network.weight, 1.0)
    reach = measure_halo(network, 1, 1, maximum=10)
    assert reach == Reach(10, exact=False, bounded=True, share=pytest.approx(21**2 / 23**2), limit=20)


def test_a_network_at_rest_gets_the_largest_halo():
    network = networks.create("plainconv", in_channels=1, num_classes=2, depth=9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert measure_halo(network, 1, 1, maximum=8) == Reach(8, exact=False, bounded=True, share=0.0, limit=9)


class _Pooled(nn.Module):
    def forward(self, pixels):
        return pixels + pixels.mean(dim=(2, 3), keepdim=True)


def test_whole_tile_pooling_is_unbounded():
    reach = measure_halo(_Pooled(), 2, 1, maximum=16)
    assert not reach.exact
    assert not reach.bounded
    assert reach.limit is None


@pytest.mark.parametrize(("encoder", "bounded"), [("resnet18", True), ("mobilenetv3_small_100", False)])
def test_encoders_that_look_at_the_whole_tile_are_told_apart(encoder, bounded):
    # Squeeze-and-excitation averages over the tile; ResNet does not.
    network = networks.create("unet", in_channels=1, num_classes=2, encoder=encoder)
    reach = measure_halo(network, 1, network.stride, maximum=32)
    assert not reach.exact
    assert reach.bounded == bounded


def test_the_network_is_left_as_it_was():
    network = networks.create("linknet", in_channels=1, num_classes=2)
    network.network.decoder.eval()
    modes = [module.training for module in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.random.get_rng_state()
    mkldnn = torch.backends.mkldnn.enabled
    with torch.inference_mode():  # the caller's mode must not matter
        measure_halo(network, 1, 32, maximum=32)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.backends.mkldnn.enabled == mkldnn


def test_scores_that_depend_on_nothing_need_no_halo():
    class Constant(nn.Module):
        def forward(self, pixels):
            return torch.zeros_like(pixels)

    assert measure_halo(Constant(), 1, 8) == Reach(0, exact=True, bounded=True, share=1.0, limit=0)


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0)])
def test_senseless_numbers_are_refused(arguments):
    with pytest.raises(ConfigError, match="at least 1"):
        measure_halo(nn.Identity(), *arguments)


@pytest.mark.parametrize(("name", "stride"), [("linknet", 32), ("plainconv", 1)])
def test_the_quick_limit_is_at_most_a_stride_beyond_the_least_halo(name, stride):
    network = networks.create(name, in_channels=1, num_classes=2)
    least = measure_halo(network, 1, stride, maximum=400)
    assert least.exact
    assert least.radius <= exact_halo(network, 1, stride) <= least.radius + stride
    assert exact_halo(_Pooled(), 1, 1) is None
