"""Scores against torchmetrics, plain numpy, and a published confusion matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.metrics import IGNORED, Calibration, Confusion, ObjectCounts, Overlap, confusion_matrix

# Pixels of a land-cover map against its reference (rows): water, trees, low vegetation, impervious.
PUBLISHED = np.array(
    [
        [30817510, 157460, 997897, 85579],
        [601849, 371231420, 122817580, 648955],
        [2492399, 10617486, 300416060, 2619976],
        [567293, 736896, 9544658, 24495138],
    ]
)


def _maps(seed: int, classes: int, shape: tuple[int, int] = (23, 31)) -> tuple[np.ndarray, np.ndarray]:
    """Two maps that agree more often than not; some classes may be missing, some pixels are ignored."""
    rng = np.random.default_rng(seed)
    usual = rng.integers(0, classes, 3)
    reference = rng.choice(usual, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.6, reference, rng.integers(0, classes, shape)).astype(np.uint8)
    reference[rng.random(shape) < 0.1] = IGNORED
    prediction[rng.random(shape) < 0.05] = IGNORED
    return reference, prediction


def test_the_published_matrix_gives_its_published_scores():
    scores = Confusion(PUBLISHED)
    assert scores.overall_accuracy == pytest.approx(0.827174, abs=5e-7)
    assert scores.iou == pytest.approx([0.862753, 0.732484, 0.668325, 0.632974], abs=5e-7)
    assert scores.mean_iou == pytest.approx(0.724134, abs=5e-7)


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_scores_equal_torchmetrics(seed, classes):
    tm = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    reference, prediction = _maps(seed, classes)
    counted = (reference != IGNORED) & (prediction != IGNORED)
    target, given_ = (torch.from_numpy(a[counted].astype(np.int64)) for a in (reference, prediction))
    scores = Confusion(confusion_matrix(reference, prediction, classes))
    there = scores.present
    assert np.array_equal(scores.matrix, tm.multiclass_confusion_matrix(given_, target, classes).numpy())
    for name, function in (
        ("iou", tm.multiclass_jaccard_index),
        ("f1", tm.multiclass_f1_score),
        ("precision", tm.multiclass_precision),
        ("recall", tm.multiclass_recall),
    ):
        theirs = function(given_, target, classes, average="none").numpy()
        # What is not defined is 0 there and NaN here.
        assert np.nan_to_num(getattr(scores, name)) == pytest.approx(theirs, abs=1e-6)
        assert np.isnan(getattr(scores, name))[~there].all()
    assert scores.overall_accuracy == pytest.approx(float((target == given_).double().mean()), abs=1e-12)
    assert scores.kappa == pytest.approx(float(tm.multiclass_cohen_kappa(given_, target, classes)), abs=1e-5)
    assert scores.mean_iou == pytest.approx(float(tm.multiclass_jaccard_index(given_, target, classes)), abs=1e-6)


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_pooled_scores_equal_torchmetrics_with_its_own_ignore_index(seed, classes):
    tm = pytest.importorskip("torchmetrics.classification")
    import torch

    metrics = {
        "matrix": tm.MulticlassConfusionMatrix(classes, ignore_index=IGNORED),
        "overall_accuracy": tm.MulticlassAccuracy(classes, average="micro", ignore_index=IGNORED),
        "recall": tm.MulticlassAccuracy(classes, average="none", ignore_index=IGNORED),
        "mean_f1": tm.MulticlassF1Score(classes, average="macro", ignore_index=IGNORED),
        "mean_iou": tm.MulticlassJaccardIndex(classes, average="macro", ignore_index=IGNORED),
    }
    total = np.zeros((classes, classes), np.int64)
    for scene in range(3):
        reference, prediction = _maps(seed + scene, classes)
        reference[prediction == IGNORED] = IGNORED  # there a prediction always has a class
        total += confusion_matrix(reference, prediction, classes)
        given_ = np.where(prediction == IGNORED, 0, prediction)
        for metric in metrics.values():
            metric.update(torch.from_numpy(given_.astype(np.int64)), torch.from_numpy(reference.astype(np.int64)))
    scores = Confusion(total)
    for name, metric in metrics.items():
        assert np.nan_to_num(getattr(scores, name)) == pytest.approx(metric.compute().numpy(), abs=1e-6), name


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_scores_equal_scikit_learn(seed, classes):
    theirs = pytest.importorskip("sklearn.metrics")
    reference, prediction = _maps(seed, classes)
    counted = (reference != IGNORED) & (prediction != IGNORED)
    pair = reference[counted], prediction[counted]
    scores, every = Confusion(confusion_matrix(reference, prediction, classes)), {"labels": list(range(classes))}
    assert np.array_equal(scores.matrix, theirs.confusion_matrix(*pair, **every))
    for name, function in (
        ("iou", theirs.jaccard_score),
        ("f1", theirs.f1_score),
        ("precision", theirs.precision_score),
        ("recall", theirs.recall_score),
    ):
        assert np.nan_to_num(getattr(scores, name)) == pytest.approx(
            function(*pair, average=None, zero_division=0, **every), abs=1e-12
        )
    assert scores.overall_accuracy == pytest.approx(theirs.accuracy_score(*pair), abs=1e-12)
    assert scores.kappa == pytest.approx(theirs.cohen_kappa_score(*pair), abs=1e-12)


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_scores_by_pixel_sets(seed, classes):
    """As sets of pixels, without a matrix; and F1 = 2 IoU / (1 + IoU)."""
    reference, prediction = _maps(seed, classes)
    counted = (reference != IGNORED) & (prediction != IGNORED)
    scores = Confusion(confusion_matrix(reference, prediction, classes))
    for index in range(classes):
        true, given_ = ((each == index) & counted for each in (reference, prediction))
        found = {
            "iou": (true & given_).sum() / max((true | given_).sum(), 1) if (true | given_).any() else math.nan,
            "precision": (true & given_).sum() / given_.sum() if given_.any() else math.nan,
            "recall": (true & given_).sum() / true.sum() if true.any() else math.nan,
        }
        for name, value in found.items():
            assert getattr(scores, name)[index] == pytest.approx(value, rel=1e-12, nan_ok=True)
    assert scores.f1 == pytest.approx(2 * scores.iou / (1 + scores.iou), rel=1e-12, nan_ok=True)


@given(st.integers(0, 10_000), st.integers(1, 22), st.integers(1, 30))
def test_counts_of_parts_add_up_to_the_whole(seed, row, col):
    reference, prediction = _maps(seed, 5)
    parts = [
        confusion_matrix(reference[r, c], prediction[r, c], 5)
        for r in (slice(0, row), slice(row, None))
        for c in (slice(0, col), slice(col, None))
    ]
    assert np.array_equal(sum(parts), confusion_matrix(reference, prediction, 5))


def test_what_is_not_defined_is_nan_and_left_out_of_means():
    # Class 1 is never predicted, class 2 occurs nowhere.
    scores = Confusion(np.array([[3, 0, 0], [1, 0, 0], [0, 0, 0]]))
    assert scores.precision == pytest.approx([3 / 4, math.nan, math.nan], nan_ok=True)
    assert scores.recall == pytest.approx([1, 0, math.nan], nan_ok=True)
    assert scores.iou == pytest.approx([3 / 4, 0, math.nan], nan_ok=True)
    assert scores.mean_iou == pytest.approx(3 / 8)
    assert scores.present.tolist() == [True, True, False]


def test_kappa_is_not_defined_where_one_class_is_all_there_is():
    assert math.isnan(Confusion(np.array([[7, 0], [0, 0]])).kappa)
    assert math.isnan(Confusion(np.zeros((2, 2), np.int64)).kappa)


def test_counts_of_a_huge_scene_do_not_overflow():
    scale = 10**9
    small, large = Confusion(PUBLISHED), Confusion(PUBLISHED * scale)
    assert large.kappa == pytest.approx(small.kappa, rel=1e-12)
    assert large.pixels == small.pixels * scale


def test_boundary_iou_by_hand():
    # Class 1 in columns 2 and 3 of the reference, 3 and 4 of the prediction; the last pixel is ignored.
    reference = np.array([[0, 0, 1, 1, 0, 255]], np.uint8)
    prediction = np.array([[0, 0, 0, 1, 1, 0]], np.uint8)
    near = np.array([[0, 1, 1, 1, 1, 0]], bool), np.array([[0, 0, 1, 1, 1, 1]], bool)
    found = Overlap.of_boundaries(reference, prediction, *near, 2)
    assert (found.both.tolist(), found.reference.tolist(), found.prediction.tolist()) == ([0, 1], [2, 2], [1, 2])
    assert found.iou == pytest.approx([0, 1 / 3])
    assert found.mean_iou == pytest.approx(1 / 6)
    assert (found + found).both.tolist() == [0, 2]


def _told(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = np.append(rng.random(400), [0.0, 1.0, 0.5, 0.3]).astype(np.float32)
    return confidence, rng.random(404) < confidence**2


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_calibration_equals_plain_numpy(seed, bins):
    confidence, right = _told(seed)
    found = Calibration.of(confidence, right, bins)
    error, largest = 0.0, 0.0
    for number in range(bins):
        inside = np.minimum(np.floor(confidence.astype(float) * bins), bins - 1) == number
        assert found.pixels[number] == inside.sum()
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].astype(float).mean())
            error += inside.mean() * gap
            largest = max(largest, gap)
            assert found.accuracy[number] == pytest.approx(right[inside].mean())
    assert found.expected_error == pytest.approx(error, abs=1e-7)
    assert found.largest_error == pytest.approx(largest, abs=1e-7)


def test_calibration_equals_torchmetrics():
    tm = pytest.importorskip("torchmetrics.functional.classification.calibration_error")
    import torch

    confidence, right = _told(3)
    confidence = confidence[:-4]  # values on the line between two bins go the other way there
    right = right[:-4]
    for norm, name in (("l1", "expected_error"), ("max", "largest_error")):
        theirs = tm._ce_compute(torch.from_numpy(confidence), torch.from_numpy(right).float(), 10, norm)
        assert getattr(Calibration.of(confidence, right, 10), name) == pytest.approx(float(theirs), abs=1e-6)


@given(st.integers(0, 10_000), st.integers(0, 404))
def test_calibration_does_not_depend_on_the_order_of_its_parts(seed, cut):
    confidence, right = _told(seed)
    parts = [Calibration.of(confidence[s], right[s], 10) for s in (slice(cut, None), slice(0, cut))]
    whole, sums = Calibration.of(confidence, right, 10), parts[0] + parts[1]
    assert np.array_equal(whole.confidence, sums.confidence)
    assert whole.expected_error == sums.expected_error


def test_objects_by_class_and_together():
    counts = ObjectCounts(np.array([3, 0]), np.array([1, 2]), np.array([0, 0]))
    assert counts.precision == pytest.approx([3 / 4, 0])
    assert counts.recall == pytest.approx([1, math.nan], nan_ok=True)
    assert counts.f1 == pytest.approx([6 / 7, 0])
    assert counts.pooled().of_class(0) == {
        "found": 3, "wrong": 3, "missed": 0, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3),
    }  # fmt: skip
