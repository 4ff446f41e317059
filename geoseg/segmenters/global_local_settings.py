"""How GLNet looks at a scene: sizes of overview, patches and macro-windows, and what is done with patches' scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from geoseg.errors import ConfigError, unknown_name
from geoseg.networks.patch_grid import MIN_OVERLAP

Enlarging = Literal["nearest", "bilinear"]
ENLARGING: tuple[Enlarging, ...] = ("nearest", "bilinear")
# Published results are for macro-windows of five and nine patches; beyond, an overview says little about a patch.
MOST_PATCHES = 10
_CELL = 4
_LEAST_SIDE = 32


@dataclass(frozen=True)
class GlobalLocalSettings:
    """Numbers of Chen et al. 2019 (arXiv 1905.06368) as in the code released with it, and ours for larger scenes.

    Attributes:
        overview: side of the overview in pixels of its own; the whole macro-window is made so small.
        patch: side of a patch in scene pixels.
        min_overlap: scene pixels that neighbouring patches share at least.
        extent: side of a macro-window in scene pixels, best that of the scenes in training.  Scenes that are larger
            are cut into several; a smaller scene is one, of its own size.
        sub_batch: patches in one pass.
        enlarging: how scores, which come at a quarter of the size, get their pixels: the authors' ``nearest`` leaves
            stairs of four pixels, ``bilinear`` does not.
        coarse_to_fine: for scenes that are mostly background: only patches in or near which the overview finds
            foreground of a higher probability than this are looked at, elsewhere its scores stand; None for all.
    """

    overview: int = 508
    patch: int = 508
    min_overlap: int = MIN_OVERLAP
    extent: int = 2448
    sub_batch: int = 1
    enlarging: Enlarging = "nearest"
    coarse_to_fine: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ConfigError: a value outside its range.
        """
        for name in ("overview", "patch", "min_overlap", "extent", "sub_batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < (name != "min_overlap"):
                raise ConfigError(f"{name} of GLNet is {value!r}: give a whole number of pixels or patches.")
        for name in ("overview", "patch"):
            value = getattr(self, name)
            if value % _CELL or value < _LEAST_SIDE:
                raise ConfigError(f"{name} of GLNet is {value}: give a multiple of {_CELL}, {_LEAST_SIDE} or more.")
        if self.min_overlap >= self.patch:
            raise ConfigError(
                f"patches of {self.patch} pixels cannot share {self.min_overlap} with their neighbours: lower "
                "min_overlap."
            )
        if not 2 * self.patch <= self.extent <= MOST_PATCHES * self.patch:
            raise ConfigError(
                f"the extent of GLNet's macro-windows is {self.extent} pixels: give 2 to {MOST_PATCHES} times the "
                f"patch, {2 * self.patch} to {MOST_PATCHES * self.patch}."
            )
        if self.enlarging not in ENLARGING:
            raise ConfigError(unknown_name("enlarging of GLNet's scores", self.enlarging, ENLARGING))
        if self.coarse_to_fine is not None and not 0 < self.coarse_to_fine < 1:
            raise ConfigError(
                f"coarse_to_fine of GLNet is {self.coarse_to_fine}: give a probability between 0 and 1, or none."
            )
