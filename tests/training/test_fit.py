"""Training as a whole: it learns, and it repeats itself."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import geoseg
from geoseg.bundle import read_bundle
from geoseg.errors import ConfigError, OutputError, RunError
from tests.conftest import write_raster
from tests.training.conftest import same

Settings = Callable[..., dict[str, Any]]


def test_the_network_learns(settings: Settings, tmp_path: Path) -> None:
    told: list[str] = []
    given = settings(training={**settings()["training"], "steps": 60, "validate_every": 20})
    report = geoseg.train(given, tmp_path / "m.safetensors", tell=told.append)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in told]
    assert [line.split(":")[0] for line in told] == ["step 20", "step 40", "step 60"]
    assert losses[-1] < losses[0] < np.log(2)
    assert report.figures["iou"]["square"] > 0.6
    assert report.steps == 60
    assert report.resumed is None


def test_the_bundle_says_how_it_was_made_and_predicts(settings: Settings, tmp_path: Path) -> None:
    given = settings(licence="CC0-1.0")
    model = tmp_path / "m.safetensors"
    report = geoseg.train(given, model)
    description = read_bundle(model).description
    assert len(description.bands) == 3
    assert [item.name for item in description.classes] == ["background", "square"]
    assert description.resolution == pytest.approx(0.5, rel=0.01)
    assert description.halo == 3
    assert description.licence == "CC0-1.0"
    assert description.normalisation is not None
    assert description.normalisation.offset[0] > description.normalisation.offset[2]
    assert description.training["validation"] == report.figures
    assert description.training["config"]["training"]["steps"] == 12
    assert str(tmp_path) not in json.dumps(description.training)
    scene = given["data"]["scenes"][0]["image"]
    geoseg.predict(scene, tmp_path / "out.geojson", model, device="cpu")
    assert (tmp_path / "out.geojson").exists()


@pytest.mark.parametrize("scaling", ["model", "scene"])
def test_scenes_of_two_cameras(settings: Settings, squares: tuple[Path, Path], tmp_path: Path, scaling: str) -> None:
    """A scene twice, once darker: scaled each by itself both look alike, scaled together they do not."""
    with rasterio.open(squares[0]) as file:
        pixels = file.read().astype(np.float32)
    bright = write_raster(tmp_path / "bright.tif", pixels)
    dark = write_raster(tmp_path / "dark.tif", pixels / 4 + 3)
    part = {"labels": str(squares[1]), "validation": [0.75, 1]}
    scenes = [{"image": str(image), **part} for image in (bright, dark)]
    training = {**settings()["training"], "steps": 40}
    model = tmp_path / "m.safetensors"
    geoseg.train(settings(data={"scenes": scenes, "scaling": scaling}, training=training), model)
    assert (read_bundle(model).description.normalisation is None) == (scaling == "scene")
    assert read_bundle(model).description.training["config"]["data"]["scaling"] == scaling
    found = []
    for image in (bright, dark):
        geoseg.predict(image, tmp_path / "labels.tif", model, device="cpu", overwrite=True)
        with rasterio.open(tmp_path / "labels.tif") as file:
            found.append(file.read(1))
    assert found[0].any()
    assert ((found[0] == found[1]).mean() > 0.999) == (scaling == "scene")


def test_nothing_but_the_bundle_is_left(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = settings(training={**settings()["training"], "checkpoint_every": 5})
    geoseg.train(given, "m.safetensors")
    assert [entry.name for entry in (tmp_path / "here").iterdir()] == ["m.safetensors"]


def test_logs_where_they_are_wanted(settings: Settings, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = {"logs": str(tmp_path / "logs"), "validate_every": 6, "steps": 24, "keep": "last"}
    given = settings(training={**settings()["training"], **loop})
    report = geoseg.train(given, tmp_path / "m.safetensors")
    folder = tmp_path / "logs" / "version_0"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    events = EventAccumulator(str(folder)).Reload()
    for name, steps in (("loss", [9, 19]), ("val_iou", [5, 11, 17, 23]), ("val_iou_square", [5, 11, 17, 23])):
        told = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert [step for step, _ in told] == steps
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in shown] == steps
        assert [value for _, value in shown] == pytest.approx([value for _, value in told], rel=1e-5)
    assert told[-1][1] == pytest.approx(report.figures["iou"]["square"], rel=1e-5)


def test_equal_seeds_give_equal_weights_whatever_the_workers(settings: Settings, tmp_path: Path) -> None:
    for name, changed in {"a": {}, "b": {"workers": 3}, "c": {"seed": 1}}.items():
        given = settings(training={**settings()["training"], **changed})
        geoseg.train(given, tmp_path / f"{name}.safetensors")
    assert same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert not same(tmp_path / "a.safetensors", tmp_path / "c.safetensors")


def test_another_configuration_does_not_go_on(settings: Settings, tmp_path: Path) -> None:
    given = settings(training={**settings()["training"], "steps": 8, "checkpoint_every": 2})
    work = tmp_path / "work"
    geoseg.train(given, tmp_path / "a.safetensors", workdir=work)
    other = settings(training={**settings()["training"], "steps": 9, "checkpoint_every": 2})
    with pytest.raises(RunError, match="another configuration: pass --fresh"):
        geoseg.train(other, tmp_path / "b.safetensors", workdir=work)
    assert geoseg.train(other, tmp_path / "b.safetensors", workdir=work, fresh=True).resumed is None


def test_bfloat16_trains_on_a_cpu_to_a_model_of_32_bits(settings: Settings, tmp_path: Path) -> None:
    loop = {"steps": 40, "precision": "bfloat16", "average": 0.8, "clip": 1.0}
    report = geoseg.train(settings(training={**settings()["training"], **loop}), tmp_path / "m.safetensors")
    assert report.figures["iou"]["square"] > 0.5
    tensors = read_bundle(tmp_path / "m.safetensors").tensors()
    assert {str(value.dtype) for value in tensors.values()} <= {"float32", "int64"}
    assert all(np.isfinite(value).all() for value in tensors.values())


def test_early_stop(settings: Settings, tmp_path: Path) -> None:
    loop = {"steps": 40, "validate_every": 2, "patience": 2, "lr": 1e-12}
    report = geoseg.train(settings(training={**settings()["training"], **loop}), tmp_path / "m.safetensors")
    assert report.steps < 40
    assert report.notes == ["training stopped early: the mean IoU no longer rose"]


def test_a_loss_that_is_no_number_says_where(settings: Settings, tmp_path: Path) -> None:
    loop = {"lr": 1e30, "optimiser": "sgd", "steps": 50}
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step \d+ .*squares\.tif.*lower training\.lr"):
        geoseg.train(settings(training={**settings()["training"], **loop}), tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_too_little_memory_says_what_to_do(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geoseg.training.module import TrainingModule

    def fail(self: Any, batch: Any, batch_idx: int) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 4 GiB")

    monkeypatch.setattr(TrainingModule, "training_step", fail)
    with pytest.raises(RunError, match=r"batches of 4 patches of 32 pixels .*training\.batch to 2"):
        geoseg.train(settings(), tmp_path / "m.safetensors")


def test_an_existing_model_is_kept(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        geoseg.train(settings(), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == b"old"


@pytest.mark.slow
def test_a_frozen_encoder_stays_and_a_model_goes_on_from_another(settings: Settings, tmp_path: Path) -> None:
    network = {"name": "unet", "encoder": "resnet18"}
    short = {**settings()["training"], "steps": 2, "batch": 2}
    geoseg.train(settings(network=network, training=short), tmp_path / "first.safetensors")
    more = {"start": str(tmp_path / "first.safetensors"), "freeze_steps": 2}
    geoseg.train(settings(network=more, training={**short, "keep": "last"}), tmp_path / "second.safetensors")
    before, after = (read_bundle(tmp_path / f"{name}.safetensors").tensors() for name in ("first", "second"))
    assert read_bundle(tmp_path / "second.safetensors").description.settings["encoder"] == "resnet18"
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert not any(".encoder." in f".{name}" for name in changed)


def test_a_start_with_other_classes_is_refused(settings: Settings, make_bundle: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has the classes background, roof.* where data\.classes are"):
        geoseg.train(settings(network={"start": str(make_bundle())}), tmp_path / "m.safetensors")


@pytest.mark.slow
def test_a_town_is_learned_from_footprints(sample: Path, footprints: Path, tmp_path: Path) -> None:
    given = {
        "data": {
            "scenes": [{"image": str(sample), "labels": str(footprints), "validation": [0.75, 1]}],
            "classes": "background,building",
            "resolution": 0.5,
        },
        "network": {"name": "unet", "encoder": "resnet18"},
        "training": {"steps": 60, "batch": 8, "patch": 96, "lr": 0.002, "device": "cpu"},
    }
    report = geoseg.train(given, tmp_path / "m.safetensors")
    assert report.figures["iou"]["building"] > 0.5


@pytest.mark.parametrize("loss", ["ce", "ce+0.5*aaf"])
@pytest.mark.parametrize("pairing", ["random", "foreground"])
def test_mixed_batches_train(settings: Settings, tmp_path: Path, loss: str, pairing: str) -> None:
    given = settings(loss=loss, mixing={"alpha": 0.4, "pairing": pairing})
    given["training"]["steps"] = 3
    for name in ("a", "b"):
        report = geoseg.train(given, tmp_path / f"{name}.safetensors")
        assert report.figures["mean_iou"] > 0
    assert same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_a_loss_that_is_none_is_refused_before_anything_is_read(settings: Settings, tmp_path: Path) -> None:
    given = settings(loss="cee")
    given["data"]["scenes"][0]["image"] = "missing.tif"
    with pytest.raises(ConfigError, match="no loss named 'cee'"):
        geoseg.train(given, tmp_path / "m.safetensors")


@pytest.mark.slow
def test_a_network_that_reaches_far_has_its_halo_chosen_on_the_scenes_of_its_training(
    settings: Settings, tmp_path: Path
) -> None:
    given = settings(network={"name": "unet"}, training={**settings()["training"], "steps": 20})
    geoseg.train(given, tmp_path / "m.safetensors")
    about = read_bundle(tmp_path / "m.safetensors").description
    assert about.tiling is not None
    assert about.tiling.measured_on == "1 part of the training's scenes of 1152 × 1152 pixels"
    assert about.tiling.bound == 5e-4
    assert about.halo % about.stride == 0
    assert 0 <= about.halo <= 256
    assert about.halo == 256 or about.tiling.decided_by != "labels" or about.tiling.disagreement <= 5e-4
