"""Runs whose scores another library than PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

import geoseg
from geoseg.classes import Classes
from geoseg.errors import ConfigError, RunError
from geoseg.segmenters.engines import ENGINES
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles

for library in ("openvino", "onnxruntime", "onnx"):
    pytest.importorskip(library)

each = pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "torch"])


@pytest.fixture(scope="module")
def unet(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("unet", encoder="resnet18", tile=256, halo=32)


def _labels(scene: Path, model: Path, path: Path, **options: object) -> np.ndarray:
    geoseg.predict(scene, path, str(model), **options)
    with rasterio.open(path) as file:
        return file.read(1)


@each
def test_labels_are_those_of_torch(tmp_path: Path, piece: Callable[..., Path], unet: Path, engine: str) -> None:
    """But where two classes are as good as equal: one pixel in ten thousand at most."""
    scene = piece(500, 620, blank=90)
    ours, theirs = (_labels(scene, unet, tmp_path / f"{name}.tif", engine=name) for name in ("torch", engine))
    assert len(np.unique(ours)) >= 3
    assert (ours != theirs).mean() <= 1e-4


@each
def test_nothing_depends_on_chunks_or_workers(
    tmp_path: Path, piece: Callable[..., Path], unet: Path, engine: str
) -> None:
    scene = piece(400, 420)
    cuts = ({}, {"chunk": 192}, {"chunk": 192, "workers": 2})
    first, *others = (_labels(scene, unet, tmp_path / f"{n}.tif", engine=engine, **cut) for n, cut in enumerate(cuts))
    assert all(np.array_equal(first, other) for other in others)


def test_a_run_does_not_go_on_with_another_engine(tmp_path: Path, piece: Callable[..., Path], unet: Path) -> None:
    scene, store = piece(300, 300), tmp_path / "store"
    _labels(scene, unet, tmp_path / "labels.tif", workdir=str(store))
    with pytest.raises(RunError, match="the chunks of another run"):
        _labels(scene, unet, tmp_path / "labels.tif", workdir=str(store), engine="openvino", overwrite=True)


class _Own(Segmenter):
    spec = Spec(("red", "green", "blue"), None, Classes.parse("a,b"), 128, 0)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        return torch.zeros(len(tiles), 2, *tiles.pixels.shape[-2:])


def test_a_method_that_is_no_network_takes_no_engine(tmp_path: Path, piece: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="openvino cannot compute this method: leave --engine openvino out"):
        geoseg.predict(piece(64, 64), tmp_path / "labels.tif", _Own(), engine="openvino")
    assert not list(tmp_path.iterdir())


def test_an_engine_does_not_lower_its_precision(tmp_path: Path, piece: Callable[..., Path], unet: Path) -> None:
    with pytest.raises(ConfigError, match="computes in float32: leave --precision bfloat16"):
        _labels(piece(64, 64), unet, tmp_path / "labels.tif", engine="openvino", precision="bfloat16")


class TestLeftOpen:
    """``--engine auto``."""

    def test_small_scenes_and_methods_of_other_kinds_are_computed_by_torch(
        self, tmp_path: Path, piece: Callable[..., Path], unet: Path
    ) -> None:
        for number, model in enumerate((str(unet), _Own())):
            report = geoseg.predict(piece(64, 64), tmp_path / f"{number}.tif", model, engine="auto")
            assert not any("computed by" in note for note in report.notes)

    def test_a_larger_scene_is_computed_by_one_that_was_measured_and_told(
        self, tmp_path: Path, piece: Callable[..., Path], make_bundle: Callable[..., Path]
    ) -> None:
        scene, model = piece(400, 420), make_bundle("plainconv", tile=96, halo=16, seed=3)
        report = geoseg.predict(scene, tmp_path / "auto.tif", str(model), engine="auto")
        (told,) = (note for note in report.notes if "computed by" in note)
        chosen, both = told.removeprefix("computed by ").split(" (")
        assert chosen in ENGINES
        assert all(name in both for name in ENGINES)
        named = _labels(scene, model, tmp_path / "named.tif", engine=chosen)
        with rasterio.open(tmp_path / "auto.tif") as file:
            assert np.array_equal(file.read(1), named)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_run_goes_on_with_the_engine_that_it_began_with(
        self, tmp_path: Path, piece: Callable[..., Path], make_bundle: Callable[..., Path], engine: str
    ) -> None:
        scene, model, store = piece(400, 420), make_bundle("plainconv", tile=96, halo=16, seed=4), tmp_path / "store"
        _labels(scene, model, tmp_path / "a.tif", engine=engine, workdir=str(store))
        report = geoseg.predict(scene, tmp_path / "b.tif", str(model), engine="auto", workdir=str(store))
        assert report.resumed == report.chunks
