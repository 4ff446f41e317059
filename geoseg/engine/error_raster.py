"""A raster that shows where a prediction is wrong."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RasterioWindow

from geoseg.classes import Classes, LabelClass
from geoseg.engine.comparing import LEFT_OUT, RIGHT, WRONG
from geoseg.engine.nearest import Place
from geoseg.grid import Window
from geoseg.outputs.cog import write_label_cog
from geoseg.outputs.staging import writing

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
    path = Path(path)
    with writing(path):
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name[:40]}.", dir=path.parent)
    with folder as name:
        plain = Path(name) / "errors.tif"
        shape = Place.of(place).shape
        with (
            writing(path),
            rasterio.open(
                plain, "w", driver="GTiff", dtype="uint8", count=1, height=shape[0], width=shape[1],
                crs=rasterio.crs.CRS.from_wkt(Place.of(place).crs.to_wkt()), transform=place.affine,
                tiled=True, blockxsize=512, blockysize=512, compress="deflate", zlevel=1, bigtiff="IF_SAFER",
            ) as file,
        ):  # fmt: skip

            def write(window: Window, values: NDArray[np.uint8]) -> None:
                with writing(path):
                    file.write(values, 1, window=RasterioWindow(window.col, window.row, window.width, window.height))

            yield write
        write_label_cog(plain, path, _CLASSES)
