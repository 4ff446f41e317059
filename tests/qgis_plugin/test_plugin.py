"""The plugin as QGIS installs it, in a headless QGIS, with the real command as another process."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import pytest
import rasterio

from geoseg.outputs.plugin_zip import write_plugin

pytestmark = pytest.mark.qgis

DRIVER = Path(__file__).parent / "drive.py"
Drive = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of plugins with this one, from its ZIP."""
    folder = tmp_path_factory.mktemp("plugins")
    write_plugin(folder / "plugin.zip")
    with zipfile.ZipFile(folder / "plugin.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command of this environment, as its entry point has it."""
    path = tmp_path_factory.mktemp("bin") / "geoseg"
    path.write_text(f"#!{sys.executable}\nfrom geoseg_cli.main import main\nmain()\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def drive(qgis_python: Any, plugins: Path, command: str) -> Drive:
    """Return a function that runs an algorithm in QGIS and says what came of it."""

    def run(algorithm: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        record = {"plugins": str(plugins), "command": command, "cancel_at": None, "load": [], **more}
        given = None if parameters is None else {key: _plain(value) for key, value in parameters.items()}
        done = qgis_python(DRIVER, input=json.dumps({**record, "algorithm": algorithm, "parameters": given}))
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def test_qgis_lists_the_algorithms_and_lets_go_of_them(drive: Drive, tmp_path: Path, town: Path) -> None:
    said = drive("predict", {"SCENE": town, "OUTPUT": tmp_path / "out.gpkg"}, command=str(tmp_path / "nothing"))
    assert "nothing is no program that can be run" in said["errors"][0]
    assert not said["done"]
    assert said["algorithms"] == ["cluster", "evaluate", "predict", "vectorize"]
    assert not said["foreign"], "QGIS's Python needs no geoseg"
    assert {"gpkg", "geojson", "fgb"} <= {*said["outputs"]}
    assert {"SCENE", "MODEL", "AOI", "MIN_AREA", "SIMPLIFY", "OUTPUT", "LABELS", "CONFIDENCE"} <= {*said["parameters"]}
    assert not said["left"]


def test_predict_fills_the_bar_and_brings_styled_layers(drive: Drive, tmp_path: Path, part: Path, plain: Path) -> None:
    area = tmp_path / "areas.gpkg"
    with rasterio.open(part) as file:
        west, south, east, north = file.bounds
        box = geopandas.GeoSeries.from_wkt(
            [f"POLYGON(({west} {south}, {west} {north}, {(west + east) / 2} {north}, {west} {south}))"], crs=file.crs
        )
    other = geopandas.GeoSeries.from_wkt(["POINT(0 0)"], crs="EPSG:4326")
    geopandas.GeoDataFrame(geometry=other).to_file(area, layer="points")
    geopandas.GeoDataFrame(geometry=box).to_file(area, layer="areas")
    outputs = {
        "OUTPUT": tmp_path / "out.gpkg",
        "LABELS": tmp_path / "labels.tif",
        "CONFIDENCE": tmp_path / "sure.tif",
        "UNCERTAINTY": tmp_path / "doubt.tif",
    }
    parameters = {"SCENE": part, "MODEL": plain, "AOI": f"{area}|layername=areas", "MIN_AREA": 2.5, "DEVICE": 1}
    more = {"EXTRA": "--small 'drop'", "SMOOTH": True, "KEEP_BACKGROUND": True}
    said = drive("predict", {**parameters, **more, **outputs}, load=list(outputs))
    assert said["done"], said
    assert said["errors"] == []
    (line,) = said["commands"]
    for word in ("--min-area=2.5", "--smooth", "--device=cpu", "--small drop", f"-- {part} "):
        assert word in line
    assert "--regularize" not in line
    assert said["results"] == {name: str(path) for name, path in outputs.items()}
    assert said["percents"] == sorted(said["percents"])
    assert said["percents"][-1] == 100
    assert len({*said["percents"]}) > 3
    assert any(text.startswith("segmenting: ") for text in said["texts"])
    frame = geopandas.read_file(outputs["OUTPUT"], layer="out")
    assert frame["area_m2"].min() >= 2.5
    assert frame.union_all().difference(box.buffer(1).iloc[0]).is_empty
    layers = said["layers"]
    names = ["background", "roof", "road", "tree", "water"]
    assert layers["out.gpkg"] == {"valid": True, "renderer": "categorizedSymbol", "legend": names}
    assert layers["labels.tif"] == {"valid": True, "renderer": "paletted", "legend": names}
    assert {layers[name]["renderer"] for name in ("sure.tif", "doubt.tif")} == {"singlebandpseudocolor"}


def test_cancelling_ends_the_run_and_leaves_no_output(drive: Drive, tmp_path: Path, sample: Path, plain: Path) -> None:
    parameters = {"SCENE": sample, "MODEL": plain, "OUTPUT": tmp_path / "out.gpkg", "EXTRA": "--chunk 128 --tile 128"}
    said = drive("predict", parameters, load=["OUTPUT"], cancel_at="segmenting: ")
    assert said["results"] == {}
    assert said["errors"] == []
    assert "Stopping geoseg …" in said["infos"]
    assert any("run the same command again" in line for line in said["console"])
    assert 100 not in said["percents"]
    # Nothing but the finished chunks, from which the next run goes on.
    assert [path.name for path in tmp_path.iterdir()] == [".out.gpkg.geoseg"]


def test_an_error_is_the_sentence_of_the_command(drive: Drive, tmp_path: Path, raster: Any, plain: Path) -> None:
    import numpy as np

    scene = raster(np.ones((2, 80, 90), np.uint8))
    said = drive("predict", {"SCENE": scene, "MODEL": plain, "OUTPUT": tmp_path / "out.gpkg"}, load=["OUTPUT"])
    assert not said["done"]
    (error,) = said["errors"]
    assert "scene.tif has 2 bands" in error
    assert "choose them with --bands" in error
    assert "Traceback" not in error
    assert said["layers"] == {}


@pytest.mark.slow
def test_cluster_vectorize_and_evaluate_work_hand_in_hand(drive: Drive, tmp_path: Path, part: Path) -> None:
    made = {"OUTPUT": tmp_path / "a.geojson", "LABELS": tmp_path / "labels.tif", "MODEL": tmp_path / "m.safetensors"}
    quick = "--set iterations=3 --set channels=8"
    said = drive("cluster", {"SCENE": part, "SEGMENTS": 3, "EXTRA": quick, **made}, load=["OUTPUT", "LABELS"])
    assert said["done"], said
    assert said["layers"]["a.geojson"]["renderer"] == "categorizedSymbol"
    assert made["MODEL"].exists()
    names = tmp_path / "names.csv"
    names.write_text("0,ground,#101010\n1,roof,#d55e00\n2,tree\n")
    parameters = {"LABELS": made["LABELS"], "NAMES": names, "OUTPUT": tmp_path / "b.fgb", "MIN_AREA": 1}
    said = drive("vectorize", parameters, load=["OUTPUT"])
    assert said["done"], said
    assert said["layers"]["b.fgb"]["legend"][:2] == ["ground", "roof"]
    parameters = {"PREDICTION": made["OUTPUT"], "REFERENCE": made["LABELS"], "ERRORS": tmp_path / "wrong.tif"}
    parameters |= {"HTML": tmp_path / "page.html", "EXTRA": "--no-objects"}
    said = drive("evaluate", parameters, load=["ERRORS"])
    assert said["done"], said
    assert said["results"]["OVERALL_ACCURACY"] > 0.99
    assert said["layers"]["wrong.tif"]["legend"] == ["right", "wrong", "ignored"]
    assert (tmp_path / "page.html").exists()
    assert any("mean IoU" in line for line in said["infos"])
    said = drive("vectorize", {"LABELS": made["LABELS"], "OUTPUT": tmp_path / "c.gpkg", "EXTRA": "--drop 'a"})
    assert "has a quote that is not closed" in said["errors"][0]
