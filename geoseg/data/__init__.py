"""The real sample scene and its labels, which ship with the package; ``README.md`` beside them: origin and licences."""

from __future__ import annotations

from pathlib import Path


def sample_scene() -> Path:
    """Return the path of the sample scene: 2048 × 2048 RGB pixels of Banepa, Nepal, EPSG:3857."""
    return Path(__file__).with_name("banepa_sample.tif")


def sample_labels() -> Path:
    """Return the path of the sample scene's labels: outlines of its buildings, polygons in longitude and latitude."""
    return Path(__file__).with_name("banepa_sample_buildings.geojson")
