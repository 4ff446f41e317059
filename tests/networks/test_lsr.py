"""The released networks of label super-resolution: their published sizes, and their 2 × 2 convolutions."""

import pytest
import torch
from torch.nn import functional as F

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.lsr import Level
from geoseg.networks.measuring import measure_size
from geoseg.networks.receptive_field import measure_halo


@pytest.mark.parametrize(
    ("name", "parameters", "moving", "giga"),
    [
        ("lsr-unet", 478_021, 2_112, 14.80),
        ("lsr-unet-large", 5_991_749, 6_528, 15.28),
        ("lsr-fcn", 558_661, 2_048, 32.00),
    ],
)
def test_as_large_as_released(name, parameters, moving, giga):
    """Trained numbers, moving ones of batch norm, and multiply-adds of an input of 240 × 240 × 4, five outputs."""
    network = networks.create(name, in_channels=4, num_classes=5)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(b.numel() for key, b in network.named_buffers() if "running" in key) == moving
    assert measure_size(name, in_channels=4, num_classes=5, side=240).macs == pytest.approx(giga * 1e9, abs=5e6)


def test_the_convolution_behind_enlarging_looks_right_and_down():
    level = Level(1, (2, 3)).eval()
    seen = {}
    level.enlarge.register_forward_hook(lambda module, given, out: seen.update(given=given[0], out=out))
    features = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    assert level(features).shape == (1, 2, 6, 8)
    assert seen["out"].shape == (1, 2, 6, 8)
    given = seen["given"]
    assert torch.equal(given[..., :6, :8], F.interpolate(given[..., :6:2, :8:2], scale_factor=2.0, mode="nearest"))
    assert not given[..., 6, :].any()
    assert not given[..., :, 8].any()


def test_the_shallow_one_sees_a_pixel_a_layer():
    network = networks.create("lsr-fcn", in_channels=2, num_classes=3, width=4, depth=5).eval()
    assert measure_halo(network, 2, 1).radius == 5


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": True}])
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="of network lsr-fcn is"):
        networks.create("lsr-fcn", in_channels=2, num_classes=3, **wrong)
