"""What every method that is fitted to scenes without labels can be told: where it looks, and how long it learns."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from geoseg.errors import ConfigError, unknown_name


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Hyper-parameters that all such methods share.

    Attributes:
        iterations: most steps of gradient descent.
        learning_rate: of gradient descent.
        seed: of the sample and of the initial weights.
        target_segments: merge to this many segments at most; None keeps what training leaves.
        fit: ``tiles`` at full resolution, or one ``overview`` of at most 1024 × 1024 pixels.
        fit_tiles: number of sample tiles.
        fit_tile_size: their side in pixels.
        batch: tiles per step.
        threads: processor threads of the fit; sums round differently with another number, so it is fixed.
    """

    iterations: int = 100
    learning_rate: float = 0.1
    seed: int = 0
    target_segments: int | None = None
    fit: Literal["tiles", "overview"] = "tiles"
    fit_tiles: int = 16
    fit_tile_size: int = 128
    batch: int = 4
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse values that no fit can use.

        Raises:
            ConfigError: a count below 1, a rate or weight below 0 or not finite, or an unknown kind of fit.
        """
        self._check_counts("iterations", "fit_tiles", "fit_tile_size", "batch", "threads")
        if self.target_segments is not None:
            self._check_counts("target_segments")
        self._check_weights("learning_rate")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed is {self.seed!r}: give a whole number from 0 to 2^63 - 1.")
        self._check_choice("fit", "tiles", "overview")

    def _check_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}: clustering needs a whole number of at least 1.")

    def _check_weights(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name} is {value!r}: clustering needs a number of at least 0.")

    def _check_choice(self, name: str, *known: object) -> None:
        value = getattr(self, name)
        if value not in known:
            listed = " or ".join(repr(each) for each in known)
            raise ConfigError(f"{name} is {value!r}: it is either {listed}.")

    @classmethod
    def with_settings(cls, **given: Any) -> Self:
        """Return settings made from names that a user wrote.

        Raises:
            ConfigError: an unknown name, or a value that is refused.
        """
        known = [item.name for item in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(unknown_name("setting of this method", name, known))
        return cls(**given)
