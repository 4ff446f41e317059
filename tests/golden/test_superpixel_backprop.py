"""Superpixel backpropagation against the authors' network and vote (golden run in float64)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoseg.networks.feature_clustering import FeatureClusteringNet
from geoseg.segmenters.clustering_fit import ClusteringSettings, objective
from geoseg.segmenters.scene_sample import Batch
from geoseg.segmenters.superpixels import vote

pytestmark = pytest.mark.golden
CLEAR = 1e-3  # labels are compared where the best response leads by more than this
STORED = 1e-6  # float64 runs agree to rounding, but some references are stored as float32
SETTINGS = ClusteringSettings(smoothing="superpixels")


@pytest.fixture(scope="module")
def reference(golden):
    return golden("superpixel_backprop")


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return getattr(torch, request.param)


@pytest.fixture
def network(reference, weights, dtype):
    config = reference.config
    made = FeatureClusteringNet(config["in_channels"], config["nChannel"], config["nConv"])
    return weights.fill_weights(made, int(reference["seed"])).to(dtype).train()


@pytest.fixture
def batch(reference, weights, dtype):
    pixels = weights.golden_input(tuple(reference["input_shape"].tolist()), int(reference["seed"])).to(dtype)
    return Batch(pixels, None, superpixels=torch.from_numpy(reference["superpixels"]).long()[None])


def test_parameters_have_the_authors_names_and_shapes(reference, network):
    expected = {entry["name"]: tuple(entry["shape"]) for entry in reference.manifest["state_dict"]}
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in network.parameters()) == reference.manifest["parameters"]


def test_labels_of_the_network(reference, network, batch):
    response = network(batch.pixels)
    clear = reference["raw_margin"] > CLEAR
    np.testing.assert_array_equal(response.argmax(1)[0].numpy()[clear], reference["raw_labels"][clear])
    best = response.detach()[0].topk(2, dim=0).values
    np.testing.assert_allclose((best[0] - best[1]).numpy(), reference["raw_margin"], atol=2e-5)


def test_the_vote_is_exact(reference):
    superpixels = torch.from_numpy(reference["superpixels"]).long()
    raw = torch.from_numpy(reference["raw_labels"]).long()
    channels = reference.config["nChannel"]
    assert len(torch.unique(superpixels)) == reference["number_of_superpixels"]
    counts = np.zeros((int(superpixels.max()) + 1, channels), int)
    np.add.at(counts, (superpixels.numpy(), raw.numpy()), 1)
    tied = (counts == counts.max(1, keepdims=True)).sum(1)[np.unique(superpixels)] > 1
    assert tied.sum() == reference["superpixels_with_tied_vote"] > 0
    np.testing.assert_array_equal(vote(raw, superpixels, channels).numpy(), reference["refined_labels"])


def test_three_steps(reference, network, batch, dtype):
    config = reference.config
    optimizer = torch.optim.SGD(network.parameters(), lr=config["lr"], momentum=config["momentum"])
    lost = reference.manifest["float32_vs_float64_max_relative_deviation"]
    precise = dtype == torch.float64
    for step, (loss, raw, refined) in enumerate(reference["loss_rawcount_refinedcount_per_step"]):
        response = network(batch.pixels)
        labels = response.argmax(1)
        counts = len(labels.unique()), len(vote(labels, batch.superpixels, response.shape[1]).unique())
        # A label held by one pixel may appear or go with rounding.
        np.testing.assert_allclose(counts, (raw, refined), atol=0 if precise else 1)
        found = objective(response, batch, SETTINGS)
        np.testing.assert_allclose(float(found.detach()), loss, rtol=0, atol=STORED if precise else 1e-4)
        optimizer.zero_grad()
        found.backward()
        if step == 0:
            norms = np.array([float(each.grad.double().norm()) for each in network.parameters()])
            expected = reference["grad_norms"]
            # A bias in front of a batch norm has no gradient but rounding, so it is compared absolutely.
            nothing = expected < 1e-12
            close = STORED if precise else max(1e-4, 10 * lost["grad_norms"])
            np.testing.assert_allclose(norms[~nothing], expected[~nothing], rtol=close)
            assert (norms[nothing] < 1e-5).all()
        optimizer.step()
