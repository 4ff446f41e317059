"""Where patches are drawn: labelled ground is counted once by class, then places are drawn by number.

Patch ``i`` of a seed is the same whoever draws it: threads, processes and interruptions change nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geoseg.errors import LabelsError
from geoseg.grid import ChunkGrid, Window
from geoseg.training.labels import IGNORE
from geoseg.training.site import Site
from geoseg.training.variation_config import AugmentConfig, SamplingConfig

# Sites with more pixels than this are counted on a coarser grid.
_MOST_PIXELS = 1 << 24
_BLOCK = 1024
# Cells of the count per side of a patch.
_CELLS = 4


@dataclass(frozen=True)
class Place:
    """Where and how a patch is read.

    Attributes:
        site: number of the scene.
        centre: row and column on the site's grid, in pixels.
        scale: ground metres per pixel as a multiple of the site's.
        angle: degrees.
        turn: 0 to 7: quarter turns (its lowest two bits), after a flip from left to right (4).
    """

    site: int
    centre: tuple[float, float]
    scale: float = 1.0
    angle: float = 0.0
    turn: int = 0


@dataclass(frozen=True)
class Count:
    """Labelled pixels of a site by class and cell: ``pixels`` (K, rows, columns), cells of ``cell`` site pixels.

    Of a site with coarse labels, by coarse class.
    """

    pixels: NDArray[np.float64]
    cell: float


def count(site: Site, num_classes: int, patch: int, *, coarse: bool = False) -> Count:
    """Count the labelled pixels that hold data where the site is trained on.

    With ``coarse`` the classes are those of the first source of coarse labels, and the last of the ``num_classes`` is
    what has a label all the same.

    Raises:
        SceneError: the scene cannot be read.
        LabelsError: a label that is no class.
    """
    height, width = site.scene.shape
    step = max(1.0, math.sqrt(height * width / _MOST_PIXELS))
    shape = (math.ceil(height / step), math.ceil(width / step))
    side = max(1, round(patch / _CELLS / step))
    rows, cols = (-(-length // side) for length in shape)
    pixels = np.zeros((num_classes, rows, cols))
    block = max(1, _BLOCK // side) * side
    for window in ChunkGrid(shape, block):
        to_site = Affine.scale(step) * Affine.translation(window.col, window.row)
        labels: NDArray[Any] = site.labels_on(to_site, window.shape)
        if coarse:
            labels = _kinds(site, to_site, labels, num_classes - 1)
        if (labels != IGNORE).any():
            labels[~_valid(site, window, step, to_site)] = IGNORE
        row, col = np.nonzero(labels != IGNORE)
        cells = ((row + window.row) // side) * cols + (col + window.col) // side
        flat = labels[row, col].astype(np.int64) * rows * cols + cells
        pixels += np.bincount(flat, minlength=pixels.size).reshape(pixels.shape)
    return Count(pixels * step * step, side * step)


def _kinds(site: Site, to_site: Affine, labels: NDArray[np.uint8], others: int) -> NDArray[np.int16]:
    """Return the coarse class of each pixel from the first source, ``others`` where another label is known."""
    found = np.where(labels != IGNORE, others, IGNORE).astype(np.int16)
    affine = site.scene.geobox.affine * to_site
    inside = site.inside(to_site, labels.shape)
    for number in sorted(site.coarse, reverse=True):
        blocks = site.coarse[number][0].blocks(affine, labels.shape)
        known = blocks.numbers >= 0 if inside is None else (blocks.numbers >= 0) & inside
        found[known] = blocks.classes[blocks.numbers[known]] if number == 0 else others
    return found


def _valid(site: Site, window: Window, step: float, to_site: Affine) -> NDArray[np.bool_]:
    if step == 1:
        return site.scene.read(window).valid
    return site.pixels_on(to_site, window.shape, step).valid


class Sampler:
    """Draws places of patches, by number.

    Args:
        counts: of all sites.
        names: of the classes.
        sampling: how classes are balanced.
        augment: how patches are varied.
        seed: of everything drawn.

    Raises:
        LabelsError: no label at all, or a class without a single labelled pixel.
    """

    def __init__(
        self,
        counts: Sequence[Count],
        names: Sequence[str],
        sampling: SamplingConfig,
        augment: AugmentConfig,
        seed: int,
    ) -> None:
        self._shapes = [item.pixels.shape[1:] for item in counts]
        self._cells = [item.cell for item in counts]
        self._starts = np.cumsum([0, *(rows * cols for rows, cols in self._shapes)])
        self.pixels = np.concatenate([item.pixels.reshape(len(names), -1) for item in counts], axis=1)
        totals = self.pixels.sum(axis=1)
        if not totals.any():
            raise LabelsError(
                "no pixel to train on has a label: check where the labels lie, what the validation leaves of the "
                "scenes, and the values that are ignored."
            )
        missing = [name for name, total in zip(names, totals, strict=True) if total == 0]
        if missing:
            raise LabelsError(
                f"no training label is of class {', '.join(missing)}: leave the class out, or give labels that have it."
            )
        self._by_class = np.cumsum(self.pixels, axis=1)
        self._all = np.cumsum(self.pixels.sum(axis=0))
        self._sampling, self._augment, self._seed = sampling, augment, seed

    def of_classes(self, positions: Sequence[int]) -> Sampler:
        """Return one that draws all places from these classes, each alike."""
        found = copy.copy(self)
        found._by_class = self._by_class[list(positions)]
        found._sampling = self._sampling.model_copy(update={"balance": 1.0})
        return found

    def random(self, number: int) -> np.random.Generator:
        """Return the random numbers of patch ``number``."""
        return np.random.default_rng((self._seed, number))

    def draw(self, random: np.random.Generator) -> Place:
        """Draw one place, and how the patch there is varied."""
        balanced = random.random() < self._sampling.balance
        steps = self._by_class[random.integers(len(self._by_class))] if balanced else self._all
        cell = int(np.searchsorted(steps, random.random() * steps[-1], side="right"))
        cell = min(cell, len(steps) - 1)
        site = int(np.searchsorted(self._starts, cell, side="right")) - 1
        row, col = divmod(cell - int(self._starts[site]), self._shapes[site][1])
        centre = (np.array([row, col]) + random.random(2)) * self._cells[site]
        low, high = self._augment.scale
        scale = math.exp(random.uniform(math.log(low), math.log(high))) if low < high else low
        angle = random.uniform(-1, 1) * self._augment.rotation
        turn = int(random.integers(8)) if self._augment.flips else 0
        return Place(site, (float(centre[0]), float(centre[1])), scale, angle, turn)
