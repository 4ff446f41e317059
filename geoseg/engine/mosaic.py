"""The chunk store seen as one raster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import rasterio
from odc.geo.geobox import GeoBox

from geoseg.engine.store import ChunkStore, write_atomically
from geoseg.geodesy import projection


def write_mosaic(
    store: ChunkStore,
    geobox: GeoBox,
    name: str,
    layers: Sequence[tuple[str, float]],
    *,
    path_of: Callable[[int], Path] | None = None,
    stored: str = "UInt16",
) -> Path:
    """Write a VRT that shows the store's chunks as one raster, and return its path.

    Args:
        store: finished chunks.
        geobox: grid of the outputs.
        name: file name inside the store.
        layers: for each band its GDAL type (``Byte``, ``UInt16``, ``Float32``) and nodata value.
        path_of: gives the file of a chunk; by default that of its labels.
        stored: GDAL type of these files.
    """
    path_of = path_of or store.path
    height, width = geobox.shape
    affine = geobox.affine
    transform = (affine.c, affine.a, affine.b, affine.f, affine.d, affine.e)
    crs = rasterio.crs.CRS.from_wkt(projection(geobox).to_wkt()).to_wkt()
    lines = [f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">']
    lines.append(f"<SRS>{escape(crs)}</SRS><GeoTransform>{', '.join(repr(float(v)) for v in transform)}</GeoTransform>")
    for band, (kind, nodata) in enumerate(layers, 1):
        lines.append(f'<VRTRasterBand dataType="{kind}" band="{band}"><NoDataValue>{nodata}</NoDataValue>')
        for number in sorted(store.done()):
            window = store.chunks.window(number)
            source = path_of(number).relative_to(store.folder).as_posix()
            size = f'xSize="{window.width}" ySize="{window.height}"'
            lines.append(
                f'<SimpleSource><SourceFilename relativeToVRT="1">{escape(source)}</SourceFilename>'
                f"<SourceBand>{band}</SourceBand>"
                f'<SourceProperties RasterXSize="{window.width}" RasterYSize="{window.height}" DataType="{stored}" '
                f'BlockXSize="{window.width}" BlockYSize="1"/>'
                f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{window.col}" yOff="{window.row}" {size}/>'
                "</SimpleSource>"
            )
        lines.append("</VRTRasterBand>")
    lines.append("</VRTDataset>")
    path = store.folder / name
    write_atomically(path, "\n".join(lines).encode())
    return path
