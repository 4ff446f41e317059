"""Polygons along pixel edges as flat arrays of lattice corners, and their one canonical form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

# A line of the lattice: (0, c) is the vertical one left of column c, (1, r) the horizontal one above row r.
Seam = tuple[int, int]


@dataclass(frozen=True)
class Rings:
    """N polygons whose edges follow pixel edges, in the canonical form that :func:`canonical` makes.

    Every vertex is a turn; every ring is closed and starts at its topmost, then leftmost corner; shells run down from
    there (counter-clockwise once rows point down), holes run right; a polygon's holes follow its shell in the order of
    their starts.  Two equal regions therefore have equal arrays, however they were put together.

    Attributes:
        corners: (V, 2) int64 lattice corners as column, row; pixel (row, col) lies between corners (col, row) and
            (col + 1, row + 1).
        ring_starts: (R + 1,) int64 offsets into ``corners``.
        polygon_starts: (N + 1,) int64 offsets into ``ring_starts``.
    """

    corners: NDArray[np.int64]
    ring_starts: NDArray[np.int64]
    polygon_starts: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of polygons."""
        return len(self.polygon_starts) - 1

    @property
    def corner_starts(self) -> NDArray[np.int64]:
        """Offsets into ``corners`` of each polygon, (N + 1,)."""
        return self.ring_starts[self.polygon_starts]

    @property
    def first_corners(self) -> NDArray[np.int64]:
        """Column and row of each polygon's first pixel (top row, then leftmost column), (N, 2)."""
        return self.corners[self.corner_starts[:-1]]

    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return where each edge starts, where it ends, both (E, 2), and the polygon it belongs to, (E,)."""
        polygon = np.repeat(np.arange(len(self)), np.diff(self.corner_starts))
        joined = np.ones(len(self.corners), bool)
        joined[self.ring_starts[1:] - 1] = False
        start = np.flatnonzero(joined)
        return self.corners[start], self.corners[start + 1], polygon[start]

    def sums(self, integral: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sum of a raster over the pixels of each polygon, (N,), exact.

        Args:
            integral: (H + 1, W + 1), the raster summed over all rows above and columns left of each corner.
        """
        start, end, polygon = self.edges()
        upright = start[:, 0] == end[:, 0]
        start, end, polygon = start[upright], end[upright], polygon[upright]
        # Green's theorem: the left side of every run of pixels goes down and counts negative, its right side goes up.
        parts = integral[start[:, 1], start[:, 0]] - integral[end[:, 1], end[:, 0]]
        return _sum_by(polygon, parts, len(self))

    def pixel_counts(self) -> NDArray[np.int64]:
        """Return the number of pixels of each polygon, (N,)."""
        start, end, polygon = self.edges()
        return _sum_by(polygon, start[:, 0] * (start[:, 1] - end[:, 1]), len(self))

    def moved(self, col: int, row: int) -> Rings:
        """Return the polygons shifted right by ``col`` and down by ``row`` pixels."""
        return Rings(self.corners + np.array([col, row]), self.ring_starts, self.polygon_starts)

    def chosen(self, polygons: NDArray[np.bool_]) -> Rings:
        """Return the polygons for which the mask (N,) is True."""
        rings = np.repeat(polygons, np.diff(self.polygon_starts))
        corners = np.repeat(rings, np.diff(self.ring_starts))
        return Rings(
            self.corners[corners],
            _offsets(np.diff(self.ring_starts)[rings]),
            _offsets(np.diff(self.polygon_starts)[polygons]),
        )

    def geometries(self) -> NDArray[Any]:
        """Return shapely polygons in pixel coordinates (column, row), object array (N,)."""
        return _polygons(self.corners, self.ring_starts, self.polygon_starts)

    def noded_geometries(self, seams: Iterable[Seam]) -> NDArray[Any]:
        """Return shapely polygons (N,) with a vertex at every pixel corner along ``seams``.

        Pieces on the two sides of a seam then share each vertex there, as a coverage must.
        """
        step = np.zeros_like(self.corners)
        step[:-1] = np.diff(self.corners, axis=0)
        step[self.ring_starts[1:] - 1] = 0
        on_seam = np.zeros(len(step), bool)
        for axis, position in seams:
            on_seam |= (self.corners[:, axis] == position) & (step[:, axis] == 0)
        count = np.where(on_seam, np.maximum(np.abs(step).max(axis=1, initial=0), 1), 1)
        starts = _offsets(count)
        along = np.arange(starts[-1]) - np.repeat(starts[:-1], count)
        corners = np.repeat(self.corners, count, axis=0) + along[:, None] * np.repeat(np.sign(step), count, axis=0)
        return _polygons(corners, starts[self.ring_starts], self.polygon_starts)


def rings_of(geometries: NDArray[Any]) -> Rings:
    """Return shapely polygons with integer coordinates along pixel edges (column, row) in canonical form."""
    if not len(geometries):
        return Rings(np.empty((0, 2), np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
    _, corners, (ring_starts, polygon_starts) = shapely.to_ragged_array(geometries)
    return canonical(corners.astype(np.int64), ring_starts.astype(np.int64), polygon_starts.astype(np.int64))


def canonical(corners: NDArray[np.int64], ring_starts: NDArray[np.int64], polygon_starts: NDArray[np.int64]) -> Rings:
    """Bring polygons along pixel edges to the form that :class:`Rings` describes.

    Args:
        corners: (V, 2) column and row of the closed rings of valid polygons, in any orientation.
        ring_starts: (R + 1,) offsets into ``corners``.
        polygon_starts: (N + 1,) offsets into ``ring_starts``.
    """
    if not len(corners):
        return Rings(corners, ring_starts, polygon_starts)
    corners, sizes = _turns_only(corners, ring_starts)
    starts = _offsets(sizes)

    width = int(corners[:, 0].max()) + 1
    keys = corners[:, 1] * width + corners[:, 0]
    least = np.minimum.reduceat(keys, starts[:-1])
    first = np.flatnonzero(keys == np.repeat(least, sizes)) - starts[:-1]  # rings are simple: one corner each

    # A shell lies above and left of all its holes, so sorting rings by their first corner puts it first.
    polygon = np.repeat(np.arange(len(polygon_starts) - 1), np.diff(polygon_starts))
    order = np.lexsort((least, polygon))
    sizes, first, begins = sizes[order], first[order], starts[:-1][order]

    second = corners[begins + (first + 1) % sizes]
    goes_down = second[:, 0] == corners[begins + first][:, 0]
    is_shell = np.zeros(len(sizes), bool)
    is_shell[polygon_starts[:-1]] = True
    step = np.where(goes_down == is_shell, 1, -1)

    ring_starts = _offsets(sizes + 1)
    along = np.arange(ring_starts[-1]) - np.repeat(ring_starts[:-1], sizes + 1)
    begins, first, step, sizes = (np.repeat(values, sizes + 1) for values in (begins, first, step, sizes))
    return Rings(corners[begins + (first + along * step) % sizes], ring_starts, polygon_starts)


def _turns_only(
    corners: NDArray[np.int64], ring_starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the corners at which a ring turns, rings no longer closed, and how many of them each ring has."""
    open_ring = np.ones(len(corners), bool)
    open_ring[ring_starts[1:] - 1] = False
    corners = corners[open_ring]
    starts = ring_starts - np.arange(len(ring_starts))
    before = np.arange(-1, len(corners) - 1)
    before[starts[:-1]] = starts[1:] - 1
    after = np.arange(1, len(corners) + 1)
    after[starts[1:] - 1] = starts[:-1]
    straight = ((corners == corners[before]) & (corners == corners[after])).any(axis=1)
    sizes = np.add.reduceat(~straight, starts[:-1], dtype=np.int64)
    return corners[~straight], sizes


def _polygons(
    corners: NDArray[np.int64], ring_starts: NDArray[np.int64], polygon_starts: NDArray[np.int64]
) -> NDArray[Any]:
    if len(polygon_starts) < 2:
        return np.empty(0, object)
    offsets = (ring_starts, polygon_starts)
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, corners.astype(np.float64), offsets)


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _sum_by(group: NDArray[np.int64], values: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the sums of ``values`` over equal, sorted ``group`` numbers; every group has a member."""
    if not count:
        return np.zeros(0, np.int64)
    begins = np.searchsorted(group, np.arange(count))
    return np.add.reduceat(values, begins)
