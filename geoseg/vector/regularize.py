"""Right-angled outlines, for buildings."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.vector.right_angles import Course, Floats, main_direction, right_angled

# No wall is shorter than this, unless it is a few pixels, below which a raster knows nothing.
SHORTEST_M = 1.5
SHORTEST_PX = 3.0
# An outline that agrees less than this with the raw one is not taken.
LEAST_IOU = 0.7
# The area may change by this share before it is set right by scaling.
_AREA_CHANGE = 0.06
# A corner must be worth this much IoU, and diagonal walls that much together.
_CORNER = 0.004
_DIAGONALS = 0.012
# Outlines whose corners are this near each other are not both compared with the raw one.
_ALIKE_PX = 0.2
# Tolerances tried, as shares of the shortest wall.
_TOLERANCES = (0.75, 0.5, 0.35)
# Cutting rounds coordinates: results may still overlap by this many square pixels.
OVERLAP_PX = 1e-6
# No outline reaches further than this above the raw one, so that it is known early which polygons will not meet.
REACH_PX = 64.0


def regularize(
    polygons: NDArray[Any], pixel_m: float, *, shortest_m: float = SHORTEST_M, diagonals: bool = True
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return polygons with straight walls at right angles in place of raw ones, and how well they agree.

    Each polygon gets a main direction; its walls run along it, across it or, where the outline asks for it, at 45°.
    Holes and area are kept.  Where two results would overlap, the later polygon in the array loses the overlap, or
    keeps its raw outline if too little is left of it; raw outlines stay off earlier results too.  A polygon for
    which no right-angled outline is good enough keeps the raw one.  The results depend on nothing but the polygons and
    their order.

    Results overlap other classes and leave gaps between neighbours: they are no longer parts of one coverage.

    Args:
        polygons: (N,) valid shapely polygons that do not overlap, in coordinates whose unit is a square pixel's side.
        pixel_m: ground length of that side in metres.
        shortest_m: the shortest wall in metres; never below three pixels.
        diagonals: whether walls at 45° are allowed.

    Returns:
        (N,) shapely polygons, and (N,) float64 intersection over union of each with its raw outline: 1 where that was
        kept.
    """
    return Regularizer(pixel_m, shortest_m=shortest_m, diagonals=diagonals).add(polygons)


class Regularizer:
    """What :func:`regularize` does, for polygons that come in batches, with the same results for any batches.

    It keeps the polygons that later ones may still meet.

    Args:
        pixel_m: ground length of a square pixel's side in metres.
        shortest_m: the shortest wall in metres; never below three pixels.
        diagonals: whether walls at 45° are allowed.
    """

    def __init__(self, pixel_m: float, *, shortest_m: float = SHORTEST_M, diagonals: bool = True) -> None:
        self._shortest = max(shortest_m / pixel_m, SHORTEST_PX)
        self._diagonals = diagonals
        # Raw, wanted and final outlines of what later polygons may meet, in order, and how far down each reaches.
        self._kept = np.empty((3, 0), object)
        self._bottom = np.empty(0)

    def __len__(self) -> int:
        """Return how many polygons are kept."""
        return len(self._bottom)

    def add(self, polygons: NDArray[Any], top: float = -np.inf) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Return the right-angled outlines of the next polygons.

        Args:
            polygons: as in :func:`regularize`, after all that came before in the order.
            top: no polygon of this batch or a later one reaches above this y (y points down).

        Returns:
            As :func:`regularize`.
        """
        if not len(polygons):
            return polygons, np.zeros(0)
        near = self._bottom >= top - REACH_PX
        before = self._kept[:, near]
        wanted = _best_outlines(polygons, self._shortest, self._diagonals)
        results = _without_overlaps(
            np.concatenate([before[0], polygons]), np.concatenate([before[1], wanted]), before[2]
        )[before.shape[1] :]
        self._kept = np.concatenate([before, np.stack([polygons, wanted, results])], axis=1)
        self._bottom = shapely.bounds(self._kept)[:, :, 3].max(axis=0)
        return results, iou(polygons, results)


def iou(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Return the intersection over union of N pairs of polygons, 1 for equal ones."""
    common = shapely.area(shapely.intersection(one, other))
    return np.minimum(common / (shapely.area(one) + shapely.area(other) - common), 1.0)


def _best_outlines(polygons: NDArray[Any], shortest: float, diagonals: bool) -> NDArray[Any]:
    """Return for each polygon the right-angled outline with the best score, or the polygon itself."""
    found = [_candidates(polygon, shortest, diagonals) for polygon in polygons]
    owner = np.repeat(np.arange(len(polygons)), [len(candidates) for candidates in found])
    candidates = np.empty(len(owner), object)
    candidates[:] = [outline for several in found for outline, _ in several]
    penalty = np.array([penalty for several in found for _, penalty in several])
    agreement = np.zeros(len(owner))
    reach = shapely.bounds(polygons[owner])[:, 1] - shapely.bounds(candidates)[:, 1]
    valid = shapely.is_valid(candidates) & (reach < REACH_PX)
    agreement[valid] = iou(polygons[owner[valid]], candidates[valid])
    results = polygons.copy()
    best = np.full(len(polygons), -np.inf)
    for nth in np.flatnonzero(agreement >= LEAST_IOU):
        score = agreement[nth] - penalty[nth]
        if score > best[owner[nth]]:
            results[owner[nth]], best[owner[nth]] = candidates[nth], score
    return results


def _candidates(polygon: Any, shortest: float, diagonals: bool) -> list[tuple[Any, float]]:
    """Return right-angled outlines with the area of a polygon, perhaps invalid, and what their corners cost."""
    angle = main_direction(polygon, shortest / 2)
    turned = _turned(polygon, -angle)
    rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(turned)]
    courses = [Course(ring) for ring in rings]
    outlines = [(_box_like(turned), 0.0)]
    for tolerance in (share * shortest for share in _TOLERANCES):
        outlines.append((_of_courses(courses, tolerance, shortest, False), 0.0))
        if diagonals and any(course.has_diagonals(tolerance) for course in courses):
            outlines.append((_of_courses(courses, tolerance, shortest, True), _DIAGONALS))
    result: list[tuple[Any, float]] = []
    for outline, penalty in outlines:
        outline = None if outline is None else _with_area(outline, turned.area)
        if outline is None:
            continue
        outline = _turned(outline, angle)
        if not any(_are_alike(outline, other) for other, _ in result):
            corners = shapely.get_num_coordinates(outline) - len(rings)
            result.append((outline, penalty + _CORNER * corners))
    return result


def _are_alike(one: Any, other: Any) -> bool:
    """Whether two outlines have the same corners but for a fraction of a pixel."""
    return bool(shapely.equals_exact(one, other, tolerance=_ALIKE_PX))


def _of_courses(courses: list[Course], tolerance: float, shortest: float, diagonals: bool) -> Any | None:
    """Return a polygon with all its holes, or None; a hole without a right-angled outline keeps its raw one."""
    shell, *holes = [right_angled(course, tolerance, shortest, diagonals) for course in courses]
    if shell is None:
        return None
    kept = [course.ring if hole is None else hole for course, hole in zip(courses[1:], holes, strict=True)]
    return shapely.Polygon(shell, kept)


def _box_like(polygon: Any) -> Any | None:
    """Return a polygon's bounding box, made smaller around its centre to its area; None if it has holes."""
    if shapely.get_num_interior_rings(polygon):
        return None
    box = shapely.box(*polygon.bounds)
    shift = np.array(polygon.centroid.coords[0]) - np.array(box.centroid.coords[0])
    shrink = np.sqrt(polygon.area / box.area)
    return shapely.transform(_scaled(box, shrink), lambda xy: xy + shift)


def _with_area(polygon: Any, area: float) -> Any | None:
    """Return a polygon scaled to an area, or None if its own is too far off."""
    own = float(polygon.area)
    return _scaled(polygon, float(np.sqrt(area / own))) if own > 0 and abs(area - own) <= _AREA_CHANGE * own else None


def _scaled(polygon: Any, factor: float) -> Any:
    centre = np.array(polygon.centroid.coords[0])
    return shapely.transform(polygon, lambda xy: (xy - centre) * factor + centre)


def _turned(polygon: Any, angle: float) -> Any:
    cosine, sine = np.cos(angle), np.sin(angle)

    def turn(xy: Floats) -> Floats:
        return np.column_stack([cosine * xy[:, 0] - sine * xy[:, 1], sine * xy[:, 0] + cosine * xy[:, 1]])

    return shapely.transform(polygon, turn)


def _without_overlaps(raw: NDArray[Any], wanted: NDArray[Any], settled: NDArray[Any]) -> NDArray[Any]:
    """Return the wanted polygons, each without what earlier ones have taken; the first ones are ``settled`` already."""
    tree = shapely.STRtree(wanted)
    # A polygon may end up with its raw outline as well, so that one counts for who is near whom.
    near = [tree.query(shapes, predicate="intersects") for shapes in (wanted, raw)]
    pairs = np.unique(np.concatenate(near, axis=1), axis=1)
    later, earlier = np.concatenate([pairs, pairs[::-1]], axis=1)
    is_pair = earlier < later
    neighbours: dict[int, set[int]] = {}
    for one, other in zip(later[is_pair].tolist(), earlier[is_pair].tolist(), strict=True):
        neighbours.setdefault(one, set()).add(other)
    results = np.concatenate([settled, wanted[len(settled) :]])
    for index in sorted(number for number in neighbours if number >= len(settled)):
        taken = results[sorted(neighbours[index])]
        if shapely.area(shapely.intersection(results[index], taken)).max() > 0:
            results[index] = _first_good(raw[index], wanted[index], shapely.union_all(taken))
    return results


def _first_good(raw: Any, wanted: Any, taken: Any) -> Any:
    """Return the wanted polygon without what is taken if it still agrees with the raw one, else the raw one so."""
    for polygon in (wanted, raw):
        rest = shapely.difference(polygon, taken)
        parts = shapely.get_parts(rest)
        if len(parts):
            largest = parts[int(np.argmax(shapely.area(parts)))]
            if iou(raw, largest) >= LEAST_IOU or polygon is raw:
                return largest
    return raw
