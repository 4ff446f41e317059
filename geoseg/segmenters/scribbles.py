"""Scribbles: marks on a scene that say of a few pixels what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.scene import Scene

MOST_SCRIBBLED = 250


class Marks(Protocol):
    """Marks on a grid of pixels."""

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return which name each pixel of a window bears, (h, w): its position, or 255 for none."""


@dataclass(frozen=True)
class Scribbles:
    """Marks on one scene.

    Attributes:
        names: what marked pixels are called; a name's position is the pixel's value, and the cluster it belongs to.
        marks: the marked pixels.
        places: for each name, pixels (row, column) where marks of that name are, spread over them.
    """

    names: tuple[str, ...]
    marks: Marks
    places: tuple[tuple[tuple[int, int], ...], ...]

    def __post_init__(self) -> None:
        """Refuse too many names.

        Raises:
            ConfigError: more names than a label raster has values.
        """
        if not 1 <= len(self.names) <= MOST_SCRIBBLED:
            raise ConfigError(f"there are {len(self.names)} names of scribbles: give 1 to {MOST_SCRIBBLED}.")


# Scribbles as they are on the grid of a scene: which grid a method works on is known only when it gets its scene.
ScribbleReader = Callable[[Scene], Scribbles]
