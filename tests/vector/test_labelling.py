"""Regions by runs: the same as by pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from geoseg.grid import Window
from geoseg.vector.labelling import label_regions

NONE = 255

blocks = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 20)), elements=st.sampled_from([0, 1, 2, NONE])
)


def by_pixels(codes, structure=None):
    """The number of each pixel, regions numbered in the order of their first pixels."""
    found = np.zeros(codes.shape, int)
    for code in np.unique(codes[codes != NONE]):
        some, _ = ndimage.label(codes == code, structure)
        found[some > 0] = some[some > 0] + found.max()
    present, first = np.unique(found, return_index=True)
    order = present[np.argsort(first)]
    numbers = np.zeros(found.max() + 1, int)
    numbers[order[order > 0]] = np.arange(1, (order > 0).sum() + 1)
    return numbers[found]


def map_of(regions):
    height, width = regions.shape
    return regions.framed().reshape(height + 2, width + 2)[1:-1, 1:-1]


@settings(max_examples=150, deadline=None)
@given(codes=blocks)
def test_regions_are_those_of_a_labelling_of_pixels(codes):
    regions, expected = label_regions(codes, NONE), by_pixels(codes)
    assert (map_of(regions) == expected).all()
    assert regions.pixels[1:].tolist() == np.bincount(expected.ravel())[1:].tolist()
    flat = expected.ravel().tolist()
    assert regions.first[1:].tolist() == [flat.index(number) for number in range(1, expected.max() + 1)]
    for side, wanted in zip(regions.sides(), (expected[0], expected[-1], expected[:, 0], expected[:, -1]), strict=True):
        assert (side == wanted).all()


@settings(max_examples=150, deadline=None)
@given(codes=blocks)
def test_regions_joined_by_corners_are_those_of_a_labelling_of_pixels(codes):
    regions = label_regions(codes, NONE)
    joined = regions.joined_corners(codes)[map_of(regions)]
    _, joined = np.unique(joined, return_inverse=True)
    expected = by_pixels(codes, np.ones((3, 3)))
    pairs = np.unique(np.stack([joined.reshape(codes.shape).ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


def test_the_frame_is_empty():
    framed = label_regions(np.zeros((3, 4), np.uint8), NONE).framed().reshape(5, 6)
    assert framed.sum() == framed[1:-1, 1:-1].sum() == 12


def test_first_pixels_are_those_of_the_raster():
    regions = label_regions(np.array([[0, 1], [1, 1]], np.uint8), NONE)
    assert regions.first_pixels(Window(70_000, 5, 2, 2), 60_000)[1:].tolist() == [4_200_000_005, 4_200_000_006]


@pytest.mark.parametrize("strided", [False, True])
def test_sums_leave_out_what_is_unknown(strided):
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 2, (8, 30)).astype(np.uint8)
    values = rng.integers(0, 5, (8, 60 if strided else 30)).astype(np.uint16)
    values = values[:, ::2] if strided else values
    regions = label_regions(codes, NONE)
    numbers, known = map_of(regions), values != 4
    sums, counts = regions.sums(values, 4)
    assert counts.tolist() == np.bincount(numbers[known], minlength=len(sums)).tolist()
    assert sums.tolist() == np.bincount(numbers[known], values[known], minlength=len(sums)).tolist()
