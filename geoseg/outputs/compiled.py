"""The inner loops of writing GeoJSON, compiled on first use and kept on disk.

Importing this module imports numba, which takes a while: do so only for outputs that are worth it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geoseg.compiling import compiled

# Rings of more points are left to the library, whose effort grows less than with the square of their number.
_MOST_POINTS = 128
# Differences below this have products of which two fit into 64 bits.
_MOST_UNITS = 1 << 30

_MINUS, _POINT, _COMMA, _OPEN, _CLOSE, _BRACE, _ZERO = (ord(sign) for sign in "-.,[]}0")


@compiled
def surely_valid(points: NDArray[np.int64], rings: NDArray[np.int64], polygons: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which polygons are valid beyond doubt: one short ring whose edges meet at their common ends alone.

    Exact, since points are whole numbers.  A polygon that is not among them may be valid too.

    Args:
        points: (P, 2) int64.
        rings: (R + 1,) offsets of rings in ``points``; each ends with its first point.
        polygons: (N + 1,) offsets of polygons in ``rings``.

    Returns:
        (N,) bool.
    """
    sure = np.zeros(len(polygons) - 1, np.bool_)
    for polygon in range(len(sure)):
        ring = polygons[polygon]
        if polygons[polygon + 1] - ring == 1:
            sure[polygon] = _is_simple(points[rings[ring] : rings[ring + 1]])
    return sure


@compiled
def _is_simple(ring: NDArray[np.int64]) -> bool:
    edges = len(ring) - 1
    if edges < 3 or edges > _MOST_POINTS:
        return False
    for i in range(edges):
        if abs(ring[i, 0] - ring[0, 0]) >= _MOST_UNITS or abs(ring[i, 1] - ring[0, 1]) >= _MOST_UNITS:
            return False
    for i in range(edges):
        ax, ay, bx, by = ring[i, 0], ring[i, 1], ring[i + 1, 0], ring[i + 1, 1]
        if ax == bx and ay == by:
            return False
        # The next edge must not run back along this one.
        after = i + 2 if i + 2 <= edges else 1
        dx, dy, ex, ey = bx - ax, by - ay, ring[after, 0] - bx, ring[after, 1] - by
        if dx * ey == dy * ex and (dx * ex < 0 or dy * ey < 0):
            return False
        left, right = min(ax, bx), max(ax, bx)
        low, high = min(ay, by), max(ay, by)
        for j in range(i + 2, edges - 1 if i == 0 else edges):
            cx, cy, fx, fy = ring[j, 0], ring[j, 1], ring[j + 1, 0], ring[j + 1, 1]
            if max(cx, fx) < left or min(cx, fx) > right or max(cy, fy) < low or min(cy, fy) > high:
                continue
            c_side = _sign(dx * (cy - ay) - dy * (cx - ax))
            f_side = _sign(dx * (fy - ay) - dy * (fx - ax))
            if c_side * f_side > 0:
                continue
            gx, gy = fx - cx, fy - cy
            a_side = _sign(gx * (ay - cy) - gy * (ax - cx))
            b_side = _sign(gx * (by - cy) - gy * (bx - cx))
            if a_side * b_side <= 0:
                return False
    return True


@compiled
def _sign(value: int) -> int:
    return 1 if value > 0 else (-1 if value < 0 else 0)


@compiled
def write_lines(
    out: NDArray[np.uint8],
    heads: NDArray[np.uint8],
    head_stops: NDArray[np.int64],
    words: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]],
    points: NDArray[np.int64],
    decimals: int,
    rings: NDArray[np.int64],
    polygons: NDArray[np.int64],
    first: NDArray[np.int64],
    stop: NDArray[np.int64],
    backwards: NDArray[np.bool_],
) -> int:
    """Write features one after the other into ``out``, which must be large enough, and return the bytes used.

    Args:
        out: the bytes to fill.
        heads: what stands before each feature's geometry, one after the other.
        head_stops: (N,) where each ends.
        words: what opens a polygon and a multipolygon up to the bracket of its coordinates, and what stands between
            features.
        points: see :class:`geoseg.outputs.outlines.Outlines`, for all that follow.
        decimals: of ``points``.
        rings: offsets.
        polygons: offsets.
        first: (N,).
        stop: (N,).
        backwards: (R,) which rings are written backwards.
    """
    unit = np.int64(10) ** decimals
    at, head = 0, 0
    for feature in range(len(first)):
        if feature:
            at = _copy(out, at, words[2])
        at = _copy(out, at, heads[head : head_stops[feature]])
        head = head_stops[feature]
        several = stop[feature] - first[feature] > 1
        at = _copy(out, at, words[1] if several else words[0])
        for polygon in range(first[feature], stop[feature]):
            if polygon > first[feature]:
                at = _put(out, at, _COMMA)
            at = _put(out, at, _OPEN)
            for ring in range(polygons[polygon], polygons[polygon + 1]):
                if ring > polygons[polygon]:
                    at = _put(out, at, _COMMA)
                at = _ring(out, at, points[rings[ring] : rings[ring + 1]], backwards[ring], decimals, unit)
            at = _put(out, at, _CLOSE)
        if several:
            at = _put(out, at, _CLOSE)
        at = _put(out, _put(out, at, _BRACE), _BRACE)
    return at


@compiled
def _ring(out: NDArray[np.uint8], at: int, ring: NDArray[np.int64], backwards: bool, decimals: int, unit: int) -> int:
    count = len(ring)
    at = _put(out, at, _OPEN)
    for nth in range(count):
        place = count - 1 - nth if backwards else nth
        if nth:
            at = _put(out, at, _COMMA)
        at = _number(out, _put(out, at, _OPEN), ring[place, 0], decimals, unit)
        at = _number(out, _put(out, at, _COMMA), ring[place, 1], decimals, unit)
        at = _put(out, at, _CLOSE)
    return _put(out, at, _CLOSE)


@compiled
def _number(out: NDArray[np.uint8], at: int, units: int, decimals: int, unit: int) -> int:
    if units < 0:
        at = _put(out, at, _MINUS)
        units = -units
    whole = units // unit
    fraction = units - whole * unit
    digits, rest = 1, whole // 10
    while rest:
        digits, rest = digits + 1, rest // 10
    at = _digits(out, at, whole, digits)
    if fraction:
        digits = decimals
        while fraction % 10 == 0:
            digits, fraction = digits - 1, fraction // 10
        at = _digits(out, _put(out, at, _POINT), fraction, digits)
    return at


@compiled
def _digits(out: NDArray[np.uint8], at: int, number: int, digits: int) -> int:
    for place in range(at + digits - 1, at - 1, -1):
        rest = number // 10
        out[place] = _ZERO + number - 10 * rest
        number = rest
    return at + digits


@compiled
def _put(out: NDArray[np.uint8], at: int, sign: int) -> int:
    out[at] = sign
    return at + 1


@compiled
def _copy(out: NDArray[np.uint8], at: int, text: NDArray[np.uint8]) -> int:
    for nth in range(len(text)):
        out[at + nth] = text[nth]
    return at + len(text)
