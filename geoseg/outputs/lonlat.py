"""Polygons of a scene brought to WGS 84 longitude and latitude, as RFC 7946 wants them.

An edge that is straight in the scene's CRS may be curved in longitude and latitude, so long edges get points in
between.  What crosses the antimeridian is cut there; what holds a pole reaches up to latitude ±90.  Whatever happens to
an edge depends on its two ends alone, so that neighbours go on sharing their borders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError

from geoseg.errors import OutputError
from geoseg.outputs.antimeridian import fold, region_of_ring
from geoseg.outputs.decimals import scaled, unscaled
from geoseg.outputs.outlines import Outlines

Floats = NDArray[np.float64]

METRES_PER_DEGREE = 111_320.0
# Edges shorter than this many pixels are straight enough on any map; only longer ones are tested.
_TESTED_PX = 16.0
# An edge may lie this many pixels beside its true course.
_TOLERANCE_PX = 0.1
_MOST_PARTS = 1024
_PASSES = 4
_PROBES = (0.25, 0.5, 0.75)
# A vertex this close to a pole (in degrees, about a centimetre) is the pole: its longitude means nothing.
_POLE_DEGREES = 1e-7


def decimals_for(pixel_m: float) -> int:
    """Return the decimals of degrees that keep rounding under a fifth of a pixel: 7, up to 9 for pixels under 4 cm."""
    decimals = 7
    while decimals < 9 and METRES_PER_DEGREE * 10.0**-decimals * math.sqrt(0.5) > pixel_m / 5:
        decimals += 1
    return decimals


@dataclass(frozen=True)
class LonLat:
    """The way of polygons from one CRS to longitude and latitude.

    Attributes:
        crs: the CRS that the polygons come in.
        pixel_m: ground length of a pixel in metres.
        name: what is written, for messages.
        transformer: from x, y of ``crs`` to WGS 84 longitude, latitude in degrees.
    """

    crs: pyproj.CRS
    pixel_m: float
    name: str
    transformer: pyproj.Transformer

    @classmethod
    def open(cls, crs: pyproj.CRS, pixel_m: float, name: str) -> LonLat:
        """Return the way from ``crs``; ``name`` is what is written, for messages.

        Raises:
            OutputError: ``crs`` has no longitude and latitude on the Earth.
        """
        flat = crs.sub_crs_list[0] if crs.is_compound else crs
        try:
            transformer = pyproj.Transformer.from_crs(flat, "OGC:CRS84", always_xy=True)
        except (ProjError, CRSError) as error:
            raise OutputError(
                f"{name} needs longitude and latitude on the Earth, which the CRS {crs.name!r} does not have: write a "
                "GeoPackage (.gpkg), which keeps the scene's CRS."
            ) from error
        return cls(flat, pixel_m, name, transformer)

    @property
    def decimals(self) -> int:
        """Decimals of the coordinates."""
        return decimals_for(self.pixel_m)

    def bring(self, polygons: NDArray[Any]) -> NDArray[Any]:
        """Return the polygons in longitude and latitude, rounded, valid, shells counter-clockwise.

        Args:
            polygons: (N,) shapely polygons in ``crs``.

        Returns:
            (N,) polygons, multipolygons where they are cut, and None where nothing is left after rounding.

        Raises:
            OutputError: a point lies outside the area where ``crs`` is defined.
        """
        return self.outlines(polygons).geometry()

    def outlines(self, polygons: NDArray[Any], compiled: bool = False) -> Outlines:
        """Return what :meth:`bring` does as flat arrays; their rings may run either way.

        Args:
            polygons: (N,) shapely polygons in ``crs``.
            compiled: whether to use compiled loops; the result is the same.

        Raises:
            OutputError: a point lies outside the area where ``crs`` is defined.
        """
        if not len(polygons):
            return Outlines.of(polygons, self.decimals)
        _, xy, (rings, parts) = shapely.to_ragged_array(polygons, include_z=False)
        rings, parts = rings.astype(np.int64), parts.astype(np.int64)
        if self._is_plain_geographic:
            lonlat = self._unwrapped(xy)
            cut = _any_per_polygon((np.abs(lonlat[:, 0]) > 180) | (np.abs(lonlat[:, 1]) > 90), rings, parts)
        else:
            xy, lonlat, rings = self._densified(xy, rings)
            cut = _any_per_polygon(_suspicious(lonlat, rings), rings, parts)
        number = np.arange(len(polygons))
        result = Outlines(scaled(lonlat, self.decimals), self.decimals, rings, parts, number, number + 1)
        odd = np.flatnonzero(cut | ~_are_valid(result, cut, compiled))
        geometry = np.empty(len(odd), object)
        for nth, index in enumerate(odd):
            pieces = [slice(rings[r], rings[r + 1]) for r in range(parts[index], parts[index + 1])]
            if cut[index]:
                geometry[nth] = self._cut([xy[piece] for piece in pieces], [lonlat[piece] for piece in pieces])
            else:
                shell, *holes = [unscaled(result.points[piece], self.decimals) for piece in pieces]
                geometry[nth] = shapely.Polygon(shell, holes)
        return result.replaced(odd, Outlines.of(self._tidy(geometry), self.decimals))

    @property
    def _is_plain_geographic(self) -> bool:
        """Whether x and y of ``crs`` are longitudes and latitudes themselves (a rotated pole's are not)."""
        return bool(self.crs.is_geographic and not self.crs.is_derived)

    def _transform(self, xy: Floats) -> Floats:
        lonlat = np.column_stack(self.transformer.transform(xy[:, 0], xy[:, 1]))
        bad = ~np.isfinite(lonlat).all(axis=1)
        if bad.any():
            x, y = xy[np.argmax(bad)]
            raise OutputError(
                f"{self.name} needs longitude and latitude, which {int(bad.sum())} points such as ({x:.10g}, {y:.10g}) "
                f"outside the area of {self.crs.name!r} do not have: write a GeoPackage (.gpkg), which keeps the "
                "scene's CRS, or limit the scene to the Earth."
            )
        return lonlat

    def _unwrapped(self, xy: Floats) -> Floats:
        """Return longitudes that run on past ±180 as those of a geographic scene do (0 to 360, or 175 to 185)."""
        to_degrees = math.degrees(self.crs.axis_info[0].unit_conversion_factor)
        meridian = self.crs.prime_meridian
        zero = meridian.longitude * math.degrees(float(meridian.unit_conversion_factor)) if meridian else 0.0
        pole = 90.0 / to_degrees
        lonlat = self._transform(np.column_stack([xy[:, 0], np.clip(xy[:, 1], -pole, pole)]))
        turns = np.round((xy[:, 0] * to_degrees + zero - lonlat[:, 0]) / 360)
        lonlat[:, 0] = _snapped(lonlat[:, 0] + 360 * turns, self.decimals)
        return lonlat

    def _densified(self, xy: Floats, rings: NDArray[np.int64]) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Return xy, lonlat and ring offsets with points added where a straight edge would leave its true course."""
        lonlat = self._transform(xy)
        for _ in range(_PASSES):
            first = _edges(len(xy), rings)
            d_lon = np.abs(lonlat[first + 1, 0] - lonlat[first, 0])
            d_lat = lonlat[first + 1, 1] - lonlat[first, 1]
            east = np.minimum(d_lon, np.abs(360 - d_lon)) * np.cos(np.radians(lonlat[first, 1]))
            long = np.hypot(east, d_lat) * METRES_PER_DEGREE > _TESTED_PX * self.pixel_m
            first = first[long | (d_lon > 90)]
            away, _ = self._course(xy, lonlat, first)
            # A curve leaves its chord with the square of the length.
            wanted = np.ceil(np.sqrt(away / (_TOLERANCE_PX * self.pixel_m)))
            wanted = np.clip(wanted, 1, _MOST_PARTS).astype(np.int64)
            first, wanted = first[wanted > 1], wanted[wanted > 1]
            if not first.size:
                break
            between, position = _points_between(xy, first, wanted)
            xy = np.insert(xy, position, between, axis=0)
            lonlat = np.insert(lonlat, position, self._transform(between), axis=0)
            rings = rings + np.concatenate([[0], np.cumsum(wanted - 1)])[np.searchsorted(first, rings, side="left")]
        return xy, lonlat, rings

    def _course(self, xy: Floats, lonlat: Floats, first: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return, for edges from ``first`` to the next point, metres off the straight way and their step in longitude.

        An edge runs either the way its longitudes say or around the other side; three points on it tell which.  How far
        points are spread along it does not matter, so that edges on a meridian or parallel of a Mercator map stay as
        they are.
        """
        start, end = lonlat[first].copy(), lonlat[first + 1].copy()
        for one, other in ((start, end), (end, start)):
            at_pole = np.abs(one[:, 1]) > 90 - _POLE_DEGREES
            one[at_pole, 0] = other[at_pole, 0]
        direct = end[:, 0] - start[:, 0]
        around = direct - np.where(direct > 0, 360.0, -360.0)
        error, beside = np.zeros((2, 2, len(first)))
        for share in _PROBES:
            probe = self._transform(xy[first] * (1 - share) + xy[first + 1] * share) if len(first) else start
            scale = np.cos(np.radians(probe[:, 1]))
            north, up = end[:, 1] - start[:, 1], probe[:, 1] - start[:, 1]
            for row, step in enumerate((direct, around)):
                along = (probe[:, 0] - start[:, 0] - share * step + 180) % 360 - 180
                error[row] = np.maximum(error[row], np.hypot(along * scale, up - share * north))
                east, over = step * scale, (along + share * step) * scale
                chord = np.maximum(np.hypot(east, north), np.finfo(float).tiny)
                beside[row] = np.maximum(beside[row], np.abs(east * up - north * over) / chord)
        chosen = (error[0] > error[1]).astype(int)
        away = beside[chosen, np.arange(len(first))] * METRES_PER_DEGREE
        return away, np.where(chosen == 0, direct, around)

    def _cut(self, rings_xy: list[Floats], rings_lonlat: list[Floats]) -> Any:
        """Return one polygon within ±180 and ±90 degrees, its first ring the shell, the others its holes."""
        if self._is_plain_geographic:
            return fold(shapely.make_valid(shapely.Polygon(rings_lonlat[0], rings_lonlat[1:])))
        shell, *holes = [self._region(xy, ll) for xy, ll in zip(rings_xy, rings_lonlat, strict=True)]
        return shapely.difference(shell, shapely.union_all(holes)) if holes else shell

    def _region(self, xy: Floats, lonlat: Floats) -> Any:
        """Return what a ring encloses, within ±180 and ±90 degrees."""
        if not shapely.is_ccw(shapely.linearrings(xy)):
            xy, lonlat = xy[::-1], lonlat[::-1]
        xy, lonlat = self._with_pole(xy, lonlat)
        _, steps = self._course(xy, lonlat, np.arange(len(xy) - 1))
        at_pole = np.abs(lonlat[:, 1]) > 90 - _POLE_DEGREES
        return region_of_ring(lonlat, steps, at_pole, self.decimals)

    def _with_pole(self, xy: Floats, lonlat: Floats) -> tuple[Floats, Floats]:
        """Return the ring with a point where one of its edges runs through a pole."""
        for latitude in (90.0, -90.0):
            x, y = self.transformer.transform(0.0, latitude, direction="INVERSE")
            if not (math.isfinite(x) and math.isfinite(y)):
                continue
            pole = np.array([x, y])
            along = xy[1:] - xy[:-1]
            length = np.maximum(np.hypot(along[:, 0], along[:, 1]), np.finfo(float).tiny)
            share = ((pole - xy[:-1]) * along).sum(axis=1) / length**2
            beside = np.abs(along[:, 0] * (pole[1] - xy[:-1, 1]) - along[:, 1] * (pole[0] - xy[:-1, 0])) / length
            on_edge = (beside < 1e-9 * (1 + np.abs(xy).max())) & (share > 1e-9) & (share < 1 - 1e-9)
            position = np.flatnonzero(on_edge)[:1] + 1
            # A conic or cylindrical map draws a pole as a line or not at all: the point must come back as the pole.
            if position.size and abs(self._transform(pole[None])[0, 1] - latitude) < _POLE_DEGREES:
                xy = np.insert(xy, position, pole, axis=0)
                lonlat = np.insert(lonlat, position, [0.0, latitude], axis=0)
        return xy, lonlat

    def _tidy(self, geometry: NDArray[Any]) -> NDArray[Any]:
        """Return the geometries rounded and valid; None where nothing is left."""
        geometry = shapely.transform(geometry, self._rounded)
        for index in np.flatnonzero(~shapely.is_valid(geometry)):
            # Rounding made a ring touch itself or collapse.
            whole = shapely.make_valid(geometry[index], method="structure", keep_collapsed=False)
            whole = shapely.set_precision(_polygons_of(whole), 10.0**-self.decimals)
            geometry[index] = shapely.transform(_polygons_of(whole), self._rounded)
        for index in np.flatnonzero(shapely.get_type_id(geometry) != shapely.GeometryType.POLYGON):
            geometry[index] = _polygons_of(geometry[index])
        geometry[shapely.is_empty(geometry)] = None
        return geometry

    def _rounded(self, lonlat: Floats) -> Floats:
        return unscaled(scaled(lonlat, self.decimals), self.decimals)


def _are_valid(outlines: Outlines, skipped: NDArray[np.bool_], compiled: bool) -> NDArray[np.bool_]:
    """Return which of N polygons are valid; those ``skipped`` (N,) are not looked at."""
    valid = np.zeros(len(outlines), bool)
    if compiled:
        from geoseg.outputs.compiled import surely_valid

        valid = surely_valid(outlines.points, outlines.rings, outlines.polygons)
    unsure = np.flatnonzero(~valid & ~skipped)
    which, polygons = _gathered(outlines.polygons, unsure)
    where, rings = _gathered(outlines.rings, which)
    points = unscaled(outlines.points[where], outlines.decimals)
    valid[unsure] = shapely.is_valid(shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (rings, polygons)))
    return valid


def _gathered(offsets: NDArray[np.int64], chosen: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of what chosen runs hold, run after run, and where each begins among them."""
    counts = np.diff(offsets)[chosen]
    begins = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(offsets[chosen] - begins[:-1], counts) + np.arange(begins[-1]), begins


def _edges(points: int, rings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of the first point of every edge; an edge's second point is the next one."""
    is_edge = np.ones(points, bool)
    is_edge[rings[1:] - 1] = False
    return np.flatnonzero(is_edge)


def _points_between(xy: Floats, first: NDArray[np.int64], parts: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Return points that cut edges into equal parts, whichever way an edge runs, and where they go in ``xy``."""
    edge = np.repeat(np.arange(len(first)), parts - 1)
    nth = np.arange(len(edge)) - np.repeat(np.cumsum(parts - 1) - (parts - 1), parts - 1) + 1
    start, end = xy[first], xy[first + 1]
    swap = (start[:, 0] > end[:, 0]) | ((start[:, 0] == end[:, 0]) & (start[:, 1] > end[:, 1]))
    low, high = np.where(swap[:, None], end, start), np.where(swap[:, None], start, end)
    share = (np.where(swap[edge], parts[edge] - nth, nth) / parts[edge])[:, None]
    return low[edge] + share * (high - low)[edge], first[edge] + 1


def _suspicious(lonlat: Floats, rings: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which points begin an edge that may cross the antimeridian, or lie at a pole."""
    flags = np.abs(lonlat[:, 1]) > 90 - _POLE_DEGREES
    first = _edges(len(lonlat), rings)
    flags[first] |= np.abs(lonlat[first + 1, 0] - lonlat[first, 0]) >= 180 - 1e-6
    return flags


def _any_per_polygon(flags: NDArray[np.bool_], rings: NDArray[np.int64], parts: NDArray[np.int64]) -> NDArray[np.bool_]:
    counts = np.concatenate([[0], np.cumsum(flags)])
    return np.diff(counts[rings[parts]]) > 0


def _snapped(longitude: Floats, decimals: int) -> Floats:
    """Return longitudes with those that rounding would put on the antimeridian exactly there."""
    nearest = 180.0 * np.round(longitude / 180)
    on_it = (np.abs(longitude - nearest) < 10.0**-decimals) & (nearest % 360 == 180)
    return np.where(on_it, nearest, longitude)


def _polygons_of(geometry: Any) -> Any:
    """Return the polygons in a geometry: one polygon, or a multipolygon (empty if there are none)."""
    parts = shapely.get_parts(geometry)
    while any(shapely.get_type_id(parts) > shapely.GeometryType.POLYGON):
        parts = shapely.get_parts(parts)
    parts = parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)]
    return parts[0] if len(parts) == 1 else shapely.multipolygons(parts)
