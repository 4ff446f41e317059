"""Views and priors: what tiles are shown beside their pixels, and that it depends on their place alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st

import geoseg
from geoseg.classes import Classes
from geoseg.engine.assemble import Outputs
from geoseg.engine.context import one_hot
from geoseg.engine.predict import Options, execute, make_plan
from geoseg.engine.prior import PriorFile
from geoseg.errors import ConfigError, LabelsError, SceneError
from geoseg.grid import TileGrid, ViewGrid, Window
from geoseg.normalisation import Normalisation
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles, View
from tests.conftest import write_raster

CLASSES = Classes.parse("background,roof:#d55e00,road:#999999")
_SPEC = Spec(("red", "green", "blue"), None, CLASSES, tile=96, halo=16, normalisation=Normalisation((0,) * 3, (1,) * 3))


class Surroundings(Segmenter):
    """Says of every pixel how bright it is beside the same place in its view, and beside the view as a whole."""

    def __init__(self, extent: int = 400, size: int = 50) -> None:
        self.spec = replace(_SPEC, view=View(extent, size))

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, 3, H, W)."""
        assert tiles.view is not None
        assert tiles.view_valid is not None
        view = self.spec.view
        assert view is not None
        scores = []
        for i, (tile, around) in enumerate(zip(tiles.windows, tiles.view_windows, strict=True)):
            step = view.extent / view.size
            rows = ((torch.arange(tile.height) + 0.5 + tile.row - around.row) / step).long()
            cols = ((torch.arange(tile.width) + 0.5 + tile.col - around.col) / step).long()
            shown = tiles.view[i].float().mean(0)
            here = tiles.pixels[i].float().mean(0)
            scores.append(torch.stack([here, shown[rows][:, cols], shown[tiles.view_valid[i]].mean().expand_as(here)]))
        return torch.stack(scores)


class Told(Segmenter):
    """Says what the prior says."""

    def __init__(self, classes: Classes | None = CLASSES) -> None:
        self.spec = replace(_SPEC, classes=classes, needs_prior=True)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W)."""
        assert tiles.prior is not None
        return tiles.prior * 9


@pytest.fixture(scope="module")
def village(piece: Callable[..., Path]) -> Path:
    """A real scene of 310 × 450 pixels, with nodata at its left."""
    return piece(310, 450, blank=40)


@given(st.integers(1, 90), st.integers(0, 40), st.integers(0, 300), st.integers(0, 40), st.integers(0, 40))
def test_a_view_holds_its_tile_and_is_shared_by_a_block(core: int, halo: int, more: int, row: int, col: int) -> None:
    tiles = TileGrid(core + 2 * halo, halo)
    grid = ViewGrid(tiles, tiles.tile + more)
    tile = tiles.tile_window((row, col))
    view = grid.window(tile)
    assert view.shape == (tiles.tile + more,) * 2
    assert tile.intersect(view) == tile
    side = (tiles.tile + more - 2 * halo) // core
    first = tiles.tile_window((row // side * side, col // side * side))
    assert grid.window(first) == view


def test_a_view_smaller_than_a_tile_is_refused() -> None:
    with pytest.raises(ConfigError, match="looks at 90 pixels round a tile, which has 96: use --tile 90 or less"):
        ViewGrid(TileGrid(96, 16), 90)


def test_coarse_pixels_are_means_and_mirrored_beyond_the_scene(raster: Any) -> None:
    array = np.random.default_rng(0).integers(0, 255, (2, 40, 60)).astype(np.float32)
    scene = geoseg.open(raster(array))
    inner = scene.read_coarse(Window(8, 16, 24, 24), 6)
    blocks = array[:, 8:32, 16:40].reshape(2, 6, 4, 6, 4).mean((2, 4))
    assert np.allclose(inner.data, blocks, rtol=1e-6)
    assert inner.valid.all()
    outer = scene.read_coarse(Window(-16, -8, 80, 80), 20)
    whole = array.reshape(2, 10, 4, 15, 4).mean((2, 4))
    rows = [3, 2, 1, 0, *range(10), 9, 8, 7, 6, 5, 4]
    cols = [1, 0, *range(15), 14, 13, 12]
    assert np.allclose(outer.data, whole[:, rows][:, :, cols], rtol=1e-6)
    with pytest.raises(SceneError, match="has no pixel at rows 400"):
        scene.read_coarse(Window(400, 0, 40, 40), 10)


def test_a_view_that_only_just_reaches_the_scene_shows_its_edge(raster: Any) -> None:
    """As a blended tile beyond the edge has it: no coarse pixel has its centre on the scene."""
    array = np.arange(40 * 60, dtype=np.float32).reshape(1, 40, 60)
    scene = geoseg.open(raster(array))
    before = scene.read_coarse(Window(-38, 0, 40, 40), 2)
    assert before.valid.all()
    assert np.allclose(before.data[0, :, 0], array[0, :2, :20].mean())
    behind = scene.read_coarse(Window(38, 0, 40, 40), 2)
    assert np.allclose(behind.data[0, :, 0], array[0, 38:, :20].mean())


@given(
    st.tuples(st.integers(5, 40), st.integers(5, 40)),
    st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    st.integers(1, 7),
    st.integers(1, 12),
)
def test_coarse_pixels_keep_their_places_where_an_edge_cuts_them(
    shape: tuple[int, int], corner: tuple[int, int], step: int, size: int
) -> None:
    """Each coarse pixel whose centre is on the scene is the mean of what of it lies inside."""
    array = np.random.default_rng([*shape, step]).integers(0, 255, (1, *shape)).astype(np.float32)
    window = Window(*corner, step * size, step * size)
    if window.intersect(Window(0, 0, *shape)).height <= 0 or window.intersect(Window(0, 0, *shape)).width <= 0:
        return
    with tempfile.TemporaryDirectory() as folder:
        found = geoseg.open(write_raster(Path(folder) / "scene.tif", array)).read_coarse(window, size)
    assert found.valid.all()
    for i, j in np.ndindex(size, size):
        top, left = corner[0] + i * step, corner[1] + j * step
        if 0 <= top + step / 2 < shape[0] and 0 <= left + step / 2 < shape[1]:
            own = array[0, max(0, top) : top + step, max(0, left) : left + step]
            assert np.isclose(found.data[0, i, j], own.mean(), rtol=1e-5, atol=1e-3)


def test_views_of_blended_tiles(tmp_path: Path, village: Path) -> None:
    found = [
        _labels(tmp_path / str(chunk), village, Surroundings(96, 2), blend="hann", chunk=chunk) for chunk in (64, 1024)
    ]
    assert (found[0] == found[1]).all()


def test_coarse_pixels_leave_nodata_out(raster: Any) -> None:
    array = np.full((1, 16, 16), 7, np.uint8)
    array[:, :, :6] = 0
    scene = geoseg.open(raster(array, nodata=0))
    coarse = scene.read_coarse(Window(0, 0, 16, 16), 4)
    assert coarse.valid.tolist() == [[False, True, True, True]] * 4
    assert set(coarse.data[0, :, 1:].ravel().tolist()) == {7}
    # A value that the user names is unknown to the file, and is never averaged with measurements.
    told = geoseg.open(raster(array, "told.tif"), nodata=0)
    assert set(np.unique(told.read_coarse(Window(0, 0, 16, 16), 4).data).tolist()) <= {0, 7}


def _labels(
    folder: Path, scene: Path, method: Segmenter, labels: PriorFile | None = None, **changes: Any
) -> np.ndarray:
    folder.mkdir()
    options = Options(**changes)
    outputs = Outputs.check(folder / "out.tif", options)
    plan, notes = make_plan(scene, outputs, method, method, options, labels=labels)
    execute(plan, outputs, options, notes)
    with rasterio.open(folder / "out.tif") as file:
        return file.read(1)


def test_views_do_not_depend_on_chunks_batches_or_workers(tmp_path: Path, village: Path, two_workers: str) -> None:
    whole = _labels(tmp_path / "whole", village, Surroundings(), chunk=1024)
    assert {0, 1, 2} <= set(np.unique(whole).tolist())
    together = {"scheduler": two_workers, "chunk": 128}
    for name, changes in (("small", {"chunk": 64}), ("batch", {"batch": 3}), ("workers", together)):
        assert (_labels(tmp_path / name, village, Surroundings(), **changes) == whole).all(), name


def test_a_view_is_the_scene_round_the_tile(tmp_path: Path, village: Path) -> None:
    """With a view as fine as the scene, both are the same pixels, whatever the tile."""

    class Difference(Surroundings):
        def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
            scores = super().segment(tiles, state)
            near = (scores[:, :1] - scores[:, 1:2]).abs()
            return torch.cat([near + 1, torch.ones_like(near), torch.zeros_like(near)], 1) - near * 2

    found = _labels(tmp_path / "out", village, Difference(400, 400))
    assert set(np.unique(found[:, 45:]).tolist()) == {0}


@pytest.mark.parametrize("chunk", [64, 1024])
def test_a_prior_on_the_same_grid_comes_back(tmp_path: Path, village: Path, chunk: int) -> None:
    with rasterio.open(village) as source:
        transform, crs, shape = source.transform, source.crs, source.shape
    truth = np.random.default_rng(3).integers(0, 3, shape).astype(np.uint8)
    path = write_raster(tmp_path / "labels.tif", truth, transform=transform, crs=crs)
    found = _labels(tmp_path / "out", village, Told(), PriorFile(str(path)), chunk=chunk)
    assert (found[:, 40:] == truth[:, 40:]).all()
    assert (found[:, :40] == 255).all()


def test_a_prior_of_polygons_brings_its_classes_from_another_crs(tmp_path: Path, village: Path) -> None:
    with rasterio.open(village) as source:
        bounds, crs, transform = source.bounds, source.crs, source.transform
    west, north = transform * (100, 50)
    east, south = transform * (200, 250)
    assert bounds.left < west < east < bounds.right
    from shapely.geometry import box

    frame = geopandas.GeoDataFrame({"class": ["pond"]}, geometry=[box(west, south, east, north)], crs=crs)
    frame.to_crs(4326).to_file(tmp_path / "ponds.geojson")
    plan_labels = PriorFile(str(tmp_path / "ponds.geojson"))
    found = _labels(tmp_path / "out", village, Told(None), plan_labels)
    inside = np.zeros(found.shape, bool)
    inside[50:250, 100:200] = True
    pond = int(found[150, 150])
    assert ((found == pond) != inside)[:, 40:].mean() < 0.002
    assert pond != int(found[10, 300])


def test_a_prior_of_other_classes_or_none_is_refused(tmp_path: Path, village: Path) -> None:
    with rasterio.open(village) as source:
        transform, crs, shape = source.transform, source.crs, source.shape
    path = write_raster(tmp_path / "labels.tif", np.full(shape, 7, np.uint8), transform=transform, crs=crs)
    with pytest.raises(LabelsError, match="7"):
        _labels(tmp_path / "a", village, Told(), PriorFile(str(path)))
    with pytest.raises(ConfigError, match="refines labels and was given none"):
        _labels(tmp_path / "b", village, Told())


def test_a_prior_is_one_hot_and_empty_where_unknown() -> None:
    hot = one_hot([np.array([[0, 2, 255]], np.uint8)], 3)
    assert hot.tolist() == [[[[1, 0, 0]], [[0, 0, 0]], [[0, 1, 0]]]]
