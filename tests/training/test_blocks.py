"""Blocks: the cell of every pixel in any CRS, cut blocks, turns and erosion."""

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.training.blocks import Blocks, CellGrid

UTM, ALBERS, MERCATOR, DEGREES = (pyproj.CRS.from_epsg(code) for code in (26918, 5070, 3857, 4326))
TILE = Affine(1, 0, 300_012, 0, -1, 4_300_007)


def grid_around(crs, cell, shape=(40, 50)):
    """A grid of cells that surrounds the tile's corner."""
    x, y = pyproj.Transformer.from_crs(UTM, crs, always_xy=True).transform(300_100, 4_299_900)
    rows, cols = shape
    return CellGrid(crs, Affine(cell, 0, x - cols / 2 * cell, 0, -cell, y + rows / 2 * cell), shape)


def exact(grid, crs, affine, shape):
    rows, cols = np.indices(shape) + 0.5
    return tuple(np.floor(each) for each in grid.places(crs, affine, rows, cols))


@pytest.mark.parametrize(("crs", "cell"), [(ALBERS, 30), (MERCATOR, 12.5), (DEGREES, 1e-4), (UTM, 10), (UTM, 7.3)])
@pytest.mark.parametrize("turned", [0, 33])
def test_as_if_every_pixel_were_transformed(crs, cell, turned):
    grid, affine, shape = grid_around(crs, cell), TILE * Affine.rotation(turned), (150, 231)
    found = grid.cells(UTM, affine, shape)
    for got, expected in zip(found, exact(grid, UTM, affine, shape), strict=True):
        assert got.dtype == np.int64
        assert np.array_equal(got, expected)


def test_pixels_of_kilometres_are_interpolated_on_a_finer_lattice_or_not_at_all():
    wide = Affine(2000, 0, 100_000, 0, -2000, 5_000_000)
    grid = grid_around(ALBERS, 9000, (300, 300))
    for got, expected in zip(grid.cells(UTM, wide, (200, 250)), exact(grid, UTM, wide, (200, 250)), strict=True):
        assert np.array_equal(got, expected)


def test_edges_belong_to_the_cell_right_and_below():
    grid = CellGrid(UTM, Affine(3, 0, 300_012.5, 0, -3, 4_300_006.5), (20, 20))
    rows, cols = grid.cells(UTM, TILE, (70, 70))
    # Centres lie 0, 1, 2, … metres from the first edge.
    assert np.array_equal(cols[0], np.arange(70) // 3)
    assert np.array_equal(rows[:, 0], np.arange(70) // 3)
    ids = grid.ids(rows, cols)
    assert (ids[60:] == -1).all()
    assert (ids[:, 60:] == -1).all()
    assert ids[59, 59] == 399


def test_ids_of_a_continent():
    grid = CellGrid(ALBERS, Affine(30, 0, -2_493_045, 0, -30, 3_310_005), (104_424, 161_190))
    assert grid.ids(np.array([104_423]), np.array([161_189])).tolist() == [104_424 * 161_190 - 1]


def test_what_the_crs_does_not_reach_is_nowhere():
    grid = grid_around(MERCATOR, 1000)
    rows, cols = grid.cells(DEGREES, Affine(1, 0, -75, 0, -1, 95), (100, 30))
    assert (grid.ids(rows, cols)[:5] == -1).all()


def test_the_same_ground_in_another_crs_lies_in_the_same_cells():
    grid, shape = grid_around(ALBERS, 30), (120, 130)
    ids = grid.ids(*grid.cells(UTM, TILE, shape))
    rows, cols = np.indices(shape) + 0.5
    x, y = pyproj.Transformer.from_crs(UTM, MERCATOR, always_xy=True).transform(*(TILE * (cols, rows)))
    # A grid of one pixel around each of some centres.
    for row, col in np.random.default_rng(0).integers(0, 120, (60, 2)):
        one = Affine(1, 0, x[row, col] - 0.5, 0, -1, y[row, col] + 0.5)
        place = grid.places(UTM, TILE, rows[row, col], cols[row, col])
        if min(abs(v - np.rint(v)) for v in place) > 1e-6:
            assert grid.ids(*grid.cells(MERCATOR, one, (1, 1)))[0, 0] == ids[row, col]


def test_areas_are_in_pixels_and_do_not_mind_turns():
    grid = grid_around(UTM, 30)
    ids = np.array([0, 777])
    for affine in (TILE, TILE * Affine.rotation(20), TILE * Affine.scale(-1, 1)):
        np.testing.assert_allclose(grid.areas(ids, UTM, affine), 900, rtol=1e-9)
    np.testing.assert_allclose(grid.areas(ids, UTM, TILE * Affine.scale(2)), 225, rtol=1e-9)
    assert 895 < grid_around(ALBERS, 30).areas(ids, UTM, TILE).min() < 905


def blocks_of(numbers):
    numbers = np.array(numbers, np.int32)
    count = numbers.max() + 1
    return Blocks(numbers, np.arange(count, dtype=np.int64) + 100, np.zeros(count, np.int16))


def test_cut_blocks_go_by_the_share_that_is_seen():
    blocks = blocks_of([[0, 0, 1], [0, 0, 1], [2, -1, -1]])
    kept = blocks.whole(np.array([4.0, 4.1, 2.0]), 0.5)
    assert kept.numbers.tolist() == [[0, 0, -1], [0, 0, -1], [2, -1, -1]]
    assert kept.ids.tolist() == [100, 101, 102]


@given(st.integers(0, 3), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_erosion_looks_at_the_whole_square(reach, seed):
    random = np.random.default_rng(seed)
    coarse = random.integers(-1, 3, (3, 3))
    numbers = coarse.repeat([3, 5, 4], 0).repeat([6, 2, 5], 1).astype(np.int32)
    found = blocks_of(np.where(numbers.max() < 0, 0, numbers)).eroded(reach).numbers
    for row, col in np.ndindex(numbers.shape):
        near = numbers[max(row - reach, 0) : row + reach + 1, max(col - reach, 0) : col + reach + 1]
        expected = numbers[row, col] if (near == numbers[row, col]).all() else -1
        if numbers.max() >= 0:
            assert found[row, col] == expected


@pytest.mark.parametrize("turn", range(8))
def test_turns_are_those_of_patches(turn):
    from geoseg.training.patches import Patch, turned

    numbers = np.arange(12, dtype=np.int32).reshape(3, 4)
    patch = Patch(numbers[None], numbers > 0, numbers.astype(np.uint8))
    assert np.array_equal(blocks_of(numbers).turned(turn).numbers, turned(patch, turn).labels)
