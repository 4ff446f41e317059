"""Feature clustering against the authors' network and loss lines (golden run in float64)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoseg.losses.clustering import UNLABELLED, continuity_loss, scribble_loss, similarity_loss
from geoseg.networks.feature_clustering import FeatureClusteringNet

pytestmark = pytest.mark.golden
CLEAR = 1e-3  # labels are compared where the best response leads by more than this
STORED = 1e-6  # float64 runs agree to rounding, but some references are stored as float32


@pytest.fixture(scope="module")
def reference(golden):
    return golden("feature_clustering")


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return getattr(torch, request.param)


@pytest.fixture
def network(reference, weights, dtype):
    config = reference.config
    made = FeatureClusteringNet(config["in_channels"], config["nChannel"], config["nConv"])
    return weights.fill_weights(made, int(reference["seed"])).to(dtype)


@pytest.fixture
def pixels(reference, weights, dtype):
    return weights.golden_input(tuple(reference["input_shape"].tolist()), int(reference["seed"])).to(dtype)


@pytest.fixture
def tolerance(reference, dtype):
    """Return what may differ, relatively: rounding of what is stored, or in float32 what the reference itself loses."""

    def of(name, single):
        lost = reference.manifest["float32_vs_float64_max_relative_deviation"][name]
        return STORED if dtype == torch.float64 else max(single, 10 * lost)

    return of


def terms(response, mu, counted=None):
    """Similarity, both continuities, and their total at continuity weight ``mu``."""
    similarity = similarity_loss(response, response.argmax(1), counted)
    down, across = continuity_loss(response)
    return torch.stack([similarity, down, across, similarity + mu * (down + across)])


def thinned(response):
    """The values the references keep of a response."""
    return response[0, :: max(1, response.shape[1] // 10), ::8, ::8].detach().numpy()


def gradient_norms(network):
    return np.array([float(parameter.grad.double().norm()) for parameter in network.parameters()])


def compare_gradients(found, expected, tolerance):
    # A bias in front of a batch norm has no gradient but rounding, so those are compared absolutely.
    nothing = expected < 1e-12
    np.testing.assert_allclose(found[~nothing], expected[~nothing], rtol=tolerance)
    assert (found[nothing] < 1e-5).all()


def test_parameters_have_the_authors_names_and_shapes(reference, network):
    expected = {entry["name"]: tuple(entry["shape"]) for entry in reference.manifest["state_dict"]}
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == expected
    assert [name for name, _ in network.named_parameters()] == reference.manifest["parameter_names"]
    assert sum(parameter.numel() for parameter in network.parameters()) == reference.manifest["parameters"]


def test_first_step(reference, network, pixels, tolerance):
    network.train()
    response = network(pixels)
    found = terms(response, reference.config["mu"])
    close = tolerance("loss_step0", 1e-5)
    np.testing.assert_allclose(found.detach().numpy(), reference["loss_step0"], rtol=close, atol=close)
    labels = response.argmax(1)[0].numpy()
    assert len(np.unique(labels)) == reference["nlabels_step0"]
    clear = reference["train_margin"] > CLEAR
    np.testing.assert_array_equal(labels[clear], reference["train_labels"][clear])
    close = tolerance("train_sample", 1e-5)
    np.testing.assert_allclose(thinned(response), reference["train_sample"], rtol=close, atol=close)
    best = response.detach()[0].topk(2, dim=0).values
    np.testing.assert_allclose(
        (best[0] - best[1]).numpy(), reference["train_margin"], atol=tolerance("train_margin", 2e-5)
    )

    found[-1].backward()
    compare_gradients(gradient_norms(network), reference["grad_norms"], tolerance("grad_norms", 1e-4))
    step = max(1, reference.config["nChannel"] // 10)
    for found, name in (
        (network.conv3.weight.grad[::step, ::step, 0, 0], "grad_conv3_sample"),
        (network.conv1.weight.grad[::step], "grad_conv1_sample"),
    ):
        # In float32 single neighbours change the sign of their difference, which moves a gradient by 1/N of the mean.
        scale = np.abs(reference[name]).max()
        np.testing.assert_allclose(found.numpy() / scale, reference[name] / scale, atol=tolerance(name, 1e-3))


def test_training_steps_and_running_statistics(reference, network, pixels, tolerance, dtype):
    network.train()
    config = reference.config
    optimizer = torch.optim.SGD(network.parameters(), lr=config["lr"], momentum=config["momentum"])
    expected = reference["losses_after_steps_1_to_3"]
    rows = []
    for step in range(len(expected) + 1):
        response = network(pixels)
        found = terms(response, config["mu"])
        labels = response.argmax(1)[0].numpy()
        rows.append([*found.detach().tolist(), len(np.unique(labels))])
        if step == 1:
            clear = reference["margin_after_step1"] > CLEAR
            np.testing.assert_array_equal(labels[clear], reference["labels_after_step1"][clear])
        optimizer.zero_grad()
        found[-1].backward()
        optimizer.step()
    rows = np.array(rows[1:])
    close = tolerance("losses_after_steps_1_to_3", 1e-4)
    np.testing.assert_allclose(rows[:, :4], expected[:, :4], atol=close, rtol=close)
    # A label held by one pixel may appear or go with rounding.
    np.testing.assert_allclose(rows[:, 4], expected[:, 4], atol=0 if dtype == torch.float64 else 1)
    for found, name in (
        (network.bn3.running_mean, "bn3_running_mean_after"),
        (network.bn3.running_var, "bn3_running_var_after"),
    ):
        close = tolerance(name, 1e-3)
        np.testing.assert_allclose(found.numpy(), reference[name], rtol=close, atol=close)


def test_evaluation_mode(reference, network, pixels, tolerance):
    with torch.no_grad():
        response = network(pixels)
    best = response[0].topk(2, dim=0).values
    clear = (best[0] - best[1]).numpy() > CLEAR
    np.testing.assert_array_equal(response.argmax(1)[0].numpy()[clear], reference["eval_labels"][clear])
    close = tolerance("eval_sample", 1e-5)
    np.testing.assert_allclose(thinned(response), reference["eval_sample"], rtol=close, atol=close)
    whole = response.double()
    close = tolerance("eval_mean_std", 1e-5)
    np.testing.assert_allclose([whole.mean(), whole.std()], reference["eval_mean_std"], rtol=close)


def test_scribbles(reference, network, pixels, tolerance):
    network.train()
    config = reference.config
    scribbles = torch.from_numpy(reference["scribble"])[None]
    response = network(pixels)
    scribbled = scribble_loss(response, scribbles)
    similarity, down, across, total = terms(response, config["mu"], scribbles == UNLABELLED)
    total = total + config["nu"] * scribbled
    found = torch.stack([similarity, scribbled, down, across, total]).detach().numpy()
    close = tolerance("scribble_losses", 1e-5)
    np.testing.assert_allclose(found, reference["scribble_losses"], rtol=close, atol=close)
    total.backward()
    expected = reference["scribble_grad_norms"]
    compare_gradients(gradient_norms(network), expected, tolerance("scribble_grad_norms", 1e-4))


def test_batch_of_two(reference, network, weights, tolerance, dtype):
    network.train()
    shape = (2, *reference["input_shape"].tolist()[1:])
    response = network(weights.golden_input(shape, int(reference["seed"]) + 1).to(dtype))
    found = terms(response, reference.config["mu"]).detach().numpy()
    close = tolerance("batch2_losses", 1e-5)
    np.testing.assert_allclose(found, reference["batch2_losses"], rtol=close, atol=close)
