"""Training as a whole: it learns, it repeats itself, and it goes on where it was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import geoseg
from geoseg.bundle import read_bundle
from geoseg.errors import ConfigError, OutputError, RunError

Settings = Callable[..., dict[str, Any]]

KILLED = """
import json, os, signal, sys, torch
torch.set_num_threads(1)
import geoseg
settings, output, step = json.load(open(sys.argv[1])), sys.argv[2], int(sys.argv[3])

def progress(stage, done, total):
    if stage == "training" and done == step:
        os.kill(os.getpid(), signal.SIGKILL)

geoseg.train(settings, output, progress=progress)
"""


def same(first: Path, second: Path) -> bool:
    left, right = (read_bundle(path).tensors() for path in (first, second))
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


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


def test_nothing_but_the_bundle_is_left(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = settings(training={**settings()["training"], "checkpoint_every": 5})
    geoseg.train(given, "m.safetensors")
    assert [entry.name for entry in (tmp_path / "here").iterdir()] == ["m.safetensors"]


def test_logs_where_they_are_wanted(settings: Settings, tmp_path: Path) -> None:
    given = settings(training={**settings()["training"], "logs": str(tmp_path / "logs"), "validate_every": 6})
    geoseg.train(given, tmp_path / "m.safetensors")
    folder = tmp_path / "logs" / "version_0"
    assert "val_iou" in (folder / "metrics.csv").read_text()
    assert any(entry.name.startswith("events") for entry in folder.iterdir())


def test_equal_seeds_give_equal_weights_whatever_the_workers(settings: Settings, tmp_path: Path) -> None:
    for name, changed in {"a": {}, "b": {"workers": 3}, "c": {"seed": 1}}.items():
        given = settings(training={**settings()["training"], **changed})
        geoseg.train(given, tmp_path / f"{name}.safetensors")
    assert same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert not same(tmp_path / "a.safetensors", tmp_path / "c.safetensors")


def test_a_killed_training_goes_on_to_the_same_weights(settings: Settings, tmp_path: Path) -> None:
    loop = {"steps": 16, "validate_every": 5, "checkpoint_every": 5, "average": 0.9, "patience": 50, "warmup": 3}
    given = settings(training={**settings()["training"], **loop}, network={"name": "plainconv"})
    (tmp_path / "settings.json").write_text(json.dumps(given))
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "killed.py", tmp_path / "settings.json", tmp_path / "killed.safetensors"]
    killed = subprocess.run([*map(str, command), "13"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed.safetensors").exists()
    report = geoseg.train(given, tmp_path / "killed.safetensors")
    # Due at 10, where a validation is too: so one step later.
    assert report.resumed == 11
    whole = geoseg.train(given, tmp_path / "whole.safetensors")
    assert whole.figures == report.figures
    assert same(tmp_path / "killed.safetensors", tmp_path / "whole.safetensors")


def test_another_configuration_does_not_go_on(settings: Settings, tmp_path: Path) -> None:
    given = settings(training={**settings()["training"], "steps": 8, "checkpoint_every": 2})
    work = tmp_path / "work"
    geoseg.train(given, tmp_path / "a.safetensors", workdir=work)
    other = settings(training={**settings()["training"], "steps": 9, "checkpoint_every": 2})
    with pytest.raises(RunError, match="another configuration: pass --fresh"):
        geoseg.train(other, tmp_path / "b.safetensors", workdir=work)
    assert geoseg.train(other, tmp_path / "b.safetensors", workdir=work, fresh=True).resumed is None


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


@pytest.mark.slow
def test_a_command_killed_from_outside_goes_on(settings: Settings, tmp_path: Path) -> None:
    import yaml

    loop = {"steps": 40, "checkpoint_every": 3}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings(training={**settings()["training"], **loop})))
    command = [sys.executable, "-m", "geoseg_cli", "train", str(tmp_path / "c.yaml"), "-q", "-o"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([*command, str(tmp_path / "killed.safetensors")], env=environment)
    checkpoint = tmp_path / ".killed.safetensors.training" / "last.ckpt"
    for _ in range(600):
        if checkpoint.exists() or running.poll() is not None:
            break
        time.sleep(0.05)
    running.kill()
    running.wait()
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / f"{name}.safetensors")], env=environment, check=True)
    assert same(tmp_path / "killed.safetensors", tmp_path / "whole.safetensors")


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
