"""A part of a scene as the input of a network, to measure the network on."""

from __future__ import annotations

import torch

from geoseg.errors import SceneError
from geoseg.grid import Window
from geoseg.normalisation import Normalisation
from geoseg.scene import Scene
from geoseg.segmenters.interface import Tiles, normalised

# So many places along each side of a scene are looked at for one that is full of data.
_PLACES = 3


def part_as_input(scene: Scene, scaling: Normalisation, side: int) -> tuple[torch.Tensor, Window]:
    """Return a square of the scene as network input (1, C, ``side``, ``side``), and where it lies.

    It is the middle of the scene where that is full of data.  A scene that is smaller is mirrored at its edges.

    Args:
        scene: at the resolution of the network.
        scaling: of its values.
        side: pixels.

    Raises:
        SceneError: there is hardly any valid pixel in the parts that were looked at.
    """
    best = None
    for window in _places(scene.shape, side):
        found = scene.read(window)
        if best is None or found.valid.sum() > best.valid.sum():
            best = found
        if best.valid.all():
            break
    assert best is not None
    if best.valid.mean() < 0.5:
        raise SceneError(f"{scene.path} has no part of {side} pixels that is half full of data: use a smaller crop.")
    return normalised(Tiles.of([best]), scaling), best.window


def _places(shape: tuple[int, int], side: int) -> list[Window]:
    """Return windows of ``side`` pixels, the middle of the scene first; they may reach beyond a small one."""
    shares = [i / (_PLACES - 1) for i in range(_PLACES)]
    shares.sort(key=lambda share: abs(share - 0.5))
    rows, cols = ([round((size - side) * share) for share in shares] for size in shape)
    return [Window(row, col, side, side) for row in rows for col in cols]
