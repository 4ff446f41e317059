"""Joining the pieces of polygons across the seams between blocks, and telling when a polygon is complete."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.vector.rings import Seam


@dataclass
class Region:
    """What is known of one polygon that meets a seam.

    Attributes:
        label: its label value.
        parts: shapely polygons, one per piece, in pixel coordinates, noded along the seams.
        pixels: pixels so far.
        confidence_sum: summed confidence in 1/1000, -1 where a block has none.
        open_pixels: pixels along seams whose other side has not been seen.
        pieces: numbers of its pieces.
    """

    label: int
    parts: list[Any]
    pixels: int
    confidence_sum: int
    open_pixels: int
    pieces: list[int]


@dataclass(frozen=True)
class Front:
    """The pieces along one side of a block: number and label of the piece of each pixel from ``start`` on, or -1.

    ``seam`` is the line the pixels lie at; ``before`` tells whether they lie left of (above) it.
    """

    seam: Seam
    before: bool
    start: int
    pieces: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def stop(self) -> int:
        """Place after the last pixel."""
        return self.start + len(self.pieces)

    def cut(self, start: int, stop: int) -> Front:
        """Return the part from ``start`` to ``stop``."""
        part = slice(start - self.start, stop - self.start)
        return Front(self.seam, self.before, start, self.pieces[part], self.labels[part])


class Stitcher:
    """Regions that meet open seams, joined by union–find; a region leaves once all its neighbours have been seen.

    Memory is what crosses seams whose other side is still to come.
    """

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}
        self._regions: dict[int, Region] = {}
        self._fronts: defaultdict[tuple[Seam, bool], list[Front]] = defaultdict(list)
        self._next = 0

    def __len__(self) -> int:
        """Return the number of unfinished regions."""
        return len(self._regions)

    def number(self, count: int) -> range:
        """Return ``count`` fresh piece numbers."""
        self._next += count
        return range(self._next - count, self._next)

    def add(self, regions: Sequence[Region], fronts: Iterable[Front]) -> list[Region]:
        """Take in the pieces of one block, each a region of its own, and return the regions this completes.

        Args:
            regions: the block's pieces that touch a seam, ``open_pixels`` still 0.
            fronts: the block's sides that are not the raster's edge.
        """
        for region in regions:
            self._parent[region.pieces[0]] = region.pieces[0]
            self._regions[region.pieces[0]] = region
        touched: set[int] = {region.pieces[0] for region in regions}
        for front in fronts:
            self._count_open(front.pieces, 1)
            for ours, theirs in self._meet(front):
                touched.update(self._join(ours, theirs))
        roots = {self._root(piece) for piece in touched}
        return [self._release(root) for root in sorted(roots) if not self._regions[root].open_pixels]

    def close(self) -> list[Region]:
        """Return the regions at seams whose other side never came."""
        self._fronts.clear()
        return [self._release(root) for root in sorted(self._regions)]

    def _meet(self, front: Front) -> list[tuple[Front, Front]]:
        """Pair ``front`` with what has been seen across its seam; what stays unpaired on either side is kept."""
        across = self._fronts.pop((front.seam, not front.before), [])
        kept: list[Front] = []
        pairs: list[tuple[Front, Front]] = []
        unmet = [front]
        for other in across:
            start, stop = max(front.start, other.start), min(front.stop, other.stop)
            if start >= stop:
                kept.append(other)
                continue
            pairs.append((front.cut(start, stop), other.cut(start, stop)))
            kept += _around(other, start, stop)
            unmet = [rest for part in unmet for rest in _around(part, start, stop)]
        if kept:
            self._fronts[front.seam, not front.before] = kept
        if unmet:
            self._fronts[front.seam, front.before] += unmet
        return pairs

    def _join(self, ours: Front, theirs: Front) -> set[int]:
        """Unite pieces of one label that face each other; return a piece of every region that the seam touched."""
        facing = (ours.pieces >= 0) & (theirs.pieces >= 0) & (ours.labels == theirs.labels)
        pairs = np.stack([ours.pieces[facing], theirs.pieces[facing]], axis=1)
        if len(pairs):
            changes = np.ones(len(pairs), bool)
            changes[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
            for one, other in pairs[changes].tolist():
                self._unite(one, other)
        return self._count_open(ours.pieces, -1) | self._count_open(theirs.pieces, -1)

    def _count_open(self, pieces: NDArray[np.int64], sign: int) -> set[int]:
        known, counts = np.unique(pieces[pieces >= 0], return_counts=True)
        for piece, count in zip(known.tolist(), counts.tolist(), strict=True):
            self._regions[self._root(piece)].open_pixels += sign * count
        return set(known.tolist())

    def _root(self, piece: int) -> int:
        root = piece
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[piece] != root:
            self._parent[piece], piece = root, self._parent[piece]
        return root

    def _unite(self, one: int, other: int) -> None:
        into, gone = self._root(one), self._root(other)
        if into == gone:
            return
        if len(self._regions[into].pieces) < len(self._regions[gone].pieces):
            into, gone = gone, into
        self._parent[gone] = into
        target, source = self._regions[into], self._regions.pop(gone)
        target.parts += source.parts
        target.pieces += source.pieces
        target.pixels += source.pixels
        known = target.confidence_sum >= 0 and source.confidence_sum >= 0
        target.confidence_sum = target.confidence_sum + source.confidence_sum if known else -1
        target.open_pixels += source.open_pixels

    def _release(self, root: int) -> Region:
        region = self._regions.pop(root)
        for piece in region.pieces:
            del self._parent[piece]
        return region


def _around(front: Front, start: int, stop: int) -> list[Front]:
    """Return the parts of ``front`` outside ``start`` to ``stop``."""
    ends = ((front.start, min(start, front.stop)), (max(stop, front.start), front.stop))
    return [front.cut(low, high) for low, high in ends if low < high]
