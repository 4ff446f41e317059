"""Cross-entropy over hard pixels, against a loop over pixels that reads like the definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.losses.ohem import OhemCrossEntropy

IGNORED = 255


def batch(seed=0, classes=4, size=(5, 6), ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (2, *size), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORED
    return scores, target


def by_hand(scores, target, threshold, keep, weights=None):
    pixels = []
    for row, label in zip(scores.movedim(1, -1).reshape(-1, scores.shape[1]).tolist(), target.flatten(), strict=True):
        if label != IGNORED:
            total = sum(math.exp(value) for value in row)
            chance = math.exp(row[label]) / total
            pixels.append((chance, (1.0 if weights is None else float(weights[label])), -math.log(chance)))
    if threshold is None:
        return sum(w * loss for _, w, loss in pixels) / sum(w for _, w, _ in pixels)
    ordered = sorted(chance for chance, _, _ in pixels)
    bound = max(ordered[min(keep, len(ordered) - 1)], threshold)
    hard = [w * loss for chance, w, loss in pixels if chance < bound]
    return sum(hard) / len(hard)


@given(
    seed=st.integers(0, 1000),
    threshold=st.sampled_from([None, 0.05, 0.3, 0.9, 1.0]),
    keep=st.sampled_from([1, 7, 30, 59, 60, 1000]),
    weighted=st.booleans(),
)
def test_it_is_its_definition(seed, threshold, keep, weighted):
    scores, target = batch(seed)
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0]) if weighted else None
    loss = OhemCrossEntropy(threshold, keep, class_weights=weights)(scores, target)
    assert loss.item() == pytest.approx(by_hand(scores, target, threshold, keep, weights), rel=1e-12)


def test_keeping_all_still_drops_the_easiest_pixel():
    """The comparison is strict, so this is not plain cross-entropy."""
    scores = torch.tensor([[[[0.0, 1.0, 5.0]], [[0.0, 0.0, 0.0]]]])
    target = torch.zeros(1, 1, 3, dtype=torch.long)
    each = torch.nn.functional.cross_entropy(scores, target, reduction="none").flatten()
    assert OhemCrossEntropy(0.9, 100)(scores, target).item() == pytest.approx(each[:2].mean().item())
    assert OhemCrossEntropy(None)(scores, target).item() == pytest.approx(each.mean().item())


def test_pixels_of_equal_probability_go_together():
    scores = torch.zeros(1, 2, 2, 4)
    target = torch.zeros(1, 2, 4, dtype=torch.long)
    assert OhemCrossEntropy(0.2, 3)(scores, target).item() == 0  # all are the bound, none is below it
    assert OhemCrossEntropy(0.6, 3)(scores, target).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("threshold", [None, 0.9])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0])])
@pytest.mark.parametrize("label", [IGNORED, 0], ids=["no label", "no hard pixel"])
def test_without_a_pixel_that_counts_it_is_zero(threshold, weights, label):
    scores = torch.randn(1, 2, 3, 3)
    if label == 0:
        scores[:, 0] = 200.0  # certain, so none is hard
        threshold = threshold or 0.5
    scores.requires_grad_()
    loss = OhemCrossEntropy(threshold, 2, class_weights=weights)(scores, torch.full((1, 3, 3), label))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_ignored_and_easy_pixels_have_no_gradient():
    scores, target = batch(ignored=0.5)
    scores.requires_grad_()
    OhemCrossEntropy(0.3, 5)(scores, target).backward()
    chances = scores.detach().softmax(1).gather(1, target.where(target != IGNORED, 0)[:, None])[:, 0]
    moved = scores.grad.abs().sum(1) > 0
    assert not moved[target == IGNORED].any()
    assert torch.equal(moved, (target != IGNORED) & (chances < 0.3))
    assert torch.isfinite(scores.grad).all()


def test_coarse_scores_are_enlarged_to_the_target():
    scores, _ = batch()
    target = torch.randint(0, 4, (2, 20, 24), generator=torch.Generator().manual_seed(3))
    for rule in (False, True):
        large = torch.nn.functional.interpolate(scores, (20, 24), mode="bilinear", align_corners=rule)
        expected = torch.nn.functional.cross_entropy(large, target)
        assert OhemCrossEntropy(None, align_corners=rule)(scores, target).item() == pytest.approx(expected.item())


def test_small_integers_and_half_precision():
    scores, target = batch()
    loss = OhemCrossEntropy(0.9, 5)
    expected = loss(scores.bfloat16().float(), target)
    found = loss(scores.bfloat16(), target.to(torch.uint8))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_weights_follow_the_loss_but_are_no_weights_to_store():
    loss = OhemCrossEntropy(None, class_weights=torch.ones(2))
    assert not loss.state_dict()
    assert loss.double().class_weights.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold of ohem is 0"),
        ({"threshold": 1.5}, "threshold of ohem is 1.5"),
        ({"threshold": math.nan}, "threshold of ohem is nan"),
        ({"keep": -1}, "keep of ohem is -1"),
        ({"keep": 2.5}, "keep of ohem is 2.5"),
        ({"class_weights": torch.tensor([1.0, -1.0])}, "class weights of ohem"),
        ({"class_weights": torch.tensor([1.0, math.nan])}, "class weights of ohem"),
        ({"class_weights": torch.ones(2, 2)}, "class weights of ohem"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        OhemCrossEntropy(**options)
