"""The pictures of docs/tiling.md, drawn from runs of the buildings model on the sample scene.

``python docs/making/tiling.py`` writes them to ``docs/images`` and prints the table that the page has (two minutes of a
core).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

import geoseg
from geoseg.data import sample_scene
from geoseg.grid import TileGrid, Window

IMAGES = Path(__file__).parents[1] / "images"
# Small tiles, so that many fit into a picture; the halo is the buildings model's own.
SEAMLESS = TileGrid(tile=640, halo=224)
SEAMS = TileGrid(tile=192, halo=0)
# The part that is shown of the labels, round a corner of the small tiles.
SHOWN = Window(400, 416, 320, 320)
BUILDING, CORE, HALO = "#d55e00", "#0072b2", "#f0e442"


def main() -> None:
    """Draw both pictures and print the table."""
    scene = geoseg.open(sample_scene(), resolution=geoseg.load("buildings").spec.resolution)
    _save(_tiles(np.moveaxis(scene.read(scene.window).data, 0, -1)), "tiles")
    _save(_seams(np.moveaxis(scene.read(SHOWN).data, 0, -1)), "seams")
    command = [sys.executable, "-m", "geoseg_cli", "info", "buildings", "--tiling", str(sample_scene())]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _tiles(picture: NDArray[np.uint8]) -> Figure:
    """Draw the scene with the cores of its tiles, and one tile with its halo."""
    figure, axes = plt.subplots(figsize=(7, 7))
    axes.imshow(picture)
    height, width = picture.shape[:2]
    for position in SEAMLESS.covering(Window(0, 0, height, width)):
        _outline(axes, SEAMLESS.core_window(position), CORE, linewidth=1.2)
    tile, core = SEAMLESS.tile_window((3, 3)), SEAMLESS.core_window((3, 3))
    _outline(axes, tile, HALO, linewidth=2.5, facecolor=HALO + "38")
    _outline(axes, core, HALO, linewidth=2.5, facecolor=CORE + "70")
    box = {"facecolor": "black", "alpha": 0.7, "edgecolor": "none", "pad": 3}
    middle = core.col + core.width / 2
    axes.text(middle, core.row + core.height / 2, "core", ha="center", va="center", color="white", size=13, bbox=box)
    axes.text(middle, tile.row + SEAMLESS.halo / 2, "halo", ha="center", va="center", color="white", size=13, bbox=box)
    axes.text(tile.col + 8, tile.row - 12, f"a tile of {tile.width} pixels", color="white", size=11, bbox=box)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure


def _seams(picture: NDArray[np.uint8]) -> Figure:
    """Draw labels without a halo, with one, and where they differ."""
    with tempfile.TemporaryDirectory() as folder:
        without, within = (_labels(Path(folder), name, grid) for name, grid in (("a", SEAMS), ("b", SEAMLESS)))
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.4))
    titles = (f"no halo (tiles of {SEAMS.tile} pixels)", f"a halo of {SEAMLESS.halo} pixels", "where they differ")
    for axes, title, shown in zip(panels, titles, (without, within, without != within), strict=True):
        axes.imshow(picture)
        colour = "#cc0066" if title == titles[2] else BUILDING
        axes.imshow(np.ma.masked_equal(shown, 0), cmap=ListedColormap([colour]), alpha=0.75, interpolation="none")
        axes.set_title(title, size=11)
        axes.set_axis_off()
    for axes in (panels[0], panels[2]):
        for line in range(-SHOWN.row % SEAMS.core, SHOWN.height, SEAMS.core):
            axes.axhline(line - 0.5, color="white", linewidth=0.8, linestyle=":")
        for line in range(-SHOWN.col % SEAMS.core, SHOWN.width, SEAMS.core):
            axes.axvline(line - 0.5, color="white", linewidth=0.8, linestyle=":")
    print(f"labels that differ in the part shown: {(without != within).mean():.2%}")
    return figure


def _labels(folder: Path, name: str, grid: TileGrid) -> NDArray[np.uint8]:
    """Return the labels (H, W) of the part shown, of a run with such tiles."""
    place = folder / f"{name}.tif"
    geoseg.predict(sample_scene(), place, tile=grid.tile, halo=grid.halo)
    with rasterio.open(place) as file:
        labels: NDArray[np.uint8] = file.read(
            1, window=rasterio.windows.Window(SHOWN.col, SHOWN.row, SHOWN.width, SHOWN.height)
        )
    return labels


def _outline(axes: Axes, window: Window, colour: str, **style: object) -> None:
    style = {"facecolor": "none", **style}
    axes.add_patch(Rectangle((window.col, window.row), window.width, window.height, edgecolor=colour, **style))


def _save(figure: Figure, name: str) -> None:
    figure.tight_layout(pad=0.8)
    figure.savefig(IMAGES / f"{name}.jpg", dpi=110, pil_kwargs={"quality": 80})


if __name__ == "__main__":
    main()
