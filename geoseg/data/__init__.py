"""The real sample scene that ships with the package; ``README.md`` beside it holds origin and licence."""

from __future__ import annotations

from pathlib import Path


def sample_scene() -> Path:
    """Return the path of the sample scene: 2048 × 2048 RGB pixels of Banepa, Nepal, EPSG:3857."""
    return Path(__file__).with_name("banepa_sample.tif")
