"""Regions that lie in several blocks, put together from what each block knows of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoseg.vector import topology
from geoseg.vector.pixel_polygons import PixelPolygons, offsets


@dataclass(frozen=True)
class Pieces:
    """What one block knows of regions that go on in other blocks.

    Attributes:
        corners, starts: rings and chains without repeated ends, as in :mod:`geoseg.vector.topology`.
        keys: of each ring or chain, the number of its region over all blocks.
        heads, tails: of a chain, its first crack and the crack after its last one, as numbers in the whole raster;
            -1 for rings.
        region_keys: the regions; the arrays after it say of each what the block adds to it, and the columns of
            :class:`PixelPolygons` that all blocks agree on.
    """

    corners: NDArray[np.int32]
    starts: NDArray[np.int64]
    keys: NDArray[np.int64]
    heads: NDArray[np.int64]
    tails: NDArray[np.int64]
    region_keys: NDArray[np.int64]
    feature: NDArray[np.int64]
    class_id: NDArray[np.int64]
    pixels: NDArray[np.int64]
    confidence_sum: NDArray[np.int64]
    confidence_pixels: NDArray[np.int64]

    def chosen(self, keys: NDArray[np.bool_]) -> Pieces:
        """Return what belongs to the regions for which ``keys``, by key, is true."""
        rings, regions = keys[self.keys], keys[self.region_keys]
        corners, starts = topology.chosen_rings(self.corners, self.starts, np.flatnonzero(rings))
        return Pieces(
            corners,
            starts,
            self.keys[rings],
            self.heads[rings],
            self.tails[rings],
            *(getattr(self, name)[regions] for name in _REGION_COLUMNS),
        )


_REGION_COLUMNS = ("region_keys", "feature", "class_id", "pixels", "confidence_sum", "confidence_pixels")


class Stitcher:
    """Regions that lie in several blocks: keeps their pieces until the last has come, then closes their rings.

    Args:
        spread: by key, in how many blocks each region lies (int64).
    """

    def __init__(self, spread: NDArray[np.int64]) -> None:
        self._missing = spread.copy()
        self._pending: list[Pieces] = []

    def __len__(self) -> int:
        """Return the number of blocks that still have pieces here."""
        return len(self._pending)

    def add(self, pieces: Pieces | None) -> None:
        """Take in what a block knows."""
        if pieces is not None and len(pieces.region_keys):
            self._missing[pieces.region_keys] -= 1
            self._pending.append(pieces)

    def take(self) -> list[Pieces]:
        """Give back the pieces of the regions that have become complete."""
        complete = self._missing == 0
        ready, waiting = [], []
        for pieces in self._pending:
            done = complete[pieces.region_keys]
            if done.any():
                ready.append(pieces.chosen(complete))
            if not done.all():
                waiting.append(pieces.chosen(~complete) if done.any() else pieces)
        self._pending = waiting
        return ready


def stitched(parts: list[Pieces], raster_width: int) -> PixelPolygons:
    """Return complete regions, all of whose pieces are in ``parts``, as polygons."""
    if not parts:
        return PixelPolygons.joined([])
    corners = np.concatenate([part.corners for part in parts])
    starts = offsets(np.concatenate([np.diff(part.starts) for part in parts]))
    keys, heads, tails = (np.concatenate([getattr(p, name) for p in parts]) for name in ("keys", "heads", "tails"))
    chains, rings = np.flatnonzero(heads >= 0), np.flatnonzero(heads < 0)
    order = np.argsort(heads[chains])
    following = order[np.searchsorted(heads[chains][order], tails[chains])]
    chain_corners, chain_starts = topology.chosen_rings(corners, starts, chains)
    joined, joined_starts, members = topology.join_chains(chain_corners, chain_starts, following)
    closed, closed_starts = topology.chosen_rings(corners, starts, rings)
    corners, starts = topology.from_first_corner(
        np.concatenate([joined, closed]), np.concatenate([joined_starts, joined_starts[-1] + closed_starts[1:]])
    )
    owners = np.concatenate([keys[chains][members], keys[rings]])
    first = corners[starts[:-1]].astype(np.int64)
    # Shells run down from their first corner, holes run right.
    holes = corners[starts[:-1] + 1, 0] != first[:, 0]
    order = np.lexsort((first[:, 0], first[:, 1], holes, owners))
    corners, starts = topology.chosen_rings(corners, starts, order)
    shells = np.flatnonzero(~holes[order])
    first = first[order][shells]
    columns = _summed(parts, owners[order][shells])
    return PixelPolygons(
        corners,
        starts,
        np.append(shells, len(order)).astype(np.int64),
        first[:, 1] * raster_width + first[:, 0],
        *columns,
    )


def _summed(parts: list[Pieces], keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Return the columns of the regions with these ascending keys, put together from all blocks."""
    place = np.searchsorted(keys, np.concatenate([part.region_keys for part in parts]))
    columns = []
    for name in _REGION_COLUMNS[1:]:
        values = np.concatenate([getattr(part, name) for part in parts])
        column = np.zeros(len(keys), np.int64)
        if name in ("feature", "class_id"):
            column[place] = values
        else:
            np.add.at(column, place, values)
        columns.append(column)
    return tuple(columns)
