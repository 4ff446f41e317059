"""Burnt polygons: GDAL's on the whole grid, whatever the windows."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from rasterio.features import rasterize

from geoseg.engine import burnt
from geoseg.engine.burnt import BurntPolygons
from geoseg.grid import Window

SHAPE = (150, 210)


def _polygons() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    points = rng.random((40, 2)) * (230, 170) - 10
    shapes = shapely.buffer(shapely.points(points), rng.random(40) * 12 + 2, quad_segs=3)
    return shapes, rng.integers(0, 5, 40).astype(np.uint8)


def _burn(all_touched: bool = False) -> BurntPolygons:
    return BurntPolygons(*_polygons(), SHAPE, outside=255, all_touched=all_touched)


@pytest.mark.parametrize("all_touched", [False, True])
def test_they_are_as_gdal_burns_them(all_touched, monkeypatch):
    monkeypatch.setattr(burnt, "_SQUARE", 64)
    shapes, values = _polygons()
    expected = rasterize(zip(shapes, values.tolist(), strict=True), SHAPE, fill=255, all_touched=all_touched)
    assert np.array_equal(_burn(all_touched).read(Window(0, 0, *SHAPE)), expected)


@given(st.integers(0, 100), st.integers(0, 150), st.integers(1, 50), st.integers(1, 60))
def test_windows_do_not_matter(row, col, height, width):
    whole = _burn().read(Window(0, 0, *SHAPE))
    found = _burn().read(Window(row, col, height, width))
    assert np.array_equal(found, whole[row : row + height, col : col + width])


def test_few_squares_are_kept(monkeypatch):
    monkeypatch.setattr(burnt, "_SQUARE", 16)
    monkeypatch.setattr(burnt, "_KEPT", 3)
    some = _burn()
    some.read(Window(0, 0, *SHAPE))
    assert len(some._squares) == 3


def test_no_polygons_is_all_outside():
    nothing = BurntPolygons(np.empty(0, object), np.empty(0, np.uint8), (5, 6), outside=7, all_touched=False)
    assert (nothing.read(Window(0, 0, 5, 6)) == 7).all()
