"""Losses of areas against their formulas and against the libraries' own forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.losses import create
from geoseg.losses.lovasz import Lovasz
from tests.losses.batches import IGNORED, batch, one_hot


def areas(scores, labels):
    """Soft areas of each class: common, predicted, true."""
    known = (labels != IGNORED).unsqueeze(1)
    chances, truth = scores.softmax(1) * known, one_hot(labels, scores.shape[1])
    return tuple(each.sum((0, 2, 3)) for each in (chances * truth, chances, truth))


@given(st.integers(0, 99), st.integers(2, 5), st.floats(0, 2))
def test_areas_by_the_formula(seed, classes, smooth):
    scores, labels = batch(seed, classes=classes, size=(12, 15), dtype=torch.float64)
    common, predicted, true = areas(scores, labels)
    there = true > 0
    # The library's dice is tversky with alpha = beta = 0.5, so smooth counts twice beside areas counted twice.
    dice = 1 - (2 * common + 2 * smooth) / (predicted + true + 2 * smooth)
    jaccard = 1 - (common + smooth) / (predicted + true - common + smooth)
    false, missed = predicted - common, true - common
    tversky = 1 - (common + smooth) / (common + 0.3 * false + 0.7 * missed + smooth)
    for name, expected in (
        (f"dice[smooth={smooth}]", (dice * there).mean()),
        (f"jaccard[smooth={smooth}]", (jaccard * there).mean()),
        (f"tversky[smooth={smooth},alpha=0.3,beta=0.7,gamma=1.5]", ((tversky * there).mean()) ** 1.5),
    ):
        found = create(name, num_classes=classes)(scores, labels).item()
        assert found == pytest.approx(expected.item(), rel=1e-6)


def test_lovasz_is_that_of_the_library():
    from segmentation_models_pytorch.losses import LovaszLoss

    scores, labels = batch()
    mine, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    found = Lovasz(4)(mine, labels)
    expected = LovaszLoss("multiclass", ignore_index=IGNORED)(theirs, labels)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@given(st.integers(0, 99))
def test_lovasz_of_certain_answers_is_one_minus_iou(seed):
    _, labels = batch(seed, classes=3)
    answers = batch(seed + 100, classes=3, ignored=False)[1]
    scores = 1000 * one_hot(answers, 3)
    known = labels != IGNORED
    iou = [
        ((labels == c) & (answers == c)).sum() / (known & ((labels == c) | (answers == c))).sum()
        for c in labels[known].unique()
    ]
    expected = 1 - sum(iou) / len(iou)
    assert Lovasz(3)(scores, labels).item() == pytest.approx(expected.item())


def test_focal_and_smoothing_by_the_formula():
    scores, labels = batch(dtype=torch.float64)
    known = labels != IGNORED
    logs = scores.log_softmax(1)
    own = logs.gather(1, labels.where(known, 0).unsqueeze(1)).squeeze(1)[known]
    weights = torch.tensor([0.5, 1, 2, 4], dtype=torch.float64)
    w = weights[labels[known]]
    expected = {
        "ce": -own.mean(),
        "ce[class_weights=0.5/1/2/4]": -(w * own).sum() / w.sum(),
        "ce[label_smoothing=0.2]": -(0.8 * own + 0.2 * logs.mean(1)[known]).mean(),
        "focal[gamma=0]": -own.mean(),
        "focal[gamma=3]": -((1 - own.exp()) ** 3 * own).mean(),
        "focal[class_weights=0.5/1/2/4]": -(w * (1 - own.exp()) ** 2 * own).sum() / w.sum(),
    }
    for name, value in expected.items():
        assert create(name, num_classes=4)(scores, labels).item() == pytest.approx(value.item(), rel=1e-12), name
    assert not math.isnan(create("focal[gamma=1]", num_classes=4)(1000 * scores, labels).item())
