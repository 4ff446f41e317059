"""The rings around regions, walked in compiled loops over the region map of one block.

Rings are walked along the cracks between pixels with the region on the left.  A crack is a pixel and a heading (0 east,
1 south, 2 west, 3 north), and exactly one crack follows another:

- on to the pixel ahead and to the right where that belongs to the region (a right turn),
- else on to the pixel ahead (straight on),
- else round the same pixel (a left turn).

Looking to the right first makes a ring go over where two pixels of one region touch in a corner, so a ring never
touches itself: what is enclosed there becomes a hole that touches its shell in a point.  A ring keeps a vertex at every
turn and at every *node*, a corner on a straight stretch at which the neighbour changes; neighbours then share all
vertices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# Bits of the marks on a pixel: its top crack and its bottom crack have been walked; it stands in the frame.
_TOP, _BOTTOM, _FRAME = 1, 2, 4


@njit(cache=True, nogil=True)
def _grown(array: Any) -> Any:
    """Return a copy with room for as much again behind it."""
    grown = np.empty((2 * len(array), *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


@njit(cache=True, nogil=True, inline="always")
def _follow(regions: Any, marks: Any, vertices: Any, used: int, pixel: int, ahead: int, right: int, chain: bool) -> Any:
    """Walk from a crack until it comes again, or, on a chain, until the next pixel stands in the frame.

    ``ahead`` and ``right`` are the steps from a pixel to the one ahead of it and to its right.  Pixels are marked where
    their top crack ends or their bottom crack begins with a turn: that is where rings are looked for.

    Returns:
        The vertices (perhaps moved to a larger array), how many there are, and the crack that comes next: its pixel and
        the step ahead.
    """
    own = regions[pixel]
    first_pixel, first_ahead = pixel, ahead
    # From a pixel to the one whose top left corner is the corner ahead and to the right.
    middle = 1 + max(abs(ahead), abs(right))
    while True:
        if used == len(vertices):
            vertices = _grown(vertices)
        beyond = regions[pixel + ahead + right]
        if beyond == own:
            vertices[used] = pixel + ((ahead + right + middle) >> 1)
            used += 1
            if ahead == -1:
                marks[pixel] |= _TOP
            pixel += ahead + right
            if right == 1:
                marks[pixel] |= _BOTTOM
            ahead, right = right, -ahead
        elif regions[pixel + ahead] == own:
            if beyond != regions[pixel + right]:
                vertices[used] = pixel + ((ahead + right + middle) >> 1)
                used += 1
            pixel += ahead
        else:
            vertices[used] = pixel + ((ahead + right + middle) >> 1)
            used += 1
            if ahead == -1:
                marks[pixel] |= _TOP
            ahead, right = -right, ahead
        if chain:
            if marks[pixel] & _FRAME:
                return vertices, used, pixel, ahead
        elif pixel == first_pixel and ahead == first_ahead:
            return vertices, used, pixel, ahead


@njit(cache=True, nogil=True)
def framed_marks(regions: Any, stride: int) -> Any:
    """Return a mark for each place of a region map, set in the frame only: uint8, to be passed to the walks."""
    marks = np.zeros(len(regions), np.uint8)
    marks[:stride] = _FRAME
    marks[len(regions) - stride :] = _FRAME
    for row in range(1, len(regions) // stride - 1):
        marks[row * stride] = _FRAME
        marks[(row + 1) * stride - 1] = _FRAME
    return marks


@njit(cache=True, nogil=True)
def trace_chains(regions: Any, stride: int, marks: Any) -> Any:
    """Walk the chains that come in from the frame and leave through it.

    Args:
        regions: the region map with the neighbours' regions in its frame.
        stride: its width, frame included.
        marks: see :func:`framed_marks`; what is walked is marked.

    Returns:
        The vertices (int32), which are places in the map of the pixels whose top left corner they are, where each chain
        starts among them (int64, one more than chains), and of each chain its region, its first crack and the crack
        that follows its last one, as 4 * place + heading (int32).  The corner at which a chain starts is the last of
        the chain before it.
    """
    height, width = len(regions) // stride - 2, stride - 2
    step = (1, stride, -1, -stride)
    vertices = np.empty(4096, np.int32)
    starts = np.zeros(1024, np.int64)
    records = np.empty((1024, 3), np.int32)
    used = count = 0
    for row in range(1, height + 1):
        inner = 1 < row < height and width > 1
        for col in range(1, width + 1, width - 1 if inner else 1):
            place = row * stride + col
            own = regions[place]
            if own == 0:
                continue
            for heading in range(4):
                ahead, right = step[heading], step[(heading + 1) & 3]
                behind = place - ahead
                if regions[place + right] == own:
                    continue
                # The crack before this one: see the order in which a walk looks for the next.
                if regions[behind + right] == own:
                    if not marks[behind + right] & _FRAME:
                        continue
                elif regions[behind] != own or not marks[behind] & _FRAME:
                    continue
                if count + 1 == len(starts):
                    starts, records = _grown(starts), _grown(records)
                if heading == 0:
                    marks[place] |= _BOTTOM
                vertices, used, pixel, out = _follow(regions, marks, vertices, used, place, ahead, right, True)
                records[count, 0] = own
                records[count, 1] = 4 * place + heading
                records[count, 2] = 4 * pixel + (0 if out == 1 else 1 if out == stride else 2 if out == -1 else 3)
                count += 1
                starts[count] = used
    return vertices[:used], starts[: count + 1], records[:count, 0], records[:count, 1], records[:count, 2]


@njit(cache=True, nogil=True)
def trace_rings(regions: Any, stride: int, marks: Any, runs: Any) -> Any:
    """Walk the rings that no chain has taken part in: those that close within the block.

    Arguments as in :func:`trace_chains`, which comes before, and the places at which runs of equal pixels begin: only
    there can a ring have its topmost, leftmost corner.

    Returns:
        The vertices and where each ring starts among them, as for chains, without repeating the first; the region of
        each ring (int32) and whether it is the ring of a hole (bool).  Rings start at their topmost, then leftmost
        corner and come in the order of these corners, row by row; shells run down from there and holes run right.
    """
    vertices = np.empty(4 * len(runs) + 64, np.int32)
    starts = np.zeros(1024, np.int64)
    owners = np.empty(1024, np.int32)
    holes = np.empty(1024, np.bool_)
    used = count = 0
    for place in runs:
        own, above = regions[place], regions[place - stride]
        if own == above:
            continue
        for hole in (True, False):
            # At the first corner of a shell lies the top crack of its first pixel, at that of a hole the bottom crack
            # of the pixel above, with the region on the left as well.
            if hole:
                if above == 0 or above != regions[place - 1] or marks[place - stride] & (_BOTTOM | _FRAME):
                    continue
            elif own == 0 or own == regions[place - 1] or marks[place] & _TOP:
                continue
            if count + 1 == len(starts):
                starts, owners, holes = _grown(starts), _grown(owners), _grown(holes)
            # The walk starts with the crack that ends at the corner, so that the corner comes first.
            begin, ahead, right = (place - 1, -stride, 1) if hole else (place, -1, -stride)
            owners[count] = above if hole else own
            holes[count] = hole
            vertices, used, _, _ = _follow(regions, marks, vertices, used, begin, ahead, right, False)
            count += 1
            starts[count] = used
    return vertices[:used], starts[: count + 1], owners[:count], holes[:count]


@njit(cache=True, nogil=True)
def grouped_rings(owners: Any, is_open: Any) -> Any:
    """Return the rings of regions that are not open, region by region and otherwise in their order (int64).

    Args:
        owners: the region of each ring.
        is_open: of each region, whether it goes on in other blocks.
    """
    starts = np.zeros(len(is_open) + 1, np.int64)
    for owner in owners:
        starts[owner + 1] += not is_open[owner]
    for number in range(len(is_open)):
        starts[number + 1] += starts[number]
    rings = np.empty(starts[len(is_open)], np.int64)
    for ring in range(len(owners)):
        if not is_open[owners[ring]]:
            rings[starts[owners[ring]]] = ring
            starts[owners[ring]] += 1
    return rings


@njit(cache=True, nogil=True)
def corners_of(vertices: Any, starts: Any, rings: Any, stride: int, row: int, col: int, closed: bool) -> Any:
    """Return chosen rings as lattice corners, in the given order.

    Args:
        vertices: what a walk returned.
        starts: likewise.
        rings: which of them (int64).
        stride: width of the region map.
        row: the raster's row of the block's first pixel.
        col: its column.
        closed: whether each ring's first corner is repeated at its end.

    Returns:
        Corners (V, 2) int32 as column and row in the raster, and where each ring starts (int64, one more than rings).
    """
    extra = 1 if closed else 0
    offsets = np.zeros(len(rings) + 1, np.int64)
    for i in range(len(rings)):
        offsets[i + 1] = offsets[i] + starts[rings[i] + 1] - starts[rings[i]] + extra
    corners = np.empty((offsets[-1], 2), np.int32)
    for i in range(len(rings)):
        out = offsets[i]
        x = y = place = 0
        for k in range(starts[rings[i]], starts[rings[i] + 1]):
            # One step of a walk along pixel edges changes either the row or the column: no division for each.
            move = vertices[k] - place
            if move == stride:
                y += 1
            elif move == -stride:
                y -= 1
            else:
                y = vertices[k] // stride
                x = vertices[k] - y * stride
            place = vertices[k]
            corners[out, 0] = col + x - 1
            corners[out, 1] = row + y - 1
            out += 1
        if closed:
            corners[out] = corners[offsets[i]]
    return corners, offsets


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def chosen_rings(corners: Any, starts: Any, rings: Any) -> Any:
    """Return the chosen rings, in the given order, as corners and ring starts."""
    offsets = np.zeros(len(rings) + 1, np.int64)
    for i in range(len(rings)):
        offsets[i + 1] = offsets[i] + starts[rings[i] + 1] - starts[rings[i]]
    out = np.empty((offsets[-1], 2), corners.dtype)
    for i in range(len(rings)):
        out[offsets[i] : offsets[i + 1]] = corners[starts[rings[i]] : starts[rings[i] + 1]]
    return out, offsets
