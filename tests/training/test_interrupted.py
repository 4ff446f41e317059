"""Trainings that are killed go on to the weights, bit by bit, that they would have come to."""

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

import pytest

import geoseg
from tests.training.conftest import same

Settings = Callable[..., dict[str, Any]]

# Kills itself after a step, or in the middle of writing checkpoint number -step.
KILLED = """
import json, os, pathlib, signal, sys, torch
torch.set_num_threads(1)
import geoseg
settings, output, step = json.load(open(sys.argv[1])), sys.argv[2], int(sys.argv[3])

def progress(stage, done, total):
    if stage == "training" and done == step:
        os.kill(os.getpid(), signal.SIGKILL)

written, save = 0, torch.save

def save_half(checkpoint, path, *rest, **more):
    global written
    written += 1
    save(checkpoint, path, *rest, **more)
    if written == -step:
        path = pathlib.Path(path)
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save_half
geoseg.train(settings, output, progress=progress)
"""


class _StopError(Exception):
    pass


def kill(given: dict[str, Any], model: Path, step: int) -> None:
    """Train in another process until it kills itself."""
    (model.parent / "settings.json").write_text(json.dumps(given))
    (model.parent / "killed.py").write_text(KILLED)
    command = [sys.executable, model.parent / "killed.py", model.parent / "settings.json", model, step]
    killed = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not model.exists()


def test_a_killed_training_goes_on_to_the_same_weights(settings: Settings, tmp_path: Path) -> None:
    loop = {
        **{"steps": 16, "validate_every": 5, "checkpoint_every": 5, "average": 0.9, "patience": 50, "warmup": 3},
        **{"accumulate": 2, "keep": "last"},
    }
    given = settings(training={**settings()["training"], **loop}, mixing={"alpha": 0.4})
    kill(given, tmp_path / "killed.safetensors", 13)
    report = geoseg.train(given, tmp_path / "killed.safetensors")
    # Due at 10, where a validation is too: so one step later.
    assert report.resumed == 11
    whole = geoseg.train(given, tmp_path / "whole.safetensors")
    assert whole.figures == report.figures
    assert same(tmp_path / "killed.safetensors", tmp_path / "whole.safetensors")


def test_a_checkpoint_cut_off_leaves_the_one_before(settings: Settings, tmp_path: Path) -> None:
    given = settings(training={**settings()["training"], "steps": 7, "checkpoint_every": 2})
    kill(given, tmp_path / "killed.safetensors", -2)
    folder = tmp_path / ".killed.safetensors.training"
    assert (folder / "last.part").stat().st_size < (folder / "last.ckpt").stat().st_size
    assert geoseg.train(given, tmp_path / "killed.safetensors").resumed == 2
    assert not folder.exists()
    geoseg.train(given, tmp_path / "whole.safetensors")
    assert same(tmp_path / "killed.safetensors", tmp_path / "whole.safetensors")


def test_patience_is_kept(settings: Settings, tmp_path: Path) -> None:
    """What was waited for before an interruption counts: the same step is the last."""
    loop = {"steps": 40, "validate_every": 2, "patience": 3, "lr": 1e-12, "checkpoint_every": 3}
    given = settings(training={**settings()["training"], **loop})
    whole = geoseg.train(given, tmp_path / "whole.safetensors")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 6:
            raise _StopError

    with pytest.raises(_StopError):
        geoseg.train(given, tmp_path / "stopped.safetensors", progress=stop)
    report = geoseg.train(given, tmp_path / "stopped.safetensors")
    assert report.resumed == 3
    assert (report.steps, report.figures) == (whole.steps, whole.figures)
    assert whole.steps < 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_comes_out_and_is_heard_again(settings: Settings, tmp_path: Path, number: int) -> None:
    """Nothing ends the process of whoever called, and what was due to be kept is."""
    given = settings(training={**settings()["training"], "steps": 9, "checkpoint_every": 3})
    # SIGTERM as the command line takes it.
    before = [signal.signal(each, signal.default_int_handler) for each in (signal.SIGINT, signal.SIGTERM)]

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 5:
            os.kill(os.getpid(), number)

    try:
        with pytest.raises(KeyboardInterrupt):
            geoseg.train(given, tmp_path / "stopped.safetensors", progress=stop)
        heard = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    finally:
        for each, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(each, handler)
    assert heard == [signal.default_int_handler] * 2
    assert geoseg.train(given, tmp_path / "stopped.safetensors").resumed == 3


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(1, 8), (4, 11), (5, -2)])
def test_everything_at_once_killed_twice(settings: Settings, tmp_path: Path, steps: tuple[int, ...]) -> None:
    """Running average, mixing, an adversary in the loss, a frozen encoder, accumulation, clipping and validation."""
    loop = {
        **{"steps": 12, "batch": 2, "accumulate": 2, "validate_every": 4, "patience": 9, "checkpoint_every": 3},
        **{"average": 0.9, "clip": 1.0, "encoder_lr": 0.5, "warmup": 2, "keep": "last", "workers": 2},
    }
    given = settings(
        network={"name": "unet", "encoder": "resnet18", "freeze_steps": 5},
        loss="ce+0.5*aaf",
        mixing={"alpha": 0.4, "per_sample": True},
        augment={"scale": [0.9, 1.1], "noise": 0.2, "blur": 0.5},
        training={**settings()["training"], **loop},
    )
    for step in steps:
        kill(given, tmp_path / "killed.safetensors", step)
    report = geoseg.train(given, tmp_path / "killed.safetensors")
    whole = geoseg.train(given, tmp_path / "whole.safetensors")
    assert report.figures == whole.figures
    assert same(tmp_path / "killed.safetensors", tmp_path / "whole.safetensors")


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
