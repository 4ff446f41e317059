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
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def unet(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("unet", encoder="resnet18", tile=256, halo=32)


def _labels(scene: Path, model: Path, path: Path, **options: object) -> np.ndarray:
    geoseg.predict(scene, path, str(model), **options)
    with rasterio.open(path) as file:
        return file.read(1)


def test_labels_are_those_of_torch(tmp_path: Path, piece: Callable[..., Path], unet: Path) -> None:
    """But where two classes are as good as equal: one pixel in ten thousand at most."""
    scene = piece(500, 620, blank=90)
    ours, theirs = (_labels(scene, unet, tmp_path / f"{name}.tif", engine=name) for name in ("torch", "openvino"))
    assert len(np.unique(ours)) >= 3
    assert (ours != theirs).mean() <= 1e-4


def test_nothing_depends_on_chunks_or_workers(tmp_path: Path, piece: Callable[..., Path], unet: Path) -> None:
    scene = piece(400, 420)
    cuts = ({}, {"chunk": 192}, {"chunk": 192, "workers": 2})
    first, *others = (
        _labels(scene, unet, tmp_path / f"{n}.tif", engine="openvino", **cut) for n, cut in enumerate(cuts)
    )
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
    with pytest.raises(ConfigError, match="computed by torch: leave --engine openvino out"):
        geoseg.predict(piece(64, 64), tmp_path / "labels.tif", _Own(), engine="openvino")
    assert not list(tmp_path.iterdir())
