"""How masks are refined, and how refined masks of several classes become one map again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoseg.errors import ConfigError

# Pixels that a crop leaves out at each side that is not the image's, where its answer knows too little.
EDGE = 16
# Crops follow each other at half their side, less so many pixels.
_STEP_LESS = 32
# Below, crops would follow each other so closely that hundreds look at every pixel.
_LEAST_SIDE = 80


@dataclass(frozen=True)
class RefinementSettings:
    """Numbers of the procedure of Cheng et al. 2020 (arXiv 2005.02551), section 3.3, as in the authors' package.

    Attributes:
        side: L in pixels: the longer side at which the whole image is looked at, and the side of the crops that are
            looked at in full resolution.  Memory grows with its square; results depend on it.
        enlarge_to: the longer side to which smaller images are enlarged for the look at the whole; None for ``side``,
            as in the package, 0 for never.
        fast: be content with the look at the whole.
        skip_below: crops with a smaller share of foreground after the first look are left at its answer.  The authors
            have 0.1, which leaves out crops of scattered buildings; with 0 only those without any are.
        skip_above: likewise those with a larger share; the authors have 0.9.
    """

    side: int = 900
    enlarge_to: int | None = None
    fast: bool = False
    skip_below: float = 0.0
    skip_above: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ConfigError: a value outside its range.
        """
        _check_whole("side", self.side, _LEAST_SIDE)
        if self.enlarge_to is not None:
            _check_whole("enlarge_to", self.enlarge_to, 0)
            if self.enlarge_to > self.side:
                raise ConfigError(
                    f"enlarge_to of a refinement is {self.enlarge_to}: give at most side, which is {self.side}."
                )
        if not 0 <= self.skip_below <= self.skip_above <= 1:
            raise ConfigError(
                f"skip_below and skip_above of a refinement are {self.skip_below} and {self.skip_above}: give two "
                "shares from 0 to 1, the smaller first."
            )

    @property
    def step(self) -> int:
        """Pixels from one crop to the next."""
        return self.side // 2 - _STEP_LESS


@dataclass(frozen=True)
class MergeSettings:
    """Which parts of a map of labels are refined one by one, and when they may claim a pixel.

    The numbers are those of the authors' scripts for scene parsing.

    Attributes:
        min_component: components of at most so many pixels stay as they are.
        closing: diameter in pixels of the disk that joins what is nearly connected; 0 for none.
        box_margin: share of its height and width by which the box of a component grows, half on each side.
        background_classes: positions in the class table of classes that only claim pixels they are sure of.
        background_weight: by which the probabilities of these are multiplied.
        minimum_confidence: above which a probability must be to claim a pixel.
        as_authors: take disk and boxes from the authors' scripts as they are; these take a row and a column off
            components and leave out the last row and column of the image.
    """

    min_component: int = 1024
    closing: int = 10
    box_margin: float = 0.25
    background_classes: tuple[int, ...] = ()
    background_weight: float = 0.51
    minimum_confidence: float = 0.5
    as_authors: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ConfigError: a value outside its range.
        """
        for name in ("min_component", "closing"):
            _check_whole(name, getattr(self, name), 0)
        if not 0 <= self.box_margin < math.inf:
            raise ConfigError(f"box_margin of a refinement is {self.box_margin}: give a number of 0 or more.")
        for name in ("background_weight", "minimum_confidence"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} of a refinement is {value}: give a number from 0 to 1.")


def _check_whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} of a refinement is {value!r}: give a whole number of {least} or more.")
