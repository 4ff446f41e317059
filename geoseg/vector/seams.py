"""Which regions of neighbouring blocks are one: all that is known across seams, from the blocks' border pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from geoseg.vector.labelling import unite_pairs

# Of a border: its top row, bottom row, left column and right column.
_TOP, _BOTTOM, _LEFT, _RIGHT = range(4)


@dataclass(frozen=True)
class Border:
    """The outermost pixels of a block: top and bottom row, left and right column.

    Attributes:
        numbers: of each side, the block's own numbers of what lies there (int), 0 for nothing.
        codes: of each side, the pixels' codes.
        first_pixel: of every number from 0 up, its first pixel in the raster, row-major (int64).
    """

    numbers: tuple[NDArray[np.int32], ...]
    codes: tuple[NDArray[np.uint8], ...]
    first_pixel: NDArray[np.int64]

    @classmethod
    def of(cls, sides: Iterable[NDArray[np.int32]], codes: NDArray[np.uint8], first_pixel: NDArray[np.int64]) -> Border:
        """Return the border of a block with these numbers along its sides, and with these codes (h, w)."""
        ends = (codes[0], codes[-1], codes[:, 0], codes[:, -1])
        return cls(tuple(sides), tuple(map(np.copy, ends)), first_pixel)


@dataclass(frozen=True)
class Open:
    """What of one block goes on in others, or comes back to it through them.

    Attributes:
        numbers: the block's own numbers, ascending (int64).
        keys: the number, over all blocks, of each (int64).
        first_pixel: the first pixel of each in the raster (int64).
        frame: keys along the frame of the block, -1 where nothing open lies: the row above and the row below, both
            two longer than the block is wide, and the columns left and right.
    """

    numbers: NDArray[np.int64]
    keys: NDArray[np.int64]
    first_pixel: NDArray[np.int64]
    frame: tuple[NDArray[np.int64], ...]


class Seams:
    """Joins what touches across the seams of a lattice of blocks: add every block's border, close, then ask.

    Args:
        blocks: number of block rows and block columns.
        corners: whether pixels that touch in a corner are joined too.

    Once closed it has ``key``, for everything at a border the number it goes by over all blocks, and ``first_pixel``,
    by key, the first pixel in the raster.
    """

    key: NDArray[np.int64]
    first_pixel: NDArray[np.int64]

    def __init__(self, blocks: tuple[int, int], corners: bool) -> None:
        self._blocks = blocks
        self._corners = corners
        self._nodes: dict[tuple[int, int], tuple[NDArray[np.int64], ...]] = {}
        self._codes: dict[tuple[int, int], tuple[NDArray[np.uint8], ...]] = {}
        self._numbers: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._offsets: dict[tuple[int, int], int] = {}
        self._first: list[NDArray[np.int64]] = []
        self._count = 0

    def add(self, block: tuple[int, int], border: Border) -> None:
        """Take in the border of the block at a row and column of the lattice."""
        present = np.unique(np.concatenate(border.numbers))
        numbers = present[present > 0].astype(np.int64)
        self._numbers[block] = numbers
        self._offsets[block] = self._count
        self._nodes[block] = tuple(
            np.where(side > 0, np.searchsorted(numbers, side) + self._count, -1) for side in border.numbers
        )
        self._codes[block] = border.codes
        self._first.append(border.first_pixel[numbers])
        self._count += len(numbers)

    def close(self) -> None:
        """Join everything that touches; no border is taken after this."""
        parent = np.arange(self._count, dtype=np.int32)
        pairs = [np.empty((2, 0), np.int64), *(np.stack(pair) for pair in self._touching())]
        unite_pairs(parent, *np.concatenate(pairs, axis=1))
        self.key = parent.astype(np.int64)
        first = np.concatenate([*self._first, np.empty(0, np.int64)])
        self.first_pixel = first.copy()
        np.minimum.at(self.first_pixel, self.key, first)
        self._joined = np.bincount(self.key, minlength=self._count) > 1
        self._codes.clear()

    def spread(self) -> NDArray[np.int64]:
        """Return, by key, in how many blocks something lies (int64)."""
        counts = np.zeros(self._count, np.int64)
        for block, numbers in self._numbers.items():
            counts[np.unique(self.key[self._offsets[block] :][: len(numbers)])] += 1
        return counts

    def numbers(self, block: tuple[int, int]) -> NDArray[np.int64]:
        """Return the block's own numbers that touch its border, ascending."""
        return self._numbers[block]

    def keys(self, block: tuple[int, int]) -> NDArray[np.int64]:
        """Return the number, over all blocks, of each of :meth:`numbers`."""
        offset = self._offsets[block]
        return self.key[offset : offset + len(self._numbers[block])]

    def of(self, block: tuple[int, int]) -> Open:
        """Return what is open in a block."""
        keys = self.keys(block)
        joined = self._joined[keys]
        return Open(self._numbers[block][joined], keys[joined], self.first_pixel[keys[joined]], self.frame(block))

    def frame(self, block: tuple[int, int]) -> tuple[NDArray[np.int64], ...]:
        """Return the keys along the frame of a block: see :class:`Open`."""
        row, col = block
        height, width = (len(self._nodes[block][side]) for side in (_LEFT, _TOP))
        return (
            np.concatenate(
                [
                    self._along((row - 1, col - 1), _BOTTOM, 1)[-1:],
                    self._along((row - 1, col), _BOTTOM, width),
                    self._along((row - 1, col + 1), _BOTTOM, 1)[:1],
                ]
            ),
            np.concatenate(
                [
                    self._along((row + 1, col - 1), _TOP, 1)[-1:],
                    self._along((row + 1, col), _TOP, width),
                    self._along((row + 1, col + 1), _TOP, 1)[:1],
                ]
            ),
            self._along((row, col - 1), _RIGHT, height),
            self._along((row, col + 1), _LEFT, height),
        )

    def _along(self, block: tuple[int, int], side: int, length: int) -> NDArray[np.int64]:
        """Return the keys along one side of a block; nothing for ``length`` pixels where there is no block.

        Everything has a key here, open or not: what ends at the seam still is another region than its neighbour.
        """
        nodes = self._nodes.get(block)
        if nodes is None:
            return np.full(length, -1, np.int64)
        return np.where(nodes[side] >= 0, self.key[nodes[side]], -1) if self._count else nodes[side]

    def _touching(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield pairs of nodes that touch across a seam, with equal codes."""
        for row, col in product(range(self._blocks[0]), range(self._blocks[1])):
            for step, mine, theirs in (((0, 1), _RIGHT, _LEFT), ((1, 0), _BOTTOM, _TOP)):
                other = (row + step[0], col + step[1])
                if (row, col) not in self._nodes or other not in self._nodes:
                    continue
                for shift in (-1, 0, 1) if self._corners else (0,):
                    yield self._pairs((row, col), mine, other, theirs, shift)
            if self._corners:
                for step, mine, theirs in (((1, 1), _BOTTOM, _TOP), ((1, -1), _BOTTOM, _TOP)):
                    other = (row + step[0], col + step[1])
                    if (row, col) in self._nodes and other in self._nodes:
                        ends = (-1, 0) if step[1] > 0 else (0, -1)
                        yield self._corner((row, col), mine, other, theirs, ends)

    def _pairs(
        self, one: tuple[int, int], mine: int, other: tuple[int, int], theirs: int, shift: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        here = slice(max(0, -shift), None if shift <= 0 else -shift)
        there = slice(max(0, shift), None if shift >= 0 else shift)
        a, b = self._nodes[one][mine][here], self._nodes[other][theirs][there]
        same = (a >= 0) & (b >= 0) & (self._codes[one][mine][here] == self._codes[other][theirs][there])
        a, b = a[same], b[same]
        changes = np.ones(len(a), bool)
        changes[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
        return a[changes], b[changes]

    def _corner(
        self, one: tuple[int, int], mine: int, other: tuple[int, int], theirs: int, ends: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        a, b = self._nodes[one][mine][ends[0]], self._nodes[other][theirs][ends[1]]
        same = a >= 0 and b >= 0 and self._codes[one][mine][ends[0]] == self._codes[other][theirs][ends[1]]
        return (np.array([a]), np.array([b])) if same else (np.empty(0, np.int64), np.empty(0, np.int64))
