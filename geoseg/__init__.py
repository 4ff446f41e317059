"""Segment georeferenced rasters with any method, tile by tile, into class polygons without a seam.

The names of the command line in Python::

    import geoseg

    scene = geoseg.open("scene.tif")
    geoseg.cluster("scene.tif", "segments.gpkg")
    geoseg.predict("scene.tif", "classes.geojson", "model.safetensors", min_area=10)

Everything is imported on first use, so ``import geoseg`` is quick and does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from geoseg import losses as losses
    from geoseg import networks as networks
    from geoseg.engine.batch import batch as batch
    from geoseg.engine.cluster_scene import cluster as cluster
    from geoseg.engine.coarse_check import coarse_check as coarse_check
    from geoseg.engine.evaluate import evaluate as evaluate
    from geoseg.engine.export import export as export
    from geoseg.engine.naming import name as name
    from geoseg.engine.predict import predict as predict
    from geoseg.engine.refine import refine as refine
    from geoseg.engine.vectorize import vectorize as vectorize
    from geoseg.looking.quicklook import preview as preview
    from geoseg.looking.view import view as view
    from geoseg.scene import open_scene as open
    from geoseg.segmenters.loading import load as load
    from geoseg.training.adapt import adapt as adapt
    from geoseg.training.coarse_stats import coarse_stats as coarse_stats
    from geoseg.training.fit import train as train

_LAZY = {
    "adapt": ("geoseg.training.adapt", "adapt"),
    "batch": ("geoseg.engine.batch", "batch"),
    "coarse_check": ("geoseg.engine.coarse_check", "coarse_check"),
    "coarse_stats": ("geoseg.training.coarse_stats", "coarse_stats"),
    "cluster": ("geoseg.engine.cluster_scene", "cluster"),
    "evaluate": ("geoseg.engine.evaluate", "evaluate"),
    "export": ("geoseg.engine.export", "export"),
    "load": ("geoseg.segmenters.loading", "load"),
    "name": ("geoseg.engine.naming", "name"),
    "open": ("geoseg.scene", "open_scene"),
    "predict": ("geoseg.engine.predict", "predict"),
    "preview": ("geoseg.looking.quicklook", "preview"),
    "refine": ("geoseg.engine.refine", "refine"),
    "train": ("geoseg.training.fit", "train"),
    "vectorize": ("geoseg.engine.vectorize", "vectorize"),
    "view": ("geoseg.looking.view", "view"),
}
_MODULES = ("losses", "networks")

__all__ = [
    "__version__",
    "adapt",
    "batch",
    "cluster",
    "coarse_check",
    "coarse_stats",
    "evaluate",
    "export",
    "load",
    "losses",
    "name",
    "networks",
    "open",
    "predict",
    "preview",
    "refine",
    "train",
    "vectorize",
    "view",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use.

    Raises:
        AttributeError: there is no such name.
    """
    if name in _MODULES:
        return importlib.import_module(f"geoseg.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'geoseg' has no attribute {name!r}")
    from geoseg.collector import paused

    module, attribute = _LAZY[name]
    with paused():
        value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
