"""Clusterings of whole scenes: cut and shared in any way they are the same, marks are read, names are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

import geoseg
from geoseg.engine.cluster_scene import METHODS, segmenter_for
from geoseg.engine.scribbles import ScribbleFile
from geoseg.errors import BundleError, ConfigError, LabelsError, OutputError, SceneError
from geoseg.segmenters.clustering_fit import ClusteringSettings

QUICK: dict[str, dict[str, Any]] = {
    "feature-clustering": {"channels": 12, "iterations": 12, "target_segments": 5, "fit_tile_size": 64},
    "superpixel-backprop": {"channels": 12, "iterations": 12, "target_segments": 5, "fit_tile_size": 64},
    "active-contour": {"channels": 4, "blocks": 1, "iterations": 12, "fit_tile_size": 64},
}


def _labels(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


@pytest.fixture(scope="module", params=METHODS)
def clustered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, part: Path) -> tuple[str, Path]:
    """A method, and the folder of its labels (labels.tif) and its model (model.safetensors)."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = QUICK[request.param]
    report = geoseg.cluster(
        part, folder / "labels.tif", method=request.param, settings=settings, save_model=folder / "model.safetensors"
    )
    assert report.files == (str(folder / "labels.tif"), str(folder / "model.safetensors"))
    labels = _labels(folder / "labels.tif")
    assert len(np.unique(labels[labels != 255])) >= 2
    return request.param, folder


@pytest.mark.parametrize(
    "options", [{"chunk": 128, "tile": 128}, {"chunk": 100, "tile": 64, "batch": 3}, {"tile": 96}], ids=str
)
def test_tilings_change_nothing(
    tmp_path: Path, part: Path, clustered: tuple[str, Path], options: dict[str, int]
) -> None:
    method, folder = clustered
    geoseg.cluster(part, tmp_path / "labels.tif", method=method, settings=QUICK[method], **options)
    found, expected = _labels(tmp_path / "labels.tif"), _labels(folder / "labels.tif")
    # Kernels of another shape round differently, which a pixel may notice that lies between two segments.
    assert (found != expected).mean() <= 1e-4


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(tmp_path: Path, part: Path, clustered: tuple[str, Path], workers: int) -> None:
    method, folder = clustered
    geoseg.cluster(
        part, tmp_path / "labels.tif", method=method, settings=QUICK[method], chunk=128, tile=128, workers=workers
    )
    found, expected = _labels(tmp_path / "labels.tif"), _labels(folder / "labels.tif")
    assert (found != expected).mean() <= 1e-4


def test_a_saved_model_repeats_it(tmp_path: Path, part: Path, clustered: tuple[str, Path]) -> None:
    method, folder = clustered
    geoseg.predict(part, tmp_path / "again.tif", folder / "model.safetensors")
    assert (tmp_path / "again.tif").read_bytes() == (folder / "labels.tif").read_bytes()
    from geoseg.bundle import read_bundle

    assert read_bundle(folder / "model.safetensors").description.method == method


# Names


def test_names_come_to_models_rasters_and_runs_alike(tmp_path: Path, part: Path, clustered: tuple[str, Path]) -> None:
    method, folder = clustered
    names = tmp_path / "names.csv"
    names.write_text("value,name,color\n0,ground\n1,roof,#d55e00\n")
    if method != "active-contour":
        names.write_text("0,ground\n2,ground\n1,roof,#d55e00\n")
    raster, model, run = tmp_path / "raster.tif", tmp_path / "model.safetensors", tmp_path / "run.tif"
    told = geoseg.name(folder / "labels.tif", names, raster)
    geoseg.name(folder / "model.safetensors", names, model)
    geoseg.cluster(part, run, method=method, settings=QUICK[method], names=names)
    geoseg.predict(part, tmp_path / "predicted.tif", model)
    expected = _labels(folder / "labels.tif").copy()
    if method != "active-contour":
        assert (expected == 2).any()
        expected[expected == 2] = 0
    for path in (raster, run, tmp_path / "predicted.tif"):
        np.testing.assert_array_equal(_labels(path), expected)
    assert told.by_id(0).name == "ground"
    assert told.by_id(1).color == "#d55e00"
    geoseg.vectorize(raster, tmp_path / "named.geojson")
    assert {"ground", "roof"} <= set(geopandas.read_file(tmp_path / "named.geojson")["class_name"])


def test_what_cannot_be_named(
    tmp_path: Path, plain: Path, clustered: tuple[str, Path], raster: Callable[..., Path]
) -> None:
    _, folder = clustered
    names = tmp_path / "names.csv"
    names.write_text("9,roof\n")
    labels = folder / "labels.tif"
    for source, out, error, message in (
        (labels, tmp_path / "a.tif", LabelsError, "9 belongs to no class"),
        (folder / "model.safetensors", tmp_path / "a.safetensors", LabelsError, "9 belongs to no class"),
        (labels, labels, OutputError, "exists already"),
        (plain, tmp_path / "a.safetensors", BundleError, "learned from labels"),
        (raster(np.ones((1, 9, 9), np.uint8), "bare.tif"), tmp_path / "a.tif", LabelsError, "what its values mean"),
        (folder / "no.safetensors", tmp_path / "a.safetensors", BundleError, "does not exist"),
        (folder / "no.tif", tmp_path / "a.tif", SceneError, "does not exist"),
    ):
        with pytest.raises(error, match=message):
            geoseg.name(source, names, out)
    with pytest.raises(OutputError, match="itself"):
        geoseg.name(labels, names, labels, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.tif", "names.csv"]


# Scribbles


@pytest.fixture
def marks(tmp_path: Path, part: Path) -> Callable[..., Path]:
    """Return a function that writes marks, given by name in pixels of the scene (column, row), in degrees."""

    def write(field: str = "class", /, **shapes: shapely.Geometry) -> Path:
        with rasterio.open(part) as file:
            affine, crs = file.transform, file.crs
        placed = [
            shapely.transform(s, lambda xy: np.column_stack(affine * (xy[:, 0], xy[:, 1]))) for s in shapes.values()
        ]
        frame = geopandas.GeoDataFrame({field: list(shapes)}, geometry=placed, crs=crs).to_crs("EPSG:4326")
        frame.to_file(tmp_path / "marks.geojson", driver="GeoJSON")
        return tmp_path / "marks.geojson"

    return write


def test_marks_are_read_where_they_are(part: Path, marks: Callable[..., Path]) -> None:
    line = shapely.LineString([(195.5, 50.5), (275.5, 90.5)])
    path = marks(roof=line, road=shapely.Point(40.5, 200.5), tree=shapely.box(200, 150, 230, 170))
    scene = geoseg.open(part)
    found = ScribbleFile(str(path))(scene)
    assert found.names == ("roof", "road", "tree")
    burnt = found.marks.read(scene.window)
    assert burnt.shape == scene.shape
    assert (burnt == 1).sum() == 1
    assert burnt[200, 40] == 1
    assert 20 * 30 <= (burnt == 2).sum() <= 22 * 32
    assert burnt[160, 215] == 2
    assert burnt[70, 235] == 0
    assert (burnt == 0).sum() >= 80
    assert set(np.unique(burnt)) == {0, 1, 2, 255}
    for value, places in enumerate(found.places):
        assert places
        assert all(burnt[row, col] == value for row, col in places)


@pytest.mark.parametrize("method", ["feature-clustering", "superpixel-backprop"])
def test_a_scribbled_scene(tmp_path: Path, part: Path, marks: Callable[..., Path], method: str) -> None:
    path = marks("kind", roof=shapely.LineString([(195, 50), (275, 90)]), road=shapely.box(200, 150, 230, 170))
    settings = {**QUICK[method], "iterations": 40, "scribble": 5.0, "target_segments": 4}
    geoseg.cluster(
        part, tmp_path / "out.geojson", method=method, settings=settings, scribbles=path, scribble_field="kind"
    )
    assert {"roof", "road"} <= set(geopandas.read_file(tmp_path / "out.geojson")["class_name"])


def test_scribbles_that_cannot_be_used(tmp_path: Path, part: Path, marks: Callable[..., Path]) -> None:
    point = shapely.Point(40, 200)
    (tmp_path / "bad.geojson").write_text("{")
    for path, error, message in (
        (tmp_path / "no.geojson", LabelsError, "does not exist"),
        (tmp_path / "bad.geojson", LabelsError, "cannot be read"),
        (marks("kind", road=point), LabelsError, "no attribute named 'class'"),
    ):
        with pytest.raises(error, match=message):
            geoseg.cluster(part, tmp_path / "out.tif", scribbles=path)
    for shapes, message in (
        ({"road": shapely.Point(-5000, 300)}, "does not meet the scene"),
        ({"road": point, "roof": shapely.Point(-5000, 300)}, "no mark of 'roof'"),
    ):
        with pytest.raises(LabelsError, match=message):
            geoseg.cluster(part, tmp_path / "out.tif", scribbles=marks(**shapes))
    with pytest.raises(ConfigError, match="not scribbles"):
        geoseg.cluster(part, tmp_path / "out.tif", method="active-contour", scribbles=marks(road=point))
    assert not (tmp_path / "out.tif").exists()


# References and settings


def test_a_fit_to_another_scene(tmp_path: Path, part: Path, raster: Callable[..., Path]) -> None:
    with rasterio.open(part) as file:
        corner = file.read(window=rasterio.windows.Window(0, 50, 150, 150))
        other = raster(
            corner, "other.tif", transform=file.transform @ Affine.translation(0, 50), crs=file.crs, nodata=0
        )
    settings = QUICK["feature-clustering"]
    geoseg.cluster(other, tmp_path / "own.tif", settings=settings, save_model=tmp_path / "m.safetensors")
    geoseg.predict(part, tmp_path / "predicted.tif", tmp_path / "m.safetensors")
    geoseg.cluster(part, tmp_path / "referred.tif", settings=settings, references=[other])
    np.testing.assert_array_equal(_labels(tmp_path / "referred.tif"), _labels(tmp_path / "predicted.tif"))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("feature-clustering", {"chanels": 3}, "channels"),
        ("active-contour", {"target_segments": 4}, "2 segments"),
        ("active-contour", {"momentum": 0.5}, "no setting of this method named 'momentum'"),
        ("active-contour", ClusteringSettings(), "ActiveContourSettings"),
        ("superpixel-backprop", ClusteringSettings(), "not for superpixel-backprop"),
    ],
)
def test_settings_belong_to_methods(method: str, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        segmenter_for(method, settings)
