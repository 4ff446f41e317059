"""A scene as tiles of Web Mercator, for scenes that have more pixels than one picture should."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from affine import Affine
from odc.geo.geobox import GeoBox

from geoseg.grid import Window
from geoseg.looking.frame import HALF_M, Frame
from geoseg.looking.pictures import ScenePicture, pixel_of, webp

TILE_PX = 256
# Tiles of the finest level: 16 384 x 16 384 pixels.
MOST_TILES = 4096
# Tiles a side that are read at a time.
_BLOCK = 8


def write_tiles(
    scene: ScenePicture, frame: Frame, folder: Path, href: str, step: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write a scene as ``folder/zoom/column/row.webp``, from where it is a tile or two to where its pixels are shown.

    The finest level has at most :data:`MOST_TILES` tiles, so the finest pixels of a very large scene are not shown.

    Args:
        scene: what is written.
        frame: the plane; columns are counted on beyond the antimeridian where it lies in the middle.
        folder: is made.
        href: of that folder, as seen from the page.
        step: called with the number of blocks of tiles that are done, and of all.

    Returns:
        What the page needs to know of it.

    Raises:
        SceneError: the scene cannot be read.
        OSError: a tile cannot be written.
    """
    bounds, pixel = pixel_of(scene.lonlat, scene.scene.shape, frame, 1 << 60)
    zoom = max(0, math.ceil(math.log2(2 * HALF_M / (TILE_PX * pixel)) - 0.25))
    levels = [(level, _spans(bounds, frame, level)) for level in range(zoom + 1)]
    levels = [level for level in levels if _count(level[1]) <= MOST_TILES]
    coarse = [level for level, spans in levels if _count(spans) <= 4]
    levels = [level for level in levels if level[0] >= max(coarse, default=0)]
    blocks = [(level, block) for level in levels for block in _blocks(level[1])]
    readers = {level: scene.reader(frame, _grid(frame, level, spans)) for level, spans in levels}
    for done, ((level, spans), (row, col)) in enumerate(blocks):
        rows, cols = (min(_BLOCK, n - at) for n, at in ((len(spans[1]), row), (len(spans[0]), col)))
        window = Window(row * TILE_PX, col * TILE_PX, rows * TILE_PX, cols * TILE_PX)
        picture = readers[level](window)
        for i in range(rows):
            for j in range(cols):
                part = picture[i * TILE_PX : (i + 1) * TILE_PX, j * TILE_PX : (j + 1) * TILE_PX]
                place = folder / str(level) / str(spans[0][col + j]) / f"{spans[1][row + i]}.webp"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(webp(part))
        step(done + 1, len(blocks))
    left, bottom, right, top = bounds
    return {
        "name": Path(scene.scene.path).name,
        "bounds": [left + frame.shift, bottom, right + frame.shift, top],
        "tiles": f"{href}/{{z}}/{{x}}/{{y}}.webp",
        "zooms": [levels[0][0], levels[-1][0]],
    }


def _spans(bounds: tuple[float, float, float, float], frame: Frame, level: int) -> tuple[range, range]:
    """Return the columns and rows of the tiles that meet ``bounds``."""
    side = 2 * HALF_M / 2**level
    left, bottom, right, top = bounds
    first = math.floor((left + frame.shift + HALF_M) / side + 1e-9)
    stop = math.ceil((right + frame.shift + HALF_M) / side - 1e-9)
    upper = math.floor((HALF_M - top) / side + 1e-9)
    lower = math.ceil((HALF_M - bottom) / side - 1e-9)
    return range(first, max(stop, first + 1)), range(upper, max(lower, upper + 1))


def _count(spans: tuple[range, range]) -> int:
    return len(spans[0]) * len(spans[1])


def _blocks(spans: tuple[range, range]) -> list[tuple[int, int]]:
    return [(row, col) for row in range(0, len(spans[1]), _BLOCK) for col in range(0, len(spans[0]), _BLOCK)]


def _grid(frame: Frame, level: int, spans: tuple[range, range]) -> GeoBox:
    side = 2 * HALF_M / 2**level
    left = spans[0].start * side - HALF_M - frame.shift
    top = HALF_M - spans[1].start * side
    pixel = side / TILE_PX
    shape = (len(spans[1]) * TILE_PX, len(spans[0]) * TILE_PX)
    return GeoBox(shape, Affine(pixel, 0.0, left, 0.0, -pixel, top), frame.crs)
