"""Affinity fields against the authors' functions, and against the one-sided rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoseg.losses.aaf import AffinityFields

pytestmark = pytest.mark.golden
VALUE, GRADIENT = 1e-5, 1e-4
RULES = {"authors": "authors", "oneway": "one_sided"}


@pytest.fixture(scope="module")
def reference(golden):
    return golden("aaf")


def loss_of(reference, rule, **options):
    manifest = reference.manifest
    options = {"sizes": tuple(manifest["sizes"]), **options}
    return AffinityFields(
        int(reference["input_shape"][1]),
        margin=manifest["margin"],
        lambda_edge=manifest["lambda_edge"],
        lambda_nonedge=manifest["lambda_nonedge"],
        eps=manifest["epsilon"],
        ignore_rule=rule,
        label_stride=1,
        **options,
    ).double()


def filled(reference, loss):
    with torch.no_grad():
        loss.edge_logits.copy_(torch.from_numpy(reference["edge_w"]))
        loss.nonedge_logits.copy_(torch.from_numpy(reference["nonedge_w"]))
    return loss


def batch(reference):
    return torch.from_numpy(reference["logits"]).double().requires_grad_(), torch.from_numpy(reference["labels"])


def check(found, expected, tolerance):
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def test_the_stored_logits_are_those_the_weights_module_gives(reference, weights):
    made = 2 * weights.golden_input(tuple(reference["input_shape"].tolist()), int(reference["seed"]))
    np.testing.assert_allclose(reference["logits"], made.numpy(), atol=1e-6)


@pytest.mark.parametrize("arrays", RULES)
def test_parts_total_and_gradients(reference, arrays):
    loss = filled(reference, loss_of(reference, RULES[arrays]))
    scores, labels = batch(reference)
    parts = loss.parts(*loss.prepared(scores, labels))
    np.testing.assert_allclose(parts.edge.detach(), reference[f"{arrays}_edge"], rtol=VALUE)
    np.testing.assert_allclose(parts.nonedge.detach(), reference[f"{arrays}_nonedge"], rtol=VALUE)
    if f"{arrays}_n_edge" in reference.arrays:
        np.testing.assert_array_equal(parts.n_edge, reference[f"{arrays}_n_edge"])
        np.testing.assert_array_equal(parts.n_nonedge, reference[f"{arrays}_n_nonedge"])
    total = loss(scores, labels)
    assert total.item() == pytest.approx(float(reference[f"{arrays}_total"]), rel=VALUE)
    total.backward()
    check(scores.grad, reference[f"{arrays}_grad_logits"], GRADIENT)
    # The references differentiate the loss; the adversary goes the other way.
    check(-loss.edge_logits.grad, reference[f"{arrays}_grad_edge_w"], GRADIENT)
    check(-loss.nonedge_logits.grad, reference[f"{arrays}_grad_nonedge_w"], GRADIENT)


def test_uniform_weights(reference):
    loss = loss_of(reference, "authors")
    scores, labels = batch(reference)
    total = loss(scores, labels)
    total.backward()
    assert total.item() == pytest.approx(float(reference["authors_uniform_total"]), rel=VALUE)
    check(scores.grad, reference["authors_uniform_grad_logits"], GRADIENT)


def test_plain_affinity(reference):
    loss = loss_of(reference, "authors", adaptive=False, sizes=(1,))
    scores, labels = batch(reference)
    parts = loss.parts(*loss.prepared(scores, labels))
    assert parts.edge.item() == pytest.approx(float(reference["authors_affinity_edge"]), rel=VALUE)
    assert parts.nonedge.item() == pytest.approx(float(reference["authors_affinity_nonedge"]), rel=VALUE)
    loss(scores, labels).backward()
    check(scores.grad, reference["authors_affinity_grad_logits"], GRADIENT)
