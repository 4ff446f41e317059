"""Counting parameters and multiply-adds, against layers that are counted by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.measuring import Size, count_macs, count_parameters, measure_size


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 3 * 8 * 9 * 16 * 16),
        (nn.Conv2d(3, 8, 3, padding=1, bias=False), 3 * 8 * 9 * 16 * 16),
        (nn.Conv2d(3, 9, (1, 5), stride=2, padding=(0, 2), groups=3), 9 * 5 * 8 * 8),
        (nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1), 3 * 5 * 16 * 16 * 16),
        (nn.Linear(16, 7), 16 * 7 * 3 * 16),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), 0),
    ],
)
def test_layers_counted_by_hand(layer, macs):
    assert count_macs(layer, 3, 16) == macs


class _Attention(nn.Module):
    def forward(self, pixels):
        tokens = pixels.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def test_the_products_of_attention_count():
    assert count_macs(_Attention(), 4, 16) == 2 * (16 * 16) ** 2 * 4


def test_a_layer_counts_as_often_as_it_runs_and_its_weights_once():
    layer = nn.Conv2d(3, 3, 1)
    twice = nn.Sequential(layer, layer)
    assert count_macs(twice, 3, 8) == 2 * 9 * 64
    assert count_parameters(twice) == 12


def test_counting_leaves_the_network_alone():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    count_macs(network, 2, 8)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_whole_network():
    size = measure_size("plainconv", in_channels=4, num_classes=5, side=32, width=8, depth=2)
    weights = 4 * 8 * 9 + 8 * 8 * 9 + 8 * 5
    assert size == Size(parameters=weights + 8 + 8 + 5, macs=weights * 32 * 32, stride=1)


def test_networks_that_compute_while_they_are_built_are_counted_too():
    options = {"in_channels": 3, "num_classes": 2}
    built = networks.create("segformer", **options)
    assert measure_size("segformer", side=64, **options).parameters == count_parameters(built)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="no network named 'unett'"):
        measure_size("unett", in_channels=3, num_classes=2)
