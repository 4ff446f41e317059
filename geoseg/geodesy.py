"""True sizes on the ground, whatever the coordinate reference system says a unit is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pyproj
from affine import Affine

from geoseg.errors import SceneError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox


def projection(geobox: GeoBox) -> pyproj.CRS:
    """Return the CRS of a grid for pyproj.

    Raises:
        SceneError: the grid has none.
    """
    if geobox.crs is None:
        raise SceneError("the grid has no CRS: assign one first.")
    return pyproj.CRS(geobox.crs.proj)


def geodetic_transformer(crs: pyproj.CRS) -> pyproj.Transformer:
    """Return the transformer from ``crs`` to longitude and latitude in degrees on the ellipsoid of ``crs`` itself.

    No datum shift is applied, so it serves other planets too.

    Raises:
        SceneError: ``crs`` has no geodetic base (a local engineering system).
    """
    geodetic = crs.geodetic_crs
    if geodetic is None:
        raise SceneError(
            f"the CRS {crs.name!r} is not tied to the Earth or another body: "
            "give the scene a geographic or projected CRS."
        )
    return pyproj.Transformer.from_crs(crs, geodetic, always_xy=True)


def ellipsoid(crs: pyproj.CRS) -> pyproj.Geod:
    """Return the ellipsoid of ``crs`` for geodesic lengths and areas in metres (WGS 84 if it names none)."""
    return crs.get_geod() or pyproj.Geod(ellps="WGS84")


def ground_resolution(geobox: GeoBox) -> tuple[float, float]:
    """Return the ground length in metres of one step along a row (x) and one along a column (y), at the centre.

    Measured on the ellipsoid between pixel edges, so EPSG:3857 and degrees give true metres.

    Raises:
        SceneError: the centre lies outside the area where the CRS is defined, or the CRS has no geodetic base.
    """
    return ground_lengths((geobox.height, geobox.width), geobox.affine, projection(geobox))


def ground_lengths(shape: tuple[int, int], affine: Affine, crs: pyproj.CRS) -> tuple[float, float]:
    """Return what :func:`ground_resolution` does for a grid of ``shape`` (height, width) with this affine and CRS.

    Raises:
        SceneError: as there.
    """
    height, width = shape
    transformer, geod = geodetic_transformer(crs), ellipsoid(crs)
    row, col = height / 2, width / 2
    lengths = []
    for d_row, d_col in ((0.0, 0.5), (0.5, 0.0)):
        ends = [affine * (col + sign * d_col, row + sign * d_row) for sign in (-1, 1)]
        lon, lat = transformer.transform([x for x, _ in ends], [y for _, y in ends])
        lengths.append(
            geod.inv(lon[0], lat[0], lon[1], lat[1])[2] if all(map(math.isfinite, (*lon, *lat))) else math.inf
        )
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        raise SceneError(
            f"the centre of the scene lies outside the area where {crs.name!r} is defined: check its CRS and transform."
        )
    return lengths[0], lengths[1]


def pixel_size(affine: Affine) -> tuple[float, float]:
    """Return the length in CRS units of one step along a row (x) and along a column (y), rotation or not."""
    return math.hypot(affine.a, affine.d), math.hypot(affine.b, affine.e)
