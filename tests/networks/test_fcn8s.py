"""FCN-8s: its published size, what its scores are made of, and its refusals."""

import pytest
import torch
from torch.nn import functional as F

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.fcn8s import DoubleScores
from geoseg.networks.measuring import measure_size


def _made(**options):
    torch.manual_seed(0)
    return networks.create("fcn8s", in_channels=2, num_classes=3, encoder="test_resnet", **options).eval()


def test_as_large_as_published():
    """Table 1 of the paper: FCN-VGG16 has 134 million parameters (21 classes)."""
    size = measure_size("fcn8s", in_channels=3, num_classes=21, encoder="vgg16", hidden=4096, side=64)
    vgg16 = 14_714_688
    hidden = (512 * 49 + 1) * 4096 + (4096 + 1) * 4096
    # timm gives the features just before a pooling, so those of stride 8 have 512 channels and not pool3's 256.
    scores = (512 + 1) * 21 + (512 + 1) * 21 + (4096 + 1) * 21
    assert size.parameters == vgg16 + hidden + scores + 2 * 21 * 21 * 16
    assert round(size.parameters / 1e6) == 134


def test_doubling_starts_as_bilinear_interpolation():
    scores = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(DoubleScores(3)(scores), expected)


def test_doubling_learns_to_mix_classes():
    double = DoubleScores(2)
    with torch.no_grad():
        double.weight[0, 1] = double.weight[0, 0]
    scores = torch.zeros(1, 2, 4, 4)
    scores[0, 0, 1, 2] = 1.0
    doubled = double(scores).detach()
    assert torch.equal(doubled[0, 0], doubled[0, 1])
    assert doubled[0, 0].sum() == pytest.approx(4.0)


def test_scores_are_the_sum_of_three_scales():
    network = _made()
    inner = network.network
    pixels = torch.randn(1, 2, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = network(pixels)
        fine, middle, coarse = inner.encoder(pixels)
        parts = [inner.score8(fine), inner.score16(middle), inner.score32(coarse)]
        for times, part in enumerate(parts):
            for _ in range(times):
                part = F.interpolate(part, scale_factor=2, mode="bilinear")
            parts[times] = F.interpolate(part, scale_factor=8, mode="bilinear")
    torch.testing.assert_close(whole, sum(parts))
    assert all(float(part.std()) > 0 for part in parts)


def test_hidden_layers_widen_the_coarsest_scores():
    network = _made(hidden=8)
    assert network.network.score32.in_channels == 8
    assert network(torch.randn(1, 2, 40, 50)).shape == (1, 3, 40, 50)


@pytest.mark.parametrize("hidden", [-1, True, 2.0, 16385])
def test_a_width_that_makes_no_sense_is_refused(hidden):
    with pytest.raises(ConfigError, match="hidden of network fcn8s is"):
        _made(hidden=hidden)


def test_an_encoder_without_the_strides_is_refused():
    with pytest.raises(ConfigError, match="test_vit"):
        networks.create("fcn8s", in_channels=2, num_classes=3, encoder="test_vit")
