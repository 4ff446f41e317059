"""What was measured of each network with its default encoder and options, for reading without PyTorch.

``facts.json`` beside this file is written by ``python -m tests.benchmarks networks``; the same command writes the
table in ``docs/networks.md``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

# What the networks were built for, and the side in pixels of their input.
BANDS, CLASSES, SIDE = 3, 2, 512


@dataclass(frozen=True)
class Tiling:
    """How tiles compare with one pass over everything, with random weights.

    Attributes:
        halo: pixels; see :func:`geoseg.networks.tiling.choose_halo`.
        exact_halo: pixels of halo with which tiles are certainly exact; None where there is no such halo.
        disagreement: share of labels that differ from one pass at ``halo``.
    """

    halo: int
    exact_halo: int | None
    disagreement: float


@dataclass(frozen=True)
class Facts:
    """What was measured of a network of 3 bands and 2 classes, on tiles of 512 × 512 pixels.

    Attributes:
        parameters: numbers that training sets.
        macs: multiply-adds for one tile, see :class:`geoseg.networks.measuring.Size`.
        stride: pixels.
        cpu_ratio: CPU seconds per pixel, in units of what ``unet`` takes.
        tile_mb: memory in MB that one tile needs at most, beyond the program and the weights.
        tiling: None where it has not been measured yet.
    """

    parameters: int
    macs: int
    stride: int
    cpu_ratio: float
    tile_mb: float
    tiling: Tiling | None = None


def facts(name: str) -> Facts | None:
    """Return what was measured of network ``name``, or None where nothing has been yet.

    >>> facts("plainconv").tiling.halo
    3
    """
    return _stored().get(name)


@cache
def _stored() -> dict[str, Facts]:
    text = resources.files("geoseg.networks").joinpath("facts.json").read_text(encoding="utf-8")
    return {name: _facts(**record) for name, record in json.loads(text).items()}


def _facts(tiling: dict[str, Any] | None, **others: Any) -> Facts:
    return Facts(**others, tiling=None if tiling is None else Tiling(**tiling))


def as_json(measured: dict[str, Facts]) -> str:
    """Return the text of ``facts.json``."""
    records: dict[str, dict[str, Any]] = {name: asdict(found) for name, found in measured.items()}
    return json.dumps(records, indent=1) + "\n"
