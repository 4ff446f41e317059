"""Regions on the globe cut at the antimeridian, in the plane of longitude and latitude."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.outputs.decimals import scaled, unscaled

_GLOBE = shapely.box(-180, -90, 180, 90)
# Regions smaller than this (square degrees) have no orientation that could be trusted.
_NO_AREA = 1e-12
# Longitudes no further apart are those of one point.
_NEAR_DEGREES = 1e-5


def fold(region: Any) -> Any:
    """Return a region whose longitudes run on past ±180 cut there and moved into −180 to 180; latitudes end at ±90."""
    if shapely.is_empty(region):
        return region
    west, _, east, _ = shapely.bounds(region)
    first, last = math.floor((west + 180) / 360), math.ceil((east - 180) / 360)
    pieces = []
    for turn in range(first, last + 1):
        piece = shapely.intersection(region, shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90))
        shift = np.array([360.0 * turn, 0.0])
        pieces.append(shapely.transform(piece, lambda lonlat, shift=shift: _settled(lonlat - shift)))
    return shapely.union_all(_areas(pieces))


def region_of_ring(
    lonlat: NDArray[np.float64], steps: NDArray[np.float64], at_pole: NDArray[np.bool_], decimals: int
) -> Any:
    """Return what a ring on the globe encloses (its left side), within ±180 and ±90 degrees.

    Args:
        lonlat: (M, 2) points of the closed ring, in degrees.
        steps: (M - 1,) change in longitude along each edge, of either sign, up to a full turn.
        at_pole: (M,) which points are a pole, so that their longitude means nothing.
        decimals: of the coordinates in the end.

    A ring that goes once around eastwards encloses the north pole, westwards the south pole; the region is then closed
    along that pole.  A ring with a pole among its points is closed there.  A ring whose planar image runs clockwise
    encloses both poles or neither: the region is the rest of the globe.
    """
    # Rounded before anything is done with it, a point is the same as in a neighbour that is not cut.
    settled = unscaled(scaled(lonlat, decimals), decimals)
    if at_pole.any():
        start = int(np.argmax(at_pole))
        latitude = math.copysign(90.0, lonlat[start, 1])
        order = np.concatenate([np.arange(start, len(lonlat) - 1), np.arange(start)])
        kept = ~at_pole[order]
        # Longitudes go on from point to point; the steps to and from the pole count for nothing.
        steps = np.where(at_pole[:-1] | at_pole[1:], 0.0, steps)[order]
        points = lonlat[order][kept]
        turned = _as_settled(points[0, 0] + np.concatenate([[0.0], np.cumsum(steps)])[:-1][kept], settled[order][kept])
        path = np.column_stack([turned, settled[order][kept, 1]])
        closing = [[turned[-1], latitude], [turned[0], latitude]]
    else:
        turned = _as_settled(lonlat[0, 0] + np.concatenate([[0.0], np.cumsum(steps)]), settled)
        path = np.column_stack([turned, settled[:, 1]])
        around = round((turned[-1] - turned[0]) / 360)
        latitude = math.copysign(90.0, around)
        closing = [[turned[-1], latitude], [turned[0], latitude]] if around else []
    path = np.vstack([path, np.array(closing).reshape(-1, 2)])
    if len(path) < 3:
        return shapely.Polygon()
    path = np.vstack([path, path[:1]])
    x, y = path[:, 0] - path[0, 0], path[:, 1]
    area = 0.5 * float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())
    folded = fold(shapely.make_valid(shapely.Polygon(path)))
    return shapely.difference(_GLOBE, folded) if area < -_NO_AREA else folded


def _as_settled(turned: NDArray[np.float64], settled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return longitudes that ran on from edge to edge as the rounded ones of the same points, whole turns apart."""
    whole = 360 * np.round((turned - settled[:, 0]) / 360) + settled[:, 0]
    return np.where(np.abs(whole - turned) < _NEAR_DEGREES, whole, turned)


def _settled(lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return coordinates without the last bits that a shift by 360 leaves, so that pieces meet exactly."""
    return np.round(lonlat, 12)


def _areas(pieces: list[Any]) -> list[Any]:
    """Return the polygons among the pieces of an intersection, which may touch in lines and points as well."""
    parts = shapely.get_parts(shapely.get_parts(pieces))
    return list(parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON])
