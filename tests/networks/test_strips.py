"""What is computed in strips of rows is what is computed whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geoseg import networks
from geoseg.networks import strips
from geoseg.networks.memory import bytes_per_pixel

# High enough for strips, and narrow: a few seconds for the lot.
HIGH, WIDE = 1120, 64


def _drawn(encoder, **options):
    """Return a U-Net whose batch norms do something."""
    torch.manual_seed(5)
    network = networks.create("unet", in_channels=3, num_classes=4, encoder=encoder, **options).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low, high in (
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.5, 1.5),
                (layer.weight, 0.5, 1.5),
            ):
                nn.init.uniform_(values, low, high)
    return network


def _both(network, height=HIGH, count=1):
    """Return the scores in strips, and those computed whole, as they are where gradients are wanted."""
    pixels = torch.randn(count, 3, height, WIDE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        parted = network(pixels)
    return parted, network(pixels).detach()


@pytest.mark.parametrize(
    "encoder", ["resnet18", "resnet34", "tf_efficientnet_lite0", "tf_efficientnet_lite1", "mobilenetv2_100"]
)
def test_scores_in_strips_are_those_of_whole_tiles(encoder):
    network = _drawn(encoder)
    for height in (1024, HIGH, 1568):
        parted, whole = _both(network, height)
        assert parted.shape == whole.shape
        # On processors with AVX-512 some sizes get other kernels, which round differently everywhere; what a strip did
        # not see of its neighbours would be off by tenths (0.5 with four rows too few).
        assert torch.allclose(parted, whole, rtol=0, atol=5e-5 * float(whole.abs().max()))
        assert (parted.argmax(1) != whole.argmax(1)).float().mean() <= 1e-4


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("resnet34", {"decoder_attention_type": "scse"}),
        ("resnet18", {"decoder_interpolation": "bilinear"}),
        ("resnet18", {"decoder_use_norm": False}),
        ("resnet18", {"decoder_use_norm": {"type": "instancenorm", "affine": True}}),
        ("resnet50", {}),
        ("resnet50", {"decoder_attention_type": None}),
        ("resnet18", {"encoder_depth": 3, "decoder_channels": [64, 32, 16]}),
        ("resnet18", {"encoder_depth": 4, "decoder_channels": [64, 32, 16, 8]}),
        ("resnet18", {"scale_aware": True}),
        ("efficientnet_b0", {}),
        ("tf_efficientnet_lite0", {"encoder_depth": 4, "decoder_channels": [64, 32, 16, 8]}),
        ("convnext_tiny", {}),
        ("mit_b0", {}),
        ("vgg11", {}),
        ("vgg11_bn", {}),
        ("densenet121", {}),
        ("mobilenetv3_small_100", {}),
        ("hrnet_w18_small", {}),
    ],
)
def test_what_cannot_be_done_in_strips_is_done_whole(encoder, options):
    parted, whole = _both(_drawn(encoder, **options))
    assert torch.allclose(parted, whole, rtol=0, atol=2e-6 * float(whole.abs().max()))


def test_tiles_of_a_batch_do_not_mix():
    parted, whole = _both(_drawn("tf_efficientnet_lite0"), count=2)
    assert torch.allclose(parted, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))


@pytest.mark.parametrize("encoder", ["resnet18", "resnet34", "tf_efficientnet_lite0", "tf_efficientnet_lite1"])
def test_large_tiles_hold_less_for_each_pixel(encoder):
    network = _drawn(encoder)
    assert bytes_per_pixel(network, 3, 32, 2048) < 0.75 * bytes_per_pixel(network, 3, 32, 512)


@given(
    units=st.integers(256, 600),
    kernels=st.lists(st.sampled_from([1, 3, 5, 7]), min_size=1, max_size=4),
    step=st.sampled_from([1, 2]),
)
def test_strips_of_convolutions_are_exact_at_any_height(units, kernels, step):
    layers = [nn.Conv2d(1, 1, size, 1, size // 2) for size in kernels] + [nn.Conv2d(1, 1, 3, step, 1)]
    reach = strips.reach_of(layers, (1, step))
    pixels = torch.randn(1, 1, 4 * units, 5)
    with torch.no_grad():
        (whole,) = strips.passed([layers], pixels)
        (parted,) = strips.in_strips(lambda part: strips.passed([layers], part), [pixels], 4 * units, 4, reach)
    assert torch.allclose(whole, parted, atol=1e-6)


def test_the_reach_of_layers_is_that_of_their_kernels():
    layers = [
        nn.Conv2d(1, 1, 3, 2, 1),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(1, 1, 5, 1, 4, dilation=2)),
        nn.MaxPool2d(3, 2, 1),
    ]
    assert strips.reach_of(layers, (1, 4)) == 1 + 2 * 4 + 2
    for other in (nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1, track_running_stats=False), nn.GroupNorm(1, 1)):
        assert strips.reach_of([*layers, nn.Sequential(other)], (1, 4)) is None


def test_training_and_gradients_see_no_strips():
    network = _drawn("resnet18").network
    tile, low = torch.zeros(1, 3, HIGH, WIDE), torch.zeros(1, 3, 512, WIDE)
    with torch.no_grad():
        assert strips.worthwhile(network, tile)
        assert not strips.worthwhile(network, low)
        assert not strips.worthwhile(network.train(), tile)
    assert not strips.worthwhile(network.eval(), tile)
