"""Areas of interest: nothing outside them, and inside them nothing but what a run without one gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely

import geoseg

OUTSIDE = 255


def _labels(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def _placed(town: Path, *shapes: shapely.Geometry) -> geopandas.GeoDataFrame:
    """Return shapes given in pixels of the town (column, row) as polygons in longitude and latitude."""
    with rasterio.open(town) as file:
        affine, crs = file.transform, file.crs
    placed = [shapely.transform(s, lambda xy: np.column_stack(affine * (xy[:, 0], xy[:, 1]))) for s in shapes]
    return geopandas.GeoDataFrame(geometry=placed, crs=crs).to_crs("EPSG:4326")


def _inside(town: Path, *shapes: shapely.Geometry) -> np.ndarray:
    """Return which pixels have their centre in one of the shapes, given in pixels."""
    rows, cols = np.mgrid[:440, :600] + 0.5
    return shapely.contains_xy(shapely.union_all(list(shapes)), cols, rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, town: Path, plain: Path) -> np.ndarray:
    """The labels of a run without an area."""
    out = tmp_path_factory.mktemp("whole") / "out.tif"
    geoseg.predict(town, out, str(plain), chunk=256)
    return _labels(out)


CUT = shapely.Polygon([(130.3, 90.2), (440.7, 60.4), (500.1, 330.6), (210.9, 410.2)])
FAR = shapely.box(520.2, 370.3, 590.6, 430.8)
OVER = shapely.box(400.4, 200.3, 570.6, 380.7)
RING = shapely.box(40.2, 190.3, 330.4, 400.6).difference(shapely.box(110.3, 250.2, 220.8, 340.4))


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
@pytest.mark.parametrize(
    "shapes",
    [(CUT,), (shapely.MultiPolygon([CUT, FAR]),), (CUT, OVER, FAR), (RING,), (shapely.box(-500, -500, 300.5, 300.5),)],
    ids=["one", "multipolygon", "overlapping", "with a hole", "over the edge"],
)
def test_labels_are_those_of_a_run_without_area_inside_and_nodata_outside(
    tmp_path: Path, town: Path, plain: Path, whole: np.ndarray, shapes: tuple[shapely.Geometry, ...], suffix: str
) -> None:
    _placed(town, *shapes).to_file(tmp_path / f"aoi{suffix}")
    geoseg.predict(town, tmp_path / "out.tif", str(plain), chunk=256, aoi=str(tmp_path / f"aoi{suffix}"))
    labels, inside = _labels(tmp_path / "out.tif"), _inside(town, *shapes)
    assert inside.any()
    wrong = labels != np.where(inside, whole, OUTSIDE)
    # Degrees in the file are rounded: a pixel whose centre lies on the border may fall to either side.
    rim = inside ^ _inside(town, *(shapely.buffer(s, -0.05) for s in shapes))
    rim |= inside ^ _inside(town, *(shapely.buffer(s, 0.05) for s in shapes))
    assert not (wrong & ~rim).any()
    assert rim.mean() < 0.0025


@pytest.mark.parametrize("blend", ["crop", "hann"])
def test_the_area_does_not_depend_on_chunks_and_keeps_its_context(
    tmp_path: Path, town: Path, plain: Path, blend: str
) -> None:
    _placed(town, CUT, FAR).to_file(tmp_path / "aoi.gpkg")
    made = []
    for chunk in (256, 2048):
        out = tmp_path / f"{chunk}.tif"
        geoseg.predict(town, out, str(plain), chunk=chunk, blend=blend, halo=16, aoi=str(tmp_path / "aoi.gpkg"))
        made.append(_labels(out))
    np.testing.assert_array_equal(made[0], made[1])
    geoseg.predict(town, tmp_path / "whole.tif", str(plain), blend=blend, halo=16)
    inside = made[0] != OUTSIDE
    np.testing.assert_array_equal(made[0][inside], _labels(tmp_path / "whole.tif")[inside])


def test_chunks_and_tiles_outside_the_area_are_not_computed(tmp_path: Path, town: Path, plain: Path) -> None:
    halo = geoseg.load(str(plain)).spec.halo
    core = 128 - 2 * halo
    # Three by two tile cores, a pixel short of their edges.
    area = shapely.box(core + 1, core + 1, 4 * core - 1, 3 * core - 1)
    _placed(town, area).to_file(tmp_path / "aoi.gpkg")
    for chunk in (core, 2 * core, 2048):
        report = geoseg.predict(
            town, tmp_path / "out.tif", str(plain), chunk=chunk, aoi=str(tmp_path / "aoi.gpkg"), overwrite=True
        )
        assert report.tiles == 6
    assert report.chunks == 1


def test_polygons_end_at_the_area(tmp_path: Path, town: Path, plain: Path) -> None:
    frame = _placed(town, CUT, FAR)
    frame.to_file(tmp_path / "aoi.geojson")
    aoi = str(tmp_path / "aoi.geojson")
    geoseg.predict(town, tmp_path / "out.gpkg", str(plain), aoi=aoi, keep_background=True)
    made = geopandas.read_file(tmp_path / "out.gpkg", layer="out")
    area = frame.to_crs(made.crs).union_all()
    assert shapely.within(made.union_all(), area.buffer(0.15))  # the half diagonal of a pixel of 0.15 m, and a little
    with rasterio.open(town) as file:
        valid = (file.read() != 0).any(0)
        pixel = abs(file.transform.determinant)
    assert made.area.sum() == pytest.approx((_inside(town, CUT, FAR) & valid).sum() * pixel, rel=1e-4)


def test_an_area_of_invalid_polygons_is_mended(tmp_path: Path, town: Path, plain: Path, whole: np.ndarray) -> None:
    bow = shapely.Polygon([(100, 100), (300, 300), (300, 100), (100, 300)])
    assert not bow.is_valid
    _placed(town, bow).to_file(tmp_path / "aoi.geojson")
    geoseg.predict(town, tmp_path / "out.tif", str(plain), aoi=str(tmp_path / "aoi.geojson"))
    labels = _labels(tmp_path / "out.tif")
    assert labels[180, 110] == whole[180, 110] != OUTSIDE
    assert labels[180, 290] == whole[180, 290] != OUTSIDE
    assert labels[110, 200] == labels[290, 200] == OUTSIDE


def test_an_area_works_at_another_resolution_and_on_a_turned_grid(
    tmp_path: Path, data: Path, plain: Path, raster: Callable[..., Path]
) -> None:
    scene = data / "io_scenes" / "banepa_rotated30_utm45n.tif"
    with rasterio.open(scene) as file:
        affine, crs = file.transform, file.crs
    shape = shapely.box(200, 300, 420, 450)
    placed = shapely.transform(shape, lambda xy: np.column_stack(affine * (xy[:, 0], xy[:, 1])))
    geopandas.GeoDataFrame(geometry=[placed], crs=crs).to_file(tmp_path / "aoi.gpkg")
    for resolution, factor in ((None, 1), (0.3, 2)):
        out = tmp_path / f"{factor}.tif"
        geoseg.predict(scene, out, str(plain), resolution=resolution, aoi=str(tmp_path / "aoi.gpkg"))
        labels = _labels(out) != OUTSIDE
        expected = np.zeros_like(labels)
        expected[300 // factor : 450 // factor, 200 // factor : 420 // factor] = True
        np.testing.assert_array_equal(labels, expected)
