"""Where two rasters on one grid agree in level and in structure: maps of structural similarity, and their means.

Source: Brunet, Vrscay, Wang 2012, IEEE Transactions on Image Processing 21(4) 1488-1499; see :mod:`geoseg.losses.ssim`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.grid import ChunkGrid, Window
from geoseg.metrics import IGNORED

# Windows of 11 pixels with Gaussian weights of sigma 1.5, as in Wang et al. 2004.
SIZE, SIGMA = 11, 1.5
# Side of the blocks: some twenty maps of float64 are in memory at a time.
_BLOCK = 1024

Planes = Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True)
class Pair:
    """Two rasters, seen through one grid.

    Attributes:
        shape: height and width of the grid.
        names: of the planes that are compared: classes, or bands.
        data_range: what lies between the least and the largest value that a plane can have.
        read: reads a window: the planes of both (h, w) one after the other, and where both are known (h, w) bool.
    """

    shape: tuple[int, int]
    names: tuple[str, ...]
    data_range: float
    read: Callable[[Window], tuple[Planes, NDArray[np.bool_]]]


@dataclass(frozen=True)
class Structure:
    """Sums over all windows that lie wholly inside and hold no unknown pixel.

    Attributes:
        names: of the planes.
        data_range: that was used for all of them.
        windows: how many.
        level: (P,) sums of 1 − S1 of each plane.
        structure: (P,) of 1 − S2.
        ssim: (P,) of S1 · S2.
    """

    names: tuple[str, ...]
    data_range: float
    windows: int
    level: NDArray[np.float64]
    structure: NDArray[np.float64]
    ssim: NDArray[np.float64]

    def as_dict(self) -> dict[str, Any]:
        """Return the means as a plain record, NaN where there is no window: over the planes, and for each."""
        return {
            "window": SIZE,
            "sigma": SIGMA,
            "data_range": self.data_range,
            "windows": self.windows,
            **self._means(slice(None)),
            "planes": [{"name": name, **self._means(slice(i, i + 1))} for i, name in enumerate(self.names)],
        }

    def _means(self, planes: slice) -> dict[str, float]:
        if self.windows == 0:
            return dict.fromkeys(("s1", "s2", "ssim", "d2"), float("nan"))
        level, structure, ssim = (
            float(sums[planes].mean() / self.windows) for sums in (self.level, self.structure, self.ssim)
        )
        return {"s1": 1 - level, "s2": 1 - structure, "ssim": ssim, "d2": float(np.sqrt(level + structure))}


def of_classes(
    shape: tuple[int, int],
    reference: Callable[[Window], NDArray[np.uint8]],
    prediction: Callable[[Window], NDArray[np.uint8]],
    area: Callable[[Window], NDArray[np.uint8]] | None,
    classes: Sequence[tuple[int, str]],
) -> Pair:
    """Return two label maps as a pair: a plane of ones and zeros for each class, never the class numbers.

    Args:
        shape: of the grid.
        reference: reads class indices, 255 where ignored.
        prediction: likewise.
        area: reads where to compare, 1 or 0; None for everywhere.
        classes: index and name of those that are compared.
    """

    def read(window: Window) -> tuple[Planes, NDArray[np.bool_]]:
        truth, answer = reference(window), prediction(window)
        known = (truth != IGNORED) & (answer != IGNORED)
        if area is not None:
            known &= area(window) != 0
        return (((answer == i).astype(np.float64), (truth == i).astype(np.float64)) for i, _ in classes), known

    return Pair(shape, tuple(name for _, name in classes), 1.0, read)


def compare_structure(
    pair: Pair,
    *,
    chunk: int = _BLOCK,
    write: Callable[[Window, NDArray[np.float32]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Structure:
    """Compare all windows of two rasters; the figures are of sums and counts, and memory is bounded by the block.

    Args:
        pair: what is compared.
        chunk: largest side of the blocks in pixels; results do not depend on it by more than rounding.
        write: called with each block's S1, S2 and D2 = √(2 − S1 − S2) (3, h, w), means over the planes, of the window
            around each pixel; NaN where it is not wholly inside or holds an unknown pixel.
        progress: called with blocks done and blocks in all.
    """
    count = len(pair.names)
    windows = 0
    sums = np.zeros((3, count))
    grid = ChunkGrid(pair.shape, min(chunk, _BLOCK))
    for done, window in enumerate(grid, 1):
        maps = np.full((3, *window.shape), np.nan, np.float32)
        wide = window.padded(SIZE // 2).intersect(Window(0, 0, *pair.shape))
        if min(wide.shape) >= SIZE:
            planes, known = pair.read(wide)
            inner = Window(wide.row + SIZE // 2, wide.col + SIZE // 2, wide.height - SIZE + 1, wide.width - SIZE + 1)
            counted = _wholly(known)
            if counted.any():
                windows += int(counted.sum())
                total = np.zeros((2, *inner.shape))
                for index, (x, y) in enumerate(planes):
                    parts = _complements(np.where(known, x, 0), np.where(known, y, 0), pair.data_range)
                    sums[:2, index] += [part[counted].sum() for part in parts]
                    sums[2, index] += ((1 - parts[0]) * (1 - parts[1]))[counted].sum()
                    total += parts
                level, structure = total / count
                bands = np.stack([1 - level, 1 - structure, np.sqrt(level + structure)])
                maps[(slice(None), *inner.within(window))] = np.where(counted, bands, np.nan)
        if write is not None:
            write(window, maps)
        if progress is not None:
            progress(done, len(grid))
    return Structure(pair.names, pair.data_range, windows, *sums)


def _wholly(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which windows hold no unknown pixel: (h − k + 1, w − k + 1)."""
    for _ in range(2):
        # Unknown pixels up to each row; of a window without any, the first and the last say the same.
        sums = np.concatenate([np.zeros((1, known.shape[1]), np.int64), np.cumsum(~known, axis=0)])
        known = (sums[SIZE:] == sums[:-SIZE]).T
    return known


def _complements(x: NDArray[np.float64], y: NDArray[np.float64], data_range: float) -> NDArray[np.float64]:
    """Return 1 − S1 and 1 − S2 of every window: (2, h − k + 1, w − k + 1)."""
    import torch

    from geoseg.losses.ssim import ssim_maps

    planes = (torch.from_numpy(each)[None, None] for each in (x, y))
    found = ssim_maps(*planes, data_range=data_range, size=SIZE, sigma=SIGMA)
    return torch.cat([found.level, found.structure])[:, 0].numpy()
