"""Rasters brought to another grid while they are read, by GDAL's warped virtual datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rasterio
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform

from geoseg.errors import SceneError
from geoseg.geodesy import projection
from geoseg.resampling import Along
from geoseg.source import open_raster

# In pixels.  As good as exact (rasterio 1.4 fails on 0), so that a pixel does not depend on the window that is read.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Warp:
    """How a file is brought to another grid.

    Attributes:
        overview_level: the overview to start from; None starts from the file's own pixels.
        ratio: source pixels per pixel, along x and along y.
        along: how the grid lies on the file's own where it runs along that, which needs no warping.
    """

    overview_level: int | None
    ratio: tuple[float, float]
    along: Along | None = None


def native_grid(path: str, dataset: rasterio.DatasetReader) -> tuple[GeoBox, Warp | None]:
    """Return the file's own grid; a file with ground control points alone gets the grid they warp to.

    Raises:
        SceneError: it has no CRS, or a transform that maps every pixel to one place.
    """
    gcps, gcp_crs = dataset.gcps
    if dataset.crs and not (dataset.transform == Affine.identity() and gcps):
        if abs(dataset.transform.determinant) == 0:
            raise SceneError(f"{path} has a transform that maps every pixel to one place: georeference it first.")
        return GeoBox(dataset.shape, dataset.transform, CRS(dataset.crs.to_wkt())), None
    if gcps and gcp_crs:
        transform, width, height = calculate_default_transform(
            gcp_crs, gcp_crs, dataset.width, dataset.height, gcps=gcps
        )
        return GeoBox((height, width), transform, CRS(gcp_crs.to_wkt())), Warp(None, (1.0, 1.0))
    raise SceneError(f"{path} has no CRS: assign one first, for example with `rio edit-info --crs EPSG:… {path}`.")


def open_warped(
    path: str,
    geobox: GeoBox,
    warp: Warp,
    nodata: Sequence[float | None],
    *,
    has_alpha: bool,
    elsewhere: bool = False,
) -> WarpedVRT:
    """Open ``path`` as if it lay on the grid ``geobox``, read bilinearly (averaging where that is coarser).

    Where no nodata value and no alpha band tells which pixels hold data, a last band does (0: none).

    Raises:
        SceneError: the file cannot be opened.
    """
    source = open_raster(path, elsewhere=elsewhere)
    factors = (1.0, 1.0)
    if warp.overview_level is not None:
        overview = open_raster(path, warp.overview_level, elsewhere=elsewhere)
        factors = (source.width / overview.width, source.height / overview.height)
        source.close()
        source = overview
    validity: dict[str, Any] = {}
    value = next((v for v in nodata if v is not None), None)
    if value is not None:
        validity = {"src_nodata": value, "nodata": value, "UNIFIED_SRC_NODATA": "YES"}
    elif not has_alpha:
        validity = {"add_alpha": True}
    gcp_crs = source.gcps[1]
    if not source.crs and gcp_crs:
        # Asked for a grid of the caller's, rasterio 1.4 forgets the control points: so first to the grid of its own.
        source = WarpedVRT(
            source, src_crs=gcp_crs, crs=gcp_crs, resampling=Resampling.bilinear, tolerance=_TOLERANCE, **validity
        )
        if (source.height, source.width) == tuple(geobox.shape) and source.transform == geobox.affine:
            return source
        validity.pop("add_alpha", None)
    return WarpedVRT(
        source,
        crs=rasterio.crs.CRS.from_wkt(projection(geobox).to_wkt()),
        transform=geobox.affine,
        height=int(geobox.shape[0]),
        width=int(geobox.shape[1]),
        resampling=Resampling.bilinear,
        tolerance=_TOLERANCE,
        # A fixed scale of the kernel; GDAL's own depends on the window.
        XSCALE=str(min(1.0, factors[0] / warp.ratio[0])),
        YSCALE=str(min(1.0, factors[1] / warp.ratio[1])),
        **validity,
    )
