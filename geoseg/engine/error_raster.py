"""A raster that shows where a prediction is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.classes import Classes, LabelClass
from geoseg.engine.block_raster import block_raster
from geoseg.engine.comparing import LEFT_OUT, RIGHT, WRONG
from geoseg.grid import Window
from geoseg.outputs.cog import write_label_cog

_CLASSES = Classes(
    (
        LabelClass(RIGHT, "right", "#d9ead3", background=True),
        LabelClass(WRONG, "wrong", "#d55e00"),
        LabelClass(LEFT_OUT, "ignored", "#999999", background=True),
    )
)


@contextmanager
def error_raster(path: str | os.PathLike[str], place: GeoBox) -> Iterator[Callable[[Window, NDArray[np.uint8]], None]]:
    """Yield a function that takes blocks of :data:`RIGHT`, :data:`WRONG` and :data:`LEFT_OUT` pixels (h, w).

    The COG is made of them at the end; when the block fails, there is none.

    Raises:
        OutputError: ``path`` cannot be written, or the disk is full.
    """
    finish = lambda plain: write_label_cog(plain, path, _CLASSES)  # noqa: E731
    with block_raster(path, place, dtype="uint8", bands=1, finish=finish) as write:
        yield lambda window, values: write(window, values[None])
