"""Statistics of another raster's values over regions, gathered block by block.

Sums and sums of squares are exact: whole numbers in several limbs, rounded once at the end.  So the statistics of a
region do not depend on how it was cut into blocks, nor on the order in which these came.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.grid import Window
from geoseg.scene import Scene, open_scene

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Limb j counts units of 2**(30 j).  Sums over 2**22 pixels are exact in a double, over 2**33 in 64 bits.
_LIMB_BITS = 30
_MOST_AT_ONCE = 1 << 22
# Larger values have no square; smaller ones, which have none that is exact, count as zero.
_LARGEST = 2.0**480
_SMALLEST = 2.0**-460
# Veltkamp's constant, which splits a double into two halves of 26 bits.
_SPLIT = 134_217_729.0


@dataclass(frozen=True)
class ZonalStatistics:
    """Statistics of R regions, all arrays of one length, ordered by region.

    Attributes:
        regions: int64 numbers.
        count: int64, pixels of the region that have a value.
        mean: float64, as all that follow, NaN where no pixel has a value.
        std: standard deviation of the pixels themselves (divided by their count).
        minimum: smallest value.
        maximum: largest value.
    """

    regions: Ints
    count: Ints
    mean: Floats
    std: Floats
    minimum: Floats
    maximum: Floats


@dataclass(frozen=True)
class ZonalSums:
    """What is known so far of R regions.

    Attributes:
        regions: int64, ascending, each number once.
        count: int64, pixels with a value.
        minimum: float64, infinite where there is none.
        maximum: likewise.
        sums: limb number to int64 (R,): sums of the values.
        squares: the same of their squares.
    """

    regions: Ints
    count: Ints
    minimum: Floats
    maximum: Floats
    sums: dict[int, Ints]
    squares: dict[int, Ints]

    def __len__(self) -> int:
        """Return the number of regions."""
        return len(self.regions)

    @classmethod
    def of_block(
        cls, regions: NDArray[np.integer], values: NDArray[np.generic], valid: NDArray[np.bool_] | None = None
    ) -> ZonalSums:
        """Return the sums of one block; regions without a value in it are there too, with a count of 0.

        Args:
            regions: (H, W) region number of each pixel; negative numbers are no region.
            values: (H, W) integers or floats; what is not below 2**480 in size is no value.
            valid: (H, W) where there is a value, everywhere by default.
        """
        inside = regions >= 0
        numbers, place = np.unique(regions[inside], return_inverse=True)
        amounts = values[inside].astype(np.float64)
        size = np.abs(amounts)
        held = size < _LARGEST
        amounts[size < _SMALLEST] = 0.0
        if valid is not None:
            held &= valid[inside]
        place, amounts = place[held], amounts[held]
        minimum, maximum = np.full(len(numbers), np.inf), np.full(len(numbers), -np.inf)
        np.minimum.at(minimum, place, amounts)
        np.maximum.at(maximum, place, amounts)
        square = amounts * amounts
        squares = _limbs(place, square, len(numbers))
        _add(squares, _limbs(place, _error_of_square(amounts, square), len(numbers)))
        count = np.bincount(place, minlength=len(numbers)).astype(np.int64)
        sums = _limbs(place, amounts, len(numbers))
        return cls(numbers.astype(np.int64), count, minimum, maximum, sums, squares)

    @classmethod
    def joined(cls, parts: Iterable[ZonalSums]) -> ZonalSums:
        """Return the sums of several blocks together; regions of one number are one region."""
        several = [part for part in parts if len(part)]
        if not several:
            none = np.zeros(0, np.int64)
            return cls(none, none, none.astype(float), none.astype(float), {}, {})
        return cls(
            np.concatenate([part.regions for part in several]),
            np.concatenate([part.count for part in several]),
            np.concatenate([part.minimum for part in several]),
            np.concatenate([part.maximum for part in several]),
            _side_by_side([part.sums for part in several], [len(part) for part in several]),
            _side_by_side([part.squares for part in several], [len(part) for part in several]),
        )._grouped()

    def renumbered(self, numbers: Ints) -> ZonalSums:
        """Return the same under other numbers (R,); regions that get one number become one region."""
        return ZonalSums(numbers, self.count, self.minimum, self.maximum, self.sums, self.squares)._grouped()

    def split(self, numbers: Ints) -> tuple[ZonalSums, ZonalSums]:
        """Return the regions with these numbers, for those that are complete, and the rest."""
        chosen = np.isin(self.regions, numbers)
        return self.chosen(chosen), self.chosen(~chosen)

    def statistics(self) -> ZonalStatistics:
        """Return the statistics, each rounded once from its exact value."""
        totals, low = _whole(self.sums, len(self))
        squares, lowest = _whole(self.squares, len(self))
        # One unit for both, a power of four for squares: division of whole numbers is rounded correctly.
        unit = min(low, lowest // 2)
        mean, std = np.full((2, len(self)), np.nan)
        for index in np.flatnonzero(self.count).tolist():
            number = int(self.count[index])
            total, square = totals[index] << (low - unit), squares[index] << (lowest - 2 * unit)
            mean[index] = _quotient(total, number, unit)
            std[index] = math.sqrt(_quotient(square * number - total * total, number * number, 2 * unit))
        empty = self.count == 0
        minimum, maximum = np.where(empty, np.nan, self.minimum), np.where(empty, np.nan, self.maximum)
        return ZonalStatistics(self.regions, self.count, mean, std, minimum, maximum)

    #: How many arrays :meth:`arrays` returns.
    ARRAYS: ClassVar[int] = 8

    def arrays(self) -> list[NDArray[np.generic]]:
        """Return everything as plain arrays, for a file."""
        limbs: list[NDArray[np.generic]] = []
        for sums in (self.sums, self.squares):
            limbs += [np.array([*sums], np.int64), np.array([*sums.values()], np.int64).reshape(-1, len(self))]
        return [self.regions, self.count, self.minimum, self.maximum, *limbs]

    @classmethod
    def of_arrays(cls, arrays: Sequence[NDArray[Any]]) -> ZonalSums:
        """Return what :meth:`arrays` took apart."""
        regions, count, minimum, maximum, *limbs = arrays
        sums, squares = (dict(zip(limbs[i].tolist(), limbs[i + 1], strict=True)) for i in (0, 2))
        return cls(regions, count, minimum, maximum, sums, squares)

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return 8 * len(self) * (4 + len(self.sums) + len(self.squares))

    def chosen(self, chosen: NDArray[Any]) -> ZonalSums:
        """Return some of the regions, by a mask or ascending indices."""
        return ZonalSums(
            self.regions[chosen],
            self.count[chosen],
            self.minimum[chosen],
            self.maximum[chosen],
            {limb: sums[chosen] for limb, sums in self.sums.items()},
            {limb: sums[chosen] for limb, sums in self.squares.items()},
        )

    def _grouped(self) -> ZonalSums:
        """Return the same with each number once, ascending."""
        if not len(self):
            return self
        order = np.argsort(self.regions, kind="stable")
        numbers = self.regions[order]
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
        return ZonalSums(
            numbers[starts],
            np.add.reduceat(self.count[order], starts),
            np.minimum.reduceat(self.minimum[order], starts),
            np.maximum.reduceat(self.maximum[order], starts),
            {limb: np.add.reduceat(sums[order], starts) for limb, sums in self.sums.items()},
            {limb: np.add.reduceat(sums[order], starts) for limb, sums in self.squares.items()},
        )


@dataclass(frozen=True)
class ZonalBand:
    """One band of any raster, seen through the grid of the labels."""

    scene: Scene

    @classmethod
    def open(cls, path: str | os.PathLike[str], band: int | str, geobox: GeoBox) -> ZonalBand:
        """Open a band; on another grid or in another CRS it is read bilinearly, averaged where that is coarser.

        Args:
            path: what GDAL opens.
            band: its index from 1, or its name.
            geobox: the grid of the labels.

        Raises:
            SceneError: the file cannot be read, has no such band or no CRS, or lies nowhere near the grid.
        """
        scene = open_scene(path, bands=[band])
        if scene.nodata[0] is not None and scene.path.startswith("/") and "?" not in scene.path:
            # Among other bands, GDAL's warper leaves out only pixels that say nodata in all of them: show it this one.
            scene = open_scene(f"vrt://{scene.path}?bands={scene.bands[0]}")
        return cls(scene.on_grid(geobox))

    def sums(self, regions: NDArray[np.integer], window: Window) -> ZonalSums:
        """Return the sums over one block of region numbers (H, W) that lies at ``window`` of the labels' grid.

        Raises:
            SceneError: the file cannot be read there.
        """
        pixels = self.scene.read(window)
        return ZonalSums.of_block(regions, pixels.data[0], pixels.valid)


def _limbs(place: NDArray[np.intp], values: Floats, regions: int) -> dict[int, Ints]:
    """Return exact sums of finite values per place: (regions,) for each limb that any value has a part in."""
    found: dict[int, Ints] = {}
    for start in range(0, len(values), _MOST_AT_ONCE):
        left, where = values[start : start + _MOST_AT_ONCE], place[start : start + _MOST_AT_ONCE]
        while (left != 0).any():
            # The limb of the largest value; others may be done as well by the time it is reached.
            limb = (math.frexp(float(np.abs(left).max()))[1] - 1) // _LIMB_BITS
            digits = np.trunc(np.ldexp(left, -_LIMB_BITS * limb))
            sums = np.bincount(where, digits, regions).astype(np.int64)
            _add(found, {limb: sums})
            left = left - np.ldexp(digits, _LIMB_BITS * limb)
    return found


def _add(sums: dict[int, Ints], others: dict[int, Ints]) -> None:
    for limb, other in others.items():
        sums[limb] = sums[limb] + other if limb in sums else other


def _side_by_side(parts: list[dict[int, Ints]], lengths: list[int]) -> dict[int, Ints]:
    limbs = sorted(set().union(*parts))
    return {
        limb: np.concatenate(
            [part.get(limb, np.zeros(length, np.int64)) for part, length in zip(parts, lengths, strict=True)]
        )
        for limb in limbs
    }


def _whole(sums: dict[int, Ints], regions: int) -> tuple[list[int], int]:
    """Return the exact sums as whole numbers, and of which power of two."""
    lowest = min(sums, default=0)
    totals = [0] * regions
    for limb, parts in sums.items():
        shift = _LIMB_BITS * (limb - lowest)
        totals = [total + (part << shift) for total, part in zip(totals, parts.tolist(), strict=True)]
    return totals, _LIMB_BITS * lowest


def _quotient(number: int, divisor: int, exponent: int) -> float:
    """Return ``number / divisor * 2**exponent``, rounded once."""
    return (number << exponent) / divisor if exponent >= 0 else number / (divisor << -exponent)


def _error_of_square(values: Floats, square: Floats) -> Floats:
    """Return exactly by how much rounded squares are too small (Dekker 1971, section 5)."""
    stretched = values * _SPLIT
    high = stretched - (stretched - values)
    low = values - high
    return np.asarray(((high * high - square) + 2 * high * low) + low * low)
