"""Grids that run along a scene's own: the pixels of the warper, through any window, and only where rows stay rows."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, Resampling

from geoseg import resampling
from geoseg.grid import Window
from geoseg.resampling import Axis, running_along
from geoseg.scene import Scene, open_scene
from tests.conftest import write_raster

Make = Callable[..., Path]
_ALPHA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


def _noise(height: int, width: int, dtype: str, holes: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    if dtype == "float32":
        image = rng.normal(100, 50, (3, height, width)).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        image = rng.integers(max(limits.min, -3000), min(limits.max, 30000), (3, height, width)).astype(dtype)
    image[image == 7] = 8
    image[:, holes] = 7
    return image


def _written(path: Path, kind: str, dtype: str, overviews: bool) -> Path:
    """Write noise with holes that are told by ``kind``, in a file that is turned by 30°."""
    shape = (301, 397)
    holes = np.random.default_rng(1).random(shape) < 0.01
    holes[100:140, 50:90] = holes[:, -5:] = True
    image = _noise(*shape, dtype, holes)
    how: dict[str, Any] = {"transform": Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000) * Affine.rotation(30)}
    if kind == "nodata":
        how["nodata"] = 7
    if kind == "alpha":
        most = 255 if dtype == "float32" else np.iinfo(dtype).max
        image, how["colorinterp"] = np.concatenate([image, np.where(holes, 0, most)[None].astype(dtype)]), _ALPHA
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(path, image, tiled=True, blockxsize=128, blockysize=128, **how)
        with rasterio.open(path, "r+") as file:
            if kind == "mask":
                file.write_mask(~holes)
            if overviews:
                file.build_overviews([2, 4], Resampling.average)
    return path


def _warped(scene: Scene) -> Scene:
    """Return the same scene read by GDAL's warper."""
    assert scene.warp is not None
    assert scene.warp.along is not None
    return replace(scene, warp=replace(scene.warp, along=None), _open=threading.local())


@pytest.mark.parametrize("dtype", sorted(resampling.EXACT - {"int8"}))
@pytest.mark.parametrize("kind", ["plain", "nodata", "alpha", "mask"])
@pytest.mark.parametrize("overviews", [False, True])
def test_pixels_are_those_of_the_warper(tmp_path: Path, kind: str, dtype: str, overviews: bool) -> None:
    own = open_scene(_written(tmp_path / "scene.tif", kind, dtype, overviews))
    # Of these ratios no centre falls on a line between pixels, which rounding would put on either side.
    for ratio in (0.4137, 0.9731, 1.0437, 1.5711, 2.6173, 4.3391):
        scene = own.at_resolution(own.resolution[0] * ratio)
        if scene.warp is None or (overviews and scene.warp.overview_level is None):
            continue
        ours, theirs = scene.read(scene.window), _warped(scene).read(scene.window)
        np.testing.assert_array_equal(ours.valid, theirs.valid)
        assert ours.data.dtype == theirs.data.dtype
        assert (ours.data[:, ~ours.valid] == 0).all()
        apart = np.abs(ours.data.astype(float) - theirs.data)[:, ours.valid]
        if dtype == "float32":
            assert apart.max() < 1e-3
        else:
            assert apart.max() <= 1
            assert (apart > 0).mean() < 0.003


def test_a_large_window_is_read_in_strips_and_is_what_small_ones_are(
    raster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 700, 500), np.uint8)
    own = open_scene(raster(image))
    scene = own.at_resolution(own.resolution[0] * 3.3)
    whole = scene.read(scene.window)
    monkeypatch.setattr(resampling, "_STRIP_BYTES", 30_000)
    again = scene.read(scene.window)
    np.testing.assert_array_equal(again.data, whole.data)
    np.testing.assert_array_equal(again.valid, whole.valid)
    part = Window(100, 20, 63, 90)
    np.testing.assert_array_equal(scene.read(part).data, whole.data[:, *part.within(scene.window)])


def test_what_reaches_beyond_the_raster_holds_no_data(raster: Make) -> None:
    own = open_scene(raster(np.full((1, 40, 60), 9, np.uint8)))
    beyond = own.geobox.affine * Affine.translation(-30, -100) * Affine.scale(1.5)
    scene = own.on_grid(GeoBox((120, 100), beyond, own.geobox.crs))
    pixels = scene.read(scene.window)
    theirs = _warped(scene).read(scene.window)
    np.testing.assert_array_equal(pixels.valid, theirs.valid)
    np.testing.assert_array_equal(pixels.data, theirs.data)
    assert 0 < pixels.valid.mean() < 0.5
    above = scene.read(Window(0, 0, 20, 100))
    assert not above.valid.any()
    assert not above.data.any()


@pytest.mark.parametrize(
    ("change", "straight"),
    [
        (Affine.scale(2), True),
        (Affine.translation(3.3, -4.4) * Affine.scale(1.7, 0.9), True),
        (Affine.rotation(1), False),
        (Affine.scale(1, -1), False),
        (Affine.rotation(180), False),
        (Affine.shear(0.1, 0), False),
    ],
)
def test_only_grids_that_run_along_the_own_do_without_the_warper(change: Affine, straight: bool) -> None:
    own = GeoBox((100, 100), Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000), "EPSG:32645")
    grid = GeoBox((50, 50), own.affine * change, "EPSG:32645")
    assert (running_along(own, grid, (1.0, 1.0)) is not None) == straight
    assert running_along(own, GeoBox(grid.shape, grid.affine, "EPSG:32644"), (1.0, 1.0)) is None


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_types_that_single_precision_would_blur_are_left_to_the_warper(raster: Make, dtype: str) -> None:
    own = open_scene(raster(np.full((1, 40, 60), 123_456_789, dtype)))
    scene = own.at_resolution(1.3)
    assert scene.warp is not None
    assert scene.warp.along is None
    pixels = scene.read(scene.window)
    assert (np.abs(pixels.data[:, pixels.valid] - 123_456_789.0) < 1e-3).all()


@given(
    st.floats(0.05, 20),
    st.floats(-50, 50),
    st.integers(0, 30),
    st.integers(1, 40),
    st.integers(1, 60),
    st.floats(0.05, 1),
)
def test_weights_add_up_to_1_on_the_raster_and_lean_to_the_centre(
    step: float, start: float, first: int, count: int, length: int, kernel: float
) -> None:
    taps = Axis(step, start, kernel).taps(first, count, length, kernel)
    assert taps.places.shape == taps.weights.shape == (count, 2 * math.ceil(1 / kernel))
    np.testing.assert_allclose(taps.weights.sum(1), taps.inside, atol=1e-5)
    assert 0 <= taps.low <= taps.high <= length
    centre = start + (first + np.arange(count) + 0.5) * step
    for i in np.flatnonzero(taps.inside):
        assert taps.low + taps.nearest[i] == min(max(math.floor(centre[i] + 1e-10), 0), length - 1)
        used = taps.low + taps.places[i][taps.weights[i] > 0]
        assert (np.abs(used + 0.5 - centre[i]) < 1 / kernel + 1e-6).all()
        assert used.min() >= 0
        assert used.max() < length
