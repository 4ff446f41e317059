"""Dilation and erosion against their definitions, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geoseg.errors import ConfigError
from geoseg.morphology import dilated, disk, ellipse, eroded

SIDES = st.integers(1, 12)
MASKS = st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays(bool, shape))


@st.composite
def shapes(draw):
    """Any shape whose rows are runs, of any size, odd or even."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    shape = np.zeros((height, width), bool)
    for line in shape:
        start = draw(st.integers(0, width))
        line[start : draw(st.integers(start, width))] = True
    return shape


def seen(mask, shape, row, col, beyond):
    """What each pixel of the shape lies on, when its middle lies on a pixel of the mask."""
    found = []
    for down, across in np.argwhere(shape) - np.array(shape.shape) // 2:
        place = (row + down, col + across)
        inside = 0 <= place[0] < mask.shape[0] and 0 <= place[1] < mask.shape[1]
        found.append(bool(mask[place]) if inside else beyond)
    return found


@given(mask=MASKS, shape=shapes())
def test_as_defined(mask, shape):
    grown, shrunk = dilated(mask, shape), eroded(mask, shape)
    for row, col in np.ndindex(mask.shape):
        assert grown[row, col] == any(seen(mask, shape, row, col, False))
        assert shrunk[row, col] == all(seen(mask, shape, row, col, True))


@given(mask=MASKS, size=st.integers(1, 9).map(lambda half: 2 * half - 1))
def test_closing_by_an_odd_disk_only_adds(mask, size):
    shape = disk(size)
    closed = eroded(dilated(mask, shape), shape)
    assert not (mask & ~closed).any()
    assert np.array_equal(eroded(dilated(closed, shape), shape), closed)


@pytest.mark.parametrize(
    ("height", "width", "rows"),
    [
        (1, 1, ["#"]),
        (3, 3, [".#.", "###", ".#."]),
        (4, 4, ["..#.", "####", "####", "####"]),
        (5, 5, ["..#..", "#####", "#####", "#####", "..#.."]),
        (2, 5, ["..#..", "#####"]),
        (1, 3, ["###"]),
        (7, 7, ["...#...", ".#####.", "#######", "#######", "#######", ".#####.", "...#..."]),
    ],
)
def test_ellipses_are_those_of_opencv(height, width, rows):
    """Drawn by its getStructuringElement."""
    assert ["".join(".#"[pixel] for pixel in line) for line in ellipse(height, width).astype(int)] == rows


@pytest.mark.parametrize("size", range(1, 12))
def test_disks_are_round(size):
    shape = disk(size)
    rows, cols = np.nonzero(np.ones_like(shape))
    far = np.hypot(rows - size // 2, cols - size // 2).reshape(shape.shape)
    assert np.array_equal(shape, far <= size // 2)


def test_shapes_with_gaps_are_refused():
    with pytest.raises(ConfigError, match="row 1 of the shape to dilate with has a gap"):
        dilated(np.zeros((4, 4), bool), np.array([[1, 1, 1], [1, 0, 1]], bool))
