"""What ``geoseg train`` cannot use: one sentence that names it, before anything is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from pydantic import BaseModel

from geoseg.errors import ConfigError
from geoseg.training.config import TrainConfig, check, set_value
from geoseg_cli.main import main
from geoseg_cli.train import command
from tests.conftest import asymmetric, write_raster
from tests.training.conftest import NORTH, WEST

HOUSE = shapely.box(WEST + 5, NORTH - 15, WEST + 15, NORTH - 5)
AWAY = shapely.transform(HOUSE, lambda xy: xy + 5000)
Fails = Callable[..., str]


@pytest.fixture
def fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Fails:
    """Return a function that runs a training which must fail, and gives the one line it says."""

    def run(*arguments: object, code: int = 1, output: str = "m.safetensors") -> str:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        given = ("train", "-q", "-o", tmp_path / output, "--device", "cpu", "--network", "plainconv", "--steps", 2)
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in (*given, *arguments)])
        said = capfd.readouterr()
        assert stop.value.code == code, said.err
        assert len(said.err.splitlines()) == 1, said.err
        assert said.err.startswith("Error: ")
        assert "unexpectedly" not in said.err
        assert said.out == ""
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return said.err

    return run


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "scene.tif", asymmetric(3, 60, 80))


def polygons(path: Path, shapes: list[Any], crs: Any = 32645, **columns: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a file without CRS
        geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


@pytest.mark.parametrize(
    ("shapes", "more", "told"),
    [
        ([AWAY], {}, "labels.gpkg does not meet the scene"),
        ([HOUSE], {"crs": None}, "labels.gpkg has no CRS"),
        ([HOUSE, HOUSE.boundary], {}, "labels.gpkg holds LineString shapes (1 of 2 are no polygons)"),
        ([HOUSE, shapely.GeometryCollection([HOUSE, HOUSE.centroid])], {}, "holds GeometryCollection shapes"),
        ([shapely.Polygon(), None], {}, "labels.gpkg holds no polygon"),
        (
            [shapely.Polygon([(WEST, NORTH), (WEST + 9, NORTH - 9), (WEST + 9, NORTH), (WEST, NORTH - 9)])],
            {},
            "invalid",
        ),
    ],
    ids=["elsewhere", "no CRS", "mixed kinds", "collection", "empty shapes", "bow tie"],
)
def test_polygons(scene: Path, tmp_path: Path, fails: Fails, shapes: list[Any], more: Any, told: str) -> None:
    labels = polygons(tmp_path / "labels.gpkg", shapes, **more)
    assert told in fails("--scene", scene, "--labels", labels, "--classes", "background,roof", "--patch", 32)


@pytest.mark.parametrize(
    ("values", "more", "told"),
    [
        (np.full((60, 80), 7), {}, "labels.tif holds the values 7, which are no class: the ids are 0, 1;"),
        (np.zeros((60, 80)), {}, "no training label is of class roof"),
        (np.full((60, 80), 255), {}, "no pixel to train on has a label"),
        (
            np.eye(60, 80),
            {"transform": Affine(0.5, 0, WEST + 900, 0, -0.5, NORTH)},
            "labels.tif does not meet the scene",
        ),
        (np.eye(60, 80), {"crs": None}, "labels.tif has no CRS"),
    ],
    ids=["strange value", "one class", "nothing known", "elsewhere", "no CRS"],
)
def test_rasters(scene: Path, tmp_path: Path, fails: Fails, values: Any, more: Any, told: str) -> None:
    labels = write_raster(tmp_path / "labels.tif", values.astype(np.uint8), **more)
    assert told in fails("--scene", scene, "--labels", labels, "--classes", "background,roof", "--patch", 32)


def test_scenes(scene: Path, tmp_path: Path, fails: Fails) -> None:
    labels = write_raster(tmp_path / "labels.tif", np.eye(60, 80, dtype=np.uint8))
    nowhere = write_raster(tmp_path / "nowhere.tif", asymmetric(3, 60, 80), crs=None)
    more = write_raster(tmp_path / "more.tif", asymmetric(5, 60, 80))
    blank = write_raster(tmp_path / "blank.tif", np.zeros((3, 60, 80), np.uint8), nodata=0)
    rest = ("--classes", "background,roof", "--patch", 32)
    one = ("--scene", scene, "--labels", labels)
    assert "nowhere.tif has no CRS" in fails("--scene", nowhere, "--labels", labels, *rest)
    assert "more.tif has 5 bands where" in fails(*one, "--scene", more, "--labels", labels, *rest)
    assert "no pixel to train on has a label" in fails("--scene", blank, "--labels", labels, *rest)
    assert "gone.tif does not exist" in fails("--scene", tmp_path / "gone.tif", "--labels", labels, *rest)
    large = fails(*one, "--classes", "background,roof", "--patch", 512, code=2)
    assert "training.patch is 512 pixels, but" in large
    assert "has no more than 60 × 80 at 0.5 m" in large


def test_areas(scene: Path, tmp_path: Path, fails: Fails) -> None:
    values = np.eye(60, 80, dtype=np.uint8)
    values[:, 60:] = 255
    labels = write_raster(tmp_path / "labels.tif", values)
    given = ("--scene", scene, "--labels", labels, "--classes", "background,roof", "--patch", 32)
    away = polygons(tmp_path / "away.gpkg", [AWAY])
    assert "scene.tif that the network would be judged on has a label" in fails(*given, "--validation", "0.75:1")
    assert "no pixel to train on has a label" in fails(*given, "--validation", "0:1")
    assert "no pixel to train on has a label" in fails(*given, "--train-area", "0.8:1")
    assert "away.gpkg does not meet the scene" in fails(*given, "--validation", away)


def test_outputs(scene: Path, tmp_path: Path, fails: Fails) -> None:
    labels = write_raster(tmp_path / "labels.tif", np.eye(60, 80, dtype=np.uint8))
    given = ("--scene", scene, "--labels", labels, "--classes", "background,roof", "--patch", 32)
    assert "missing" in fails(*given, output="missing/m.safetensors")
    assert "labels.tif" in fails(*given, output="labels.tif/m.safetensors")
    assert "labels.tif" in fails(*given, "--workdir", labels)


def test_classes(scene: Path, fails: Fails) -> None:
    for classes, told in (("", "class"), ("roof", "one class alone"), ("a,a", "occurs twice"), ("a:#12,b", "#12")):
        assert told in fails("--scene", scene, "--labels", scene, "--classes", classes, code=2)


def _leaves(section: type[BaseModel], before: str = "") -> dict[str, Any]:
    """Return the defaults of all settings by their path, those of the first scene among them."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.update(_leaves(kind, f"{before}{name}."))
        else:
            found[before + name] = None if field.is_required() else field.get_default(call_default_factory=True)
    return found


# Settings that go with each other alone.
COARSE = {"data.scenes.0.coarse": ["z.tif"], "coarse.sources": [{"table": "nlcd"}], "targets": "coarse"}
ADAPTED = {"adaptation.targets": [{"image": "t.tif"}], "network.start": "s.safetensors", "training.average": 0.9}
# A value other than the default, for settings where half or twice it, or the opposite, makes no sense.
OTHER: dict[str, Any] = {
    **{"data.folder": "there", "data.bands": ["red"], "data.resolution": 0.5, "data.class_field": "kind"},
    **{"data.classes": "background,house", "data.ignore": [7], "data.border_m": 1.5, "data.border_class": "roof"},
    **{"network.name": "fpn", "network.encoder": "resnet18", "network.encoder_weights": "w.pth"},
    **{"network.start": "s.safetensors", "network.options": {"width": 3}, "loss": "ce+0.5*dice", "licence": "CC0-1.0"},
    **{"augment.scale": [0.9, 1.1], "mixing.pairing": "foreground", "training.optimiser": "sgd"},
    **{"training.schedule": "poly", "training.device": "cpu", "training.precision": "bfloat16"},
    **{"training.keep": "last", "training.logs": "logs", "card": {"limits": "small"}, "weights": "float16"},
    **{"data.scaling": "scene", "damage.iou": [0.6, 0.9], "saliency.shares": [1.0, 1.0, 0.0]},
    **{"adaptation.method": "outputs", "adaptation.target_bn": "batch_stats", "adaptation.strong.scale": [0.9, 1.1]},
    **{"adaptation.confidence": 0.8, "adaptation.cut": 0.25, **ADAPTED},
    **{**COARSE, "coarse.teacher": "t.safetensors"},
    **{"data.scenes": [{"image": "c.tif", "labels": "d.tif"}]},
    **{"data.validation_scenes": [{"image": "c.tif", "labels": "d.tif"}]},
}
ENTRY = {"data.scenes.0.image": "e.tif", "data.scenes.0.labels": "f.tif"}
AREA = {"data.scenes.0.train": [0.0, 0.5], "data.scenes.0.validation": "area.gpkg"}
BESIDE: dict[str, dict[str, Any]] = {
    name: COARSE for name in _leaves(TrainConfig) if name == "targets" or name.startswith("coarse.")
}
BESIDE |= {name: ADAPTED for name in _leaves(TrainConfig) if name.startswith("adaptation.")}
SETTINGS = {**_leaves(TrainConfig), **dict.fromkeys((*ENTRY, *AREA))}


@pytest.mark.parametrize("path", sorted(SETTINGS))
def test_every_setting_is_reached_from_the_command_line(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    default = SETTINGS[path]
    value = {**OTHER, **ENTRY, **AREA}.get(path)
    if value is None:
        value = not default if isinstance(default, bool) else default * 2 if default else 1
        value = min(value, 1) if path in {"augment.share", "sampling.balance", "mixing.probability"} else value
        value = 0.25 if value == default or path in {"training.momentum", "training.average"} else value
    seen: list[TrainConfig] = []

    def train(config: TrainConfig, *rest: Any, **more: Any) -> Any:
        seen.append(config)
        raise ConfigError("seen")

    monkeypatch.setattr("geoseg.training.fit.train", train)
    given = ["--scene", "a.tif", "--labels", "b.tif", "--classes", "background,roof", "-o", "m.safetensors", "-q"]
    told = {**BESIDE.get(path, {}), path: value}
    for name, setting in told.items():
        given += ["--set", f"{name}={yaml.safe_dump(setting, default_flow_style=True)}"]
    with pytest.raises(ConfigError, match="seen"):
        command.main(given, standalone_mode=False)
    expected: dict[str, Any] = {
        "data": {"scenes": [{"image": "a.tif", "labels": "b.tif"}], "classes": "background,roof", "folder": None}
    }
    untouched = check(expected)
    for name, setting in told.items():
        set_value(expected, name, setting)
    assert seen == [check(expected)]
    assert seen != [untouched]


def test_every_flag_stands_for_a_setting() -> None:
    from geoseg_cli.train import _FLAGS

    assert set(_FLAGS.values()) <= set(SETTINGS)
    assert set(_FLAGS) <= {parameter.name for parameter in command.params}


def test_all_faults_of_a_file_at_once(tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "c.yaml").write_text(
        "data: {scenes: [{image: a.tif}], classes: 'a,b', border_m: -1}\n"
        "training: {steps: many, lr: .inf, betas: 1}\naugment: {scale: [2, 1]}\nmixin: {}\n"
    )
    told = fails(tmp_path / "c.yaml", code=2)
    for fault in (
        "data.scenes.0.labels is missing",
        "data.border_m = -1: ",
        "training.lr = inf: ",
        "training.betas is no setting",
        "augment.scale = [2, 1]: give two positive factors",
        "mixin is no setting (did you mean mixing?)",
    ):
        assert fault in told
