"""How a scene is looked at twice: what of a coarse pass is worth a closer look, and how often."""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoseg.errors import ConfigError

_WHOLE = {"factor": 1, "margin": 0, "limit": 1, "halo": 0, "rounds": 1}


@dataclass(frozen=True)
class SaliencySettings:
    """Numbers of the recast of Yu et al. 2018 (arXiv 1709.04518) for scenes with many small targets.

    Attributes:
        factor: scene pixels along a side of one pixel of the overview, which the coarse network sees; the smallest
            target should span three of these.
        threshold: coarse probability from which on a pixel is looked at again.  Lower than one half, since what is
            missed here stays missed.
        margin: scene pixels added round a component or, later, round the mask of the last round.  A box grows by no
            more than that in a round.
        margin_share: the same round a component as a share of its height or width, where that is more.
        limit: side of the largest box in scene pixels; larger ones are split, and none grows beyond.
        halo: the parts of a split box share twice so many scene pixels with their neighbours.
        most: share of the scene above which boxes do not pay, and the whole scene is looked at.
        rounds: looks at a box at most; the authors have 10, of which two bring most of the gain.
        stop_dsc: agreement of two masks in a row from which on an answer is stable.
    """

    factor: int = 4
    threshold: float = 0.3
    margin: int = 20
    margin_share: float = 0.25
    limit: int = 1024
    halo: int = 64
    most: float = 0.5
    rounds: int = 5
    stop_dsc: float = 0.99

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ConfigError: a value outside its range.
        """
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} of a saliency pair is {value!r}: give a whole number of {least} or more.")
        for name in ("threshold", "most", "stop_dsc"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(f"{name} of a saliency pair is {value}: give a number above 0 and at most 1.")
        if not 0 <= self.margin_share < math.inf:
            raise ConfigError(f"margin_share of a saliency pair is {self.margin_share}: give a number of 0 or more.")
        if self.limit <= 2 * self.halo:
            raise ConfigError(
                f"a box of {self.limit} pixels has nothing left inside a halo of {self.halo}: raise limit above "
                f"{2 * self.halo}, or lower halo."
            )
