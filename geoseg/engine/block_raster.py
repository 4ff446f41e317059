"""A raster that is written block by block and published whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RasterioWindow

from geoseg.engine.nearest import Place
from geoseg.grid import Window
from geoseg.outputs.staging import writing

Write = Callable[[Window, NDArray[Any]], None]


@contextmanager
def block_raster(
    path: str | os.PathLike[str], place: GeoBox, *, dtype: str, bands: int, finish: Callable[[Path], None]
) -> Iterator[Write]:
    """Yield a function that takes blocks (``bands``, h, w) of ``place``; when the block fails, nothing is written.

    Args:
        path: the raster to be; a temporary one lies beside it meanwhile.
        place: its grid.
        dtype: of its pixels.
        bands: how many.
        finish: makes ``path`` of the temporary raster.

    Raises:
        OutputError: ``path`` cannot be written, or the disk is full.
    """
    path = Path(path)
    with writing(path):
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name[:40]}.", dir=path.parent)
    with folder as name:
        plain = Path(name) / "blocks.tif"
        shape = Place.of(place).shape
        with (
            writing(path),
            rasterio.open(
                plain, "w", driver="GTiff", dtype=dtype, count=bands, height=shape[0], width=shape[1],
                crs=rasterio.crs.CRS.from_wkt(Place.of(place).crs.to_wkt()), transform=place.affine,
                tiled=True, blockxsize=512, blockysize=512, compress="deflate", zlevel=1, bigtiff="IF_SAFER",
            ) as file,
        ):  # fmt: skip

            def write(window: Window, values: NDArray[Any]) -> None:
                with writing(path):
                    file.write(values, window=RasterioWindow(window.col, window.row, window.width, window.height))

            yield write
        finish(plain)
