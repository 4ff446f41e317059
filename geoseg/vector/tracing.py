"""The second look at a block: its rings, out of its regions and of what is known across its seams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geoseg.grid import Window
from geoseg.vector import topology
from geoseg.vector.labelling import Regions
from geoseg.vector.lattice import Lattice, Sides, lattice_of
from geoseg.vector.pixel_polygons import PixelPolygons
from geoseg.vector.seams import Open
from geoseg.vector.stitch import Pieces

Columns = tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class Labelled:
    """One block after its first look.

    Attributes:
        window: its place in the raster, in pixels.
        codes: (h, w) uint8, contiguous.
        confidence: see :class:`geoseg.vector.polygons.LabelBlock`.
        regions: of equal code.
        first_pixel: by region number, its first pixel in the raster (int64).
        groups: by region number, the smallest of those that hang together by corners; None where corners do not join.
    """

    window: Window
    codes: NDArray[np.uint8]
    confidence: NDArray[np.uint16] | None
    regions: Regions
    first_pixel: NDArray[np.int64]
    groups: NDArray[np.int32] | None

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        arrays = (self.codes, self.confidence, self.first_pixel, self.groups)
        return self.regions.nbytes + sum(array.nbytes for array in arrays if array is not None)


class Once(NamedTuple):
    """The keys of open regions, ascending and each once; where each first stands, and which of them stands where."""

    keys: NDArray[np.int64]
    first: NDArray[np.int64]
    inverse: NDArray[np.int64]


def traced(block: Labelled, open_: Open, columns: Columns, raster_width: int) -> tuple[PixelPolygons, Pieces]:
    """Walk the rings of a block whose open regions are known.

    Args:
        block: what the first look found.
        open_: which of its regions go on in other blocks.
        columns: by region number, the columns of :class:`PixelPolygons` from ``feature`` on.
        raster_width: in pixels.

    Returns:
        The polygons that lie in this block, in the order of their regions, and what is known of the others.
    """
    count = len(block.first_pixel)
    once = Once(*np.unique(open_.keys, return_index=True, return_inverse=True))
    numbers, representative, lattice, sides = _with_neighbours(block, open_, once)
    # Sized for the worst case: what is not written costs address space only.
    vertices = np.empty((topology.room_for(len(numbers), *block.window.shape), 2), np.int32)
    chains, *ends = topology.trace_chains(lattice, sides, raster_width, vertices)
    is_open = np.zeros(count, bool)
    is_open[0] = True
    is_open[open_.numbers] = True
    shells = topology.trace_shells(lattice, block.regions.first, is_open, vertices, chains[-1])
    runs = (block.regions.starts, block.regions.rows, numbers)
    holes, owners = topology.trace_holes(lattice, *runs, vertices, shells[-1])

    closed, apart = np.flatnonzero(~is_open), np.flatnonzero(is_open[owners])
    size = holes[-1] - shells[0] - np.diff(holes)[apart].sum()
    finished_corners = np.empty((size, 2), np.int32)
    rings, polygons = topology.group_rings(vertices, shells, holes, owners, closed, finished_corners)
    finished = PixelPolygons(
        finished_corners, rings, polygons, block.first_pixel[closed], *(column[closed] for column in columns)
    )

    key_of = np.full(count, -1, np.int64)
    key_of[representative] = open_.keys
    # The first corner of a ring is not repeated in pieces.
    ring_corners, ring_starts = topology.chosen_rings(vertices, holes, apart, 1)
    chain_owners, heads, tails = ends
    none = np.full(len(apart), -1, np.int64)
    return finished, Pieces(
        np.concatenate([ring_corners, vertices[: chains[-1]]]),
        np.concatenate([ring_starts, ring_starts[-1] + chains[1:]]),
        key_of[np.concatenate([owners[apart], chain_owners])],
        np.concatenate([none, heads]),
        np.concatenate([none, tails]),
        once.keys,
        *_by_key(open_, once, columns),
    )


def _with_neighbours(
    block: Labelled, open_: Open, once: Once
) -> tuple[NDArray[np.int32], NDArray[np.int64], Lattice, Sides]:
    """Number the regions of a block, and those around it, so that one region has one number.

    Returns:
        The number of each run; the number that each of ``open_.numbers`` now goes by; the lattice of corners; and the
        numbers along the sides of the block.
    """
    regions, count = block.regions, len(block.first_pixel)
    keys, first = once.keys, once.first
    representative = open_.numbers[first][once.inverse]
    table = np.arange(count, dtype=np.int32)
    table[open_.numbers] = representative
    numbers = table[regions.numbers] if len(keys) < len(open_.keys) else regions.numbers
    sides = tuple(table[side] for side in regions.sides())

    frame = np.concatenate(open_.frame)
    around, position = np.unique(frame, return_inverse=True)
    framed = count + np.arange(len(around), dtype=np.int32)
    where = np.searchsorted(keys, around)
    here = np.flatnonzero(where < len(keys))
    here = here[keys[where[here]] == around[here]]
    framed[here] = open_.numbers[first][where[here]]
    framed[around < 0] = 0
    lengths = [len(side) for side in open_.frame]
    frames = tuple(np.split(framed[position], np.cumsum(lengths)[:-1]))
    origin = (block.window.row, block.window.col)
    return numbers, representative, lattice_of(block.codes, regions, numbers, sides, frames, origin), sides


def _by_key(open_: Open, once: Once, columns: Columns) -> Columns:
    """Return what the block knows of the open regions, by key."""
    feature, class_id, *counts = columns
    sums = []
    for column in counts:
        total = np.zeros(len(once.keys), np.int64)
        np.add.at(total, once.inverse, column[open_.numbers])
        sums.append(total)
    one = open_.numbers[once.first]
    return (feature[one], class_id[one], *sums)
