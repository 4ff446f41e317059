"""The lattice of pixel corners of one block: for each corner, which regions meet there, in one byte.

Rings are walked along the cracks between pixels with the region on the left.  At every corner exactly one crack follows
another:

- a right turn where the pixel ahead and to the right belongs to the region,
- else straight on where the pixel ahead does,
- else a left turn.

Looking to the right first makes a ring go over where two pixels of one region touch in a corner, so a ring never
touches itself: what is enclosed there becomes a hole that touches its shell in a point.  A ring keeps a vertex at every
turn and at every *node*, a corner on a straight stretch at which the neighbour changes; neighbours then share all
vertices.

What comes next depends on nothing but the heading and the byte of the corner, so walks look it up in tables.  Headings
are 0 east, 1 south, 2 west, 3 north.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geoseg.compiling import compiled
from geoseg.vector.labelling import Regions

Sides = tuple[NDArray[np.int32], ...]

# Bits of a corner.  0 to 3: there is a crack from it to the east, south, west, north.
# One region lies north-west and south-east of it, or north-east and south-west, and others between.
_FALLING, _RISING = 1 << 4, 1 << 5
# It lies on the edge of the block; a walk has come from the south here and turned east.  (Loops do all they do with
# these bits in unsigned numbers of full size: then no index has to be looked at for counting from the end.)
EDGE, WALKED = np.uint64(1 << 6), np.uint64(1 << 7)
# The bits that say where a walk goes.
MEETING = np.uint64(63)

# Bits of a turn: a vertex stands here; from north to east, as at the first corner of a hole, which is the bit of a
# walked corner once it is shifted.  The new heading is in the two highest bits, its place in the next turn's index.
VERTEX, NORTH_TO_EAST = np.uint64(1), np.uint64(2)
HEADING, SHIFT = np.uint64(3 << 6), np.uint64(6)
# What the index of a turn begins with where one comes from the south.
NORTHWARD = np.uint64(3 << 6)


def _turns() -> NDArray[np.uint8]:
    """Return what a walk does at a corner, by 64 * heading + the corner's bits up to 63."""
    turns = np.zeros(256, np.uint8)
    for heading in range(4):
        for corner in range(64):
            ahead, right, _, left = (corner >> ((heading + quarter) & 3) & 1 for quarter in range(4))
            # A walk to the east or west has its region in the north-west or south-east of the corner ahead.
            across = corner & (_RISING if heading & 1 else _FALLING)
            if across or not (left or ahead):
                follows, vertex = (heading + 1) & 3, True
            elif not left:
                follows, vertex = heading, bool(right)
            else:
                follows, vertex = (heading + 3) & 3, True
            is_first = (heading, follows) == (3, 0)
            turns[64 * heading + corner] = follows << 6 | vertex * int(VERTEX) | is_first * int(NORTH_TO_EAST)
    return turns


TURNS = _turns()
# Of each heading, the index of a turn into it.
INTO = tuple(int(np.flatnonzero(heading == TURNS >> 6)[0]) for heading in range(4))
# By the index of a turn, the step to the next corner, in columns and rows.
ACROSS = np.array([1, 0, -1, 0], np.int64)[TURNS >> 6]
DOWN = np.array([0, 1, 0, -1], np.int64)[TURNS >> 6]


class Lattice(NamedTuple):
    """The corners of one block, as walks need them.

    Attributes:
        corners: uint8, flat, row by row; a row has one more of them than the block has pixels.
        jumps: by the index of a turn, the step to the next corner among them (uint64); steps back are the large
            unsigned numbers that come to the same.
        height, width: of the block in pixels.
        row, col: the place of its first pixel in the raster.
    """

    corners: NDArray[np.uint8]
    jumps: NDArray[np.uint64]
    height: int
    width: int
    row: int
    col: int


def lattice_of(
    codes: NDArray[np.uint8],
    regions: Regions,
    numbers: NDArray[np.int32],
    sides: Sides,
    frame: Sides,
    origin: tuple[int, int],
) -> Lattice:
    """Return the lattice of a block.

    Args:
        codes: (h, w) uint8, contiguous.
        regions: its regions.
        numbers: the number of each run: one for what is one region, be it through other blocks.
        sides: so numbered, what lies along the block's top row, bottom row, left and right column.
        frame: and what lies around it: the row above and the row below, both two longer than the block is wide, and
            the columns left and right.
        origin: row and column of the block's first pixel in the raster.
    """
    height, width = codes.shape
    corners = np.empty((height + 1, width + 1), np.uint8)
    _inner_corners(codes, corners)
    _outer_corners(corners, sides, frame)
    flat = corners.reshape(-1)
    _add_saddles(flat, regions.starts, numbers, regions.saddles, width)
    return Lattice(flat, (ACROSS + (width + 1) * DOWN).view(np.uint64), height, width, *origin)


@compiled
def _inner_corners(codes: Any, corners: Any) -> None:
    """Write the cracks of all corners but those on the block's edge."""
    height, width = codes.shape
    for row in range(1, height):
        north_west, north_east = codes[row - 1, :-1], codes[row - 1, 1:]
        south_west, south_east = codes[row, :-1], codes[row, 1:]
        line = corners[row, 1:width]
        for i in range(width - 1):
            east = np.uint8(north_east[i] != south_east[i])
            south = np.uint8(south_west[i] != south_east[i])
            west = np.uint8(north_west[i] != south_west[i])
            north = np.uint8(north_west[i] != north_east[i])
            line[i] = east | (south << np.uint8(1)) | (west << np.uint8(2)) | (north << np.uint8(3))


@compiled
def _add_saddles(corners: Any, starts: Any, numbers: Any, saddles: Any, width: int) -> None:
    """Add to corners within the block where one region lies on both sides of them."""
    for i in range(len(saddles)):
        above, below = saddles[i, 0], saddles[i, 1]
        # A row has one corner more than pixels.
        corner = starts[below] + starts[below] // width
        if numbers[above - 1] == numbers[below]:
            corners[corner] |= _FALLING
        if numbers[above] == numbers[below - 1]:
            corners[corner] |= _RISING


def _outer_corners(corners: NDArray[np.uint8], sides: Sides, frame: Sides) -> None:
    """Write the corners on the block's edge."""
    top, bottom, left, right = sides
    above, below, before, after = frame
    corners[0] = _meeting(above, np.concatenate([before[:1], top, after[:1]]))
    corners[-1] = _meeting(np.concatenate([before[-1:], bottom, after[-1:]]), below)
    corners[1:-1, 0] = _meeting(before, left, upright=True)
    corners[1:-1, -1] = _meeting(right, after, upright=True)


def _meeting(one: NDArray[np.int32], other: NDArray[np.int32], upright: bool = False) -> NDArray[np.uint8]:
    """Return the corners between two rows of regions, or between two columns."""
    north_west, south_east = one[:-1], other[1:]
    north_east, south_west = (other[:-1], one[1:]) if upright else (one[1:], other[:-1])
    cracks = (north_east != south_east, south_west != south_east, north_west != south_west, north_west != north_east)
    meeting = np.full(len(north_west), EDGE, np.uint8)
    for heading, crack in enumerate(cracks):
        meeting |= crack.astype(np.uint8) << heading
    every = np.logical_and.reduce(cracks)
    meeting[every & (north_west == south_east)] |= _FALLING
    meeting[every & (north_east == south_west)] |= _RISING
    return meeting
