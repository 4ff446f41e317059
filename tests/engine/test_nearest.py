"""Nearest neighbour on another grid: every pixel by itself, and the same whatever the windows."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from geoseg.engine import nearest
from geoseg.engine.nearest import OnGrid, Place
from geoseg.grid import Window

UTM = pyproj.CRS("EPSG:32645")
VALUES = np.random.default_rng(0).integers(0, 250, (90, 120)).astype(np.uint8)
OWN = Place(VALUES.shape, Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000), UTM)


def _read(window: Window) -> np.ndarray:
    assert window == window.intersect(Window(0, 0, *VALUES.shape))
    return VALUES[window.row : window.row_stop, window.col : window.col_stop]


def _one_by_one(grid: GeoBox) -> np.ndarray:
    turn = pyproj.Transformer.from_crs(grid.crs.proj, UTM, always_xy=True)
    rows, cols = np.indices(grid.shape) + 0.5
    x, y = turn.transform(*(grid.affine * (cols, rows)))
    col, row = (np.floor(v).astype(int) for v in (~OWN.affine * (x, y)))
    inside = (row >= 0) & (row < 90) & (col >= 0) & (col < 120)
    return np.where(inside, VALUES[np.clip(row, 0, 89), np.clip(col, 0, 119)], 255)


GRIDS = {
    "moved": GeoBox((70, 100), Affine(0.5, 0, 350_003.1, 0, -0.5, 3_060_004.3), "EPSG:32645"),
    "coarser": GeoBox((22, 33), Affine(1.7, 0, 349_998, 0, -1.7, 3_059_999), "EPSG:32645"),
    "turned": GeoBox((80, 80), Affine.translation(350_020, 3_059_990) * Affine.rotation(-33) * Affine.scale(0.4, -0.4),
                     "EPSG:32645"),
    "south up": GeoBox((40, 40), Affine(0.9, 0, 350_000.2, 0, 0.9, 3_059_960.3), "EPSG:32645"),
    "mercator": GeoBox((100, 130), Affine(0.5, 0, 9_515_730, 0, -0.5, 3_205_205), "EPSG:3857"),
    "degrees": GeoBox((100, 130), Affine(5e-6, 0, 85.48005, 0, -5e-6, 27.65604), "EPSG:4326"),
}  # fmt: skip


def _somewhere(name: str) -> GeoBox:
    """Return a grid; those in another CRS are moved over the raster."""
    grid = GRIDS[name]
    if grid.crs.epsg == 32645:
        return grid
    x, y = pyproj.Transformer.from_crs(UTM, grid.crs.proj, always_xy=True).transform(350_000, 3_060_000)
    scale = Affine.scale(grid.affine.a, grid.affine.e)
    return GeoBox(grid.shape, Affine.translation(x, y) * scale * Affine.translation(-7.3, -5.1), grid.crs)


@pytest.mark.parametrize("name", GRIDS)
def test_every_pixel_is_the_one_under_its_centre(name):
    grid = _somewhere(name)
    expected = _one_by_one(grid)
    assert len(np.unique(expected)) > 50
    assert np.array_equal(OnGrid(OWN, grid, _read, 255).read(Window(0, 0, *grid.shape)), expected)


@given(st.sampled_from(sorted(GRIDS)), st.integers(1, 60), st.integers(0, 20), st.integers(0, 20))
def test_windows_do_not_matter(name, size, row, col):
    grid = _somewhere(name)
    height, width = grid.shape
    window = Window(row, col, min(size, height - row), min(size, width - col))
    on_grid = OnGrid(OWN, grid, _read, 255)
    whole = on_grid.read(Window(0, 0, height, width))
    assert np.array_equal(on_grid.read(window), whole[window.row : window.row_stop, window.col : window.col_stop])


def test_its_own_grid_is_read_as_it_is():
    grid = GeoBox(OWN.shape, OWN.affine, "EPSG:32645")
    assert np.array_equal(OnGrid(OWN, grid, _read, 255).read(Window(3, 4, 50, 60)), VALUES[3:53, 4:64])


def test_a_centre_on_a_line_belongs_to_the_lower_right_pixel():
    grid = GeoBox((45, 60), OWN.affine * Affine.scale(2), "EPSG:32645")
    assert np.array_equal(OnGrid(OWN, grid, _read, 255).read(Window(0, 0, 45, 60)), VALUES[1::2, 1::2])


def test_a_grid_far_away_is_filled():
    grid = GeoBox((10, 10), Affine(0.5, 0, 900_000, 0, -0.5, 1_000_000), "EPSG:32645")
    assert (OnGrid(OWN, grid, _read, 255).read(Window(0, 0, 10, 10)) == 255).all()


def test_a_window_over_much_of_the_raster_is_read_in_parts(monkeypatch):
    largest = []

    def read(window):
        largest.append(window.height * window.width)
        return _read(window)

    monkeypatch.setattr(nearest, "_MOST_PIXELS", 500)
    grid = GRIDS["coarser"]
    found = OnGrid(OWN, grid, read, 255).read(Window(0, 0, *grid.shape))
    assert np.array_equal(found, _one_by_one(grid))
    assert max(largest) <= 500
