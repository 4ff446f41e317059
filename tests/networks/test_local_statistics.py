"""Local means and deviations of bands as the features of a network."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.local_statistics import Surroundings
from geoseg.networks.receptive_field import measure_halo


def _bands() -> torch.Tensor:
    random = torch.Generator().manual_seed(2)
    return torch.randn(1, 2, 40, 52, generator=random, dtype=torch.float64) + torch.linspace(0, 3, 52)


def test_statistics_are_those_under_gaussians():
    """Away from the edges; scipy's Gaussians are cut off where ours are."""
    bands = _bands()
    found = Surroundings(2, [1, 2.5]).eval()(bands)
    assert found.shape == (1, 10, 40, 52)
    torch.testing.assert_close(found[:, :2], bands, rtol=1e-4, atol=1e-4)
    inner = (slice(8, -8), slice(8, -8))
    for first, scale in ((2, 1.0), (6, 2.5)):
        for band in range(2):
            values = bands[0, band].numpy()
            mean, square = (gaussian_filter(each, scale, truncate=3) for each in (values, values**2))
            expected = {first + band: mean, first + 2 + band: np.sqrt(square - mean**2)}
            for channel, told in expected.items():
                np.testing.assert_allclose(found[0, channel].numpy()[inner], told[inner], rtol=1e-3, atol=1e-4)


def test_nothing_is_known_beyond_the_edges():
    flat = torch.full((1, 1, 5, 9), 3.0)
    mean, deviation = Surroundings(1, [4]).eval()(flat)[0, 1:]
    torch.testing.assert_close(mean, torch.full((5, 9), 3.0), rtol=1e-4, atol=0)
    assert float(deviation.max()) < 0.01


def test_training_learns_the_scale_of_the_statistics():
    layer, bands = Surroundings(2, [1]), 5 + 3 * _bands().float()
    for _ in range(80):
        scaled = layer(bands)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(layer.eval()(bands), scaled, rtol=0.02, atol=0.02)


def test_it_sees_three_deviations_and_has_few_weights():
    network = networks.create("local-statistics", in_channels=3, num_classes=2, scales=[1, 2.5], hidden=[4]).eval()
    assert measure_halo(network, 3, 1).radius == 8
    assert sum(each.numel() for each in network.parameters()) == (15 + 1) * 4 + (4 + 1) * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scales": []}, "scales of network local-statistics is .*: give a list of one or more numbers"),
        ({"scales": [1, 500]}, "from 0.3 to 128"),
        ({"hidden": [2.5]}, "hidden of network local-statistics is .*: give a list of whole numbers from 1 to 4096"),
        ({"hidden": 16}, "hidden of network local-statistics is 16"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        networks.create("local-statistics", in_channels=2, num_classes=3, **wrong)
