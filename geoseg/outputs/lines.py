"""Features as lines of GeoJSON: by plain Python for few points, by compiled loops for many, in the same bytes."""

from __future__ import annotations

from itertools import accumulate, chain, pairwise

import numpy as np

from geoseg.outputs.decimals import text_of
from geoseg.outputs.outlines import Outlines

# From this many points of a file on, compiled loops are worth importing numba and loading their machine code.
COMPILED_FROM = 100_000

_POLYGON = b'{"type":"Polygon","coordinates":'
_MULTIPOLYGON = b'{"type":"MultiPolygon","coordinates":['


def lines_of(heads: list[bytes], outlines: Outlines, between: bytes, compiled: bool) -> memoryview:
    """Return features one after the other.

    Args:
        heads: (N,) what stands before each geometry: ``{"type":"Feature",…,"geometry":``.
        outlines: N geometries, none of them empty.
        between: what stands between features.
        compiled: whether by compiled loops; the bytes are the same.
    """
    if compiled:
        return _compiled_lines(heads, outlines, between)
    return memoryview(between.join(_plain_lines(heads, outlines)))


def _compiled_lines(heads: list[bytes], outlines: Outlines, between: bytes) -> memoryview:
    from geoseg.outputs.compiled import write_lines

    words = tuple(np.frombuffer(word, np.uint8) for word in (_POLYGON, _MULTIPOLYGON, between))
    head_bytes = np.frombuffer(b"".join(heads), np.uint8)
    out = np.empty(_most_bytes(len(head_bytes), outlines, len(between)), np.uint8)
    used = write_lines(
        out,
        head_bytes,
        np.fromiter(accumulate(map(len, heads)), np.int64, len(heads)),
        words,
        outlines.points,
        outlines.decimals,
        outlines.rings,
        outlines.polygons,
        outlines.first,
        outlines.stop,
        outlines.backwards(),
    )
    return out[:used].data


def _most_bytes(heads: int, outlines: Outlines, between: int) -> int:
    """Return a bound on the bytes of all features."""
    largest = int(np.abs(outlines.points).max(initial=0)) // 10**outlines.decimals
    number = 2 + len(str(largest)) + outlines.decimals  # sign and point
    points = len(outlines.points) * (2 * number + 4)
    brackets = 3 * (len(outlines.rings) + len(outlines.polygons))
    return heads + points + brackets + len(outlines) * (between + len(_MULTIPOLYGON) + 4)


def _plain_lines(heads: list[bytes], outlines: Outlines) -> list[bytes]:
    points, decimals = outlines.points.tolist(), outlines.decimals
    spans = zip(outlines.rings[:-1].tolist(), outlines.rings[1:].tolist(), outlines.backwards().tolist(), strict=True)
    rings = [_ring_text(points[a:b][::-1] if turn else points[a:b], decimals) for a, b, turn in spans]
    polygons = [f"[{','.join(rings[a:b])}]" for a, b in pairwise(outlines.polygons.tolist())]
    features = zip(heads, outlines.first.tolist(), outlines.stop.tolist(), strict=True)
    return [
        head + _POLYGON + polygons[first].encode() + b"}}"
        if stop - first == 1
        else head + _MULTIPOLYGON + ",".join(polygons[first:stop]).encode() + b"]}}"
        for head, first, stop in features
    ]


def _ring_text(ring: list[list[int]], decimals: int) -> str:
    numbers = [text_of(units, decimals) for units in chain.from_iterable(ring)]
    return "[" + ",".join(f"[{x},{y}]" for x, y in zip(numbers[::2], numbers[1::2], strict=True)) + "]"
