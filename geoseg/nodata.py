"""Which pixels of a raster hold data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def hide_nodata(
    data: NDArray[Any], mask: NDArray[Any] | None, nodata: Sequence[float | None]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return pixels (C, H, W) with 0 where nothing is known, and where something is (H, W).

    Args:
        data: (C, H, W) as the file has it.
        mask: (H, W), 0 where the file says that there is nothing; None where it does not say.
        nodata: value that means "no data", per band, None where there is none.

    A pixel holds data unless *every* band says nodata (a black band in water is a measurement); a band that is
    not a finite number spoils the pixel, because no network can take it.
    """
    valid = np.ones(data.shape[1:], bool) if mask is None else mask > 0
    missing = np.zeros(data.shape[1:], bool)
    if any(value is not None and not math.isnan(value) for value in nodata):
        per_band = [
            band == np.asarray(value).astype(data.dtype)
            if value is not None and not math.isnan(value)
            else np.zeros(band.shape, bool)
            for band, value in zip(data, nodata, strict=True)
        ]
        missing = np.logical_and.reduce(per_band)
        if data.dtype.kind in "fi" and len(per_band) > 1:
            # A sentinel such as -9999 in one band only is no measurement either.
            missing = np.logical_or.reduce(per_band)
    if data.dtype.kind == "f":
        missing |= ~np.isfinite(data).all(axis=0)
    valid &= ~missing
    if not valid.all():
        data = np.where(valid, data, data.dtype.type(0))
    return data, valid
