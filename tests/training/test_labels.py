"""Labels from vectors and rasters, and the sentences for those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine

from geoseg.errors import GeosegWarning, LabelsError
from geoseg.scene import Scene, open_scene
from geoseg.training.config import DataConfig
from geoseg.training.labels import IGNORE, open_labels
from tests.conftest import write_raster
from tests.training.conftest import NORTH, PIXEL, WEST


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return open_scene(write_raster(tmp_path / "scene.tif", np.ones((1, 60, 80), np.uint8)))


def box(row: float, col: float, height: float, width: float) -> shapely.Polygon:
    """A rectangle in pixels of the scene, as ground."""
    west, north = WEST + col * PIXEL, NORTH - row * PIXEL
    return shapely.box(west, north - height * PIXEL, west + width * PIXEL, north)


def data(classes: str = "background,roof", **more: Any) -> DataConfig:
    return DataConfig.model_validate({"scenes": [{"image": "i", "labels": "l"}], "classes": classes, **more})


@pytest.fixture
def vector(tmp_path: Path) -> Callable[..., str]:
    def make(shapes: list[Any], crs: Any = 32645, name: str = "labels.gpkg", **columns: Any) -> str:
        frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs)
        frame.to_file(tmp_path / name)
        return str(tmp_path / name)

    return make


def burnt(path: str, scene: Scene, config: DataConfig) -> np.ndarray:
    return open_labels(path, scene, config).burn(scene.geobox.affine, scene.shape)


def test_polygons_by_attribute_later_ones_on_top(scene: Scene, vector: Callable[..., str]) -> None:
    path = vector([box(0, 0, 20, 20), box(10, 10, 20, 20), box(40, 0, 5, 5)], kind=["roof", "2", None])
    labels = burnt(path, scene, data("background,roof,road", class_field="kind"))
    expected = np.zeros((60, 80), np.uint8)
    expected[:20, :20] = 1
    expected[10:30, 10:30] = 2
    expected[40:45, :5] = IGNORE
    assert np.array_equal(labels, expected)


def test_without_a_background_the_rest_is_unknown(scene: Scene, vector: Callable[..., str]) -> None:
    labels = burnt(vector([box(0, 0, 9, 9)], kind=["wood"]), scene, data("roof,wood", class_field="kind"))
    assert np.unique(labels).tolist() == [1, IGNORE]


def test_all_touched_takes_more(scene: Scene, vector: Callable[..., str]) -> None:
    path = vector([box(10.7, 10.7, 5, 5)])
    assert (burnt(path, scene, data()) == 1).sum() == 25
    assert (burnt(path, scene, data(all_touched=True)) == 1).sum() == 36


@pytest.mark.parametrize(("border", "value"), [(None, IGNORE), ("edge", 2)])
def test_borders_where_objects_touch(scene: Scene, vector: Callable[..., str], border: str | None, value: int) -> None:
    path = vector([box(10, 10, 20, 20), box(10, 30, 20, 20), box(50, 60, 5, 5)], name="b.gpkg")
    more: dict[str, Any] = {"class_field": None} if border is None else {}
    classes = "background,roof" if border is None else "background,roof,edge"
    if border is not None:
        path = vector([box(10, 10, 20, 20), box(10, 30, 20, 20), box(50, 60, 5, 5)], name="c.gpkg", kind=["roof"] * 3)
        more = {"class_field": "kind"}
    labels = burnt(path, scene, data(classes, border_m=2.0, border_class=border, **more))
    assert (labels[12:28, 28:32] == value).all()
    assert (labels[12:28, 10:27] == 1).all()
    assert (labels[50:55, 60:65] == 1).all()


def test_heights_are_dropped_with_a_warning(scene: Scene, vector: Callable[..., str]) -> None:
    path = vector([shapely.force_3d(box(0, 0, 9, 9), 5.0)])
    with pytest.warns(GeosegWarning, match="heights"):
        labels = burnt(path, scene, data())
    assert (labels == 1).sum() == 81


BOW = shapely.Polygon([(WEST, NORTH), (WEST + 9, NORTH - 9), (WEST + 9, NORTH), (WEST, NORTH - 9)])


def test_invalid_polygons_are_refused_or_mended(scene: Scene, vector: Callable[..., str]) -> None:
    path = vector([box(0, 0, 9, 9), BOW])
    with pytest.raises(LabelsError, match=r"1 invalid polygons, the first is feature 2 \(Self-intersection"):
        burnt(path, scene, data())
    assert 0 < (burnt(path, scene, data(repair=True)) == 1).sum() < 18 * 18


@pytest.mark.parametrize(
    ("shapes", "crs", "config", "told"),
    [
        ([shapely.LineString([(WEST, NORTH), (WEST + 9, NORTH - 9)])], 32645, data(), "LineString .*buffer lines"),
        ([shapely.Point(WEST, NORTH)], 32645, data(), "Point shapes"),
        ([box(0, 0, 9, 9)], 32646, data(), "does not meet the scene"),
        ([box(500, 0, 9, 9)], 32645, data(), "does not meet the scene"),
        ([box(0, 0, 9, 9)], None, data(), "has no CRS"),
        ([box(0, 0, 9, 9)], 32645, data("a,b,c"), "could be any of a, b, c: name the attribute"),
        ([box(0, 0, 9, 9)], 32645, data(class_field="knd"), "no attribute named 'knd'; did you mean kind"),
        ([box(0, 0, 9, 9)], 32645, data(class_field="kind"), "values shed in 'kind', which are no class"),
    ],
    ids=["lines", "points", "other zone", "elsewhere", "no CRS", "ambiguous", "no attribute", "strange value"],
)
def test_vectors_that_cannot_be_used(
    scene: Scene, vector: Callable[..., str], shapes: list[Any], crs: Any, config: DataConfig, told: str
) -> None:
    with pytest.warns(UserWarning, match="crs") if crs is None else _nothing():
        path = vector(shapes, crs=crs, kind=["shed"] * len(shapes))
    with pytest.raises(LabelsError, match=told):
        burnt(path, scene, config)


def test_an_ignored_value_is_unknown(scene: Scene, vector: Callable[..., str]) -> None:
    path = vector([box(0, 0, 9, 9), box(0, 0, 20, 20)], kind=["shed", "roof"])
    labels = burnt(path, scene, data(class_field="kind", ignore=["shed"]))
    assert (labels == IGNORE).sum() == 81
    assert (labels == 1).sum() == 400 - 81


def test_missing_and_empty_files(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="does not exist"):
        open_labels(str(tmp_path / "none.geojson"), scene, data())
    (tmp_path / "e.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(LabelsError, match="holds"):
        open_labels(str(tmp_path / "e.geojson"), scene, data())
    (tmp_path / "t.geojson").write_text("no map")
    with pytest.raises(LabelsError, match="cannot be read as a vector file"):
        open_labels(str(tmp_path / "t.geojson"), scene, data())


def test_a_raster_on_another_grid(scene: Scene, tmp_path: Path) -> None:
    values = np.array([[0, 3], [9, 255]], np.uint8).repeat(30, 0).repeat(40, 1)[::2, ::2]
    place = Affine(1.0, 0, WEST, 0, -1.0, NORTH)
    path = str(write_raster(tmp_path / "l.tif", values, transform=place))
    config = data("background,roof,road,tree", ignore=[9])
    labels = burnt(path, scene, config)
    assert (labels[:30, :40] == 0).all()
    assert (labels[:30, 40:] == 3).all()
    assert (labels[30:] == IGNORE).all()
    beyond = open_labels(path, scene, config).burn(scene.geobox.affine * Affine.translation(-10, -5), (20, 20))
    assert (beyond[:5] == IGNORE).all()
    assert (beyond[:, :10] == IGNORE).all()
    assert (beyond[5:, 10:] == 0).all()


def test_nodata_of_a_raster_is_unknown_and_class_0_is_not(scene: Scene, tmp_path: Path) -> None:
    values = np.zeros((60, 80), np.uint8)
    values[:, 40:] = 1
    for nodata, known in ((None, {0, 1}), (0, {1, IGNORE})):
        path = write_raster(tmp_path / f"l{nodata}.tif", values, nodata=nodata)
        assert set(np.unique(burnt(str(path), scene, data())).tolist()) == known


def test_rasters_that_cannot_be_used(scene: Scene, tmp_path: Path) -> None:
    values = np.zeros((60, 80), np.uint8)
    away = write_raster(tmp_path / "a.tif", values, transform=Affine(0.5, 0, WEST + 500, 0, -0.5, NORTH))
    with pytest.raises(LabelsError, match="does not meet the scene"):
        open_labels(str(away), scene, data())
    nowhere = write_raster(tmp_path / "n.tif", values, crs=None)
    with pytest.raises(LabelsError, match="has no CRS"):
        open_labels(str(nowhere), scene, data())
    with pytest.raises(LabelsError, match="border_m needs polygons"):
        open_labels(str(away), scene, data(border_m=1.0))


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()
