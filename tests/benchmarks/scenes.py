"""Synthetic scenes of any size: fields of a few kinds with texture, the same at every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

_BLOCK = 1024


def kinds(top: int, left: int, height: int, width: int) -> np.ndarray:
    """Return which of six kinds of field each pixel is of: (height, width) integers."""
    row, col = np.mgrid[top : top + height, left : left + width].astype(np.float32)
    waves = np.sin(row / 61) + np.sin(col / 47) + np.sin((row + 2 * col) / 131) + np.sin((row - col) / 89)
    return np.clip((waves + 3).astype(int), 0, 5)


def write_scene(path: Path, side: int, bands: int = 3, seed: int = 7) -> Path:
    """Write a square 8-bit scene of ``side`` pixels of 0.25 m in UTM 31N, 512-tiled deflate, with a nodata wedge."""
    if path.exists():
        return path
    palette = np.random.default_rng(seed).integers(40, 215, (6, bands))
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": bands, "height": side, "width": side, "nodata": 0,
        "crs": "EPSG:32631", "transform": Affine(0.25, 0, 450_000, 0, -0.25, 5_400_000), "tiled": True,
        "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2, "zlevel": 1,
    }  # fmt: skip
    partial = path.with_suffix(".part.tif")
    with rasterio.open(partial, "w", **profile) as file:
        for top in range(0, side, _BLOCK):
            for left in range(0, side, _BLOCK):
                rng = np.random.default_rng([seed, top, left])
                pixels = palette[kinds(top, left, _BLOCK, _BLOCK)].transpose(2, 0, 1)
                pixels = pixels + rng.integers(-12, 13, (1, _BLOCK, _BLOCK))
                pixels = np.clip(pixels, 1, 255).astype(np.uint8)
                row, col = np.ogrid[top : top + _BLOCK, left : left + _BLOCK]
                pixels[:, row + col < side / 8] = 0
                height, width = min(_BLOCK, side - top), min(_BLOCK, side - left)
                file.write(pixels[:, :height, :width], window=Window(left, top, width, height))
    partial.rename(path)
    return path
