"""Polygons as flat arrays of rounded points, ready to be written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.outputs.decimals import scaled, unscaled

Ints = NDArray[np.int64]

# Twice a ring's area, divided by the sum of the sizes of its terms: below this, rounding may have turned its sign.
_SIGN_IS_SURE = 1e-9


@dataclass(frozen=True)
class Outlines:
    """N polygons or multipolygons, none of them invalid.

    Attributes:
        points: (P, 2) int64 x and y in units of the last decimal; every ring ends with its first point.
        decimals: how many there are.
        rings: (R + 1,) int64, where each ring begins in ``points``.
        polygons: (Q + 1,) int64, where each polygon begins in ``rings``; its first ring is the shell.
        first, stop: (N,) int64, the polygons of each geometry; equal where nothing is left of it.
    """

    points: Ints
    decimals: int
    rings: Ints
    polygons: Ints
    first: Ints
    stop: Ints

    def __len__(self) -> int:
        """Return the number of geometries, those of which nothing is left among them."""
        return len(self.first)

    @classmethod
    def of(cls, geometry: NDArray[Any], decimals: int) -> Outlines:
        """Return the outlines of shapely polygons, multipolygons and None, rounded without regard to validity."""
        filled = np.where(shapely.is_geometry(geometry), geometry, shapely.MultiPolygon())
        parts, owner = shapely.get_parts(filled, return_index=True)
        parts, owner = parts[~shapely.is_empty(parts)], owner[~shapely.is_empty(parts)]
        stop = np.cumsum(np.bincount(owner, minlength=len(filled)))
        first = np.concatenate([[0], stop[:-1]]) if len(stop) else stop
        if not len(parts):
            return cls(np.empty((0, 2), np.int64), decimals, np.zeros(1, np.int64), np.zeros(1, np.int64), first, stop)
        _, points, (rings, polygons) = shapely.to_ragged_array(parts, include_z=False)
        return cls(scaled(points, decimals), decimals, rings.astype(np.int64), polygons.astype(np.int64), first, stop)

    def replaced(self, index: NDArray[np.intp], others: Outlines) -> Outlines:
        """Return these outlines with the geometries at ``index`` replaced by ``others``, one for one."""
        if not len(index):
            return self
        first, stop = self.first.copy(), self.stop.copy()
        before = len(self.polygons) - 1
        first[index], stop[index] = others.first + before, others.stop + before
        return Outlines(
            np.concatenate([self.points, others.points]),
            self.decimals,
            np.concatenate([self.rings, others.rings[1:] + self.rings[-1]]),
            np.concatenate([self.polygons, others.polygons[1:] + self.polygons[-1]]),
            first,
            stop,
        )

    def only(self, kept: NDArray[np.bool_]) -> Outlines:
        """Return the geometries that are ``kept`` (N,); the points of the others stay in the arrays."""
        return replace(self, first=self.first[kept], stop=self.stop[kept])

    def backwards(self) -> NDArray[np.bool_]:
        """Return for each ring whether it must be written backwards, that shells run counter-clockwise, holes not."""
        if len(self.rings) == 1:
            return np.zeros(0, bool)
        begin = self.rings[:-1]
        x, y = (self.points - np.repeat(self.points[begin], np.diff(self.rings), axis=0)).T.astype(np.float64)
        # Seen from its first point, a ring's last edge adds nothing, nor does the step to the next ring.
        terms = np.zeros(len(x))
        terms[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
        terms[self.rings[1:] - 1] = 0
        doubled = np.add.reduceat(terms, begin)
        doubtful = np.abs(doubled) <= _SIGN_IS_SURE * np.add.reduceat(np.abs(terms), begin)
        for ring in np.flatnonzero(doubtful):
            doubled[ring] = _sign_of_area(self.points[begin[ring] : self.rings[ring + 1]].tolist())
        is_hole = np.ones(len(begin), bool)
        is_hole[self.polygons[:-1]] = False
        return np.asarray((doubled < 0) != is_hole)

    def geometry(self) -> NDArray[Any]:
        """Return shapely polygons, multipolygons and, where nothing is left, None."""
        lonlat = unscaled(self.points, self.decimals)
        parts = shapely.from_ragged_array(shapely.GeometryType.POLYGON, lonlat, (self.rings, self.polygons))
        parts = shapely.orient_polygons(parts, exterior_cw=False)
        result = np.full(len(self), None, object)
        alone = self.stop - self.first == 1
        result[alone] = parts[self.first[alone]]
        for index in np.flatnonzero(self.stop - self.first > 1):
            result[index] = shapely.multipolygons(parts[self.first[index] : self.stop[index]])
        return result


def _sign_of_area(ring: list[list[int]]) -> int:
    """Return the sign of the area within a closed ring, by whole numbers of any size."""
    doubled = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring))
    return (doubled > 0) - (doubled < 0)
