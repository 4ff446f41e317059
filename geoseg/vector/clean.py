"""Small regions merged into their neighbours, or dropped, and small holes filled: alike for any blocks.

Merging goes in rounds over the whole raster.  A small region has a *heir*: of its larger neighbours the one with the
longest common border (among equals the larger, then the one whose first pixel comes first).  In a round every small
region takes the class of its heir, unless the heir is about to be merged itself; then it waits for the next round, when
it may have another heir.  Size decides by area on the ground, and between equals by the first pixel, so no two regions
can swap classes, every round merges something, and nothing depends on the order in which regions are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from geoseg.compiling import compiled
from geoseg.grid import Window
from geoseg.vector import labelling
from geoseg.vector.label_map import LabelMap
from geoseg.vector.measures import measure
from geoseg.vector.polygons import NOTHING
from geoseg.vector.seams import Border, Seams

# Pixels of one cell of this side have one area: the ground area of a pixel varies slowly.
CELL = 256
# Areas are counted in such parts of a mean pixel, in whole numbers, so that sums do not depend on their order.
_PARTS = 2**20
# "No code at all": holes in the data are regions too where they may be filled.
_NO_CODE = 256

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PixelAreas:
    """Ground areas of pixels.

    Attributes:
        parts: area of a pixel in each cell of :data:`CELL` × :data:`CELL` pixels, in parts of ``unit_m2`` (int64).
        unit_m2: m².
        width, height: ground length of a pixel's horizontal and vertical edge, relative to each other (whole numbers).
    """

    parts: NDArray[np.int64]
    unit_m2: float
    width: int
    height: int

    @classmethod
    def of(cls, shape: tuple[int, int], affine: Affine, crs: pyproj.CRS, pixel_m: tuple[float, float]) -> PixelAreas:
        """Measure them on the ellipsoid, at the middle of each cell.

        Args:
            shape: the raster's height and width in pixels.
            affine: from pixel corners (column, row) to ``crs``.
            crs: the raster's CRS.
            pixel_m: ground width and height of a pixel, in metres, about.
        """
        rows, cols = (np.minimum(np.arange(0, size, CELL) + CELL // 2, size - 1).astype(float) for size in shape)
        row, col = (grid.ravel() for grid in np.meshgrid(rows, cols, indexing="ij"))
        x = np.stack([col, col, col + 1, col + 1, col], axis=1)
        y = np.stack([row, row + 1, row + 1, row, row], axis=1)
        corners = np.stack([affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f], axis=2)
        area, _ = measure(shapely.polygons(corners), crs)
        known = np.isfinite(area)
        mean = float(area[known].mean()) if known.any() else pixel_m[0] * pixel_m[1]
        area[~known] = mean
        parts = np.maximum(1, np.rint(area / mean * _PARTS)).astype(np.int64).reshape(len(rows), len(cols))
        longest = max(pixel_m)
        return cls(parts, mean / _PARTS, *(max(1, round(1024 * side / longest)) for side in pixel_m))

    def parts_of(self, area_m2: float) -> int:
        """Return an area as a number of parts."""
        return round(min(area_m2 / self.unit_m2, 2**62))


def clean(
    labels: LabelMap,
    areas: PixelAreas,
    *,
    min_area_m2: float = 0.0,
    drop: bool = False,
    fill_holes_m2: float = 0.0,
    progress: Progress | None = None,
) -> int:
    """Change ``labels`` so that no region is too small and no hole too; returns the number of rounds it took.

    Args:
        labels: the raster; regions are 4-connected.
        areas: ground areas of its pixels.
        min_area_m2: smaller regions are merged into their heirs; those without a larger neighbour stay.
        drop: small regions become holes instead.
        fill_holes_m2: smaller holes that do not touch the raster's edge take the class of the neighbour with the
            longest border; done together with merging, or after dropping.
        progress: called after each round with the number of rounds done and an estimate of all.
    """
    limits = [(areas.parts_of(min_area_m2), areas.parts_of(fill_holes_m2), False)]
    if drop and min_area_m2 > 0:
        limits = [(limits[0][0], 0, True), (0, limits[0][1], False)]
    rounds = 0
    for small, hole, dropping in limits:
        while (small or hole) and _Round(labels, areas, small, hole, dropping).run():
            rounds += 1
            if progress:
                progress(rounds, rounds + 1)
            if dropping:
                break
    return rounds


@dataclass(frozen=True)
class _Block:
    """The regions of one block: see :func:`geoseg.vector.labelling.label_regions`."""

    window: Window
    codes: NDArray[np.uint8]
    regions: NDArray[np.int32]
    first_pixel: NDArray[np.int64]
    parts: NDArray[np.int64]
    raster_width: int
    sides: tuple[NDArray[np.int32], ...]

    @property
    def stride(self) -> int:
        return self.window.width + 2


@dataclass(frozen=True)
class _Known:
    """What is known of N regions: their first pixels, which name them, their codes and areas in parts."""

    name: NDArray[np.int64]
    code: NDArray[np.int64]
    parts: NDArray[np.int64]

    def larger(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether regions ``one`` are larger than ``other``, element by element, both indices."""
        a, b = self.parts[one], self.parts[other]
        return (a > b) | ((a == b) & (self.name[one] < self.name[other]))


@dataclass(frozen=True)
class _Borders:
    """Pairs of a region too small and a neighbour, by index into ``known``; 0 is no region or the raster's outside.

    ``length`` is that of their common border, ``heir`` whether the neighbour may be the small one's heir.  By index,
    ``key_of`` says which regions touch seams (-1: not) and ``grown`` which are small and have a larger neighbour, as
    far as this block can tell.
    """

    one: NDArray[np.int64]
    other: NDArray[np.int64]
    length: NDArray[np.int64]
    heir: NDArray[np.bool_]
    known: _Known
    key_of: NDArray[np.int64]
    grown: NDArray[np.bool_]


class _Round:
    """One round over all blocks."""

    def __init__(self, labels: LabelMap, areas: PixelAreas, small: int, hole: int, dropping: bool) -> None:
        self._labels = labels
        self._areas = areas
        self._small, self._hole, self._dropping = small, hole, dropping
        rows, cols = labels.cuts
        self._width = cols[-1]
        self._lattice = (len(rows) - 1, len(cols) - 1)
        self._windows = labels.windows()

    def run(self) -> bool:
        """Do it; returns whether anything changed."""
        self._learn_borders()
        decide = self._dropped
        if not self._dropping:
            self._settle_borders()
            decide = self._merged
        # A decision needs nothing of other blocks but what has been learned, so a block can be written at once.
        return any([self._write(*decide(number)) for number in range(len(self._windows))])

    def _place(self, number: int) -> tuple[int, int]:
        return divmod(number, self._lattice[1])

    def _block(self, number: int) -> _Block:
        """Return a block with its regions; it has not been written in this round."""
        window = self._windows[number]
        rows, cols = slice(window.row, window.row_stop), slice(window.col, window.col_stop)
        codes = np.array(self._labels.labels[rows, cols])
        found = labelling.label_regions(codes, _NO_CODE if self._hole else NOTHING)
        regions, name = found.framed(), found.first_pixels(window, self._width)
        place = (window.row, window.col)
        parts = _parts_by_region(regions, window.width + 2, *place, self._areas.parts, CELL, len(name))
        return _Block(window, codes, regions, name, parts, self._width, found.sides())

    def _learn_borders(self) -> None:
        """Find out which regions are one across seams, and how large those are that touch one."""
        self._seams = Seams(self._lattice, corners=False)
        parts, codes = [], []
        for number in range(len(self._windows)):
            block = self._block(number)
            self._seams.add(self._place(number), Border.of(block.sides, block.codes, block.first_pixel))
            numbers = self._seams.numbers(self._place(number))
            parts.append(block.parts[numbers])
            codes.append(_codes_of(block)[numbers])
        self._seams.close()
        key = self._seams.key
        total = np.zeros(len(key), np.int64)
        np.add.at(total, key, np.concatenate(parts))
        self._border = _Known(self._seams.first_pixel, np.concatenate(codes), total)
        self._changes = np.full(len(key), -1, np.int64)

    def _known(self, block: _Block, number: int) -> tuple[NDArray[np.int32], _Known, NDArray[np.int64]]:
        """Return the region map with its frame, what is known of all in it, and their keys (-1: away from seams)."""
        place = self._place(number)
        count = len(block.first_pixel)
        numbers, keys = self._seams.numbers(place), self._seams.keys(place)
        frame = np.concatenate(self._seams.frame(place))
        around, position = np.unique(frame[frame >= 0], return_inverse=True)
        framed = np.zeros(len(frame), np.int32)
        framed[frame >= 0] = (count + position).astype(np.int32)
        key_of = np.full(count + len(around), -1, np.int64)
        key_of[numbers], key_of[count:] = keys, around
        regions = block.regions.copy()
        grid, width, height = regions.reshape(-1, block.stride), block.stride, block.window.height
        grid[0], grid[-1] = framed[:width], framed[width : 2 * width]
        grid[1:-1, 0], grid[1:-1, -1] = framed[2 * width : 2 * width + height], framed[2 * width + height :]
        own = (block.first_pixel, _codes_of(block), block.parts)
        shared = (self._border.name, self._border.code, self._border.parts)
        columns = []
        for mine, theirs in zip(own, shared, strict=True):
            column = np.zeros(len(key_of), np.int64)
            column[:count] = mine
            column[key_of >= 0] = theirs[key_of[key_of >= 0]]
            columns.append(column)
        return regions, _Known(*columns), key_of

    def _too_small(self, known: _Known) -> NDArray[np.bool_]:
        small = known.parts < np.where(known.code == NOTHING, self._hole, self._small)
        small[0] = False  # no region at all
        return small

    def _borders(self, block: _Block, number: int) -> _Borders:
        """Measure the borders of the regions of a block that are too small."""
        regions, known, key_of = self._known(block, number)
        small = self._too_small(known)
        small[len(block.first_pixel) :] = False  # the frame's are looked at where they are
        one, other, length = _small_borders(regions, block.stride, small, self._areas.width, self._areas.height)
        # What is one region across seams goes by the first of its numbers.
        _, first, inverse = np.unique(key_of, return_index=True, return_inverse=True)
        same = np.where(key_of >= 0, first[inverse], np.arange(len(key_of)))
        one, other = same[one], same[other]
        apart = one != other
        pairs, inverse = np.unique((one[apart] << 32) | other[apart], return_inverse=True)
        total = np.zeros(len(pairs), np.int64)
        np.add.at(total, inverse, length[apart])
        one, other = pairs >> 32, pairs & 0xFFFFFFFF
        heir = (other > 0) & (known.code[other] != NOTHING) & (known.larger(other, one) | (known.code[one] == NOTHING))
        grown = np.zeros(len(key_of), bool)
        grown[one[heir & (known.code[one] != NOTHING)]] = True
        return _Borders(one, other, total, heir, known, key_of, grown)

    def _settle_borders(self) -> None:
        """Decide on the small regions that touch seams, which needs several blocks."""
        records = []
        for number in range(len(self._windows)):
            b = self._borders(self._block(number), number)
            at = np.flatnonzero(b.key_of[b.one] >= 0)
            one, other = b.one[at], b.other[at]
            name = np.where(other == 0, -1, b.known.name[other])
            columns = (b.key_of[one], name, b.known.code[other], b.known.parts[other], b.key_of[other], b.grown[other])
            records.append(np.stack([*columns, b.heir[at], b.length[at]]).astype(np.int64))
        table = np.concatenate(records, axis=1)
        # The same neighbour seen from several blocks is one neighbour.
        table = table[:, np.lexsort((table[1], table[0]))]
        changes = (np.diff(table[:2]) != 0).any(axis=0)
        begins = np.flatnonzero(np.append(True, changes)[: table.shape[1]])
        length = np.add.reduceat(table[7], begins) if len(begins) else np.empty(0, np.int64)
        key, name, code, parts, other_key, grown, heir, _ = table[:, begins] if len(begins) else table
        is_hole = self._border.code[key] == NOTHING
        # A hole that reaches the raster's edge is none.
        edge = np.zeros(len(self._border.name), bool)
        edge[key[(name < 0) & is_hole]] = True
        self._grown = np.zeros(len(self._border.name), bool)
        self._grown[key[(heir > 0) & ~is_hole]] = True
        may = np.flatnonzero((heir > 0) & ~edge[key])
        chosen = may[_heirs(key[may], length[may], parts[may], name[may])]
        moving = np.where(other_key[chosen] >= 0, self._grown[other_key[chosen]], grown[chosen] > 0)
        settled = chosen[~moving]
        self._changes[key[settled]] = code[settled]

    def _merged(self, number: int) -> tuple[_Block, NDArray[np.int64]]:
        """Return a block and the new code of each of its regions, -1 where it keeps its own."""
        block = self._block(number)
        b = self._borders(block, number)
        shared = b.key_of >= 0
        b.grown[shared] = self._grown[b.key_of[shared]]
        may = np.flatnonzero(b.heir & ~shared[b.one])
        one, other = b.one[may], b.other[may]
        chosen = _heirs(one, b.length[may], b.known.parts[other], b.known.name[other])
        settled = chosen[~b.grown[other[chosen]]]
        changes = np.full(len(b.key_of), -1, np.int64)
        changes[one[settled]] = b.known.code[other[settled]]
        changes[shared] = self._changes[b.key_of[shared]]
        return block, changes

    def _dropped(self, number: int) -> tuple[_Block, NDArray[np.int64]]:
        block = self._block(number)
        _, known, _ = self._known(block, number)
        return block, np.where(self._too_small(known), NOTHING, -1)

    def _write(self, block: _Block, changes: NDArray[np.int64]) -> bool:
        changes = changes[: len(block.first_pixel)]
        if not (changes >= 0).any():
            return False
        codes = np.where(changes >= 0, changes, _codes_of(block)).astype(np.uint8)
        codes[0] = NOTHING
        window = block.window
        inner = block.regions.reshape(-1, block.stride)[1:-1, 1:-1]
        self._labels.labels[window.row : window.row_stop, window.col : window.col_stop] = codes[inner]
        return True


def _codes_of(block: _Block) -> NDArray[np.int64]:
    """Return the code of each region of a block, by number; that of 0 means nothing."""
    row, col = np.divmod(block.first_pixel[1:], block.raster_width)
    codes = np.full(len(block.first_pixel), NOTHING, np.int64)
    codes[1:] = block.codes[row - block.window.row, col - block.window.col]
    return codes


def _heirs(
    region: NDArray[np.int64], length: NDArray[np.int64], parts: NDArray[np.int64], name: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the index of the heir of each region among its candidates: the longest border, area, first name."""
    order = np.lexsort((name, -parts, -length, region))
    return order[np.append(True, np.diff(region[order]) != 0)] if len(order) else order


@compiled
def _parts_by_region(regions: Any, stride: int, row: int, col: int, parts: Any, cell: int, count: int) -> Any:
    """Return the area of each of ``count`` regions in parts (int64); the block begins at ``row`` and ``col``."""
    sums = np.zeros(count, np.int64)
    for i in range(len(regions) // stride - 2):
        place = (i + 1) * stride
        line = parts[(row + i) // cell]
        for j in range(stride - 2):
            place += 1
            sums[regions[place]] += line[(col + j) // cell]
    sums[0] = 0
    return sums


@compiled
def _small_borders(regions: Any, stride: int, small: Any, wide: int, high: int) -> Any:
    """Return every edge between a pixel of a small region and one of another: both regions and the edge's length."""
    one = np.empty(1024, np.int64)
    other = np.empty(1024, np.int64)
    length = np.empty(1024, np.int64)
    count = 0
    for i in range(1, len(regions) // stride - 1):
        for place in range(i * stride + 1, (i + 1) * stride - 1):
            own = regions[place]
            if not small[own]:
                continue
            for side in range(4):
                step = (1, stride, -1, -stride)[side]
                if regions[place + step] == own:
                    continue
                if count == len(one):
                    one = np.concatenate((one, np.empty_like(one)))
                    other = np.concatenate((other, np.empty_like(other)))
                    length = np.concatenate((length, np.empty_like(length)))
                one[count], other[count] = own, regions[place + step]
                length[count] = wide if side & 1 else high
                count += 1
    return one[:count], other[:count], length[:count]
