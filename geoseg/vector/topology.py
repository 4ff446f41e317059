"""The rings around regions, walked in compiled loops over the lattice of corners of one block.

See :mod:`geoseg.vector.lattice` for how a walk goes on at a corner.  Walks write corners as column and row in the
raster.  A region that lies in one block has one shell, which starts at its first pixel, so nothing has to be searched
for.  Where a walk could turn from north to east, and neither a shell nor a chain has done so, there is the ring of a
hole; looked for row by row, it is found at its first corner.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from geoseg.compiling import compiled
from geoseg.vector.lattice import (
    ACROSS,
    DOWN,
    EDGE,
    HEADING,
    INTO,
    MEETING,
    NORTH_TO_EAST,
    NORTHWARD,
    SHIFT,
    TURNS,
    VERTEX,
    WALKED,
)

# From a corner to the pixel on the left of the crack that leaves it, and of the crack that comes in, by heading.
_LEAVING = ((0, -1), (0, 0), (-1, 0), (-1, -1))
_COMING = ((-1, -1), (0, -1), (0, 0), (-1, 0))


def room_for(runs: int, height: int, width: int) -> int:
    """Return the largest number of vertices that all walks of a block can come to.

    A corner with a vertex has a crack to the north or the south, and one vertex for each of its cracks at most: three
    for each end of a crack between two pixels of a row.  Corners that have one in the frame only come on top, and the
    first corner of each ring a second time; twice as many rings as runs there cannot be.
    """
    return 6 * (runs + height) + 8 * (width + 1) + 2 * runs + 8


@compiled
def _ring(lattice: Any, col: int, row: int, index: int, vertices: Any, used: int) -> int:
    """Walk a ring from a corner back to it, and mark where it turns from north to east.

    Args:
        lattice: of the block.
        col: the corner's column in the block; the ring turns there.
        row: its row.
        index: that of a turn into the ring's first crack.
        vertices: (V, 2) int32.
        used: how many of them there are.

    Returns:
        How many there are now; the first corner is repeated at the end.
    """
    corners, jumps = lattice.corners, lattice.jumps
    # Unsigned all through: no index counts from the end, and the next corner's byte is on its way sooner.
    count = np.uint64(used) + np.uint64(1)
    first = corner = np.uint64(row * (lattice.width + 1) + col)
    at = np.uint64(index)
    turn = np.uint64(TURNS[at])
    x, y = lattice.col + col, lattice.row + row
    vertices[used, 0], vertices[used, 1] = x, y
    while True:
        corner += jumps[at]
        x += ACROSS[at]
        y += DOWN[at]
        meeting = np.uint64(corners[corner])
        at = (turn & HEADING) | (meeting & MEETING)
        turn = np.uint64(TURNS[at])
        # Written at every corner, kept only where it is a vertex: branches would be guessed wrong too often.
        vertices[count, 0], vertices[count, 1] = x, y
        count += turn & VERTEX
        corners[corner] = np.uint8(meeting | ((turn & NORTH_TO_EAST) << SHIFT))
        if corner == first:
            return np.int64(count)  # type: ignore[return-value]


@compiled
def trace_shells(lattice: Any, first: Any, is_open: Any, vertices: Any, used: int) -> Any:
    """Walk the shells of regions that lie in one block.

    Args:
        lattice: of the block; what is walked is marked.
        first: of each region from 0 up, the first pixel in the block.
        is_open: of each, whether it has no shell here: it goes on in other blocks, or is none.
        vertices: (V, 2) int32, with room for all walks.
        used: how many of them there are.

    Returns:
        By region, where its shell starts among the vertices, and where the last one ends (int64).  Shells run down from
        their topmost, then leftmost corner, and end there again.
    """
    starts = np.empty(len(first) + 1, np.int64)
    for number in range(len(first)):
        starts[number] = used
        if not is_open[number]:
            row = first[number] // lattice.width
            used = _ring(lattice, first[number] - row * lattice.width, row, INTO[1], vertices, used)
    starts[len(first)] = used
    return starts


@compiled
def trace_holes(lattice: Any, starts: Any, rows: Any, numbers: Any, vertices: Any, used: int) -> Any:
    """Walk the rings of holes that close within the block, after all its chains and shells.

    Args:
        lattice: of the block; what is walked is marked.
        starts: where runs begin: see :class:`geoseg.vector.labelling.Regions`.
        rows: the first run of each row: there.
        numbers: the region of each run.
        vertices: (V, 2) int32, with room for all walks.
        used: how many of them there are.

    Returns:
        Where each ring starts among the vertices, one more than rings, and its region (both int64).  Rings run right
        from their topmost, then leftmost corner, end there again, and come in the order of these corners.
    """
    begins = np.empty(len(numbers) + 1, np.int64)
    owners = np.empty(len(numbers), np.int64)
    holes = 0
    for row in range(1, len(rows) - 1):
        for run in range(rows[row] + 1, rows[row + 1]):
            # A row has one corner more than pixels.
            meeting = np.uint64(lattice.corners[starts[run] + row])
            turn = np.uint64(TURNS[NORTHWARD | (meeting & MEETING)])
            # To the west of the corner lies the run before.
            if turn & NORTH_TO_EAST and not meeting & (WALKED | EDGE) and numbers[run - 1]:
                begins[holes], owners[holes] = used, numbers[run - 1]
                used = _ring(lattice, starts[run] - row * lattice.width, row, INTO[0], vertices, used)
                holes += 1
    begins[holes] = used
    return begins[: holes + 1].copy(), owners[:holes].copy()


@compiled
def trace_chains(lattice: Any, sides: Any, raster_width: int, vertices: Any) -> Any:
    """Walk the chains: the stretches of rings that come in from the frame and leave through it.

    Args:
        lattice: of the block; what is walked is marked.
        sides: regions along the block's top row, bottom row, left and right column.
        raster_width: in pixels.
        vertices: (V, 2) int32, with room for all walks; none has been used.

    Returns:
        Where each chain starts among the vertices, one more than chains; its region; its first crack and the crack
        that follows its last one, as 4 * pixel in the raster + heading.  All int64.  The corner at which a chain starts
        is the last of the chain before it.
    """
    height, width = lattice.height, lattice.width
    used = count = 0
    # At most two chains begin at a corner.
    begins = np.zeros(4 * (height + width + 1) + 1, np.int64)
    records = np.empty((3, len(begins)), np.int64)
    for row in range(height + 1):
        for col in range(0, width + 1, 1 if row in (0, height) else width):
            for heading in range(4):
                meeting = np.uint64(lattice.corners[row * (width + 1) + col])
                come = _COMING[heading]
                back = np.uint64((heading + 2) & 3)
                if _inside(lattice, col + come[0], row + come[1]) or not (meeting >> back) & np.uint64(1):
                    continue
                at = (np.uint64(heading) << SHIFT) | (meeting & MEETING)
                out = int(TURNS[at] >> 6)
                leave = _LEAVING[out]
                own = _region(lattice, sides, col + leave[0], row + leave[1])
                if own == 0:
                    continue
                records[0, count], records[1, count] = own, _crack(lattice, raster_width, col, row, out)
                used, x, y, out = _chain(lattice, at, col, row, vertices, used)
                records[2, count] = _crack(lattice, raster_width, x, y, out)
                count += 1
                begins[count] = used
    return begins[: count + 1], records[0, :count], records[1, :count], records[2, :count]


@compiled
def _inside(lattice: Any, col: int, row: int) -> bool:
    """Return whether a pixel lies in the block."""
    return 0 <= row < lattice.height and 0 <= col < lattice.width


@compiled
def _region(lattice: Any, sides: Any, col: int, row: int) -> int:
    """Return the region of a pixel along a side of the block, 0 where it lies in the frame."""
    if not _inside(lattice, col, row):
        return 0
    if row == 0 or row == lattice.height - 1:
        return sides[0 if row == 0 else 1][col]
    return sides[2 if col == 0 else 3][row]


@compiled
def _crack(lattice: Any, raster_width: int, col: int, row: int, heading: int) -> int:
    """Return the number of the crack that leaves a corner of the block: see :func:`trace_chains`."""
    leave = _LEAVING[heading]
    return 4 * ((lattice.row + row + leave[1]) * raster_width + lattice.col + col + leave[0]) + heading


@compiled
def _chain(lattice: Any, at: Any, col: int, row: int, vertices: Any, used: int) -> Any:
    """Walk on from the turn ``at`` at a corner until the region lies in the frame.

    Returns:
        How many vertices there are now, and the column, row and heading with which the walk goes on.
    """
    corner = np.uint64(row * (lattice.width + 1) + col)
    turn = np.uint64(TURNS[at])
    while True:
        corner += lattice.jumps[at]
        col += ACROSS[at]
        row += DOWN[at]
        meeting = np.uint64(lattice.corners[corner])
        at = (turn & HEADING) | (meeting & MEETING)
        turn = np.uint64(TURNS[at])
        vertices[used, 0], vertices[used, 1] = lattice.col + col, lattice.row + row
        used += np.int64(turn & VERTEX)  # type: ignore[assignment]
        lattice.corners[corner] = np.uint8(meeting | ((turn & NORTH_TO_EAST) << SHIFT))
        if meeting & EDGE:
            out = np.int64(turn >> SHIFT)
            leave = _LEAVING[out]
            if not _inside(lattice, col + leave[0], row + leave[1]):
                return used, col, row, out


@compiled
def group_rings(vertices: Any, shells: Any, holes: Any, owners: Any, closed: Any, corners: Any) -> Any:
    """Put the rings of polygons together: each shell before its holes.

    Args:
        vertices: what walks wrote.
        shells: by region, where its shell starts among them, and where the last one ends.
        holes: where holes start, one more than holes.
        owners: the region of each hole.
        closed: the regions wanted.
        corners: (V, 2) int32, written: their vertices.

    Returns:
        Where rings start among ``corners`` and where polygons start among rings, with their ends (both int64).
    """
    # Holes hang on each other, the first of a region on the region.
    following = np.full(len(owners) + 1, -1, np.int64)
    leading = np.full(len(shells), -1, np.int64)
    for hole in range(len(owners) - 1, -1, -1):
        following[hole] = leading[owners[hole]]
        leading[owners[hole]] = hole
    rings = np.zeros(len(closed) + len(owners) + 1, np.int64)
    polygons = np.zeros(len(closed) + 1, np.int64)
    used = ring = 0
    for i in range(len(closed)):
        number = closed[i]
        begin, end, hole = shells[number], shells[number + 1], leading[number]
        while True:
            for k in range(begin, end):
                corners[used, 0], corners[used, 1] = vertices[k, 0], vertices[k, 1]
                used += 1
            ring += 1
            rings[ring] = used
            if hole < 0:
                break
            begin, end, hole = holes[hole], holes[hole + 1], following[hole]
        polygons[i + 1] = ring
    return rings[: ring + 1].copy(), polygons


@compiled
def join_chains(corners: Any, starts: Any, following: Any) -> Any:
    """Join chains end to end into rings.

    Args:
        corners: (V, 2) int32.
        starts: where each chain starts among them (int64, one more than chains).
        following: the chain that follows each (int64): a permutation.

    Returns:
        Corners and ring starts in the same form, without repeated ends, and a chain of each ring (int64).
    """
    count = len(following)
    joined = np.empty_like(corners)
    offsets = np.zeros(count + 1, np.int64)
    members = np.empty(count, np.int64)
    seen = np.zeros(count, np.bool_)
    out = rings = 0
    for first in range(count):
        if seen[first]:
            continue
        members[rings] = first
        chain = first
        while not seen[chain]:
            seen[chain] = True
            length = starts[chain + 1] - starts[chain]
            joined[out : out + length] = corners[starts[chain] : starts[chain + 1]]
            out += length
            chain = following[chain]
        rings += 1
        offsets[rings] = out
    return joined, offsets[: rings + 1].copy(), members[:rings].copy()


@compiled
def from_first_corner(corners: Any, starts: Any) -> Any:
    """Turn each ring so that it starts at its topmost, then leftmost corner, and close it.

    Takes and returns corners (V, 2) int32 and ring starts (int64, one more than rings).
    """
    rings = len(starts) - 1
    turned = np.empty((len(corners) + rings, 2), np.int32)
    for ring in range(rings):
        begin, end = starts[ring], starts[ring + 1]
        first = begin
        for k in range(begin + 1, end):
            if corners[k, 1] < corners[first, 1] or (
                corners[k, 1] == corners[first, 1] and corners[k, 0] < corners[first, 0]
            ):
                first = k
        out = begin + ring
        turned[out : out + end - first] = corners[first:end]
        turned[out + end - first : out + end - begin] = corners[begin:first]
        turned[out + end - begin] = corners[first]
    return turned, starts + np.arange(rings + 1)


@compiled
def chosen_rings(corners: Any, starts: Any, rings: Any, spared: int = 0) -> Any:
    """Return the chosen rings, in the given order, as corners and ring starts; of each, ``spared`` last ones not."""
    offsets = np.zeros(len(rings) + 1, np.int64)
    for i in range(len(rings)):
        offsets[i + 1] = offsets[i] + starts[rings[i] + 1] - starts[rings[i]] - spared
    out = np.empty((offsets[-1], 2), corners.dtype)
    for i in range(len(rings)):
        out[offsets[i] : offsets[i + 1]] = corners[starts[rings[i]] : starts[rings[i] + 1] - spared]
    return out, offsets
