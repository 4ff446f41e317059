"""Mixed batches and their losses against the reference blends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoseg.losses import create
from geoseg.training.mixing import Mixing

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def reference(golden):
    return golden("mixup")


def tensor(reference, name):
    return torch.from_numpy(reference[name])


def classes(reference):
    return reference["soft"].shape[1]


def mixed_of(reference, labels="y"):
    count = len(reference["x"])
    share = np.full(count, float(reference["lam"]))
    return Mixing().mix(
        tensor(reference, "x"), tensor(reference, labels), share, np.arange(count), tensor(reference, "perm")
    )


def scores_of(reference):
    return tensor(reference, "logits").double().requires_grad_()


def close_gradient(scores, expected):
    np.testing.assert_allclose(scores.grad.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_pixels_and_shares(reference):
    mixed = mixed_of(reference)
    np.testing.assert_allclose(mixed.pixels, reference["mixed"], atol=1e-6)
    np.testing.assert_allclose(mixed.soft(classes(reference)), reference["soft"], atol=1e-6)


@pytest.mark.parametrize("mode", ["soft", "two_term"])
@pytest.mark.parametrize(("labels", "name"), [("y", "ce"), ("y_ignore", "ce_ignore")])
def test_cross_entropy(reference, mode, labels, name):
    mixed, scores = mixed_of(reference, labels), scores_of(reference)
    loss = mixed.loss(create("ce", num_classes=classes(reference)), scores, mode=mode)
    assert loss.item() == pytest.approx(float(reference[name]), rel=1e-6)
    loss.backward()
    close_gradient(scores, reference[f"{name}_grad"])
    y = reference[labels]
    ignored = (y == 255) | (y[reference["perm"]] == 255)
    assert (scores.grad.numpy()[np.broadcast_to(ignored[:, None], scores.shape)] == 0).all()


@pytest.mark.parametrize("labels", ["y", "y_ignore"])
def test_both_forms_of_cross_entropy_are_one(reference, labels):
    mixed, scores = mixed_of(reference, labels), scores_of(reference)
    loss = create("ce", num_classes=classes(reference))
    soft, two = (mixed.loss(loss, scores, mode=mode).item() for mode in ("soft", "two_term"))
    assert soft == pytest.approx(two, rel=1e-12)


def test_dice_of_two_terms(reference):
    found = mixed_of(reference).loss(create("dice", num_classes=classes(reference)), scores_of(reference))
    assert found.item() == pytest.approx(float(reference["dice_soft"]), rel=1e-6)


def test_foreground_pairs(reference):
    mixing = Mixing(pairing="foreground")
    labels, others = tensor(reference, "y"), tensor(reference, "y2")
    np.testing.assert_array_equal(mixing.foreground(labels), reference["fg1"])
    np.testing.assert_array_equal(mixing.foreground(others), reference["fg2"])
    order, partners = mixing.pairs(labels, np.random.default_rng(0), others)
    np.testing.assert_array_equal(order, reference["mm_order1"])
    np.testing.assert_array_equal(partners, reference["mm_order2"])
    share = np.full(len(labels), float(reference["lam"]))
    partner = (tensor(reference, "x2"), others)
    mixed = mixing.mix(tensor(reference, "x"), labels, share, order, partners, partner=partner)
    np.testing.assert_allclose(mixed.pixels, reference["mm_mixed"], atol=1e-6)
    np.testing.assert_allclose(mixed.soft(classes(reference)), reference["mm_soft"], atol=1e-6)
