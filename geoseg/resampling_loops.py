"""Compiled loops that bring pixels from one grid to another that runs along it, axis by axis.

Importing this imports numba, which takes a while.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.compiling import compiled


@compiled
def resample_rows_and_columns(
    pixels: NDArray[Any],
    rows: NDArray[np.int32],
    row_weights: NDArray[np.float32],
    cols: NDArray[np.int32],
    col_weights: NDArray[np.float32],
    out: NDArray[Any],
    whole: bool,
) -> None:
    """Fill ``out`` (C, H, W) with weighted sums of pixels.

    Args:
        pixels: (C, h, w).
        rows: (H, T), the rows of ``pixels`` that a row of ``out`` is made of.
        row_weights: (H, T) float32, their weights.
        cols: (W, U), the columns that a column of ``out`` is made of.
        col_weights: (W, U) float32, their weights.
        out: filled in place.
        whole: whether values are rounded to whole numbers, halves up.
    """
    bands, height, width = out.shape
    line = np.empty(pixels.shape[2], np.float32)
    for band in range(bands):
        for y in range(height):
            line[:] = 0
            for tap in range(rows.shape[1]):
                weight = row_weights[y, tap]
                if weight != 0:
                    source = pixels[band, rows[y, tap]]
                    for x in range(line.shape[0]):
                        line[x] += weight * np.float32(source[x])
            target = out[band, y]
            for x in range(width):
                total = np.float32(0)
                for tap in range(cols.shape[1]):
                    total += col_weights[x, tap] * line[cols[x, tap]]
                target[x] = np.floor(total + np.float32(0.5)) if whole else total
