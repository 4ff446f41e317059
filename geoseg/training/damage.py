"""Masks spoilt on purpose, as a refiner will meet them: coarser outlines, and places that grew or shrank.

Source: the training of CascadePSP (Cheng et al. 2020, arXiv 2005.02551, section 3.2) and the code released with it,
with outlines along the edges of pixels in place of through their centres.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import rasterize

from geoseg.compiling import compiled
from geoseg.morphology import Mask, dilated, ellipse, eroded
from geoseg.source import placeless
from geoseg.training.variation_config import DamageConfig

# Outlines with fewer vertices stay away; of the others at least so many vertices stay, else small objects would vanish.
_SHORTEST, _FEWEST = 10, 4
# Of all places where a run of an outline could be cut out, one of this share with the nearest ends is.
_CANDIDATES = 0.1
# Changes a round, and how probable each is to begin with a pixel of its own.
_CHANGES, _PIXEL = 4, 0.25
_KERNELS = (3, 9)


def damaged(mask: Mask, damage: DamageConfig, random: np.random.Generator) -> Mask:
    """Return a mask (H, W) with a coarser outline, grown and shrunk in places; equal ``random`` gives equal masks.

    The agreement with the mask that was given is not the one drawn: the coarser outline comes on top.
    """
    least = random.uniform(*damage.iou)
    return gnawed(coarser(mask, damage, random), least, random, damage.rounds)[0]


def coarser(mask: Mask, damage: DamageConfig, random: np.random.Generator) -> Mask:
    """Return a mask (H, W) whose outlines go through few of their vertices; short outlines go.

    A mask that has short outlines alone stays as it is.
    """
    rings = [ring for ring in outlines(mask) if len(ring) >= _SHORTEST]
    if not rings:
        return mask.copy()
    thin = [_thinned(ring, damage, random) for ring in rings]
    # One polygon of all rings: what an odd number of them encloses is inside.
    polygon = {"type": "Polygon", "coordinates": [[*ring[:, ::-1].tolist(), ring[0, ::-1].tolist()] for ring in thin]}
    with placeless():
        filled = rasterize([polygon], out_shape=mask.shape, fill=0, default_value=1, dtype="uint8")
    return np.asarray(filled, bool)


def _thinned(ring: NDArray[np.int64], damage: DamageConfig, random: np.random.Generator) -> NDArray[np.float64]:
    """Return some of the vertices (n, 2) of an outline, in order."""
    count = len(ring)
    cut = int(count * damage.cut)
    # How far apart the ends of each run are that does not pass the outline's beginning.
    apart = ((ring[: count - cut] - ring[cut:]) ** 2).sum(1)
    nearest = np.argsort(apart, kind="stable")[: math.ceil(_CANDIDATES * len(apart))]
    start = int(random.choice(nearest))
    rest = np.delete(ring, slice(start, start + cut), axis=0).astype(np.float64)
    kept = random.choice(len(rest), max(_FEWEST, int(len(rest) * damage.keep)), replace=False)
    chosen = rest[np.sort(kept)]
    if damage.jitter:
        middle = ring.mean(0)
        chosen += (chosen - middle) * random.normal(0, damage.jitter, (len(chosen), 1))
    return chosen


def gnawed(mask: Mask, least: float, random: np.random.Generator, rounds: int) -> tuple[Mask, int]:
    """Return a mask (H, W) grown and shrunk in random rectangles, and how many rounds that took.

    Args:
        mask: to begin with; it stays as it is.
        least: rounds end when the agreement (IoU) with it falls below.
        random: where chance comes from.
        rounds: at most so many.
    """
    found = mask.copy()
    for number in range(1, rounds + 1):
        for _ in range(_CHANGES):
            _change(found, random)
        if agreement(found, mask) < least:
            return found, number
    return found, rounds


def _change(mask: Mask, random: np.random.Generator) -> None:
    """Grow or shrink a mask (H, W) within one random rectangle, in place."""
    height, width = mask.shape
    row, col = int(random.integers(height)), int(random.integers(width))
    row_stop, col_stop = int(random.integers(row + 1, height + 1)), int(random.integers(col + 1, width + 1))
    if random.random() < _PIXEL:
        mask[(row + row_stop) // 2, (col + col_stop) // 2] = random.random() < 0.5
    part = mask[row:row_stop, col:col_stop]
    change = dilated if random.random() < 0.5 else eroded
    part[...] = change(part, _kernel(random))


def _kernel(random: np.random.Generator) -> Mask:
    """Draw a square, a disk, or a disk pressed to half its height or width."""
    size = int(random.integers(_KERNELS[0], _KERNELS[1] + 1))
    kind = random.integers(4)
    if kind == 0:
        return np.ones((size, size), bool)
    return ellipse(size // 2 if kind == 2 else size, size // 2 if kind == 3 else size)


def agreement(one: Mask, other: Mask) -> float:
    """Return intersection over union of two masks, 1 where both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def outlines(mask: Mask) -> list[NDArray[np.int64]]:
    """Return the outlines of a mask (H, W), of holes too: rows and columns (n, 2) of pixel corners, a pixel apart.

    The mask is on the left.  Where two of its pixels touch in a corner the outline goes on along the other, as if they
    were one.

    >>> outlines(np.array([[True]]))[0].tolist()
    [[0, 0], [1, 0], [1, 1], [0, 1]]
    """
    inside = np.pad(mask, 1)
    # For each corner of pixels, the headings in which an edge leaves it: 1 south, 2 east, 4 north, 8 west.
    leaving = np.zeros((inside.shape[0] + 1, inside.shape[1] + 1), np.uint8)
    below, right = slice(1, None), slice(1, None)
    for bit, heading, corner in (
        (1, (0, 1), (slice(-1), slice(-1))),
        (2, (-1, 0), (below, slice(-1))),
        (4, (0, -1), (below, right)),
        (8, (1, 0), (slice(-1), right)),
    ):
        # What lies to the right of an edge with that heading is the pixel a step away.
        leaving[corner] |= (inside & ~np.roll(inside, heading, (0, 1))).astype(np.uint8) * np.uint8(bit)
    corners, starts = _followed(leaving, int(np.unpackbits(leaving).sum()))
    return [corners[start:stop] - 1 for start, stop in pairwise(starts)]


@compiled
def _followed(leaving: Any, count: int) -> Any:
    """Return the corners of all outlines, one behind the other, and where each begins.

    ``leaving`` is 0 afterwards: each of the ``count`` edges is passed once.
    """
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    corners = np.empty((count, 2), np.int64)
    starts = [0]
    done = 0
    for first_row in range(leaving.shape[0]):
        for first_col in range(leaving.shape[1]):
            while leaving[first_row, first_col]:
                row, col, heading = first_row, first_col, 0
                while not leaving[row, col] >> heading & 1:
                    heading += 1
                while True:
                    leaving[row, col] &= ~np.uint8(1 << heading)
                    corners[done] = row, col
                    done += 1
                    row, col = row + steps[heading][0], col + steps[heading][1]
                    if row == first_row and col == first_col:
                        break
                    # To the right first, then straight on, then to the left.
                    heading = (heading + 3) % 4
                    while not leaving[row, col] >> heading & 1:
                        heading = (heading + 1) % 4
                starts.append(done)
    return corners, np.array(starts)
