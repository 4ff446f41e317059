"""The structural similarity loss: its options against plain numpy, and what its sheet promises beyond the goldens."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import correlate

from geoseg.errors import ConfigError
from geoseg.losses.ssl_loss import StructuralSimilarityLoss
from tests.losses.batches import IGNORED, batch, one_hot


def parts(scores, labels, **options):
    loss = StructuralSimilarityLoss(scores.shape[1], **options)
    return loss.parts(*loss.prepared(scores, labels))


def normalised(plane, valid, window, sigma, c4, border):
    """The normalised values of one plane, by the formula."""
    places = np.arange(window) - window // 2
    kernel = np.exp(-(places[:, None] ** 2 + places**2) / (2 * sigma**2))
    mode = {"mode": "mirror"} if border == "reflect" else {"mode": "constant", "cval": 0.0}
    known = {"mode": "constant", "cval": 1.0} if border == "zero" else mode
    mass = correlate(valid, kernel, **known)
    mass[mass == 0] = 1
    mean = correlate(plane * valid, kernel, **mode) / mass
    square = correlate(plane * plane * valid, kernel, **mode) / mass
    return (plane - mean + c4) / (np.sqrt(np.maximum(square - mean**2, 0) + 1e-8) + c4)


@given(
    seed=st.integers(0, 99),
    window=st.sampled_from([1, 3, 5]),
    border=st.sampled_from(["reflect", "zero", "renormalised"]),
    scope=st.sampled_from(["batch", "image", "class"]),
    prob=st.sampled_from(["sigmoid", "softmax"]),
    beta=st.sampled_from([0.0, 0.1, 0.6]),
    ignored=st.booleans(),
)
def test_it_is_its_definition(seed, window, border, scope, prob, beta, ignored):
    scores, labels = batch(seed, classes=3, size=(11, 13), ignored=ignored, dtype=torch.float64)
    known = np.broadcast_to((labels != IGNORED).numpy()[:, None], scores.shape).astype(float)
    truth = one_hot(labels, 3).numpy()
    given_ = scores.where(torch.from_numpy(known) > 0, 0)
    chances = (given_.sigmoid() if prob == "sigmoid" else given_.softmax(1)).numpy()
    error = np.zeros(scores.shape)
    for place in np.ndindex(3, 3):
        pair = [normalised(each[place], known[place], window, 1.2, 0.02, border) for each in (truth, chances)]
        error[place] = np.abs(pair[0] - pair[1]) * known[place]
    axes = {"batch": (0, 1, 2, 3), "image": (1, 2, 3), "class": (0, 2, 3)}[scope]
    bound = beta * error.max(axes, keepdims=True)
    losses = np.logaddexp(0, scores.numpy()) - scores.numpy() * truth
    found = parts(
        scores, labels, window=window, sigma=1.2, c4=0.02, beta=beta, border=border, scope=scope, prob=prob, lam=0.3
    )
    np.testing.assert_allclose(found.error, error, atol=1e-6)
    # Places within rounding of the bound may fall to either side.
    clear = np.abs(error - bound) > 1e-7
    hard = error > bound
    assert abs(found.hard_count.item() - hard[clear].sum()) <= (~clear).sum()
    if clear.all():
        expected = (error * hard * losses).sum() / max(hard.sum(), 1)
        assert found.structural.item() == pytest.approx(expected, rel=1e-6)
    assert found.bce.item() == pytest.approx((losses * known).sum() / known.sum())
    assert found.total.item() == pytest.approx(0.3 * found.bce.item() + 0.7 * found.structural.item())


@pytest.mark.parametrize("border", ["reflect", "zero", "renormalised"])
@pytest.mark.parametrize("ignored", [False, True])
def test_gradcheck(border, ignored):
    scores, labels = batch(classes=2, size=(5, 6), ignored=ignored, dtype=torch.float64)
    loss = StructuralSimilarityLoss(2, beta=0, border=border)
    assert torch.autograd.gradcheck(lambda each: loss(each, labels), scores.requires_grad_())


def test_a_detached_weight_is_a_constant():
    scores, labels = batch(classes=2, dtype=torch.float64)
    scores.requires_grad_()
    found = parts(scores, labels, detach_weight=True, lam=0)
    (gradient,) = torch.autograd.grad(found.total, scores)
    error, truth = found.error.detach(), one_hot(labels, 2)
    hard = error > 0.1 * error.max()
    torch.testing.assert_close(gradient, error * hard * (scores.sigmoid() - truth).detach() / hard.sum())


def test_lambda_of_one_is_cross_entropy():
    scores, labels = batch(ignored=False, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(scores, one_hot(labels, 4))
    assert StructuralSimilarityLoss(4, lam=1)(scores, labels).item() == pytest.approx(expected.item(), rel=1e-15)
    scores, labels = batch(dtype=torch.float64)
    places = (labels != IGNORED).unsqueeze(1).expand_as(scores)
    expected = F.binary_cross_entropy_with_logits(scores[places], one_hot(labels, 4)[places])
    assert StructuralSimilarityLoss(4, lam=1)(scores, labels).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("border", ["reflect", "renormalised"])
def test_it_is_blind_to_flat_errors(border):
    labels = torch.ones(1, 16, 16, dtype=torch.long)
    scores = torch.zeros(1, 2, 16, 16, dtype=torch.float64)
    found = parts(scores, labels, border=border)
    assert found.structural < 1e-6
    assert found.bce.item() == pytest.approx(math.log(2))
    # Zeros outside the image make an edge of it.
    assert parts(scores, labels, border="zero").structural > 0.05


def test_a_right_and_certain_answer_costs_nothing():
    _, labels = batch()
    found = parts(100 * (2 * one_hot(labels, 4) - 1), labels)
    assert found.total.item() < 1e-40
    assert found.structural.item() == 0
    assert torch.isfinite(found.error).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2)])
@pytest.mark.parametrize("border", ["reflect", "zero", "renormalised"])
def test_windows_larger_than_the_image(size, border):
    scores, labels = batch(size=size, ignored=False)
    scores.requires_grad_()
    loss = StructuralSimilarityLoss(4, window=9, border=border)(scores, labels)
    loss.backward()
    assert torch.isfinite(scores.grad).all()
    assert loss > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, "the window of ssl is 4: give an odd number of pixels"),
        ({"window": 3.0}, "the window of ssl is 3.0"),
        ({"sigma": 0}, "sigma of ssl is 0"),
        ({"c4": math.nan}, "c4 of ssl is nan"),
        ({"beta": 1}, "beta of ssl is 1"),
        ({"lam": 1.1}, "lam of ssl is 1.1"),
        ({"border": "wrap"}, "border of ssl"),
        ({"scope": "pixel"}, "scope of ssl"),
        ({"prob": "tanh"}, "prob of ssl"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        StructuralSimilarityLoss(2, **options)
