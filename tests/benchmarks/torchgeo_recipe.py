"""What TorchGeo's documentation leads one to: a grid of patches through a model, then polygons of the labels.

``python torchgeo_recipe.py SCENE MODEL OUT.geojson``, in an environment that has TorchGeo and not geoseg.  MODEL is
TorchScript that takes patches of pixel values and gives probabilities.  Patches of 512 pixels overlap by 64, of which
each keeps its middle; nothing is blended.
"""

from __future__ import annotations

import sys
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import rasterio.features
import torch
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset
from torchgeo.samplers import GridGeoSampler

SIZE, MARGIN, BATCH = 512, 32, 4


def main(scene: str, model: str, out: str) -> None:
    """Label the scene and write its polygons."""
    network = torch.jit.load(model).eval()
    with rasterio.open(scene) as file:
        transform, crs, shape = file.transform, file.crs, file.shape
    dataset = RasterDataset(paths=[Path(scene)])
    sampler = GridGeoSampler(dataset, SIZE, SIZE - 2 * MARGIN)
    labels = np.zeros(shape, np.uint8)
    with torch.inference_mode():
        for samples in DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=list):
            found = network(torch.stack([sample["image"] for sample in samples])).argmax(1).to(torch.uint8).numpy()
            for sample, patch in zip(samples, found, strict=True):
                _keep(labels, patch, transform, sample["bounds"])
    shapes = rasterio.features.shapes(labels, labels != 0, transform=transform)
    rows = [{"geometry": geometry, "properties": {"class": int(value)}} for geometry, value in shapes]
    geopandas.GeoDataFrame.from_features(rows, crs=crs).to_crs(4326).to_file(out, driver="GeoJSON")


def _keep(labels: np.ndarray, patch: np.ndarray, transform: rasterio.Affine, bounds: tuple[slice, ...]) -> None:
    """Put the middle of a patch into its place, and its margin where that is at an edge of the scene."""
    col, row = (round(value) for value in ~transform * (bounds[0].start, bounds[1].stop))
    top, left = (0 if start <= 0 else MARGIN for start in (row, col))
    bottom, right = (
        min(side - start, SIZE) if start + SIZE >= side else SIZE - MARGIN
        for start, side in zip((row, col), labels.shape, strict=True)
    )
    top, left = max(top, -row), max(left, -col)
    labels[row + top : row + bottom, col + left : col + right] = patch[top:bottom, left:right]


if __name__ == "__main__":
    main(*sys.argv[1:])
