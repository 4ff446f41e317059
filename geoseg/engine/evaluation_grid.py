"""The grid on which two maps are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geoseg.engine.label_sides import RasterSide, read_frame
from geoseg.engine.nearest import Place
from geoseg.errors import ConfigError, SceneError
from geoseg.geodesy import ground_resolution

# The longer side of what two vector files have in common is cut into so many pixels, unless told otherwise.
_SIDE_PX = 4096


def choose_grid(
    paths: tuple[str, str], rasters: Sequence[RasterSide | None], wanted: str, resolution: float | None
) -> GeoBox:
    """Return the grid to compare on.

    Args:
        paths: reference and prediction.
        rasters: what they are if they are rasters.
        wanted: ``reference``, ``prediction``, or ``auto``: the reference's if it is a raster, else the prediction's.
        resolution: ground metres per pixel, None for the raster's own.

    Raises:
        ConfigError: the side that is wanted is no raster, or the resolution is not above 0.
        SceneError: two vector files without anything in common, or a grid without a place on the ground.
    """
    if resolution is not None and not (math.isfinite(resolution) and resolution > 0):
        raise ConfigError(f"--resolution {resolution} is refused: give metres per pixel above 0.")
    names = ("reference", "prediction")
    if wanted != "auto" and rasters[names.index(wanted)] is None:
        raise ConfigError(f"--grid {wanted} is refused: {paths[names.index(wanted)]} is a vector file, without a grid.")
    order = [names.index(wanted)] if wanted != "auto" else [0, 1]
    raster = next((rasters[i] for i in order if rasters[i] is not None), None)
    if raster is None:
        return _common(paths, resolution)
    own = raster.place
    grid = GeoBox(own.shape, own.affine, CRS(own.crs.to_wkt()))
    return grid if resolution is None else _at(grid, resolution)


def described(grid: GeoBox) -> dict[str, Any]:
    """Return what a reader needs to know of a grid, as a plain record."""
    place = Place.of(grid)
    code = place.crs.to_epsg()
    return {
        "crs": f"EPSG:{code}" if code else place.crs.to_wkt(),
        "transform": [float(value) for value in tuple(grid.affine)[:6]],
        "shape": list(place.shape),
        "pixel_m": [float(value) for value in ground_resolution(grid)],
    }


def _at(grid: GeoBox, metres: float) -> GeoBox:
    """Return a grid of the same place with pixels of ``metres`` on the ground."""
    x, y = (metres / own for own in ground_resolution(grid))
    shape = (max(1, math.ceil(grid.shape[0] / y - 1e-6)), max(1, math.ceil(grid.shape[1] / x - 1e-6)))
    return GeoBox(shape, grid.affine * Affine.scale(x, y), grid.crs)


def _common(paths: tuple[str, str], resolution: float | None) -> GeoBox:
    """Return a grid over what two vector files both cover, in the reference's CRS if it is projected, else in UTM."""
    reference, prediction = (read_frame(path) for path in paths)
    if len(reference) == 0:
        raise SceneError(f"{paths[0]} holds no polygon: a reference must not be empty.")
    crs = reference.crs if reference.crs.is_projected else reference.estimate_utm_crs()
    bounds = [frame.to_crs(crs).total_bounds for frame in (reference, prediction) if len(frame)]
    west, south = np.max([b[:2] for b in bounds], axis=0)
    east, north = np.min([b[2:] for b in bounds], axis=0)
    if not (east > west and north > south):
        raise SceneError(f"{paths[1]} does not overlap {paths[0]}: give files of the same place.")
    unit = max(east - west, north - south) / _SIDE_PX
    shape = (max(1, math.ceil((north - south) / unit - 1e-6)), max(1, math.ceil((east - west) / unit - 1e-6)))
    grid = GeoBox(shape, Affine(unit, 0, west, 0, -unit, north), CRS(crs.to_wkt()))
    return grid if resolution is None else _at(grid, resolution)
