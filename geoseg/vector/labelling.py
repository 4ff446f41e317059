"""Regions of a label raster, found in compiled loops over one block.

A block is an array of codes.  Its regions are the 4-connected areas of equal code; they are numbered from 1 in the
order of their first pixels (top row, then leftmost column), and 0 is no region at all.  A *region map* is flat and has
a frame one pixel wide, so that loops need neither two indices nor bounds checks; what lies in the frame are the regions
of the neighbouring blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def _find(parent: NDArray[np.int32], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True, nogil=True)
def label_regions(codes: Any, none: int) -> Any:
    """Number the 4-connected regions of equal code.

    Args:
        codes: (h, w) uint8.
        none: the code of pixels that belong to no region.

    Returns:
        The region map, int32 of (h + 2) * (w + 2) with an empty frame; for region numbers from 0, which stands for
        none, the place of the first pixel in the map (int32) and the number of pixels (int64); and the places at which
        a run of equal pixels begins, row by row (int32).
    """
    height, width = codes.shape
    stride = width + 2
    runs, row_ends = _runs(codes)
    labels, parent, first, count = _joined_runs(codes, none, runs, row_ends)
    # A root comes before all that hang on it, so one pass in order settles the final numbers.
    regular = 0
    for number in range(1, count + 1):
        if parent[number] == number:
            regular += 1
            first[regular] = first[number]
            parent[number] = regular
        else:
            parent[number] = parent[parent[number]]
    regions = np.zeros((height + 2) * stride, np.int32)
    pixels = np.zeros(regular + 1, np.int64)
    for row in range(height):
        shift = (row + 1) * stride + 1
        end = shift + width
        for run in range(row_ends[row + 1] - 1, row_ends[row] - 1, -1):
            begin = shift + runs[run]
            number = parent[labels[run]]
            if number:
                pixels[number] += end - begin
                for place in range(begin, end):
                    regions[place] = number
            runs[run] = end = begin
    return regions, first[: regular + 1].copy(), pixels, runs


@njit(cache=True, nogil=True)
def _runs(codes: Any) -> Any:
    """Return the columns at which runs of equal codes begin, row by row (int32), and where each row ends among them."""
    height, width = codes.shape
    runs = np.empty(codes.size + 1, np.int32)
    row_ends = np.zeros(height + 1, np.int64)
    used = 0
    for row in range(height):
        line = codes[row]
        runs[used] = 0
        used += 1
        # Written at every pixel, kept only where the code changes: without a branch it is many times as fast.
        for col in range(1, width):
            runs[used] = col
            used += line[col] != line[col - 1]
        row_ends[row + 1] = used
    return runs[:used].copy(), row_ends


@njit(cache=True, nogil=True)
def _joined_runs(codes: Any, none: int, runs: Any, row_ends: Any) -> Any:
    """Give every run a number, and unite the numbers of runs that touch.

    Returns:
        The number of each run, 0 for ``none``; the forest of numbers; the place of the first pixel of each number in
        the region map; and how many numbers there are.
    """
    height, width = codes.shape
    labels = np.empty(len(runs), np.int32)
    parent = np.zeros(len(runs) + 1, np.int32)
    first = np.zeros(len(runs) + 1, np.int32)
    count = 0
    for row in range(height):
        line, above = codes[row], codes[max(row - 1, 0)]
        over, over_end = (row_ends[row - 1], row_ends[row]) if row else (0, 0)
        for run in range(row_ends[row], row_ends[row + 1]):
            begin = runs[run]
            end = runs[run + 1] if run + 1 < row_ends[row + 1] else width
            code = line[begin]
            number = 0
            # ``over`` is the first run above that reaches this one.
            while over < over_end:
                if above[runs[over]] == code:
                    other = labels[over]
                    if number == 0:
                        number = other
                    elif number != other:
                        one, other = _find(parent, number), _find(parent, other)
                        number = min(one, other)
                        parent[max(one, other)] = number
                stop = runs[over + 1] if over + 1 < over_end else width
                if stop <= end:
                    over += 1
                if stop >= end:
                    break
            if code == none:
                number = 0
            elif number == 0:
                count += 1
                number = count
                parent[count] = count
                first[count] = (row + 1) * (width + 2) + 1 + begin
            labels[run] = number
    return labels, parent, first, count


@njit(cache=True, nogil=True)
def renumber(regions: Any, stride: int, runs: Any, table: Any) -> None:
    """Give regions other numbers, in place: ``table`` holds of each number the new one.

    Args:
        regions: the region map.
        stride: its width, frame included.
        runs: the places at which runs of equal pixels begin, as :func:`label_regions` returns them.
        table: int32, by number.
    """
    for run in range(len(runs)):
        number = table[regions[runs[run]]]
        if number == regions[runs[run]]:
            continue
        end = (runs[run] // stride + 1) * stride - 1
        if run + 1 < len(runs):
            end = min(end, runs[run + 1])
        for place in range(runs[run], end):
            regions[place] = number


@njit(cache=True, nogil=True)
def join_corners(regions: Any, stride: int, codes: Any, groups: Any) -> None:
    """Unite regions of equal code that touch in a corner: ``groups`` is a forest over region numbers (int32)."""
    height, width = codes.shape
    for row in range(1, height):
        for col in range(1, width):
            place = (row + 1) * stride + col + 1
            for one, other in ((place, place - stride - 1), (place - 1, place - stride)):
                a, b = regions[one], regions[other]
                if a == b or a == 0 or b == 0:
                    continue
                same = (
                    codes[row, col] == codes[row - 1, col - 1]
                    if one == place
                    else codes[row, col - 1] == codes[row - 1, col]
                )
                if same:
                    a, b = _find(groups, a), _find(groups, b)
                    groups[max(a, b)] = min(a, b)
    for number in range(1, len(groups)):
        groups[number] = groups[groups[number]]


@njit(cache=True, nogil=True)
def unite_pairs(parent: Any, one: Any, other: Any) -> None:
    """Unite pairs of nodes; afterwards ``parent`` (int32) holds of each node the smallest that it belongs with."""
    for i in range(len(one)):
        a, b = _find(parent, one[i]), _find(parent, other[i])
        parent[max(a, b)] = min(a, b)
    for node in range(len(parent)):
        parent[node] = parent[parent[node]]


@njit(cache=True, nogil=True)
def sums_by_region(regions: Any, stride: int, values: Any, unknown: int, count: int) -> Any:
    """Add up ``values`` (h, w) over the pixels of each of ``count`` regions from 0 up, but for those ``unknown``.

    Returns:
        Sums and numbers of known pixels, both int64.
    """
    sums = np.zeros(count, np.int64)
    known = np.zeros(count, np.int64)
    for row in range(values.shape[0]):
        place = (row + 1) * stride
        for col in range(values.shape[1]):
            place += 1
            if values[row, col] != unknown:
                sums[regions[place]] += values[row, col]
                known[regions[place]] += 1
    sums[0] = known[0] = 0
    return sums, known
