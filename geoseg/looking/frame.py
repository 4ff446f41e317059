"""The plane in which everything is shown: Web Mercator, or the plain coordinates of outputs without a CRS.

Where outputs lie on both sides of the antimeridian, the plane has the antimeridian in its middle, and what is shown
runs through.  All coordinates are metres of that plane, x to the right and y up; :attr:`Frame.shift` is added to x to
have those of EPSG:3857, beyond its edge in the case of the antimeridian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError, ProjError

from geoseg.errors import SceneError
from geoseg.grid import Window

Floats = NDArray[np.float64]
Bounds = tuple[float, float, float, float]

RADIUS_M = 6_378_137.0
HALF_M = math.pi * RADIUS_M
# Web Mercator ends here.
_MOST_LATITUDE = 85.05112878
# A side of a raster is a straight line in its own CRS; so many points along it show how it bends.
_POINTS_A_SIDE = 33


@dataclass(frozen=True)
class Frame:
    """A plane.

    Attributes:
        centre: longitude of its middle, 0 or 180; None where outputs have no CRS: their coordinates are taken for those
            of pixels, whose rows count downwards.
    """

    centre: int | None

    @property
    def shift(self) -> float:
        """What is added to x to have that of EPSG:3857."""
        return HALF_M if self.centre else 0.0

    @property
    def crs(self) -> CRS:
        """The CRS of the plane."""
        text = "EPSG:3857"
        if self.centre:
            text = pyproj.CRS(f"+proj=webmerc +lon_0={self.centre} +datum=WGS84 +units=m +type=crs").to_wkt()
        return CRS(text)

    def placed(self, xy: Floats) -> Floats:
        """Return points (P, 2) in the plane, longitude and latitude in degrees or pixels; latitudes end at ±85.05."""
        if self.centre is None:
            return xy * (1.0, -1.0)
        longitude, latitude = xy[:, 0], np.clip(xy[:, 1], -_MOST_LATITUDE, _MOST_LATITUDE)
        turned = longitude % 360.0 - 180.0 if self.centre else longitude
        return np.column_stack([np.radians(turned) * RADIUS_M, np.arcsinh(np.tan(np.radians(latitude))) * RADIUS_M])

    def bounds(self, xy: Floats) -> Bounds:
        """Return left, bottom, right and top of such points in the plane.

        Raises:
            SceneError: nothing of them is in the plane, as near the poles.
        """
        placed = self.placed(xy)
        (left, bottom), (right, top) = (ends(placed, axis=0).tolist() for ends in (np.min, np.max))
        if not (right > left and top > bottom):
            raise SceneError("there is nothing to show in a web map, which ends at 85° of latitude: use QGIS.")
        return left, bottom, right, top

    def ground(self, y: float) -> float:
        """Return the metres on the ground of one metre of the plane at height ``y``."""
        return 1.0 if self.centre is None else 1.0 / math.cosh(y / RADIUS_M)

    def grid(self, bounds: Bounds, pixel: float) -> GeoBox:
        """Return the grid of square pixels over ``bounds``, from its upper left corner."""
        left, bottom, right, top = bounds
        height, width = (max(1, math.ceil(length / pixel - 1e-6)) for length in (top - bottom, right - left))
        return GeoBox((height, width), Affine(pixel, 0.0, left, 0.0, -pixel, top), self.crs)


@dataclass(frozen=True)
class SourceGrid:
    """The grid on which a raster is read for a grid of the plane.

    Attributes:
        grid: of as many columns and rows.
        rows: (H,) which of its rows each row of the plane shows; None where it is the plane's own.
    """

    grid: GeoBox
    rows: NDArray[np.int64] | None

    def read(self, window: Window, read: Callable[[Window], NDArray[Any]]) -> NDArray[Any]:
        """Return a window (…, h, w) of the plane, given what reads one of :attr:`grid`."""
        if self.rows is None:
            return read(window)
        rows = self.rows[window.row : window.row_stop]
        first = int(rows[0])
        return read(Window(first, window.col, int(rows[-1]) + 1 - first, window.width))[..., rows - first, :]


def source_grid(frame: Frame, grid: GeoBox, centre_x: float, crs: pyproj.CRS) -> SourceGrid:
    """Return the grid on which to read a raster for ``grid`` of the plane, in the plane's CRS where that serves.

    Across the antimeridian, longitudes of a raster may go beyond 180, where no transformation follows; but there a
    column of the plane is one of the raster's CRS too.

    Args:
        frame: the plane.
        grid: of it, north up.
        centre_x: where the middle of the raster is in its CRS.
        crs: of the raster.
    """
    mercator = crs.equals(pyproj.CRS(3857), ignore_axis_order=True)
    if not frame.centre or not (crs.is_geographic or mercator):
        return SourceGrid(grid, None)
    height, width = (int(n) for n in grid.shape)
    pixel, left, top = grid.affine.a, grid.affine.c + frame.shift, grid.affine.f
    unit = 1.0 if mercator else math.degrees(1 / RADIUS_M)
    left += 2 * HALF_M * round((centre_x / unit - left - pixel * width / 2) / (2 * HALF_M))
    if mercator:
        return SourceGrid(GeoBox((height, width), Affine(pixel, 0, left, 0, -pixel, top), CRS(crs.to_wkt())), None)
    latitude = np.degrees(np.arctan(np.sinh((top - pixel * (np.arange(height) + 0.5)) / RADIUS_M)))
    north, south = (math.degrees(math.atan(math.sinh(y / RADIUS_M))) for y in (top, top - pixel * height))
    step = (north - south) / height
    affine = Affine(pixel * unit, 0, left * unit, 0, -step, north)
    rows = np.clip(((north - latitude) / step).astype(np.int64), 0, height - 1)
    return SourceGrid(GeoBox((height, width), affine, CRS(crs.to_wkt())), rows)


def frame_of(parts: Sequence[Floats]) -> Frame:
    """Return the plane for points in longitude and latitude (P, 2): the one in which they are nearer together."""
    longitude = np.concatenate([part[:, 0] for part in parts])
    spans = [float(np.ptp(turned)) for turned in ((longitude + 180.0) % 360.0, longitude % 360.0)]
    return Frame(180 if spans[0] > 180.0 and spans[1] < spans[0] else 0)


def outline_lonlat(name: str, shape: tuple[int, int], affine: Affine, crs: pyproj.CRS) -> Floats:
    """Return points (P, 2) along the border of a raster in longitude and latitude.

    Raises:
        SceneError: they have none on the Earth.
    """
    height, width = shape
    steps = np.linspace(0.0, 1.0, _POINTS_A_SIDE)
    zero, one = np.zeros_like(steps), np.ones_like(steps)
    col = np.concatenate([steps, one, steps, zero]) * width
    row = np.concatenate([zero, steps, one, steps]) * height
    x, y = affine.a * col + affine.b * row + affine.c, affine.d * col + affine.e * row + affine.f
    return lonlat(name, np.column_stack([x, y]), crs)


def lonlat(name: str, xy: Floats, crs: pyproj.CRS) -> Floats:
    """Return points (P, 2) of ``crs`` in longitude and latitude.

    Raises:
        SceneError: they have none on the Earth.
    """
    flat = crs.sub_crs_list[0] if crs.is_compound else crs
    try:
        turn = pyproj.Transformer.from_crs(flat, "OGC:CRS84", always_xy=True)
        points = np.column_stack(turn.transform(xy[:, 0], xy[:, 1]))
    except (ProjError, CRSError) as error:
        raise SceneError(
            f"{name} cannot be laid on a web map: its CRS {crs.name!r} has no longitude and latitude on the Earth."
        ) from error
    if not np.isfinite(points).all():
        raise SceneError(f"{name} lies in part where its CRS {crs.name!r} is not defined: check the CRS.")
    return points
