"""Regions of a label raster, found in compiled loops over one block.

A block is an array of codes.  Its regions are the 4-connected areas of equal code; they are numbered from 1 in the
order of their first pixels (top row, then leftmost column), and 0 is no region at all.  Everything here works on
*runs*: stretches of equal codes along a row.  There are many times fewer of them than pixels, so a number for each
pixel is written down only where somebody asks for a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.compiling import compiled
from geoseg.grid import Window


@dataclass(frozen=True)
class Regions:
    """The regions of a block.

    Attributes:
        shape: height and width of the block in pixels.
        starts: where runs begin, as row-major positions of pixels in the block, and the block's size at the end
            (int32).  A run ends where the next one begins: every row begins with a run.
        rows: the first run of each row, and the number of runs at the end (int32).
        numbers: the region of each run (int32).
        first: by region number, its first pixel (int32).
        pixels: by region number, how many pixels it has (int64).
        saddles: (K, 2) int32, runs that begin in the same column, one below the other, where across the corner between
            them pixels of equal code touch.
    """

    shape: tuple[int, int]
    starts: NDArray[np.int32]
    rows: NDArray[np.int32]
    numbers: NDArray[np.int32]
    first: NDArray[np.int32]
    pixels: NDArray[np.int64]
    saddles: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(a.nbytes for a in (self.starts, self.rows, self.numbers, self.first, self.pixels, self.saddles))

    def sides(self) -> tuple[NDArray[np.int32], ...]:
        """Return the numbers along the top row, the bottom row, the left and the right column."""
        top, bottom = (
            np.repeat(self.numbers[begin:end], np.diff(self.starts[begin : end + 1]))
            for begin, end in (self.rows[:2], self.rows[-2:])
        )
        return top, bottom, self.numbers[self.rows[:-1]], self.numbers[self.rows[1:] - 1]

    def framed(self) -> NDArray[np.int32]:
        """Return the region map: the number of each pixel, flat, with an empty frame one pixel wide."""
        framed: NDArray[np.int32] = _framed(self.starts, self.rows, self.numbers, self.shape[1])
        return framed

    def first_pixels(self, window: Window, raster_width: int) -> NDArray[np.int64]:
        """Return, by region number, the first pixel in a raster in which ``window`` is the block."""
        row, col = np.divmod(self.first, self.shape[1])
        return (row.astype(np.int64) + window.row) * raster_width + col + window.col

    def joined_corners(self, codes: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Unite regions of equal code that touch in a corner.

        Returns:
            By region number, the smallest number of those that hang together.
        """
        groups = np.arange(len(self.first), dtype=np.int32)
        _join_corners(codes.reshape(-1), self.starts, self.numbers, self.saddles, groups)
        return groups

    def sums(self, values: NDArray[np.uint16], unknown: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Add up ``values`` (h, w) over the pixels of each region, but for those ``unknown``.

        Returns:
            By region number, sums and numbers of known pixels.
        """
        sums, known = np.zeros(len(self.first), np.int64), np.zeros(len(self.first), np.int64)
        _add_values(self.starts, self.rows, self.numbers, values, unknown, sums, known)
        return sums, known


def label_regions(codes: NDArray[np.uint8], none: int) -> Regions:
    """Number the 4-connected regions of equal code.

    Args:
        codes: (h, w) uint8, contiguous.
        none: the code of pixels that belong to no region.
    """
    # One word more than fits: the loops write ahead of what they keep.
    room = np.empty(codes.size + 9, np.int32)
    rows = np.empty(codes.shape[0] + 1, np.int32)
    _runs(codes, room, rows)
    starts = room[: rows[-1] + 1].copy()
    numbers, first, pixels, saddles = _numbered_runs(codes.reshape(-1), codes.shape[1], none, starts, rows)
    return Regions(codes.shape, starts, rows, numbers, first, pixels, saddles)


@compiled
def _find(parent: NDArray[np.int32], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def _runs(codes: Any, starts: Any, rows: Any) -> None:
    """Write down where runs begin, and which is the first of each row: see :class:`Regions`."""
    height, width = codes.shape
    # One byte for each pixel of a row, 1 where a run begins; eight of them at a time are looked at as one word.
    flags = np.zeros((width + 7) // 8 * 8, np.uint8)
    words = flags.view(np.uint64)
    later = flags[1:width]
    used = 0
    for row in range(height):
        rows[row] = used
        left, right = codes[row, :-1], codes[row, 1:]
        for col in range(width - 1):
            later[col] = left[col] != right[col]
        flags[0] = 1
        for word in range(len(words)):
            if words[word] == 0:
                continue
            place = row * width + 8 * word
            # Written for every pixel, kept only where a run begins: branches would be guessed wrong too often.
            for col in range(8):
                starts[used] = place + col
                used += flags[8 * word + col]
    rows[height] = used
    starts[used] = height * width


@compiled
def _numbered_runs(codes: Any, width: int, none: int, starts: Any, rows: Any) -> Any:
    """Return the region of each run, and of each region its first pixel and its number of pixels; and the saddles."""
    labels, parent, first, saddles = _joined_runs(codes, width, none, starts, rows)
    # A root comes before all that hang on it, so one pass in order settles the final numbers.
    count = 0
    for number in range(1, len(parent)):
        if parent[number] == number:
            count += 1
            first[count] = first[number]
            parent[number] = count
        else:
            parent[number] = parent[parent[number]]
    pixels = np.zeros(count + 1, np.int64)
    for run in range(len(labels)):
        number = parent[labels[run]]
        labels[run] = number
        pixels[number] += starts[run + 1] - starts[run]
    pixels[0] = 0
    return labels, first[: count + 1].copy(), pixels, saddles


@compiled
def _joined_runs(codes: Any, width: int, none: int, starts: Any, rows: Any) -> Any:
    """Give every run a number, and unite the numbers of runs that touch.

    Returns:
        The number of each run, 0 for ``none``; the forest of numbers; the first pixel of each number; and the saddles.
    """
    runs = len(starts) - 1
    labels = np.empty(runs, np.int32)
    parent = np.zeros(runs + 1, np.int32)
    first = np.zeros(runs + 1, np.int32)
    saddles = np.empty((runs + 1, 2), np.int32)
    count = crossings = over = 0
    for row in range(len(rows) - 1):
        over_end = rows[row]
        for run in range(rows[row], rows[row + 1]):
            # In the row above, one row's length before.
            begin, end = starts[run] - width, starts[run + 1] - width
            code = codes[starts[run]]
            number = 0
            if over < over_end and starts[over] == begin and run > over_end:
                saddles[crossings, 0], saddles[crossings, 1] = over, run
                crossings += (codes[begin - 1] == code) | (codes[begin] == codes[starts[run] - 1])
            # ``over`` is the first run above that reaches this one.
            while over < over_end:
                if codes[starts[over]] == code:
                    other = labels[over]
                    if number == 0:
                        number = other
                    elif number != other:
                        one, other = _find(parent, number), _find(parent, other)
                        number = min(one, other)
                        parent[max(one, other)] = number
                stop = starts[over + 1]
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
                first[count] = starts[run]
            labels[run] = number
    return labels, parent[: count + 1], first, saddles[:crossings].copy()


@compiled
def _framed(starts: Any, rows: Any, numbers: Any, width: int) -> Any:
    stride = width + 2
    framed = np.zeros((len(rows) + 1) * stride, np.int32)
    for row in range(len(rows) - 1):
        # From a pixel of the block to its place in the map.
        shift = (row + 1) * stride + 1 - row * width
        for run in range(rows[row], rows[row + 1]):
            for place in range(shift + starts[run], shift + starts[run + 1]):
                framed[place] = numbers[run]
    return framed


@compiled
def _join_corners(codes: Any, starts: Any, numbers: Any, saddles: Any, groups: Any) -> None:
    """Unite regions across saddles; ``groups`` is a forest over their numbers."""
    for i in range(len(saddles)):
        above, below = np.int64(saddles[i, 0]), np.int64(saddles[i, 1])
        for one, other in ((above - 1, below), (above, below - 1)):
            if numbers[one] and codes[starts[one]] == codes[starts[other]]:
                a, b = _find(groups, numbers[one]), _find(groups, numbers[other])
                groups[max(a, b)] = min(a, b)
    for number in range(len(groups)):
        groups[number] = groups[groups[number]]


@compiled
def unite_pairs(parent: Any, one: Any, other: Any) -> None:
    """Unite pairs of nodes; afterwards ``parent`` (int32) holds of each node the smallest that it belongs with."""
    for i in range(len(one)):
        a, b = _find(parent, one[i]), _find(parent, other[i])
        parent[max(a, b)] = min(a, b)
    for node in range(len(parent)):
        parent[node] = parent[parent[node]]


@compiled
def _add_values(starts: Any, rows: Any, numbers: Any, values: Any, unknown: int, sums: Any, known: Any) -> None:
    """Add values and their number to those of the regions they lie in, run by run."""
    for row in range(values.shape[0]):
        shift = row * values.shape[1]
        for run in range(rows[row], rows[row + 1]):
            number = numbers[run]
            if number == 0:
                continue
            for col in range(starts[run] - shift, starts[run + 1] - shift):
                if values[row, col] != unknown:
                    sums[number] += values[row, col]
                    known[number] += 1
