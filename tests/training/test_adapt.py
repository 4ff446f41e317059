"""``geoseg adapt`` from scenes to a bundle: every method, what it may not look at, interruptions and faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

import geoseg
from geoseg.bundle import read_bundle
from geoseg.errors import BundleError, ConfigError, SceneError
from tests.conftest import write_raster
from tests.training.conftest import same

METHODS = ("self-training", "outputs", "features", "batch-norm", "scaling")
LEARNING = METHODS[:3]
LOOP = {
    **{"training.steps": 6, "training.batch": 2, "training.patch": 32, "training.device": "cpu"},
    **{"training.workers": 0, "training.lr": 0.01, "training.warmup": 0, "training.checkpoint_every": 0},
    **{"augment.rotation": 0, "augment.scale": [1, 1]},
}


class _StopError(Exception):
    pass


def ground(path: Path, shift: float, gain: float, bands: int = 3) -> tuple[Path, Path]:
    """A scene of 96 × 128 pixels with bright squares, seen in some light, and its labels."""
    random = np.random.default_rng(round(gain * 10))
    labels = np.zeros((96, 128), np.uint8)
    for row, col in random.integers(0, (84, 116), (20, 2)):
        labels[row : row + 10, col : col + 8] = 1
    image = random.normal(90, 12, (bands, 96, 128)) + 40 * labels
    image = (image * gain + shift).clip(1, 255).astype(np.uint8)
    image[:, :20, :30] = 0
    return write_raster(path / "scene.tif", image, nodata=0), write_raster(path / "labels.tif", labels)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """A source, and a target in other light."""
    found = {}
    for name, light in (("source", (0, 1.0)), ("target", (60, 0.6))):
        found[name] = ground(tmp_path_factory.mktemp(name), *light)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, places: dict[str, tuple[Path, Path]]) -> Path:
    """A model of the source, with an auxiliary head."""
    path = tmp_path_factory.mktemp("model") / "source.safetensors"
    scene, labels = map(str, places["source"])
    given = {
        "data": {"scenes": [{"image": scene, "labels": labels}], "classes": "background,square"},
        "network": {"name": "unet-lext", "options": {"width": 4, "depth": 2, "auxiliary": True}},
        "training": {"steps": 30, "batch": 4, "patch": 32, "lr": 0.01, "device": "cpu", "workers": 0},
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    geoseg.train(given, path)
    torch.set_num_threads(before)
    return path


@pytest.fixture
def adapt(model: Path, places: dict[str, tuple[Path, Path]], tmp_path: Path) -> Callable[..., Any]:
    """Return a function that adapts the model in a few steps."""

    def go(output: str = "adapted.safetensors", *, settings: Any = None, **told: Any) -> Any:
        arguments: dict[str, Any] = {
            "sources": [places["source"]],
            "targets": [places["target"][0]],
            "validation": (0.7, 1.0),
            **told,
        }
        return geoseg.adapt(model, tmp_path / output, settings={**LOOP, **(settings or {})}, **arguments)

    return go


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_bundle_that_predicts(
    adapt: Callable[..., Any], model: Path, places: dict[str, tuple[Path, Path]], tmp_path: Path, method: str
) -> None:
    told: list[tuple[str, int, int]] = []
    report = adapt(method=method, target_labels=[places["target"][1]], progress=lambda *each: told.append(each))
    assert method == "scaling" or ("measuring" if method == "batch-norm" else "training", 6, 6) in told
    assert (report.method, report.resumed) == (method, None)
    assert report.steps == (0 if method == "scaling" else 6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapted.safetensors"]
    for where in ("source", "target"):
        for when in ("before", "after"):
            assert set(report.scores[where][when]["iou"]) == {"background", "square"}
    about = read_bundle(tmp_path / "adapted.safetensors").description
    assert about.normalisation is None
    kept = about.training["config"]["adaptation"]
    assert kept["method"] == method
    assert kept["targets"] == [{"image": "scene.tif", "labels": "labels.tif"}]
    assert str(tmp_path.parent) not in json.dumps(about.training)
    geoseg.predict(places["target"][0], tmp_path / "map.tif", tmp_path / "adapted.safetensors")
    with rasterio.open(tmp_path / "map.tif") as found:
        assert set(np.unique(found.read(1))) <= {0, 1, found.nodata}
    first, second = (read_bundle(each).tensors() for each in (model, tmp_path / "adapted.safetensors"))
    moved = {name for name in first if not np.array_equal(first[name], second[name])}
    if method == "scaling":
        assert moved == set()
    elif method == "batch-norm":
        assert moved
        assert all("running" in name or "num_batches" in name for name in moved)
    else:
        assert any(name.endswith("mixer.weight") for name in moved)


@pytest.mark.parametrize("method", ["self-training", "batch-norm"])
def test_labels_of_a_target_change_nothing(
    adapt: Callable[..., Any], places: dict[str, tuple[Path, Path]], tmp_path: Path, method: str
) -> None:
    told = adapt("with.safetensors", method=method, target_labels=[places["target"][1]])
    untold = adapt("without.safetensors", method=method)
    assert same(tmp_path / "with.safetensors", tmp_path / "without.safetensors")
    assert told.scores["source"] == untold.scores["source"]
    assert "target" not in untold.scores


@pytest.mark.parametrize("method", ["self-training", pytest.param("features", marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_to_the_same_weights(adapt: Callable[..., Any], tmp_path: Path, method: str) -> None:
    settings = {"training.checkpoint_every": 2, "training.validate_every": 3, "mixing.alpha": 0.7}

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 5:
            raise _StopError

    with pytest.raises(_StopError):
        adapt("stopped.safetensors", method=method, settings=settings, progress=stop)
    report = adapt("stopped.safetensors", method=method, settings=settings)
    assert report.resumed == 4
    whole = adapt("whole.safetensors", method=method, settings=settings)
    assert (whole.scores, whole.kept) == (report.scores, report.kept)
    assert same(tmp_path / "stopped.safetensors", tmp_path / "whole.safetensors")


def test_without_an_opponent_it_is_plain_training(
    adapt: Callable[..., Any], model: Path, places: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Bit by bit, given one seed."""
    more = {"training.keep": "last", "adaptation.adv_weight": 0.0, "training.average": 0.0, "data.scaling": "model"}
    adapt(method="outputs", settings=more)
    config = read_bundle(tmp_path / "adapted.safetensors").description.training["config"]
    del config["adaptation"]
    scene, labels = map(str, places["source"])
    config["data"]["scenes"][0].update(image=scene, labels=labels)
    config["network"]["start"] = str(model)
    geoseg.train(config, tmp_path / "plain.safetensors")
    assert same(tmp_path / "adapted.safetensors", tmp_path / "plain.safetensors")


def test_weights_that_lose_the_sources_are_not_kept(adapt: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    report = adapt(method="outputs", settings={"training.lr": 100.0, "adaptation.most_lost": 0.0})
    assert report.kept == 0
    assert same(tmp_path / "adapted.safetensors", model)
    assert report.scores["source"]["after"] == report.scores["source"]["before"]
    report = adapt(method="outputs", settings={"training.lr": 100.0, "adaptation.most_lost": 1.0}, overwrite=True)
    assert report.kept == 6


def test_a_target_with_other_bands_is_refused(adapt: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    scene, _ = ground(tmp_path / "other", 0, 1.0, bands=2)
    with pytest.raises(SceneError, match=r"scene.tif has 2 bands where .*scene.tif has 3"):
        adapt(targets=[scene])
    assert not (tmp_path / "adapted.safetensors").exists()
    with pytest.raises(ConfigError, match="is for 3 bands where the scenes give 2"):
        adapt(sources=[(scene, tmp_path / "other" / "labels.tif")], targets=[scene])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"target_labels": ["a", "b"]}, "2 files of target labels were given for 1 targets"),
        ({"targets": []}, "adaptation.targets is missing"),
        ({"method": "outputs", "settings": {"training.patch": 16}}, "looks at patches of 32 pixels or more"),
        ({"settings": {"training.average": 0}}, "self-training learns from the running average"),
        ({"method": "scaling", "settings": {"training.average": 0.9}}, "scaling trains no weights"),
        ({"settings": {"training.devices": 2}}, "adaptation runs on one device"),
        ({"settings": {"adaptation.stepz": 2}}, "adaptation.stepz is no setting"),
        ({"method": "dann"}, "adaptation.method"),
    ],
)
def test_faults_are_told_before_anything_is_done(
    adapt: Callable[..., Any], tmp_path: Path, told: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt(**told)
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_adapted_so_are_refused(places: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    told: dict[str, Any] = {"sources": [places["source"]], "targets": [places["target"][0]], "settings": LOOP}
    scene, labels = map(str, places["source"])
    given = {
        "data": {"scenes": [{"image": scene, "labels": labels}], "classes": "background,square"},
        "network": {"name": "lsr-fcn", "options": {"width": 2, "depth": 1}},
        "training": {"steps": 1, "batch": 2, "patch": 32, "device": "cpu", "workers": 0},
    }
    geoseg.train(given, tmp_path / "plain.safetensors")
    with pytest.raises(ConfigError, match="network lsr-fcn has none as it is built"):
        geoseg.adapt(tmp_path / "plain.safetensors", tmp_path / "a.safetensors", method="features", **told)
    geoseg.cluster(scene, tmp_path / "clusters.tif", save_model=tmp_path / "clusters.safetensors")
    with pytest.raises(BundleError, match="feature-clustering model, which cannot be adapted"):
        geoseg.adapt(tmp_path / "clusters.safetensors", tmp_path / "a.safetensors", **told)
