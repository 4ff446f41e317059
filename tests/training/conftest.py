"""Small scenes to train on: coloured squares on grey ground, or a piece of the sample town."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geoseg.bundle import read_bundle
from tests.conftest import write_raster

# Pixels of 0.5 m in UTM 45N, as write_raster places them.
WEST, NORTH, PIXEL = 350_000.0, 3_060_000.0, 0.5


def same(first: Path, second: Path) -> bool:
    """Whether two bundles hold the same weights, bit by bit."""
    left, right = (read_bundle(path).tensors() for path in (first, second))
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Tiny batches are slower on two threads than on one where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def squares(tmp_path: Path) -> tuple[Path, Path]:
    """A scene of 128 × 192 pixels with bright squares, and a label raster (0 ground, 1 square) on its grid."""
    random = np.random.default_rng(3)
    labels = np.zeros((128, 192), np.uint8)
    for row, col in random.integers(0, (116, 180), (40, 2)):
        labels[row : row + 10, col : col + 8] = 1
    image = random.normal(90, 12, (3, 128, 192)) + labels * np.array([50, 20, -30])[:, None, None]
    scene = write_raster(tmp_path / "squares.tif", image.clip(1, 255).astype(np.uint8))
    return scene, write_raster(tmp_path / "squares_labels.tif", labels)


@pytest.fixture
def settings(squares: tuple[Path, Path]) -> Callable[..., dict[str, Any]]:
    """Return a function that makes the settings of a short training on the squares; sections are merged."""

    def make(**changed: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "data": {
                "scenes": [{"image": str(squares[0]), "labels": str(squares[1]), "validation": [0.75, 1]}],
                "classes": "background,square",
            },
            "network": {"name": "plainconv"},
            "augment": {"scale": [0.9, 1.1]},
            "training": {
                **{"steps": 12, "batch": 4, "patch": 32, "lr": 0.01, "device": "cpu"},
                **{"workers": 0, "checkpoint_every": 0},
            },
        }
        for key, value in changed.items():
            given[key] = {**given[key], **value} if isinstance(value, dict) and key in given else value
        return given

    return make


@pytest.fixture(scope="session")
def crop(piece: Callable[..., Path]) -> Path:
    """A piece of 500 × 700 pixels of the sample town."""
    return piece(500, 700, row=600, col=300)


@pytest.fixture(scope="session")
def footprints(data: Path) -> Path:
    """The footprints of the sample town's buildings, in degrees."""
    return data / "banepa" / "banepa_dev_buildings.geojson"
