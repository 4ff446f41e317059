"""Areas and lengths of polygons on the ellipsoid, whatever the coordinate reference system."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from geoseg.geodesy import ellipsoid, geodetic_transformer

# An edge that is straight in the grid is a curve on the ground, followed in steps of about this length.
STEP_M = 4000.0
# An edge up to this length is its own chord: what lies between is less than a millionth of what it bounds.
_SHORT_M = 10.0
# Points on the ellipsoid held at a time.
_POINTS = 1 << 19


def measure(polygons: NDArray[Any], crs: pyproj.CRS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the area in m² and the perimeter in m (all rings) of polygons on the ellipsoid of their CRS.

    Edges are straight in the CRS: they are followed on the ground in steps of about :data:`STEP_M`.  Areas are taken in
    an equal-area projection of the ellipsoid about the nearer pole, so neither the antimeridian nor a pole needs care.

    >>> area, perimeter = measure(np.array([shapely.box(10, 45, 11, 46)]), pyproj.CRS(4326))
    >>> round(area[0] / 1e6), round(perimeter[0] / 1e3)
    (8686, 379)

    Args:
        polygons: shapely polygons, object array (N,), in the coordinates of ``crs``.
        crs: any CRS with a geodetic base, of the Earth or another body.

    Returns:
        Two float64 arrays (N,); NaN where a polygon reaches beyond the area in which ``crs`` is defined.

    Raises:
        SceneError: ``crs`` has no geodetic base.
    """
    body = Body.of(crs)
    if not len(polygons):
        return np.zeros(0), np.zeros(0)
    _, corners, (ring_starts, polygon_starts) = shapely.to_ragged_array(polygons)
    corners, ring_starts = corners[:, :2], ring_starts.astype(np.int64)
    polygon_starts = polygon_starts.astype(np.int64)
    # NaN and infinity travel to the results, where they say "not defined".
    with np.errstate(invalid="ignore", over="ignore"):
        north = _nearer_north(corners, ring_starts, body)
        doubled, length, turn = _ring_sums(corners, ring_starts, north, body)
        wound = np.flatnonzero(np.abs(turn) > math.pi)
        if len(wound):
            rings = _pieces_of(corners, ring_starts, wound)
            inner = np.array([_north_inside(ring, body, north[i]) for i, ring in zip(wound, rings, strict=True)])
            starts = np.cumsum([0, *map(len, rings)])
            doubled[wound] = _ring_sums(np.concatenate(rings), starts, inner, body)[0]
    area = np.abs(doubled) / 2
    is_hole = np.ones(len(area), bool)
    is_hole[polygon_starts[:-1]] = False
    area[is_hole] *= -1
    areas = np.add.reduceat(area, polygon_starts[:-1])
    lengths = np.add.reduceat(length, polygon_starts[:-1])
    return np.where(np.isfinite(areas), areas, np.nan), np.where(np.isfinite(lengths), lengths, np.nan)


@dataclass(frozen=True)
class Body:
    """The ellipsoid of a CRS and the way to it.

    Attributes:
        transformer: from the CRS to longitude and latitude.
        radian: radians in one unit of these.
        metre: metres, about, in one unit of the CRS.
        a: equatorial radius in metres.
        e: eccentricity (0 for a sphere).
    """

    transformer: pyproj.Transformer
    radian: float
    metre: float
    a: float
    e: float

    @classmethod
    def of(cls, crs: pyproj.CRS) -> Body:
        """Return the body that ``crs`` describes.

        Raises:
            SceneError: it describes none.
        """
        transformer, geod = geodetic_transformer(crs), ellipsoid(crs)
        geodetic = crs.geodetic_crs
        assert geodetic is not None  # geodetic_transformer has seen to it
        unit = crs.axis_info[0].unit_conversion_factor
        metre = unit * geod.a if crs.is_geographic else unit
        radian = geodetic.axis_info[0].unit_conversion_factor
        return cls(transformer, radian, metre, geod.a, math.sqrt(max(geod.es, 0.0)))

    def geodetic(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return longitude and latitude in radians of points (P, 2) in the CRS."""
        lon, lat = self.transformer.transform(points[:, 0], points[:, 1])
        # Global grids with pixel centres on the poles reach half a pixel beyond them.
        return lon * self.radian, np.clip(lat * self.radian, -math.pi / 2, math.pi / 2)

    def authalic(self, sin_lat: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the area from the equator to a latitude, per radian of longitude, in m²."""
        if self.e == 0:
            return self.a**2 * sin_lat
        square = sin_lat / (1 - (self.e * sin_lat) ** 2) + np.arctanh(self.e * sin_lat) / self.e
        return self.a**2 / 2 * (1 - self.e**2) * square


def _ring_sums(
    corners: NDArray[np.float64],
    ring_starts: NDArray[np.int64],
    north: NDArray[np.bool_],
    body: Body,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return twice the signed area, the length, and the turn about the axis in radians, of each ring (R,)."""
    rings = len(ring_starts) - 1
    doubled, length, turn = np.zeros(rings), np.zeros(rings), np.zeros(rings)
    ring_of = np.repeat(np.arange(rings), np.diff(ring_starts))
    origin = _plane(*body.geodetic(corners[ring_starts[:-1]]), north, body)
    for points, ring, middle in _steps(corners, ring_starts, ring_of, body.metre):
        lon, lat = body.geodetic(points)
        # Distances from a corner of the ring itself keep every digit of small polygons.
        x, y = (value - start[ring] for value, start in zip(_plane(lon, lat, north[ring], body), origin, strict=True))
        place = _space(lon, lat, body)
        here = np.flatnonzero(ring[1:] == ring[:-1])
        _add(turn, ring[here], _turns(lon)[here])
        # Chords from point to point, and where there is a middle, Richardson's step with the chord past it: what the
        # chords of a smooth curve leave out falls by 16 for every halving.
        weight = np.ones(len(ring))
        weight[middle] = weight[middle - 1] = 4 / 3
        for first, second, factor in ((here, here + 1, weight[here]), (middle - 1, middle + 1, -1 / 3)):
            _add(doubled, ring[first], factor * (x[first] * y[second] - x[second] * y[first]))
            _add(length, ring[first], factor * np.linalg.norm(place[second] - place[first], axis=1))
    return doubled, length, turn


def _add(totals: NDArray[np.float64], group: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    """Add values to the totals of their groups, which ascend."""
    if len(group):
        first, last = int(group[0]), int(group[-1])
        totals[first : last + 1] += np.bincount(group - first, values, minlength=last - first + 1)


def _steps(
    corners: NDArray[np.float64], ring_starts: NDArray[np.int64], ring_of: NDArray[np.int64], metre: float
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield runs of points along rings, (P, 2), their rings (P,), and which of them stand between two of their edge.

    Consecutive points of one ring are joined by an edge; consecutive runs share a point.
    """
    move = np.zeros_like(corners)
    move[:-1] = np.diff(corners, axis=0)
    move[ring_starts[1:] - 1] = 0
    length = np.hypot(move[:, 0], move[:, 1]) * metre
    count = np.where(length > _SHORT_M, 2 * np.ceil(length / (2 * STEP_M) * (1 - 1e-9)), 1).astype(np.int64)
    ends = np.cumsum(count)
    start = 0
    while start < len(corners) - 1:
        done = ends[start - 1] if start else 0
        stop = min(max(int(np.searchsorted(ends, done + _POINTS)), start + 1), len(corners) - 1)
        runs = count[start:stop]
        which = np.repeat(np.arange(start, stop), runs)
        along = np.arange(len(which)) - np.repeat(np.cumsum(runs) - runs, runs)
        points = corners[which] + move[which] * (along / count[which])[:, None]
        middle = np.flatnonzero(along % 2 == 1)
        yield np.concatenate([points, corners[stop : stop + 1]]), np.append(ring_of[which], ring_of[stop]), middle
        start = stop


def _plane(
    lon: NDArray[np.float64], lat: NDArray[np.float64], north: NDArray[np.bool_], body: Body
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return metres in the equal-area plane about the north or the south pole."""
    side = np.where(north, 1.0, -1.0)
    pole = float(body.authalic(np.ones(1))[0])
    radius = np.sqrt(2 * np.maximum(pole - body.authalic(side * np.sin(lat)), 0))
    return radius * np.sin(lon), -side * radius * np.cos(lon)


def _space(lon: NDArray[np.float64], lat: NDArray[np.float64], body: Body) -> NDArray[np.float64]:
    """Return points of the ellipsoid in metres from its centre, (P, 3)."""
    sin_lat = np.sin(lat)
    normal = body.a / np.sqrt(1 - (body.e * sin_lat) ** 2)
    ring = normal * np.cos(lat)
    return np.stack([ring * np.cos(lon), ring * np.sin(lon), normal * (1 - body.e**2) * sin_lat], axis=1)


def _turns(lon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shortest turns in radians from each longitude to the next."""
    step = np.diff(lon)
    return step - 2 * math.pi * np.rint(step / (2 * math.pi))


def _nearer_north(corners: NDArray[np.float64], ring_starts: NDArray[np.int64], body: Body) -> NDArray[np.bool_]:
    """Return whether each ring starts in the northern hemisphere."""
    return body.geodetic(corners[ring_starts[:-1]])[1] >= 0


def _north_inside(ring: NDArray[np.float64], body: Body, otherwise: bool) -> bool:
    """Return whether the pole inside a ring that goes round the axis is the north pole."""
    outline = shapely.Polygon(ring)
    for north in (True, False):
        latitude = (math.pi / 2 if north else -math.pi / 2) / body.radian
        pole = body.transformer.transform(0.0, latitude, direction=pyproj.enums.TransformDirection.INVERSE)
        if all(map(math.isfinite, pole)) and outline.intersects(shapely.Point(pole)):
            return north
    return bool(otherwise)


def _pieces_of(
    corners: NDArray[np.float64], ring_starts: NDArray[np.int64], rings: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    return [corners[ring_starts[i] : ring_starts[i + 1]] for i in rings]
