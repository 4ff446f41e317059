"""SegNet: its published size, unpooling, and its reach."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.measuring import measure_size
from geoseg.networks.receptive_field import measure_halo
from geoseg.networks.segnet import unpooled


def _made(**options):
    torch.manual_seed(0)
    return networks.create("segnet", in_channels=2, num_classes=3, **options).eval()


def test_as_large_as_published():
    """Section 3: without the fully connected layers the encoder of VGG16 has 14.7 million parameters."""
    network = networks.create("segnet", in_channels=3, num_classes=11).network
    count = sum(
        p.numel() for layer in network.encoder.modules() if isinstance(layer, nn.Conv2d) for p in layer.parameters()
    )
    assert count == 14_714_688
    # The decoder mirrors it, but for its last layer: 3 bands one way, 11 classes the other.
    decoder = [layer for layer in network.decoder.modules() if isinstance(layer, nn.Conv2d)]
    assert len(decoder) == 13
    biases = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512
    weights = sum(layer.weight.numel() for layer in decoder)
    assert weights - 64 * 11 * 9 == count - biases - 64 * 3 * 9


def test_multiply_adds_of_encoder_and_decoder_are_alike():
    size = measure_size("segnet", in_channels=3, num_classes=3, side=64)
    # VGG16's convolutions take 15,346,630,656 multiply-adds at 224 pixels; the decoder's are as many.
    assert size.macs == 2 * 15_346_630_656 * 64**2 // 224**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpooling_is_the_inverse_of_pooling(dtype):
    features = torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    pooled, places = F.max_pool2d(features, 2, return_indices=True)
    back = unpooled(pooled, places)
    assert torch.equal(back, F.max_unpool2d(pooled, places, 2))
    assert torch.equal(F.max_pool2d(back.abs(), 2), pooled.abs())
    assert int((back != 0).sum()) == pooled.numel()


def test_unpooling_passes_gradients_back_to_the_pooled():
    pooled = torch.ones(1, 1, 2, 3, requires_grad=True)
    places = torch.tensor([[[[0, 3, 5], [18, 21, 16]]]])
    weights = torch.arange(24.0).view(1, 1, 4, 6)
    (unpooled(pooled, places) * weights).sum().backward()
    assert torch.equal(pooled.grad, places.float())


def test_all_four_places_feel_what_moves_the_maximum():
    values = torch.tensor([[[[float("nan")]]]])
    assert bool(torch.isnan(unpooled(values, torch.tensor([[[[2]]]]))).all())


def test_the_reach_is_that_of_its_layers():
    # Behind each pooling the lattice doubles: 3 × 3 convolutions reach 1 pixel of it, 26 in all, as far back as forth.
    reach = measure_halo(_made(width=1), 2, 32)
    one_way = 2 * 1 + 2 * 2 + 3 * 4 + 3 * 8 + 3 * 16
    assert reach.exact
    assert 2 * one_way <= reach.radius <= 2 * one_way + 2 * 32


@pytest.mark.parametrize("width", [0, True, 1.5, 513])
def test_a_width_that_makes_no_sense_is_refused(width):
    with pytest.raises(ConfigError, match="width of network segnet is"):
        _made(width=width)


def test_it_takes_no_encoder():
    with pytest.raises(ConfigError, match="takes no encoder"):
        _made(encoder="resnet18")
