"""Synthetic scenes of any size: fields of a few kinds with texture, the same at every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

_BLOCK = 1024


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
                row, col = np.mgrid[top : top + _BLOCK, left : left + _BLOCK].astype(np.float32)
                waves = np.sin(row / 61) + np.sin(col / 47) + np.sin((row + 2 * col) / 131) + np.sin((row - col) / 89)
                kind = np.clip((waves + 3).astype(int), 0, 5)
                # Texture of some pixels' grain: grain of one pixel would come out of an untrained network as speckle.
                grain = np.kron(rng.integers(-3, 4, (_BLOCK // 16, _BLOCK // 16)), np.ones((16, 16), int))
                pixels = palette[kind].transpose(2, 0, 1) + grain
                pixels = np.clip(pixels, 1, 255).astype(np.uint8)
                pixels[:, row + col < side / 8] = 0
                height, width = min(_BLOCK, side - top), min(_BLOCK, side - left)
                file.write(pixels[:, :height, :width], window=Window(left, top, width, height))
    partial.rename(path)
    return path
