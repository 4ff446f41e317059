"""A run whose tiles are given the means of the scene: the same whatever the chunks, workers and batches."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import geoseg
from geoseg import networks
from geoseg.bundle import read_bundle, write_bundle
from geoseg.classes import Classes
from geoseg.engine.assemble import Outputs
from geoseg.engine.plan import Recipe
from geoseg.engine.predict import Options, make_plan
from geoseg.engine.tiling import measure_on_scene
from geoseg.errors import ConfigError
from geoseg.segmenters.network import new_bundle, tensors_of

_FILLER = Path(__file__).parents[1] / "data" / "reference" / "fill_weights.py"


@pytest.fixture(scope="module")
def village(piece: Callable[..., Path]) -> Path:
    """A real scene of 210 × 290 pixels, with a frame of nodata at its left."""
    return piece(210, 290, blank=40)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ICNet with the references' weights, whose labels vary, by what it pools over."""
    spec = importlib.util.spec_from_file_location("fill_weights", _FILLER)
    assert spec is not None
    assert spec.loader is not None
    filler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(filler)
    network = networks.create("icnet", in_channels=3, num_classes=19)
    filler.fill_weights(network, 0, lambda name: name.removeprefix("network.").replace("_bn.", "/bn."))
    classes = Classes.parse(",".join(f"class {i}" for i in range(19)))
    folder = tmp_path_factory.mktemp("models")
    description, _ = new_bundle(
        "icnet", bands=["red", "green", "blue"], classes=classes, tile=128, halo=32, options={"pooling": "scene"}
    )
    made = {}
    for pooling in ("tile", "scene"):
        settings = {**description.settings, "options": {"pooling": pooling}}
        made[pooling] = folder / f"{pooling}.safetensors"
        write_bundle(made[pooling], description.model_copy(update={"settings": settings}), tensors_of(network))
    return made


def _run(folder: Path, scene: Path, model: Path, **options: Any) -> dict[str, bytes]:
    folder.mkdir()
    geoseg.predict(scene, folder / "out.geojson", str(model), labels=str(folder / "labels.tif"), **options)
    return {name: (folder / name).read_bytes() for name in ("out.geojson", "labels.tif")}


def test_chunks_and_batches_change_nothing(tmp_path: Path, village: Path, models: dict[str, Path]) -> None:
    whole = _run(tmp_path / "whole", village, models["scene"], chunk=1024)
    assert _run(tmp_path / "parts", village, models["scene"], chunk=64, batch=3) == whole
    with rasterio.open(tmp_path / "whole" / "labels.tif") as file:
        labels = file.read(1)
    assert len(np.unique(labels)) > 2
    assert (labels[:, :40] == 255).all()
    assert _run(tmp_path / "alone", village, models["tile"], chunk=1024) != whole


@pytest.mark.slow
@pytest.mark.dist
def test_two_worker_processes_change_nothing(tmp_path: Path, village: Path, models: dict[str, Path]) -> None:
    whole = _run(tmp_path / "whole", village, models["scene"], chunk=1024)
    assert _run(tmp_path / "workers", village, models["scene"], chunk=64, workers=2) == whole


def test_runs_are_told_apart_and_found_again(tmp_path: Path, village: Path, models: dict[str, Path]) -> None:
    seen = []
    for pooling in ("scene", "scene", "tile"):
        options = Options()
        recipe = Recipe(((str(models[pooling]), read_bundle(models[pooling]).digest),))
        outputs = Outputs.check(tmp_path / "out.tif", options)
        plan, _ = make_plan(village, outputs, recipe, recipe.build(), options)
        seen.append((plan.fingerprint(), plan.state))
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[2][0]
    segmenter = geoseg.load(models["scene"])
    plan, _ = make_plan(village, outputs, segmenter, segmenter, Options())
    assert plan.state == seen[0][1]
    # It was looked at by a copy, so that workers are sent what the caller gave.
    assert any("bn" in name for name in segmenter.module.state_dict())  # type: ignore[attr-defined]


def test_turned_tiles_are_refused(tmp_path: Path, village: Path, models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="leave --tta out, or use a model that sees its tile alone"):
        geoseg.predict(village, tmp_path / "out.tif", str(models["scene"]), tta=True)
    assert not (tmp_path / "out.tif").exists()


def test_the_halo_is_measured_with_the_means_of_the_part(village: Path, models: dict[str, Path]) -> None:
    found = measure_on_scene(models["scene"], village, crop=256)
    assert [row.halo for row in found.comparison.differences] == [0, 32]
    errors = [row.score_error for row in found.comparison.differences]
    assert errors[0] > errors[1] > 0
