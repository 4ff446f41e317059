"""What a forward pass holds, counted."""

from __future__ import annotations

import torch
from torch import nn

from geoseg import networks
from geoseg.networks.facts import facts
from geoseg.networks.memory import bytes_per_pixel


def test_what_lives_at_once_is_counted() -> None:
    # Two outputs at most: those of the first and the second layer, float32.
    assert bytes_per_pixel(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1)), 3, 1) == 4 * (16 + 8)
    assert bytes_per_pixel(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)), 3, 8) == 4 * (4 + 4)
    assert bytes_per_pixel(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)), 3, 8) == 4 * 4


def test_it_tells_what_processes_were_seen_to_take() -> None:
    for name in ("unet", "plainconv", "gsn"):
        network, info = networks.create(name, in_channels=4, num_classes=6), networks.info(name)
        measured = facts(name).tile_mb * 1e6 / 512**2
        assert 0.8 < bytes_per_pixel(network, 4, info.stride) / measured < 1.4


def test_the_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    bytes_per_pixel(network, 1, 1)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
