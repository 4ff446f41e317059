"""One ring made of walls that run along, across or, where that fits, at 45° to one direction.

The ring's course is kept as sums along its raw edges, so that the wall which replaces a stretch of it is put where the
areas gained and lost on its two sides are equal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Headings count eighths of a turn.
_EIGHTHS = 8
_COS = np.cos(np.arange(_EIGHTHS) * np.pi / 4)
_SIN = np.sin(np.arange(_EIGHTHS) * np.pi / 4)
# A stretch counts as diagonal within this many radians of 45°.
_DIAGONAL = np.radians(12)
# The tolerance of a main direction is at most this share of the root of the area.
_SMALL = 0.15
# Directions further from the main one than this say nothing about it.
_KIN = np.radians(12)


def main_direction(polygon: Any, tolerance: float) -> float:
    """Return the direction, in radians from 0 to π/2, along or across which most of a polygon's walls run.

    Args:
        polygon: shapely polygon.
        tolerance: by how much, in its units, its outline may be simplified first.
    """
    # What is small would be simplified to nothing.
    tolerance = min(tolerance, _SMALL * float(np.sqrt(polygon.area)))
    points = shapely.get_coordinates(shapely.simplify(shapely.get_exterior_ring(polygon), tolerance))
    walls = points[1:] - points[:-1]
    length = np.hypot(walls[:, 0], walls[:, 1])
    angle = np.arctan2(walls[:, 1], walls[:, 0])
    away = np.abs(_quarter_difference(angle[:, None], angle[None]))
    best = int(np.argmin((np.minimum(away, _KIN) * length[:, None] ** 2).sum(axis=0)))
    difference = _quarter_difference(angle, angle[best])
    weight = np.where(np.abs(difference) < _KIN, length**2, 0.0)
    return float((angle[best] + (weight * difference).sum() / weight.sum()) % (np.pi / 2))


def _quarter_difference(one: Floats, other: Floats | float) -> Floats:
    """Return by how much directions differ, whole right angles aside: from −π/4 to π/4."""
    return (one - other + np.pi / 4) % (np.pi / 2) - np.pi / 4


def _is_diagonal(beside: Floats, length: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Return which stretches, so many radians beside a right angle, are long enough and near enough to 45°."""
    return np.asarray((np.abs(np.abs(beside) - np.pi / 4) < _DIAGONAL) & (length > 3 * tolerance))


@dataclass(frozen=True)
class Wall:
    """A stretch of a ring that becomes one straight wall.

    Attributes:
        heading: in eighths of a turn.
        start, stop: first and last point of the stretch; ``stop`` may run past the ring's end by whole rounds.
    """

    heading: int
    start: int
    stop: int


class Course:
    """A raw ring, with sums along it."""

    def __init__(self, ring: Floats) -> None:
        """Take a closed ring (M, 2), in a frame whose x axis is the main direction."""
        # The point furthest out is a corner whatever the tolerance.
        furthest = int(np.argmax(np.hypot(*(ring - ring[:-1].mean(axis=0)).T)))
        open_ring = np.roll(ring[:-1], -furthest, axis=0)
        self.ring = np.vstack([open_ring, open_ring[:1]])
        self._line = shapely.LinearRing(self.ring)
        self._corners: dict[float, list[int]] = {}
        step, middle = np.diff(self.ring, axis=0), (self.ring[1:] + self.ring[:-1]) / 2
        moments = (middle[:, :, None] * step[:, None, :]).reshape(-1, 4)
        self._moments = np.vstack([np.zeros(4), np.cumsum(moments, axis=0)])

    def __len__(self) -> int:
        """Return the number of points, the closing one left out."""
        return len(self.ring) - 1

    def point(self, index: int) -> Floats:
        """Return a point; indices run on past the end."""
        return np.asarray(self.ring[index % len(self)])

    def offset(self, wall: Wall) -> float:
        """Return how far to its left of the origin a wall lies so that it takes off as much as it adds."""
        rounds, last = divmod(wall.stop, len(self))
        moments = self._moments[last] - self._moments[wall.start] + rounds * self._moments[-1]
        along_x, along_y = _COS[wall.heading], _SIN[wall.heading]
        xx, xy, yx, yy = moments
        area = -along_y * (xx * along_x + xy * along_y) + along_x * (yx * along_x + yy * along_y)
        begin, end = self.point(wall.start), self.point(wall.stop)
        length = (end[0] - begin[0]) * along_x + (end[1] - begin[1]) * along_y
        if abs(length) < 1:
            middle = (begin + end) / 2
            return float(along_x * middle[1] - along_y * middle[0])
        return float(area / length)

    def has_diagonals(self, tolerance: float) -> bool:
        """Whether any wall would run at 45° after simplifying the ring by ``tolerance``."""
        points = self.ring[self._simplified(tolerance)]
        walls = np.diff(points, axis=0)
        beside = _quarter_difference(np.arctan2(walls[:, 1], walls[:, 0]), 0.0)
        return bool((_is_diagonal(beside, np.hypot(walls[:, 0], walls[:, 1]), tolerance)).any())

    def _simplified(self, tolerance: float) -> list[int]:
        """Return the indices of the points that are left, the closing one last."""
        if tolerance not in self._corners:
            kept = shapely.get_coordinates(shapely.simplify(self._line, tolerance, preserve_topology=False))
            place = {tuple(point): index for index, point in enumerate(self.ring[:-1].tolist())}
            self._corners[tolerance] = [*(place[tuple(point)] for point in kept[:-1].tolist()), len(self)]
        return self._corners[tolerance]

    def walls(self, tolerance: float, diagonals: bool) -> list[Wall]:
        """Return the ring as walls after simplifying it by ``tolerance``; neighbouring walls differ in heading."""
        walls: list[Wall] = []
        for start, stop in pairwise(self._simplified(tolerance)):
            walls += self._stretch(start, stop, tolerance, diagonals)
        return _joined(walls)

    def _stretch(self, start: int, stop: int, tolerance: float, diagonals: bool) -> list[Wall]:
        """Return one wall, or two at right angles where one would lie too far beside its stretch."""
        dx, dy = (self.point(stop) - self.point(start)).tolist()
        angle, length = np.arctan2(dy, dx), np.hypot(dx, dy)
        quarter = 2 * round(float(angle) / (np.pi / 2))
        beside = angle - quarter * np.pi / 4
        if diagonals and _is_diagonal(beside, length, tolerance):
            return [Wall(round(float(angle) / (np.pi / 4)) % _EIGHTHS, start, stop)]
        if abs(np.sin(beside)) * length > 3 * tolerance and stop - start > 1:
            middle = (start + stop) // 2
            across = quarter + (2 if beside > 0 else -2)
            return [Wall(quarter % _EIGHTHS, start, middle), Wall(across % _EIGHTHS, middle, stop)]
        return [Wall(quarter % _EIGHTHS, start, stop)]

    def corners(self, walls: list[Wall]) -> Floats:
        """Return where each wall meets the next: (W, 2)."""
        heading = np.array([wall.heading for wall in walls])
        offset = np.array([self.offset(wall) for wall in walls])
        after, offset_after = np.roll(heading, -1), np.roll(offset, -1)
        sine = _SIN[(after - heading) % _EIGHTHS]
        x = (_COS[after] * offset - _COS[heading] * offset_after) / sine
        y = (_SIN[after] * offset - _SIN[heading] * offset_after) / sine
        return np.column_stack([x, y])


def right_angled(course: Course, tolerance: float, shortest: float, diagonals: bool) -> Floats | None:
    """Return the corners (K, 2) of a ring without walls below ``shortest``, or None where no ring is left.

    Args:
        course: the raw ring, in the frame of its main direction.
        tolerance: how far walls may lie beside the raw ring before they are split, in its units.
        shortest: walls below this length are given to their neighbours, the shortest first.
        diagonals: whether walls at 45° are allowed.
    """
    walls = course.walls(tolerance, diagonals)
    while len(walls) >= 3:
        corners = course.corners(walls)
        begin = np.roll(corners, 1, axis=0)
        heading = np.array([wall.heading for wall in walls])
        length = (corners[:, 0] - begin[:, 0]) * _COS[heading] + (corners[:, 1] - begin[:, 1]) * _SIN[heading]
        least = int(np.argmin(length))
        if length[least] >= shortest:
            return corners
        walls = _joined(_without(walls, least, len(course)))
    return None


def _without(walls: list[Wall], index: int, points: int) -> list[Wall]:
    """Return the walls with one gone, half of its stretch given to either neighbour."""
    gone = walls[index]
    half = (gone.stop - gone.start) // 2
    before, after = (index - 1) % len(walls), (index + 1) % len(walls)
    walls = list(walls)
    walls[before] = replace(walls[before], stop=walls[before].stop + half)
    walls[after] = replace(walls[after], start=walls[after].start - (gone.stop - gone.start - half))
    del walls[index]
    return [_from_within(wall, points) for wall in walls]


def _from_within(wall: Wall, points: int) -> Wall:
    """Return the same stretch with its start within the ring's first round."""
    shift = wall.start // points * points
    return replace(wall, start=wall.start - shift, stop=wall.stop - shift)


def _joined(walls: list[Wall]) -> list[Wall]:
    """Return walls of which no two neighbours are parallel: one heading makes one wall, and spikes go."""
    result: list[Wall] = []
    for wall in walls:
        if result and (result[-1].heading - wall.heading) % (_EIGHTHS // 2) == 0:
            result[-1] = _either(result[-1], wall)
        else:
            result.append(wall)
    while len(result) > 1 and (result[-1].heading - result[0].heading) % (_EIGHTHS // 2) == 0:
        last = result.pop()
        result[0] = _either(last, result[0])
    return result


def _either(one: Wall, other: Wall) -> Wall:
    """Return one wall for two parallel neighbours, with the heading of the longer stretch."""
    longer = one if one.stop - one.start >= other.stop - other.start else other
    return Wall(longer.heading, one.start, one.stop + other.stop - other.start)
