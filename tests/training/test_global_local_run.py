"""``geoseg train`` of GLNet: three stages, what they hand on, interruption, refusals."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import geoseg
from geoseg.bundle import read_bundle
from geoseg.errors import BundleError, ConfigError
from geoseg.segmenters.global_local import GlobalLocal
from geoseg.segmenters.loading import load
from geoseg.segmenters.macro_windows import MacroGrid
from geoseg.training.config import check
from geoseg.training.global_local_fit import MacroSquares, completed, stages_of
from geoseg.training.global_local_run import GlobalLocalRun
from geoseg.training.labels import IGNORE
from geoseg.training.site import open_sites
from tests.training.conftest import same

Settings = Callable[..., dict[str, Any]]
SMALL = {"overview": 32, "patch": 32, "min_overlap": 4, "sub_batch": 3}


def staged(settings: Settings, **changed: Any) -> dict[str, Any]:
    """Settings of a short training of a tiny GLNet in all stages."""
    given = settings()
    del given["augment"]
    given["network"] = {"name": "glnet", "encoder": "mobilenetv3_small_100", "options": dict(SMALL)}
    given["training"] = {"steps": 6, "batch": 2, "patch": 64, "lr": 1e-3, "device": "cpu", "workers": 0}
    given["training"]["checkpoint_every"] = 0
    for key, value in changed.items():
        given[key] = {**given.get(key, {}), **value} if isinstance(value, dict) else value
    return given


@pytest.mark.slow
def test_three_stages_make_a_model_that_runs(settings: Settings, tmp_path: Path) -> None:
    told: list[str] = []
    steps: list[tuple[str, int, int]] = []
    model = tmp_path / "glnet.safetensors"
    given = staged(settings, licence="CC0-1.0", card={"data": "squares"})
    report = geoseg.train(given, model, tell=told.append, progress=lambda *step: steps.append(step))
    assert report.steps == 6
    assert report.resumed is None
    assert [step for step in steps if step[0].startswith("training")] == [
        *[("training global", i, 6) for i in (1, 2)],
        ("training local", 3, 6),
        *[("training collaborative", i, 6) for i in (4, 5, 6)],
    ]
    assert [text.split(":")[0] for text in told] == [
        "step 2 (global)", "step 3 (local)", "step 6 (collaborative)",
    ]  # fmt: skip
    made = load(model)
    assert isinstance(made, GlobalLocal)
    assert made.network.mode == "collaborative"
    assert (made.settings.extent, made.settings.patch) == (64, 32)
    description = read_bundle(model).description
    assert description.licence == "CC0-1.0"
    assert description.card == {"data": "squares"}
    assert description.training["validation"] == report.figures
    assert report.figures["step"] == 6
    assert description.training["config"]["training"]["optimiser"] == "adam"
    assert description.normalisation is not None
    assert not (tmp_path / ".glnet.safetensors.training").exists()
    geoseg.predict(given["data"]["scenes"][0]["image"], tmp_path / "out.tif", str(model))
    with rasterio.open(tmp_path / "out.tif") as file:
        assert set(np.unique(file.read(1))) <= {0, 1}


def test_the_loss_falls_and_is_logged(settings: Settings, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    options = {**SMALL, "mode": "global"}
    training = {"steps": 8, "lr": 2e-4, "logs": str(logs), "validate_every": 4, "keep": "last"}
    report = geoseg.train(staged(settings, network={"options": options}, training=training), tmp_path / "m.safetensors")
    with next(logs.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    judged = {int(row["step"]): float(row["val_iou"]) for row in rows if row["val_iou"]}
    assert list(judged) == [4, 8]
    assert judged[8] == pytest.approx(report.figures["mean_iou"])


@pytest.mark.slow
def test_the_stages_hand_their_weights_on(settings: Settings, tmp_path: Path) -> None:
    first, both, third = (tmp_path / f"{name}.safetensors" for name in ("first", "both", "third"))
    keep = {"keep": "last"}
    geoseg.train(
        staged(settings, network={"options": {**SMALL, "mode": "global"}}, training={**keep, "steps": 2}), first
    )
    second = staged(settings, network={"options": {**SMALL, "mode": "local"}, "start": str(first)}, training=keep)
    report = geoseg.train({**second, "training": {**second["training"], "steps": 1}}, both)
    assert report.figures["stage"] == "local"
    one, two = (read_bundle(path).tensors() for path in (first, both))
    assert all(np.array_equal(two[name], value) for name, value in one.items())
    assert any(name.startswith("fpn_local") for name in two)
    last = staged(settings, network={"start": str(both)}, training={**keep, "steps": 1})
    geoseg.train(last, third)
    three = read_bundle(third).tensors()
    assert all(np.array_equal(three[f"fixed.{name}"], value) for name, value in one.items())
    assert all(np.array_equal(three[name], two[name]) for name in two if name.startswith(("resnet_local", "fpn_local")))
    assert not np.array_equal(three["ensemble_conv.weight"], two["ensemble_conv.weight"])


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(settings: Settings, tmp_path: Path) -> None:
    """Seven steps of 2, 1 and 4, checkpoints every second one and between stages; stopped in each stage."""
    given = staged(settings, training={"steps": 7, "checkpoint_every": 2, "validate_every": 2})
    whole, taken_up = tmp_path / "whole.safetensors", tmp_path / "taken_up.safetensors"
    expected = geoseg.train(given, whole)

    class StoppedError(Exception):
        pass

    def stop_at(stop: int) -> None:
        def stopping(name: str, done: int, steps: int) -> None:
            if name.startswith("training") and done == stop:
                raise StoppedError

        with pytest.raises(StoppedError):
            geoseg.train(given, taken_up, progress=stopping)

    for stop in (1, 3, 5):
        stop_at(stop)
    report = geoseg.train(given, taken_up)
    assert report.resumed == 4
    assert report.figures == expected.figures
    assert same(whole, taken_up)


def test_workers_change_nothing_and_seeds_do(settings: Settings, tmp_path: Path) -> None:
    for name, changed in {"a": {}, "b": {"workers": 2}, "c": {"seed": 1}}.items():
        given = staged(settings, network={"options": {**SMALL, "mode": "global"}}, training={"steps": 2, **changed})
        geoseg.train(given, tmp_path / f"{name}.safetensors")
    assert same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert not same(tmp_path / "a.safetensors", tmp_path / "c.safetensors")


def test_what_is_left_open_is_the_authors(settings: Settings) -> None:
    given = staged(settings)
    given["network"] = {"name": "glnet"}
    given["training"] = {}
    made = completed(check(given))
    loop = made.training
    assert (loop.batch, loop.lr, loop.weight_decay) == (6, 5e-5, 5e-4)
    assert (loop.optimiser, loop.schedule, loop.patch) == ("adam", "poly", 2448)
    assert (made.augment.scale, made.augment.rotation, made.augment.noise) == ((1, 1), 0, 0)
    assert made.augment.flips
    given["training"] = {"lr": 0.5}
    given["augment"] = {"noise": 0.25}
    made = completed(check(given))
    assert (made.training.lr, made.training.batch, made.augment.noise, made.augment.blur) == (0.5, 6, 0.25, 0)


def test_the_second_stage_learns_at_two_fifths_of_the_rate(settings: Settings, tmp_path: Path) -> None:
    run = GlobalLocalRun(check(staged(settings)), tmp_path / "m", tmp_path, None, None)
    rates = []
    for stage in run._ready.stages:
        parameter = next(run._ready.empty(0).parameters())
        rates.append(run._ready.optimiser(stage, [parameter])[0].param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 4e-4, 1e-3])


def test_steps_are_shared_as_epochs_are() -> None:
    assert [stage.first for stage in stages_of("collaborative", 29)] == [0, 12, 17]
    assert [stage.steps for stage in stages_of("local", 17)] == [12, 5]
    assert [(stage.mode, stage.steps) for stage in stages_of("collaborative", 29, "global")] == [
        ("local", 8), ("collaborative", 21),
    ]  # fmt: skip
    assert [stage.mode for stage in stages_of("local", 4, "local")] == ["local"]
    assert [stage.steps for stage in stages_of("collaborative", 3)] == [1, 1, 1]
    with pytest.raises(ConfigError, match=r"training\.steps is 2, but there are 3 stages"):
        stages_of("collaborative", 2)
    with pytest.raises(ConfigError, match="the start is a network of mode local, behind the mode global"):
        stages_of("global", 5, "local")


def test_each_pixel_is_judged_once_in_the_window_that_answers_for_it(settings: Settings) -> None:
    config = completed(check(staged(settings)))
    _, judged = open_sites(config)
    from geoseg.segmenters.global_local_making import GlobalLocalOptions

    options = GlobalLocalOptions.of(SMALL, 64)
    squares = MacroSquares(judged, options.settings)
    known = np.zeros(judged[0].scene.shape, int)
    grid = MacroGrid(judged[0].scene.shape, 64, 32)
    windows = [window for window in map(grid.tile_window, grid)]
    for number in range(len(squares)):
        window = squares._places[number][1]
        assert window in windows
        known[window.within(judged[0].scene.window)] += squares[number].labels != IGNORE
    assert (known[:, :144] == 0).all()
    assert (known[:, 144:] == 1).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "ce"}, "network glnet has losses of its own: leave loss out"),
        ({"mixing": {"alpha": 0.4}}, r"mixing\.alpha is 0\.4, which the stages of network glnet do not have"),
        ({"training": {"accumulate": 2}}, r"training\.accumulate is 2, .*leave it at 1"),
        ({"training": {"precision": "float16"}}, r"training\.precision is float16"),
        ({"training": {"patch": 48}}, "extent of GLNet's macro-windows is 48 pixels"),
        ({"training": {"patch": 160}}, r"has 128 × 192: set training\.patch to at most 128"),
        ({"network": {"options": {"patchh": 3}}}, "no option of network glnet named 'patchh'"),
        ({"network": {"encoder": "resnet51"}}, "no encoder named 'resnet51'"),
    ],
)
def test_settings_that_do_not_go_with_it(changed: Any, message: str, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        geoseg.train(staged(settings, **changed), tmp_path / "m.safetensors")


def test_it_goes_on_from_nothing_but_a_glnet(settings: Settings, tmp_path: Path) -> None:
    geoseg.train(settings(), tmp_path / "plain.safetensors")
    start = {"start": str(tmp_path / "plain.safetensors")}
    with pytest.raises(BundleError, match="holds a network model, which is no start for network glnet"):
        geoseg.train(staged(settings, network=start), tmp_path / "m.safetensors")
