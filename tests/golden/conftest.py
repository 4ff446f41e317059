"""Golden numbers: results of the authors' own code, read from the folder that GEOSEG_REFERENCE names."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

DEFAULT = Path(__file__).parents[1] / "data" / "reference"


@dataclass(frozen=True)
class Golden:
    """One method's reference: what was run (``manifest``) and what came out (``arrays``)."""

    manifest: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    @property
    def config(self) -> Mapping[str, Any]:
        """Options of the run."""
        return self.manifest["config"]

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]


def reference_folder() -> Path:
    """Return the folder of the references."""
    return Path(os.environ.get("GEOSEG_REFERENCE") or DEFAULT)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Return a reader of references by slug."""

    def read(slug: str) -> Golden:
        folder = reference_folder() / slug
        with np.load(folder / "golden.npz") as arrays:
            return Golden(json.loads((folder / "manifest.json").read_text()), {name: arrays[name] for name in arrays})

    return read


@pytest.fixture(scope="session")
def weights() -> ModuleType:
    """Return the module that fills networks and inputs with the references' numbers."""
    path = reference_folder() / "fill_weights.py"
    spec = importlib.util.spec_from_file_location("fill_weights", path if path.is_file() else DEFAULT / path.name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
