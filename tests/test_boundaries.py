"""Pixels near another class, against every pair of pixels and against erosion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.morphology import disk, erosion

from geoseg.boundaries import near_other_class, reach
from geoseg.metrics import IGNORED


def _labels(seed: int, shape: tuple[int, int] = (19, 26)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (shape[0] // 4 + 1, shape[1] // 4 + 1))
    labels = np.kron(coarse, np.ones((4, 4), int))[: shape[0], : shape[1]].astype(np.uint8)
    labels[rng.random(shape) < 0.05] = IGNORED
    labels[rng.random(shape) < 0.02] = 7
    return labels


@given(
    st.integers(0, 10_000),
    st.sampled_from([(0, 0), (1, 1), (2, 2), (2**0.5, 2**0.5), (3, 3), (5, 5), (1, 4), (6.5, 2.2), (40, 40), (0.4, 3)]),
)
def test_every_pair_of_pixels_agrees(seed, distance_yx):
    labels = _labels(seed)
    down, across = (max(d, 1e-3) for d in distance_yx)
    rows, cols = np.indices(labels.shape)
    expected = np.zeros(labels.shape, bool)
    for row, col in np.ndindex(labels.shape):
        inside = ((rows - row) / down) ** 2 + ((cols - col) / across) ** 2 <= 1 + 1e-9
        there = labels[inside]
        expected[row, col] = labels[row, col] != IGNORED and np.any((there != labels[row, col]) & (there != IGNORED))
    assert np.array_equal(near_other_class(labels, distance_yx), expected)


@pytest.mark.parametrize("radius", [1, 3, 6])
def test_it_is_what_erosion_by_a_disc_takes_away(radius):
    labels = _labels(5, (64, 71))
    labels[labels == IGNORED] = 1
    kept = np.zeros(labels.shape, bool)
    for value in np.unique(labels):
        kept |= erosion(np.pad((labels == value).astype(np.uint8), radius, mode="edge"), disk(radius))[
            radius:-radius, radius:-radius
        ].astype(bool)
    inner = (slice(radius, -radius), slice(radius, -radius))  # the padding repeats classes that are not there
    assert np.array_equal(near_other_class(labels, (radius, radius))[inner], ~kept[inner])


def test_ignored_pixels_and_the_edge_are_no_boundary():
    labels = np.array([[0, 0, 255, 1, 1]], np.uint8)
    assert near_other_class(labels, (1, 1)).tolist() == [[False] * 5]
    assert near_other_class(labels, (2, 2)).tolist() == [[False, True, False, True, False]]


def test_reach_is_the_context_that_is_needed():
    labels = _labels(11, (60, 60))
    for distance in ((3.0, 3.0), (4.9, 2.0)):
        margin = reach(distance)
        part = labels[20 - margin : 40 + margin, 20 - margin : 40 + margin]
        found = near_other_class(part, distance)[margin : margin + 20, margin : margin + 20]
        assert np.array_equal(found, near_other_class(labels, distance)[20:40, 20:40])
