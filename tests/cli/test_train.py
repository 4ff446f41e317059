"""``geoseg train`` from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from geoseg_cli.main import main


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


QUICK = ("--network", "plainconv", "--steps", 6, "--batch", 2, "--patch", 48, "--device", "cpu", "--workers", 1)


def test_train_then_predict(crop: Path, footprints: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "roofs.safetensors"
    given = ("--scene", crop, "--labels", footprints, "--classes", "background,roof", "--resolution", "0.5")
    more = ("--validation", "0.7:1", "--set", "training.validate_every=3", "--set", "augment.rotation=0")
    assert run("train", *given, *QUICK, *more, "-o", model) == 0
    told = capfd.readouterr()
    assert told.out == f"{model}\n"
    assert "training: 6/6" in told.err
    assert "step 3: loss " in told.err
    assert "mean IoU " in told.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["roofs.safetensors"]
    assert run("predict", crop, tmp_path / "roofs.geojson", "-m", model, "-q") == 0
    assert run("train", *given, *QUICK, "-o", model) == 1
    assert "exists already" in capfd.readouterr().err


def test_a_file_and_flags_that_win(crop: Path, footprints: Path, tmp_path: Path) -> None:
    import yaml

    from geoseg.bundle import read_bundle

    data = {"scenes": [{"image": str(crop), "labels": str(footprints)}], "classes": "background,roof"}
    config = {"data": {**data, "resolution": 0.5}, "network": {"name": "unet"}, "training": {"steps": 999, "lr": 0.5}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    model = tmp_path / "m.safetensors"
    assert run("train", tmp_path / "c.yaml", *QUICK, "--set", "training.lr=1e-3", "-q", "-o", model) == 0
    record = read_bundle(model).description.training
    assert record["config"]["training"]["lr"] == 1e-3
    assert record["steps"] == 6
    assert read_bundle(model).description.settings["name"] == "plainconv"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give a CONFIG file"),
        (("--scene", "a.tif"), "1 --scene and 0 --labels"),
        (("--scene", "a.tif", "--labels", "b.tif"), "data.classes is missing"),
        (("none.yaml",), "none.yaml cannot be read"),
        (("--scene", "a.tif", "--labels", "b.tif", "--classes", "a,b", "--steps", "0"), "training.steps = 0"),
        (("--scene", "a.tif", "--labels", "b.tif", "--classes", "a,b", "--set", "trainin.steps=1"), "mean training?"),
        (("--scene", "a.tif", "--labels", "b.tif", "--classes", "a,b", "--set", "x"), "is not KEY=VALUE"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("train", *arguments, "-o", tmp_path / "m.safetensors") == 2
    assert told in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
