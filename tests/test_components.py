"""Connected components: against a search that spreads from pixel to pixel."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from geoseg.components import component_boxes, components, drop_small, keep_large

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=7))


def spread(mask, corners):
    """Number components from their first pixel on."""
    labels, count = np.zeros(mask.shape, int), 0
    for first in map(tuple, np.argwhere(mask)):
        if labels[first]:
            continue
        count += 1
        labels[first], waiting = count, [first]
        while waiting:
            place = waiting.pop()
            for step in product((-1, 0, 1), repeat=mask.ndim):
                other = tuple(np.add(place, step))
                near = corners or sum(map(abs, step)) == 1
                within = all(0 <= at < side for at, side in zip(other, mask.shape, strict=True))
                if near and within and mask[other] and not labels[other]:
                    labels[other] = count
                    waiting.append(other)
    return labels, count


@given(mask=MASKS, corners=st.booleans())
def test_components(mask, corners):
    labels, count = components(mask, corners=corners)
    expected, number = spread(mask, corners)
    assert count == number
    assert np.array_equal(labels, expected)


def test_a_spiral_is_one():
    """Its arms get many numbers before they meet."""
    mask = np.zeros((41, 41), bool)
    row, col, length = 20, 20, 1
    for turn in range(38):
        step = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
        for _ in range(length):
            row, col = row + step[0], col + step[1]
            mask[row, col] = True
        length += 2 * (turn % 2) if length < 38 else 0
        if not (1 < row < 39 and 1 < col < 39):
            break
    assert mask.sum() > 100
    assert components(mask, corners=False)[1] == 1
    assert components(~mask, corners=False)[1] == spread(~mask, False)[1]


@given(mask=arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_boxes(mask):
    labels, count = spread(mask, True)
    boxes = component_boxes(mask)
    assert boxes.shape == (count, 4)
    for number, (row, row_stop, col, col_stop) in enumerate(boxes.tolist(), 1):
        rows, cols = np.nonzero(labels == number)
        assert (row, row_stop, col, col_stop) == (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1)


@given(mask=MASKS, share=st.sampled_from([0.25, 0.5, 1.0]))
def test_the_large_ones_stay(mask, share):
    found = keep_large(mask, share)
    if not mask.any() or 2 * mask.sum() >= mask.size:
        assert np.array_equal(found, mask)
        return
    labels, count = spread(mask, False)
    sizes = [int((labels == number).sum()) for number in range(1, count + 1)]
    kept = [number for number, size in enumerate(sizes, 1) if size >= share * max(sizes)]
    assert np.array_equal(found, np.isin(labels, kept))


@given(mask=MASKS, pixels=st.sampled_from([0, 1, 2, 2.5, 4]))
def test_the_small_ones_go(mask, pixels):
    labels, count = spread(mask, True)
    kept = [number for number in range(1, count + 1) if (labels == number).sum() >= pixels]
    assert np.array_equal(drop_small(mask, pixels), np.isin(labels, kept))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,)])
def test_nothing_has_no_components(shape):
    labels, count = components(np.zeros(shape, bool), corners=True)
    assert (labels.shape, count) == (shape, 0)
