"""Clusterings of real scenes of four bands, Landsat in degrees and NAIP with near infrared, over dates and tilings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Geod

import geoseg
from geoseg.bundle import read_bundle
from geoseg.engine.cluster_scene import METHODS
from geoseg_cli.main import main

Run = Callable[..., str]
LANDSAT, NAIP = "landsat_2020.tif", "naip_2012.tif"
_SAMPLE = ("--set", "fit_tiles=4", "--set", "fit_tile_size=64")
_CLUSTERING = ("--segments", 4, "--set", "channels=12", "--set", "iterations=12", *_SAMPLE)
QUICK: dict[str, tuple[object, ...]] = {
    "feature-clustering": _CLUSTERING,
    "superpixel-backprop": _CLUSTERING,
    "active-contour": ("--set", "channels=4", "--set", "blocks=1", "--set", "iterations=30", *_SAMPLE),
}


@pytest.fixture(scope="module")
def seasons(data: Path) -> Path:
    """Folder of the scenes."""
    return data / "seasons"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command, and gives what it says on stderr."""

    def go(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(each) for each in arguments])
        said = capsys.readouterr().err
        assert stop.value.code == code, said
        return said

    return go


@pytest.fixture(scope="module", params=zip(METHODS, (LANDSAT, NAIP, LANDSAT), strict=True), ids=str)
def clustered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, seasons: Path
) -> tuple[str, Path, Path]:
    """A method, a scene, and the folder of its polygons, its labels and its model."""
    method, scene = request.param
    folder = tmp_path_factory.mktemp("clustered")
    outputs = (folder / "segments.gpkg", "--labels", folder / "labels.tif", "--save-model", folder / "m.safetensors")
    with pytest.raises(SystemExit) as stop:
        main([*map(str, ("cluster", seasons / scene, *outputs, "--method", method, *QUICK[method])), "-q"])
    assert stop.value.code == 0
    return method, seasons / scene, folder


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def test_segments_cover_the_scene_in_true_square_metres(clustered: tuple[str, Path, Path]) -> None:
    method, scene, folder = clustered
    labels = _read(folder / "labels.tif")
    model = read_bundle(folder / "m.safetensors").description
    count = 2 if method == "active-contour" else 4
    assert model.method == method
    assert len(model.bands) == 4
    assert len(model.classes) == count
    assert set(np.unique(labels)) == set(range(count))
    with rasterio.open(scene) as file:
        outline = geopandas.GeoSeries(
            [shapely.segmentize(shapely.box(*file.bounds), 0.01 if file.crs.is_geographic else 100)], crs=file.crs
        )
    polygons = geopandas.read_file(folder / "segments.gpkg", layer="segments")
    area = abs(Geod(ellps="WGS84").geometry_area_perimeter(outline.to_crs(4326)[0])[0])
    assert polygons["area_m2"].sum() == pytest.approx(area, rel=1e-4)
    assert set(polygons["class_name"]) == {item.name for item in model.classes}


def test_tilings_and_workers_give_the_same_labels(
    clustered: tuple[str, Path, Path], tmp_path: Path, two_workers: str
) -> None:
    """Those that a saved model gives are those of the run that fitted it, however the scene is cut and shared."""
    _, scene, folder = clustered
    expected = _read(folder / "labels.tif")
    for number, options in enumerate(
        (
            {"tile": 64, "chunk": 100},
            {"tile": 96, "batch": 3},
            {"tile": 128, "chunk": 77},
            {"scheduler": two_workers, "chunk": 100},
        )
    ):
        out = tmp_path / f"{number}.tif"
        geoseg.predict(scene, out, folder / "m.safetensors", **options)
        np.testing.assert_array_equal(_read(out), expected, err_msg=str(options))


def _water(path: Path) -> np.ndarray:
    """Where green is brighter than near infrared (NDWI above 0): a check of plausibility, not the truth."""
    with rasterio.open(path) as file:
        pixels = file.read().astype(float)
    return pixels[1] > pixels[3]


def test_a_model_of_one_date_finds_water_on_another(seasons: Path, tmp_path: Path, run: Run) -> None:
    """The dark phase of near infrared, fitted in September 2015 and applied to July 2012."""
    model, bands = tmp_path / "water.safetensors", ("--bands", 4)
    fitting = ("--method", "active-contour", *QUICK["active-contour"], "--set", "polarity=dark")
    run("cluster", seasons / "naip_2015.tif", tmp_path / "2015.tif", *fitting, *bands, "--save-model", model)
    run("predict", seasons / "naip_2012.tif", tmp_path / "2012.tif", "-m", model, *bands)
    for year in (2015, 2012):
        found, water = _read(tmp_path / f"{year}.tif") == 1, _water(seasons / f"naip_{year}.tif")
        assert (found & water).sum() / (found | water).sum() > 0.45, year
    # The model knows which band it was fitted to, so that it need not be chosen again.
    run("predict", seasons / "naip_2012.tif", tmp_path / "again.tif", "-m", model)
    assert (_read(tmp_path / "again.tif") == _read(tmp_path / "2012.tif")).all()


def test_a_named_model_of_several_dates_is_applied_to_each(seasons: Path, tmp_path: Path, run: Run) -> None:
    model, named = tmp_path / "m.safetensors", tmp_path / "named.safetensors"
    dates = [seasons / f"naip_{year}.tif" for year in (2010, 2012, 2015)]
    fitting = (*QUICK["feature-clustering"], "--reference", dates[1], "--reference", dates[2])
    run("cluster", dates[0], tmp_path / "0.tif", *fitting, "--save-model", model)
    (tmp_path / "names.csv").write_text("0,open water,#0072b2\n1,fields,#009e73\n")
    run("name", model, tmp_path / "names.csv", named)
    for number, date in enumerate(dates):
        run("predict", date, tmp_path / f"named_{number}.tif", "-m", named)
        with rasterio.open(tmp_path / f"named_{number}.tif") as file, rasterio.open(date) as scene:
            assert (file.crs, file.transform, file.shape) == (scene.crs, scene.transform, scene.shape)
    assert (_read(tmp_path / "named_0.tif") == _read(tmp_path / "0.tif")).all()
    assert [item.name for item in read_bundle(named).description.classes][:2] == ["open water", "fields"]
