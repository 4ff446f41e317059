"""Labels and confidence from scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geoseg.engine.deciding import decide

IDS = np.array([3, 0, 65535, 9], np.uint16)


@given(arrays(np.float32, (2, 4, 5, 3), elements=st.floats(-90, 90, width=32)))
def test_the_winner_and_its_probability(scores: np.ndarray) -> None:
    labels, confidence = decide(scores, IDS)
    np.testing.assert_array_equal(labels, IDS[scores.argmax(1)])
    probability = torch.softmax(torch.from_numpy(scores).double(), 1).max(1).values.numpy()
    assert np.abs(confidence - 1000 * probability).max() <= 0.501


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)])
def test_whatever_the_layout_and_the_company(order: tuple[int, ...]) -> None:
    scores = np.random.default_rng(0).normal(0, 3, (3, 4, 17, 9)).astype(np.float32)
    laid = np.ascontiguousarray(scores.transpose(order)).transpose(np.argsort(order))
    for found, expected in zip(decide(laid, IDS), decide(scores, IDS), strict=True):
        np.testing.assert_array_equal(found, expected)
    alone = [decide(scores[n : n + 1], IDS) for n in range(3)]
    for found, parts in zip(decide(scores, IDS), zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(found, np.concatenate(parts))


def test_scores_that_are_no_numbers_have_no_confidence() -> None:
    scores = np.zeros((1, 4, 1, 2), np.float32)
    scores[0, 2, 0, 0] = np.nan
    _, confidence = decide(scores, IDS)
    assert confidence.tolist() == [[[0, 250]]]
