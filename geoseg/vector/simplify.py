"""Simpler outlines that still meet: every border is simplified once, whichever polygon it is seen from.

Rings are cut into *arcs* at nodes: the corners where three or four areas meet, and those of the raster itself.  An arc
is simplified from its own shape and the label raster under it alone, in one direction that its two ends settle; so both
neighbours get the same vertices, and neither the blocks of the run nor the order of the polygons can matter.

A chord may replace the stretch of an arc between two of its points if the stretch stays within the tolerance of it
(Douglas, Peucker 1973) and if nothing else is in the way: no corner of the raster at which labels meet, but those on
the stretch itself, may lie in what the border sweeps when it moves to the chord.  That is enough for no two chords ever
to cross.  Where they crossed, what the two sweep would overlap; neither stretch reaches into what the other sweeps,
since it would have a corner there; so the overlap would be bounded by two straight segments alone, which bound nothing.
Topology is therefore kept: no gap, no overlap, no ring that touches itself where it did not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.compiling import compiled
from geoseg.vector.pixel_polygons import PixelPolygons
from geoseg.vector.polygons import NOTHING


def simplified(
    polygons: PixelPolygons,
    labels: NDArray[np.uint8],
    *,
    tolerance_m: float,
    pixel_m: tuple[float, float],
    smooth: bool = False,
) -> PixelPolygons:
    """Return polygons with simpler outlines, which form a coverage as the given ones did.

    Args:
        polygons: from :func:`geoseg.vector.polygons.polygonize` with the labels given here.
        labels: (H, W) uint8, the whole raster, :data:`geoseg.vector.polygons.NOTHING` where there are no polygons.
            It may lie in a file (``numpy.memmap``): only what is near an outline is read.
        tolerance_m: how far an outline may move, in ground metres; 0 only takes out what lies on straight lines.
        pixel_m: ground width and height of a pixel, in metres.
        smooth: cut the corners of pixels half a pixel from each turn, so that stairs become slopes.
    """
    corners, starts = _simplify(
        polygons.corners.astype(np.int32),
        polygons.ring_starts,
        np.asarray(labels),
        float(tolerance_m),
        float(pixel_m[0]),
        float(pixel_m[1]),
        smooth,
    )
    return replace(polygons, corners=corners, ring_starts=starts)


@compiled
def _code(labels: Any, row: int, col: int) -> int:
    if row < 0 or col < 0 or row >= labels.shape[0] or col >= labels.shape[1]:
        return NOTHING
    return labels[row, col]


@compiled
def _changes(labels: Any, x: int, y: int) -> int:
    """How often the label changes on the way round a lattice corner: 0, 2, 3 or 4; from 3 on it is a node."""
    a, b = _code(labels, y - 1, x - 1), _code(labels, y - 1, x)
    c, d = _code(labels, y, x), _code(labels, y, x - 1)
    return (a != b) + (b != c) + (c != d) + (d != a)


@compiled
def _is_node(labels: Any, x: int, y: int) -> bool:
    """Whether an arc ends at a lattice corner: where three or four areas meet, and at the corners of the raster."""
    height, width = labels.shape
    return _changes(labels, x, y) > 2 or ((x == 0 or x == width) and (y == 0 or y == height))


@compiled
def _before(ax: int, ay: int, bx: int, by: int) -> bool:
    return ay < by or (ay == by and ax < bx)


@compiled
def _path_of(corners: Any, smooth: bool, path: Any, stops: Any) -> Any:
    """Lay out an arc in half pixels, and say which of its points a chord may begin or end at.

    Args:
        corners: (n, 2) turns of the arc from end to end, in pixels.
        smooth: whether the stops are half a pixel from the turns rather than the turns themselves.
        path: (≥ 3 n, 2) int64, where the points go.
        stops: (≥ 3 n) bool, where it is kept which may stay.

    Returns:
        How many points there are.
    """
    count = 0
    last = len(corners) - 1
    for i in range(last + 1):
        path[count, 0], path[count, 1] = 2 * corners[i, 0], 2 * corners[i, 1]
        stops[count] = not smooth or i == 0 or i == last
        count += 1
        if smooth and i < last:
            dx, dy = corners[i + 1, 0] - corners[i, 0], corners[i + 1, 1] - corners[i, 1]
            length = abs(dx) + abs(dy)
            ux, uy = np.sign(dx), np.sign(dy)
            path[count, 0], path[count, 1] = 2 * corners[i, 0] + ux, 2 * corners[i, 1] + uy
            stops[count] = True
            count += 1
            if length > 1:
                path[count, 0], path[count, 1] = 2 * corners[i + 1, 0] - ux, 2 * corners[i + 1, 1] - uy
                stops[count] = True
                count += 1
    return count


@compiled
def _distance(px: float, py: float, ax: float, ay: float, bx: float, by: float) -> float:
    """Squared distance of a point from a segment."""
    dx, dy = bx - ax, by - ay
    length = dx * dx + dy * dy
    share = 0.0
    if length > 0:
        share = min(1.0, max(0.0, ((px - ax) * dx + (py - ay) * dy) / length))
    ex, ey = px - ax - share * dx, py - ay - share * dy
    return ex * ex + ey * ey


@compiled
def _is_clear(  # noqa: C901 - one loop for speed
    path: Any, first: int, last: int, labels: Any, low: Any, high: Any
) -> bool:
    """Whether nothing but the stretch itself meets what it sweeps on its way to the chord between its ends.

    Looked at is, in every row of lattice corners, all between the leftmost and the rightmost of stretch and chord.
    """
    top = bottom = path[first, 1]
    for k in range(first, last + 1):
        top, bottom = min(top, path[k, 1]), max(bottom, path[k, 1])
    top, bottom = (top + 1) // 2, bottom // 2  # rows of lattice corners
    for row in range(top, bottom + 1):
        low[row - top], high[row - top] = 1 << 40, -(1 << 40)
    own = 0
    for k in range(first, last):
        ax, ay, bx, by = path[k, 0], path[k, 1], path[k + 1, 0], path[k + 1, 1]
        if ax == bx:
            down, up = (ay, by) if ay < by else (by, ay)
            for row in range((down + 1) // 2, up // 2 + 1):
                low[row - top], high[row - top] = min(low[row - top], ax), max(high[row - top], ax)
            if ax % 2 == 0:
                own += up // 2 - (down + 1) // 2 + 1
                own -= by % 2 == 0 and k + 1 < last
        else:
            left, right = (ax, bx) if ax < bx else (bx, ax)
            if ay % 2 == 0:
                row = ay // 2 - top
                low[row], high[row] = min(low[row], left), max(high[row], right)
                own += right // 2 - (left + 1) // 2 + 1
                own -= bx % 2 == 0 and k + 1 < last
    ax, ay, bx, by = path[first, 0], path[first, 1], path[last, 0], path[last, 1]
    if ay > by:
        ax, ay, bx, by = bx, by, ax, ay
    if ay == by:
        if ay % 2 == 0:
            row = ay // 2 - top
            low[row], high[row] = min(low[row], ax, bx), max(high[row], ax, bx)
    else:
        for row in range((ay + 1) // 2, by // 2 + 1):
            # Rounded outwards, exactly: floor and ceiling of a fraction.
            over = (bx - ax) * (2 * row - ay)
            low[row - top] = min(low[row - top], ax + over // (by - ay))
            high[row - top] = max(high[row - top], ax - (-over // (by - ay)))
    for row in range(top, bottom + 1):
        for col in range((low[row - top] + 1) // 2, high[row - top] // 2 + 1):
            if _changes(labels, col, row) > 0:
                own -= 1
                if own < 0:
                    return False
    return own == 0


@compiled
def _meets_again(labels: Any, path: Any, count: int, limit: float, wide: float, high: float, smooth: bool) -> bool:
    """Whether another arc joins the same two nodes as this one without leaving the chord by more than the tolerance.

    Both as chords would be one and the same, with nothing left between them.
    """
    ax, ay = path[0, 0] // 2, path[0, 1] // 2
    bx, by = path[count - 1, 0] // 2, path[count - 1, 1] // 2
    own = _heading(path[count - 2, 0] - path[count - 1, 0], path[count - 2, 1] - path[count - 1, 1])
    for start in range(4):
        if start == own or not _is_crack(labels, bx, by, start):
            continue
        x, y, heading = bx, by, start
        while True:
            dx, dy = (heading == 0) - (heading == 2), (heading == 1) - (heading == 3)
            x += dx
            y += dy
            if x == ax and y == ay:
                return True
            if _is_node(labels, x, y):
                break
            if _is_crack(labels, x, y, heading):
                continue
            heading = (heading + 1) & 3 if _is_crack(labels, x, y, (heading + 1) & 3) else (heading + 3) & 3
            # What would stay of a turn: the corner, or the points half a pixel before and behind it.
            out_x, out_y = (heading == 0) - (heading == 2), (heading == 1) - (heading == 3)
            gap = _distance(x * wide, y * high, ax * wide, ay * high, bx * wide, by * high)
            if smooth:
                before = _distance((x - dx / 2) * wide, (y - dy / 2) * high, ax * wide, ay * high, bx * wide, by * high)
                behind = _distance(
                    (x + out_x / 2) * wide, (y + out_y / 2) * high, ax * wide, ay * high, bx * wide, by * high
                )
                gap = max(before, behind)
            if gap > limit:
                break
    return False


@compiled
def _heading(dx: int, dy: int) -> int:
    if dx != 0:
        return 0 if dx > 0 else 2
    return 1 if dy > 0 else 3


@compiled
def _is_crack(labels: Any, x: int, y: int, heading: int) -> bool:
    """Whether labels differ across the edge that leaves a lattice corner in a direction (0 east, 1 south, …)."""
    if heading == 0:
        return _code(labels, y - 1, x) != _code(labels, y, x)
    if heading == 1:
        return _code(labels, y, x - 1) != _code(labels, y, x)
    if heading == 2:
        return _code(labels, y - 1, x - 1) != _code(labels, y, x - 1)
    return _code(labels, y - 1, x - 1) != _code(labels, y - 1, x)


@compiled
def _farthest(path: Any, stops: Any, first: int, last: int, wide: float, high: float) -> Any:
    """Return the stop farthest from the chord between two others, the first of equals, and its squared distance.

    -1 where there is none.
    """
    ax, ay, bx, by = path[first, 0] * wide, path[first, 1] * high, path[last, 0] * wide, path[last, 1] * high
    found, most = -1, -1.0
    for k in range(first + 1, last):
        if stops[k]:
            gap = _distance(path[k, 0] * wide, path[k, 1] * high, ax, ay, bx, by)
            if gap > most:
                found, most = k, gap
    return found, most


@compiled
def _thin(
    path: Any, stops: Any, count: int, labels: Any, limit: float, wide: float, high: float, smooth: bool, keep: Any
) -> None:
    """Mark in ``keep`` the stops of an arc that stay; a ring or a loop begins and ends at one point."""
    stack = np.empty((64 + count, 2), np.int64)
    for k in range(count):
        keep[k] = False
    keep[0] = keep[count - 1] = True
    lowest, highest = path[0, 1], path[0, 1]
    for k in range(count):
        lowest, highest = min(lowest, path[k, 1]), max(highest, path[k, 1])
    low = np.empty((highest - lowest) // 2 + 2, np.int64)
    up = np.empty_like(low)
    depth = 0
    whole = path[0, 0] == path[count - 1, 0] and path[0, 1] == path[count - 1, 1]
    if whole:
        # A ring keeps four corners at least, so that it always encloses something.
        far, _ = _farthest(path, stops, 0, count - 1, wide, high)
        keep[far] = True
        for first, last in ((0, far), (far, count - 1)):
            middle, _ = _farthest(path, stops, first, last, wide, high)
            if middle >= 0:
                keep[middle] = True
                stack[depth], stack[depth + 1] = (first, middle), (middle, last)
                depth += 2
    else:
        stack[0] = (0, count - 1)
        depth = 1
    while depth:
        depth -= 1
        first, last = stack[depth]
        middle, gap = _farthest(path, stops, first, last, wide, high)
        if middle < 0:
            continue
        collapses = gap <= limit and _is_clear(path, first, last, labels, low, up)
        if collapses and not whole and first == 0 and last == count - 1:
            collapses = not _meets_again(labels, path, count, limit, 2 * wide, 2 * high, smooth)
        if not collapses:
            keep[middle] = True
            stack[depth] = (first, middle)
            stack[depth + 1] = (middle, last)
            depth += 2


@compiled
def _simplify(
    corners: Any, starts: Any, labels: Any, tolerance: float, pixel_wide: float, pixel_high: float, smooth: bool
) -> Any:
    """Simplify closed rings; returns their corners in pixels (float64) and starts, closed and turned as before."""
    out = np.empty((len(corners) * (2 if smooth else 1) + 8, 2), np.float64)
    offsets = np.zeros(len(starts), np.int64)
    # What lies on a straight line may be off by a rounding.
    limit = (tolerance + 1e-9 * min(pixel_wide, pixel_high)) ** 2
    wide, high = pixel_wide / 2, pixel_high / 2
    used = 0
    for ring in range(len(starts) - 1):
        begin, size = starts[ring], starts[ring + 1] - starts[ring] - 1
        first_node = -1
        for k in range(size):
            if _is_node(labels, corners[begin + k, 0], corners[begin + k, 1]):
                first_node = k
                break
        origin = max(first_node, 0)
        turned = np.empty((size + 1, 2), np.int64)
        for k in range(size + 1):
            turned[k, 0] = corners[begin + (origin + k) % size, 0]
            turned[k, 1] = corners[begin + (origin + k) % size, 1]
        ring_start = used
        arc_start = 0
        for k in range(1, size + 1):
            if k < size and (first_node < 0 or not _is_node(labels, turned[k, 0], turned[k, 1])):
                continue
            arc = turned[arc_start : k + 1]
            used = _add_arc(arc, labels, limit, wide, high, smooth, first_node < 0, out, used)
            arc_start = k
        used = _close(out, ring_start, used)
        offsets[ring + 1] = used
    return out[:used].copy(), offsets


@compiled
def _add_arc(
    arc: Any, labels: Any, limit: float, wide: float, high: float, smooth: bool, is_ring: bool, out: Any, used: int
) -> int:
    """Append what stays of an arc, but for its last point, to ``out``; returns the new length."""
    last = len(arc) - 1
    backwards = _before(arc[last, 0], arc[last, 1], arc[0, 0], arc[0, 1])
    if arc[0, 0] == arc[last, 0] and arc[0, 1] == arc[last, 1]:
        backwards = _before(arc[last - 1, 0], arc[last - 1, 1], arc[1, 0], arc[1, 1])
    shape = arc[::-1].copy() if backwards else arc.copy()
    path = np.empty((3 * (last + 1), 2), np.int64)
    stops = np.zeros(3 * (last + 1), np.bool_)
    count = _path_of(shape, smooth, path, stops)
    if is_ring and smooth:
        # A ring has no end that must stay: it begins half a pixel behind its first corner.
        path[count], stops[count] = path[1], True
        path, stops = path[1 : count + 1], stops[1 : count + 1]
        stops[count - 2] = False
    keep = np.zeros(len(stops), np.bool_)
    _thin(path, stops, count, labels, limit, wide, high, smooth, keep)
    step = -1 if backwards else 1
    k = count - 1 if backwards else 0
    for _ in range(count - 1):
        if keep[k]:
            out[used, 0], out[used, 1] = path[k, 0] / 2, path[k, 1] / 2
            used += 1
        k += step
    return used


@compiled
def _close(out: Any, begin: int, end: int) -> int:
    """Take out what lies on a straight line, turn the ring to its topmost, then leftmost corner, and close it."""
    first = begin
    for k in range(begin, end):
        if out[k, 1] < out[first, 1] or (out[k, 1] == out[first, 1] and out[k, 0] < out[first, 0]):
            first = k
    turned = np.empty((end - begin, 2), np.float64)
    for k in range(end - begin):
        turned[k] = out[begin + (first - begin + k) % (end - begin)]
    out[begin:end] = turned
    out[end] = turned[0]
    return end + 1
