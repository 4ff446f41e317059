"""Rasters brought to a grid that runs along their own: the pixels of GDAL's warper, several times as quickly.

Most scenes are read at another resolution and in their own CRS.  Rows then stay rows, and columns columns, so that a
pixel's weights are a row's times a column's, and each axis can be gone through by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.grid import Window

if TYPE_CHECKING:
    from geoseg.scene import Scene

# Sums are made in single precision, which larger whole numbers and doubles would lose digits in.
EXACT = frozenset({"uint8", "int8", "uint16", "int16", "float32"})
# GDAL widens its kernel only where pixels shrink by more than this.
_SHRINKS = 0.95
# In pixels: a centre so little below an edge lies on it, for GDAL as well.
_ON_EDGE = 1e-10
# Source pixels are read so many bytes at a time: a coarse view of a large scene stands for many.
_STRIP_BYTES = 32 << 20
# In pixels, along the whole of a scene: as much as a grid may turn or be flipped without rows ceasing to be rows.
_STRAIGHT = 1e-6


@dataclass(frozen=True)
class Axis:
    """One axis of a grid beside the same axis of a raster's own grid.

    Attributes:
        step: pixels of the raster in a pixel of the grid.
        start: where the first pixel of the grid begins, in pixels of the raster.
        kernel: how much the bilinear kernel is widened, as 1 over a factor, 0 to 1.
    """

    step: float
    start: float
    kernel: float

    def shrunk(self, factor: float) -> Axis:
        """Return the axis beside that of an overview, whose pixels have ``factor`` of the raster's."""
        return Axis(self.step / factor, self.start / factor, min(1.0, self.kernel * factor))

    def taps(self, first: int, count: int, length: int, kernel: float) -> Taps:
        """Return what pixels ``first`` to ``first + count`` of the grid are made of, on a raster ``length`` long."""
        centre = self.start + (first + np.arange(count) + 0.5) * self.step
        nearest = np.floor(centre + _ON_EDGE)
        inside = (nearest >= 0) & (nearest < length)
        reach = math.ceil(1 / kernel)
        around = np.arange(1 - reach, reach + 1)
        below = np.floor(centre - 0.5)
        places = below[:, None] + around
        weights = np.maximum(0, 1 - np.abs(places - (centre - 0.5)[:, None]) * kernel)
        weights[(places < 0) | (places >= length) | ~inside[:, None]] = 0
        total = weights.sum(1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        used = places[weights > 0]
        low, high = (int(used.min()), int(used.max()) + 1) if used.size else (0, 0)
        return Taps(
            low,
            high,
            (places.clip(low, max(low, high - 1)) - low).astype(np.int32),
            weights.astype(np.float32),
            (nearest.clip(low, max(low, high - 1)) - low).astype(np.intp),
            inside,
        )


@dataclass(frozen=True, eq=False)
class Taps:
    """What N pixels of an axis are made of.

    Attributes:
        low, high: the stretch of the raster that they need, half-open; empty where none of them lies on it.
        places: (N, T) int32, pixels of that stretch.
        weights: (N, T) float32, their weights, which add up to 1 for a pixel on the raster and to 0 for others.
        nearest: (N,), the pixel of the stretch that holds the centre.
        inside: (N,) bool, whether the centre is on the raster.
    """

    low: int
    high: int
    places: NDArray[np.int32]
    weights: NDArray[np.float32]
    nearest: NDArray[np.intp]
    inside: NDArray[np.bool_]


@dataclass(frozen=True)
class Along:
    """A grid that runs along the own grid of a raster of ``shape``: both its axes, down and across."""

    shape: tuple[int, int]
    down: Axis
    across: Axis

    def taps(self, window: Window, shape: tuple[int, int]) -> tuple[Taps, Taps]:
        """Return what rows and columns of ``window`` of the grid are made of, in the raster's overview of ``shape``."""
        axes = [
            axis.shrunk(full / length)
            for axis, full, length in zip((self.down, self.across), self.shape, shape, strict=True)
        ]
        widened = min(axis.kernel for axis in axes) < _SHRINKS
        down, across = (
            axis.taps(start, count, length, axis.kernel if widened else 1.0)
            for axis, start, count, length in zip(axes, (window.row, window.col), window.shape, shape, strict=True)
        )
        return down, across


def running_along(own: GeoBox, grid: GeoBox, ratio: tuple[float, float]) -> Along | None:
    """Return how ``grid`` lies on a raster's ``own`` grid if it runs along that, neither turned nor flipped.

    Args:
        own: of the raster.
        grid: that it is read through.
        ratio: pixels of the raster in one of the grid, along x and along y, by which the kernel is widened.
    """
    if own.crs != grid.crs:
        return None
    move = ~own.affine * grid.affine
    turn = max(abs(move.b) * grid.shape[0], abs(move.d) * grid.shape[1])
    if turn > _STRAIGHT or move.a <= 0 or move.e <= 0:
        return None
    return Along(
        (int(own.shape[0]), int(own.shape[1])),
        Axis(move.e, move.f, min(1.0, 1 / ratio[1])),
        Axis(move.a, move.c, min(1.0, 1 / ratio[0])),
    )


def read_along(raster: Scene, along: Along, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read a window of a grid that runs along a raster's own, bilinearly, averaging where pixels shrink.

    Args:
        raster: on its own grid, or an overview of it.
        along: how the grid lies on the raster's own.
        window: in pixels of the grid.

    Returns:
        Pixels (C, H, W) in the raster's type, 0 where nothing is known; and (H, W), where something is.

    Raises:
        SceneError: the raster cannot be read there.
    """
    bytes_per_row = len(raster.bands) * np.dtype(raster.dtype).itemsize * window.width
    down, across = along.taps(window, raster.shape)
    per_row = max(1.0, (down.high - down.low) / window.height * (across.high - across.low) / window.width)
    strips = math.ceil(window.height * per_row * bytes_per_row / _STRIP_BYTES)
    data = np.empty((len(raster.bands), *window.shape), raster.dtype)
    valid = np.empty(window.shape, bool)
    for rows in np.array_split(np.arange(window.height), strips):
        part = Window(window.row + int(rows[0]), window.col, len(rows), window.width)
        down, across = along.taps(part, raster.shape)
        source = Window(down.low, across.low, down.high - down.low, across.high - across.low)
        place = slice(int(rows[0]), int(rows[-1]) + 1)
        if source.empty:
            data[:, place], valid[place] = 0, False
            continue
        pixels = raster.read(source)
        data[:, place], valid[place] = resample(pixels.data, pixels.valid, down, across)
    return data, valid


def resample(
    data: NDArray[Any], valid: NDArray[np.bool_], down: Taps, across: Taps
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return pixels bilinearly, averaging where they shrink, and where there are any.

    What holds no data has no say in its neighbours.  A pixel is there if the one that holds its centre is.

    Args:
        data: (C, h, w), the stretches that ``down`` and ``across`` name; 0 where nothing is known.
        valid: (h, w), where something is.
        down: what the H rows are made of.
        across: what the W columns are made of.

    Returns:
        (C, H, W) in the type of ``data``, 0 where nothing is known; and (H, W).
    """
    shape = (len(down.inside), len(across.inside))
    there = down.inside[:, None] & across.inside
    out = np.zeros((len(data), *shape), data.dtype)
    from geoseg.resampling_loops import resample_rows_and_columns

    how = (down.places, down.weights, across.places, across.weights)
    whole = data.dtype.kind in "iu"
    if valid.all():
        resample_rows_and_columns(data, *how, out, whole)
        return out, there
    there &= valid[down.nearest][:, across.nearest]
    sums, shares = np.zeros(out.shape, np.float32), np.zeros((1, *shape), np.float32)
    resample_rows_and_columns(data, *how, sums, False)
    resample_rows_and_columns(valid[None].view(np.uint8), *how, shares, False)
    values = np.divide(sums, shares, out=sums, where=there)
    out[...] = np.where(there, np.floor(values + np.float32(0.5)) if whole else values, 0)
    return out, there
