"""The feature clustering network: published figures, masked statistics, receptive field, seeded weights."""

from __future__ import annotations

import pytest
import torch

from geoseg.errors import ConfigError
from geoseg.networks.feature_clustering import FeatureClusteringNet, MaskedBatchNorm2d


@pytest.mark.parametrize(("convolutions", "parameters"), [(2, 103_600), (3, 193_900)])
def test_parameter_count_of_the_authors_code(convolutions, parameters):
    network = FeatureClusteringNet(3, channels=100, convolutions=convolutions)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("convolutions", [1, 2, 3])
def test_inside_its_halo_a_crop_gives_the_responses_of_the_whole(convolutions):
    network = FeatureClusteringNet.seeded(2, 8, convolutions, 0).eval()
    pixels = torch.rand(1, 2, 40, 50, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, crop = network(pixels), network(pixels[:, :, 5:35, 7:44])
    m = convolutions
    difference = (whole[:, :, 5:35, 7:44] - crop).abs()
    assert difference[:, :, m:-m, m:-m].max() < 1e-5
    assert difference[:, :, m - 1].max() > 1e-4  # one pixel nearer the edge, padding shows


def test_masked_statistics_are_those_of_the_valid_pixels():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 6, 7, generator=generator)
    valid = torch.rand(2, 6, 7, generator=generator) > 0.3
    norm, plain = MaskedBatchNorm2d(3), torch.nn.BatchNorm2d(3)
    found = norm(features, valid)
    expected = plain(features.movedim(1, -1)[valid].T[None, :, :, None])
    torch.testing.assert_close(found.movedim(1, -1)[valid], expected[0, :, :, 0].T)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)
    assert norm.num_batches_tracked == 1


def test_a_mask_of_all_pixels_changes_nothing():
    pixels = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    first, second = (FeatureClusteringNet.seeded(3, 6, 2, 0).train() for _ in range(2))
    torch.testing.assert_close(first(pixels), second(pixels, torch.ones(2, 9, 9, dtype=torch.bool)))
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name])


def test_no_valid_pixel_gives_finite_responses():
    network = FeatureClusteringNet.seeded(3, 6, 2, 0).train()
    assert network(torch.rand(1, 3, 9, 9), torch.zeros(1, 9, 9, dtype=torch.bool)).isfinite().all()


def test_seeded_weights_leave_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    first, second, other = (FeatureClusteringNet.seeded(3, 8, 2, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert first.conv1.weight.abs().max() <= 27**-0.5
    assert torch.equal(first.bn3.running_var, torch.ones(8))


@pytest.mark.parametrize("numbers", [(0, 8, 2), (3, 0, 2), (3, 8, 0)])
def test_refuses_sizes_below_one(numbers):
    with pytest.raises(ConfigError, match="is 0"):
        FeatureClusteringNet(*numbers)
