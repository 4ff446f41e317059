"""The tiles of scenes that a method without labels is fitted to, and the batches of a training on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geoseg.errors import SceneError
from geoseg.grid import Window
from geoseg.scene import Pixels, Scene
from geoseg.segmenters.fit_settings import FitSettings
from geoseg.segmenters.interface import Tiles
from geoseg.segmenters.scribbles import Scribbles

Corner = tuple[int, int]
_OVERVIEW_SIDE = 1024
_ENOUGH_VALID = 0.95
_LOOKS = 8  # sample tiles read in one part of the scene before the best of them is taken


class Batch(NamedTuple):
    """Network input of one step.

    Attributes:
        pixels: (N, C, H, W) float32.
        valid: (N, H, W) bool; None if all pixels are.
        superpixels: (N, H, W) int64, numbered through the batch, -1 for none; None where the method has none.
        scribbles: (N, H, W) uint8, 255 for none; None without scribbles.
    """

    pixels: torch.Tensor
    valid: torch.Tensor | None
    superpixels: torch.Tensor | None = None
    scribbles: torch.Tensor | None = None


def batches(
    pixels: torch.Tensor,
    valid: torch.Tensor,
    size: int,
    *,
    superpixels: torch.Tensor | None = None,
    scribbles: torch.Tensor | None = None,
) -> list[Batch]:
    """Split sample tiles (N, C, H, W), in their order, into batches of nearly equal length, at most ``size``."""
    count = math.ceil(len(pixels) / size)

    def parts(tensor: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        return [None] * count if tensor is None else torch.tensor_split(tensor, count)

    split = zip(torch.tensor_split(pixels, count), torch.tensor_split(valid, count), strict=True)
    return [
        Batch(part.contiguous(memory_format=torch.channels_last), None if bool(mask.all()) else mask, *others)
        for (part, mask), *others in zip(split, parts(superpixels), parts(scribbles), strict=True)
    ]


def sample_scenes(scenes: Sequence[Scene], settings: FitSettings) -> Tiles:
    """Read the tiles that a method is fitted to from several scenes of the same bands, an equal number from each.

    Raises:
        SceneError: a scene has no valid pixel, or its file cannot be read.
    """
    side = min([settings.fit_tile_size, *chain.from_iterable(scene.shape for scene in scenes)])
    if len(scenes) == 1:
        return draw_sample(scenes[0], settings)
    share = replace(settings, fit="tiles", fit_tile_size=side, fit_tiles=math.ceil(settings.fit_tiles / len(scenes)))
    parts = [draw_sample(scene, share) for scene in scenes]
    # In turns, so that a step sees tiles of all scenes.
    order = [(i, j) for j in range(max(map(len, parts))) for i, part in enumerate(parts) if j < len(part)]
    return Tiles(
        torch.stack([parts[i].pixels[j] for i, j in order]),
        torch.stack([parts[i].valid[j] for i, j in order]),
        tuple(parts[i].windows[j] for i, j in order),
    )


def scribbled_tiles(scene: Scene, scribbles: Scribbles, tiles: Tiles, most: int, *, apart_from: int = 0) -> Tiles:
    """Return ``tiles`` and, of their size, up to ``most`` more of ``scene`` that show marks no tile shows yet.

    The names take turns, so that each is shown.  The first ``apart_from`` tiles are of other scenes.

    Raises:
        SceneError: the file cannot be read, or the scene is smaller than the tiles.
    """
    height, width = tiles.pixels.shape[-2:]
    if scene.shape[0] < height or scene.shape[1] < width:
        raise SceneError(f"{scene.path} is smaller than the sample tiles: give a smaller fit_tile_size.")
    windows = list(tiles.windows[apart_from:])
    added: list[Pixels] = []
    for place in chain.from_iterable(zip_longest(*scribbles.places)):
        if place is None or any(_holds(window, place) for window in windows):
            continue
        row = min(max(place[0] - height // 2, 0), scene.shape[0] - height)
        col = min(max(place[1] - width // 2, 0), scene.shape[1] - width)
        added.append(scene.read(Window(row, col, height, width)))
        windows.append(added[-1].window)
        if len(added) == most:
            break
    if not added:
        return tiles
    more = _stacked(added)
    return Tiles(
        torch.cat([tiles.pixels, more.pixels]), torch.cat([tiles.valid, more.valid]), tiles.windows + more.windows
    )


def _holds(window: Window, place: Corner) -> bool:
    return window.row <= place[0] < window.row_stop and window.col <= place[1] < window.col_stop


def draw_sample(scene: Scene, settings: FitSettings) -> Tiles:
    """Read the tiles of one scene that a method is fitted to, all of one shape.

    The scene is divided into as many parts as tiles are wanted; in each, places on a regular grid are looked at in an
    order drawn from the seed, and the first that is nearly all valid is taken, or the best of a few.

    Raises:
        SceneError: no valid pixel, or the file cannot be read.
    """
    if settings.fit == "overview":
        factor = math.ceil(max(scene.shape) / _OVERVIEW_SIDE)
        shape = (math.ceil(scene.shape[0] / factor), math.ceil(scene.shape[1] / factor))
        coarse = scene if factor == 1 else scene.on_grid(scene.geobox.zoom_to(shape))
        return _stacked([replace(coarse.read(coarse.window), window=scene.window)])
    height, width = (min(settings.fit_tile_size, side) for side in scene.shape)
    parts = _parts(scene.shape, (height, width), settings)
    chosen: list[Pixels] = []
    looks, before = 0, -1
    # In a scene with little data every place is looked at until one has some; after that, patience ends.
    while looks > before and (not chosen or looks < _LOOKS * settings.fit_tiles):
        before = looks
        for part in parts:
            best, share = None, 0.0
            for corner in islice(part, _LOOKS):
                pixels = scene.read(Window(*corner, height, width))
                looks += 1
                valid = float(pixels.valid.mean())
                best, share = (pixels, valid) if valid > share else (best, share)
                if share >= _ENOUGH_VALID:
                    break
            chosen += [best] if best is not None else []
            if len(chosen) == settings.fit_tiles:
                return _stacked(chosen)
    if not chosen:
        raise SceneError(f"{scene.path} has no valid pixel where it was looked at: check its nodata value.")
    return _stacked(chosen)


def _parts(shape: tuple[int, int], tile: tuple[int, int], settings: FitSettings) -> list[Iterator[Corner]]:
    """Return, for each part of the scene, the upper left corners of its places; parts and places in drawn order."""
    rng = np.random.Generator(np.random.PCG64(settings.seed))
    across = math.isqrt(settings.fit_tiles)
    strata = []
    axes = zip(shape, tile, (across, math.ceil(settings.fit_tiles / across)), strict=True)
    for size, side, count in axes:
        starts = np.round(np.linspace(0, size - side, math.ceil(size / side))).astype(int)
        strata.append([part for part in np.array_split(starts, count) if len(part)])
    parts = [_drawn(rows, cols, rng.permutation(len(rows) * len(cols))) for rows in strata[0] for cols in strata[1]]
    return [parts[i] for i in rng.permutation(len(parts))]


def _drawn(rows: NDArray[np.int_], cols: NDArray[np.int_], order: NDArray[np.int_]) -> Iterator[Corner]:
    return ((int(rows[i // len(cols)]), int(cols[i % len(cols)])) for i in order)


def _stacked(pixels: Sequence[Pixels]) -> Tiles:
    return Tiles(
        torch.from_numpy(np.stack([item.data.astype(np.float32) for item in pixels])),
        torch.from_numpy(np.stack([item.valid for item in pixels])),
        tuple(item.window for item in pixels),
    )
