"""Outlines of features that have several parts, made from those of the parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.outputs.outlines import Outlines


def multipart_outlines(geometry: NDArray[Any], outlines_of: Callable[[NDArray[Any]], Outlines]) -> Outlines:
    """Return the outlines of polygons and multipolygons.

    Args:
        geometry: (N,) shapely polygons and multipolygons.
        outlines_of: gives the outlines of (M,) polygons; any of them may come in several parts, or in none.
    """
    if (shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON).all():
        return outlines_of(geometry)
    parts, owner = shapely.get_parts(geometry, return_index=True)
    return _together(outlines_of(parts), owner, len(geometry))


def _together(outlines: Outlines, owner: NDArray[np.intp], count: int) -> Outlines:
    """Return the outlines of ``count`` geometries, ``owner`` saying to which each given one belongs, ascending."""
    polygons = _spans(outlines.first, outlines.stop)
    rings = _spans(outlines.polygons[polygons], outlines.polygons[polygons + 1])
    points = _spans(outlines.rings[rings], outlines.rings[rings + 1])
    stop = np.cumsum(np.bincount(owner, outlines.stop - outlines.first, count)).astype(np.int64)
    return Outlines(
        outlines.points[points],
        outlines.decimals,
        _offsets(np.diff(outlines.rings)[rings]),
        _offsets(np.diff(outlines.polygons)[polygons]),
        np.concatenate([[0], stop[:-1]]),
        stop,
    )


def _spans(first: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all whole numbers from each ``first`` to before its ``stop``, span after span."""
    lengths = stop - first
    ends = np.cumsum(lengths)
    return np.repeat(first - ends + lengths, lengths) + np.arange(int(ends[-1]) if len(ends) else 0)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
