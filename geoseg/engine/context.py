"""What goes with a tile beside its pixels: the view of its surroundings, and the prior of an earlier stage."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from geoseg.engine.plan import Plan
from geoseg.errors import ConfigError
from geoseg.grid import TileGrid, ViewGrid, Window
from geoseg.metrics import IGNORED
from geoseg.scene import Pixels
from geoseg.segmenters.interface import Tiles

# Views are kept up to so many bytes: a row of tiles looks at each of a few again and again.
_KEPT_BYTES = 128 << 20


class Context:
    """Reads what goes with the tiles of a plan; several threads may ask at a time.

    Args:
        plan: of the run.

    Raises:
        ConfigError: tiles that do not fit into the view.
    """

    def __init__(self, plan: Plan) -> None:
        self._scene, self._prior, self._view = plan.model_scene, plan.prior, plan.view
        self._grid: ViewGrid | None = None
        if plan.view is not None and isinstance(plan.tiles, TileGrid):
            self._grid = ViewGrid(plan.tiles, plan.view.extent)
        self._views: OrderedDict[Window, Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def added(self, tiles: Tiles) -> Tiles:
        """Return the tiles with their views and priors, as far as the plan has any.

        Raises:
            SceneError: scene or prior cannot be read.
        """
        if self._grid is not None:
            views = [self._look(self._grid.window(window)) for window in tiles.windows]
            seen = Tiles.of(views)
            tiles = replace(tiles, view=seen.pixels, view_valid=seen.valid, view_windows=seen.windows)
        if self._prior is not None:
            known = [self._prior.read(window) for window in tiles.windows]
            tiles = replace(tiles, prior=one_hot(known, len(self._prior.classes)))
        return tiles

    def _look(self, window: Window) -> Pixels:
        assert self._view is not None
        with self._lock:
            found = self._views.pop(window, None)
            if found is None:
                found = self._scene.read_coarse(window, self._view.size)
            self._views[window] = found
            most = max(2, _KEPT_BYTES // max(1, found.data.nbytes))
            while len(self._views) > most:
                self._views.popitem(last=False)
            return found


def one_hot(channels: Sequence[NDArray[np.uint8]], classes: int) -> torch.Tensor:
    """Return 1 for each pixel's class and 0 for the others, all 0 where none is known: (N, K, H, W) float32."""
    if classes >= IGNORED:
        raise ConfigError(f"a prior has {classes} classes: at most {IGNORED - 1} can be refined.")
    stack = torch.from_numpy(np.stack(channels))
    return torch.stack([stack == channel for channel in range(classes)], 1).float()
