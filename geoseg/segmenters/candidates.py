"""Where a scene is worth a closer look: boxes round what a coarse pass over an overview found.

The overview is the scene made smaller by a whole factor, its first pixel over the scene's first pixels.  Everything
here follows from the overview's probabilities alone, and the order of boxes from their position, so a run may do it
once, in one small task, before the boxes are looked at in any order.

Source: the recast of Yu et al. 2018 (arXiv 1709.04518) for scenes with many small targets; the paper has one box a
slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoseg.components import component_boxes
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.segmenters.saliency_settings import SaliencySettings


@dataclass(frozen=True)
class Candidates:
    """The boxes of a scene.

    Attributes:
        windows: in scene pixels, by position; they overlap only where a larger box was split.
        share: of the scene that is looked at, 0 to 1, before any splitting.
        everywhere: whether boxes would have covered too much, so that the windows cover the whole scene.
    """

    windows: tuple[Window, ...]
    share: float
    everywhere: bool


def candidates(
    probabilities: NDArray[np.floating], shape_yx: tuple[int, int], settings: SaliencySettings
) -> Candidates:
    """Return the boxes to be looked at: every overview pixel from the threshold on lies in one, as do its neighbours.

    Args:
        probabilities: (K, h, w) of the coarse network on the overview, not NaN.
        shape_yx: height and width of the scene in pixels.
        settings: how.

    Raises:
        ConfigError: the overview does not fit the scene.
    """
    return candidates_of(above(probabilities, settings.threshold), shape_yx, settings)


def candidates_of(found: NDArray[np.bool_], shape_yx: tuple[int, int], settings: SaliencySettings) -> Candidates:
    """Return the boxes of :func:`candidates` for a mask (h, w) of what the coarse network found.

    Raises:
        ConfigError: the mask does not fit the scene.
    """
    mask = grown(found)
    expected = tuple(-(-side // settings.factor) for side in shape_yx)
    if mask.shape != expected:
        raise ConfigError(
            f"the overview has {mask.shape[0]} × {mask.shape[1]} pixels, but a scene of {shape_yx[0]} × {shape_yx[1]} "
            f"made {settings.factor} times smaller has {expected[0]} × {expected[1]}: give the overview of this scene."
        )
    boxes = merged(boxes_of(mask, shape_yx, settings))
    share = sum(box.height * box.width for box in boxes) / (shape_yx[0] * shape_yx[1])
    everywhere = share > settings.most
    if everywhere:
        boxes, share = [Window(0, 0, *shape_yx)], 1.0
    parts = (part for box in boxes for part in split(box, settings.limit, settings.halo))
    return Candidates(tuple(sorted(parts)), share, everywhere)


def above(probabilities: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    """Return where any of the K targets of (K, h, w) is as probable as the threshold: (h, w)."""
    found: NDArray[np.bool_] = np.logical_or.reduce(probabilities >= threshold)
    return found


def grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask (h, w) with the eight neighbours of all its pixels."""
    for axis in (0, 1):
        wider = mask.copy()
        one, other = ((slice(None),) * axis + (part,) for part in (slice(1, None), slice(None, -1)))
        wider[one] |= mask[other]
        wider[other] |= mask[one]
        mask = wider
    return mask


def boxes_of(mask: NDArray[np.bool_], shape_yx: tuple[int, int], settings: SaliencySettings) -> list[Window]:
    """Return the box of each component of an overview's mask in scene pixels, with its margin, cut at the edge."""
    boxes = []
    for row, row_stop, col, col_stop in component_boxes(mask).tolist():
        rows, cols = (
            _with_margin(start * settings.factor, min(stop * settings.factor, side), side, settings)
            for start, stop, side in ((row, row_stop, shape_yx[0]), (col, col_stop, shape_yx[1]))
        )
        boxes.append(Window(rows[0], cols[0], rows[1] - rows[0], cols[1] - cols[0]))
    return sorted(boxes)


def _with_margin(start: int, stop: int, side: int, settings: SaliencySettings) -> tuple[int, int]:
    margin = max(settings.margin, math.ceil(settings.margin_share * (stop - start)))
    return max(0, start - margin), min(side, stop + margin)


def merged(boxes: Iterable[Window]) -> list[Window]:
    """Return boxes that do not overlap: those that do are replaced by the box round both, again and again.

    What comes out does not depend on the order, and is ordered by position.
    """
    found = sorted(set(boxes))
    while True:
        groups = _overlapping(found)
        if len(groups) == len(found):
            return found
        found = sorted(_round(found[i] for i in group) for group in groups)


def _overlapping(boxes: list[Window]) -> list[list[int]]:
    """Return the groups of boxes, ordered by their first rows, that overlap directly or through others."""
    edges = np.array([(box.row, box.row_stop, box.col, box.col_stop) for box in boxes], np.int64).reshape(-1, 4)
    parent = list(range(len(boxes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    # Those that begin before this one ends, and not before it begins.
    ends = np.searchsorted(edges[:, 0], edges[:, 1])
    for i, end in enumerate(ends.tolist()):
        later = edges[i + 1 : end]
        hits = np.flatnonzero((later[:, 2] < edges[i, 3]) & (later[:, 3] > edges[i, 2]))
        for j in (hits + i + 1).tolist():
            one, other = root(i), root(j)
            parent[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for i in range(len(boxes)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _round(boxes: Iterable[Window]) -> Window:
    """Return the box round some."""
    rows, cols, row_stops, col_stops = zip(*((b.row, b.col, b.row_stop, b.col_stop) for b in boxes), strict=True)
    return Window(min(rows), min(cols), max(row_stops) - min(rows), max(col_stops) - min(cols))


def split(box: Window, limit: int, halo: int) -> list[Window]:
    """Return the box, or parts of at most ``limit`` pixels a side that cover it and share ``2 · halo`` or more.

    There are as few as can be along each side, all equally large and evenly spread.
    """
    rows, cols = (_starts(start, side, limit, halo) for start, side in ((box.row, box.height), (box.col, box.width)))
    height, width = min(limit, box.height), min(limit, box.width)
    return [Window(row, col, height, width) for row in rows for col in cols]


def _starts(start: int, side: int, limit: int, halo: int) -> list[int]:
    if side <= limit:
        return [start]
    steps = -(-(side - limit) // (limit - 2 * halo))
    return [start + i * (side - limit) // steps for i in range(steps + 1)]


def overview_in(probabilities: NDArray[np.floating], factor: int, window: Window) -> NDArray[np.float32]:
    """Return the overview's probabilities at the scene's pixels of a window, bilinearly: (K, height, width) float32.

    A window gives exactly the values that the whole scene has there.

    Args:
        probabilities: (K, h, w) on the overview.
        factor: scene pixels along a side of one overview pixel.
        window: within the scene.
    """
    spans = ((window.row, window.row_stop), (window.col, window.col_stop))
    (above, below, down), (left, right, across) = (
        _neighbours(*span, factor, side) for span, side in zip(spans, probabilities.shape[1:], strict=True)
    )
    upper, lower = (probabilities[:, rows].astype(np.float32, copy=False) for rows in (above, below))
    lines = upper + (lower - upper) * down[:, None]
    found: NDArray[np.float32] = lines[:, :, left] + (lines[:, :, right] - lines[:, :, left]) * across
    return found


def overview_window(factor: int, window: Window, shape_yx: tuple[int, int]) -> Window:
    """Return the part of an overview of ``shape_yx`` pixels that decides the scene's pixels of a window."""
    spans = (
        (max(0, start // factor - 1), min(side, -(-stop // factor) + 1))
        for start, stop, side in zip(
            (window.row, window.col), (window.row_stop, window.col_stop), shape_yx, strict=True
        )
    )
    (row, row_stop), (col, col_stop) = spans
    return Window(row, col, row_stop - row, col_stop - col)


def _neighbours(
    start: int, stop: int, factor: int, side: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return, of each scene pixel, the overview pixels before and behind it and how near it is to the latter."""
    place = np.clip((np.arange(start, stop) + 0.5) / factor - 0.5, 0, side - 1)
    before = np.floor(place).astype(np.intp)
    return before, np.minimum(before + 1, side - 1), (place - before).astype(np.float32)
