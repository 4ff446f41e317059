"""Masks grown and shrunk by a small shape: dilation and erosion, and the shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import ConfigError

Mask = NDArray[np.bool_]


def disk(size: int) -> Mask:
    """Return the pixels of a square of ``size`` pixels that lie within ``size // 2`` of its middle pixel.

    The middle is that of :func:`dilated`; of an even size it lies below and right of the centre, so the last row and
    column of the whole disk are missing.

    >>> disk(4).astype(int).tolist()
    [[0, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]
    """
    offsets = np.arange(size) - size // 2
    inside: Mask = np.add.outer(offsets**2, offsets**2) <= (size // 2) ** 2
    return inside


def ellipse(height: int, width: int) -> Mask:
    """Return the ellipse in a rectangle as OpenCV draws it, with half-widths rounded to whole pixels: (height, width).

    >>> ellipse(5, 5).astype(int)[:2].tolist()
    [[0, 0, 1, 0, 0], [1, 1, 1, 1, 1]]
    """
    down, across = height // 2, width // 2
    shape = np.zeros((height, width), bool)
    for row in range(height):
        half = round(across * math.sqrt(down**2 - (row - down) ** 2) / down) if down else across
        shape[row, max(across - half, 0) : across + half + 1] = True
    return shape


def dilated(mask: Mask, shape: Mask) -> Mask:
    """Return a mask (H, W) with every pixel set that sees a set one when the shape's middle pixel lies on it.

    The middle of an axis of n pixels is pixel n // 2.

    Args:
        mask: (H, W).
        shape: (h, w), every row of which is empty or a single run.

    Raises:
        ConfigError: a row of the shape has a gap.
    """
    height, width = mask.shape
    found = np.zeros(mask.shape, bool)
    # Set pixels of each row up to a column, so that every run of a row costs one subtraction.
    counts = np.zeros((height, width + 1), np.int32)
    np.cumsum(mask, axis=1, out=counts[:, 1:])
    columns = np.arange(width)
    for row, first, last in _runs(shape):
        here = slice(max(0, -row), max(0, min(height, height - row)))
        there = slice(max(0, row), max(0, min(height, height + row)))
        start, stop = (np.clip(columns + offset, 0, width) for offset in (first, last + 1))
        found[here] |= counts[there][:, stop] > counts[there][:, start]
    return found


def eroded(mask: Mask, shape: Mask) -> Mask:
    """Return a mask (H, W) without the pixels that see an unset one when the shape's middle pixel lies on them.

    What lies outside the array counts as set.  The shape is not turned round, so that after a dilation by a lopsided
    one a mask lies aside by as much as it is lopsided.

    Args:
        mask: (H, W).
        shape: see :func:`dilated`.

    Raises:
        ConfigError: a row of the shape has a gap.
    """
    return ~dilated(~mask, shape)


def _runs(shape: Mask) -> Iterator[tuple[int, int, int]]:
    """Yield row, first and last column of each run of a shape, from its middle pixel."""
    for row, line in enumerate(shape):
        columns = np.flatnonzero(line)
        if len(columns) == 0:
            continue
        first, last = int(columns[0]), int(columns[-1])
        if last - first + 1 != len(columns):
            raise ConfigError(f"row {row} of the shape to dilate with has a gap: give a shape without gaps.")
        yield row - shape.shape[0] // 2, first - shape.shape[1] // 2, last - shape.shape[1] // 2
