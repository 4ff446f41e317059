"""A picture of a result: the scene, and its labels laid over it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning

from geoseg.classes import Classes
from geoseg.errors import LabelsError
from geoseg.outputs.cog import read_classes
from geoseg.outputs.staging import staged
from geoseg.source import gdal_environment, open_raster

_GAP = 8
_OPACITY = 0.55


def write_preview(
    scene: str | os.PathLike[str], labels: str | os.PathLike[str], out: str | os.PathLike[str], *, side: int = 900
) -> None:
    """Write a PNG with the scene on the left and its labels over it on the right.

    Args:
        scene: raster on the grid of the labels; its first three bands (or first one) are shown, stretched from their
            2nd to their 98th percentile.
        labels: label raster written by geoseg.
        out: the PNG.
        side: longest side in pixels of each half.

    Raises:
        LabelsError: the label raster does not tell its classes.
        OutputError: ``out`` cannot be written.
    """
    picture = _shown(os.fspath(scene), side)
    classes = read_classes(os.fspath(labels))
    if classes is None:
        raise LabelsError(f"{labels} does not tell its classes: give a label raster written by geoseg.")
    with gdal_environment(os.fspath(labels)), open_raster(os.fspath(labels)) as dataset:
        values = dataset.read(1, out_shape=picture.shape[1:], resampling=Resampling.nearest)
    colours, shown = _coloured(values, classes)
    overlay = np.where(shown, (1 - _OPACITY) * picture + _OPACITY * colours, picture)
    gap = np.full((3, picture.shape[1], _GAP), 255.0)
    pixels = np.concatenate([picture, gap, overlay], axis=2).round().astype(np.uint8)
    _, height, width = pixels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with (
            staged(Path(out)) as place,
            rasterio.open(place, "w", driver="PNG", dtype="uint8", count=3, height=height, width=width) as file,
        ):
            file.write(pixels)


def _shown(path: str, side: int) -> NDArray[np.float64]:
    """Return the raster as a picture: (3, H, W), 0 to 255."""
    with gdal_environment(path), open_raster(path) as dataset:
        factor = max(1.0, max(dataset.shape) / side)
        shape = tuple(max(1, round(n / factor)) for n in dataset.shape)
        bands = [1, 2, 3] if dataset.count >= 3 else [1, 1, 1]
        data = dataset.read(bands, out_shape=(3, *shape), resampling=Resampling.average).astype(np.float64)
    low, high = np.nanpercentile(data, [2, 98], axis=(1, 2), keepdims=True)
    return np.nan_to_num(np.clip((data - low) / np.maximum(high - low, 1e-9), 0, 1) * 255)


def _coloured(values: NDArray[np.uint8], classes: Classes) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the labels' colours (3, H, W) and where they are shown: not on background or nodata."""
    table = np.zeros((65536, 3))
    visible = np.zeros(65536, bool)
    for item in classes:
        table[item.id], visible[item.id] = item.rgb, not item.background
    return np.moveaxis(table[values], -1, 0), visible[values]
