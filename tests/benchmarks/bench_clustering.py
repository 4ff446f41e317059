"""How well segments without labels agree with buildings, and with water over the seasons; k-means is the yardstick."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy.cluster.vq import kmeans2, vq

import geoseg

_DATA = Path(__file__).parents[1] / "data"
_SEGMENTS = 8
_SAMPLE = 20_000
_METHODS: dict[str, dict[str, Any]] = {
    "feature-clustering": {"target_segments": _SEGMENTS, "min_labels": _SEGMENTS},
    "superpixel-backprop": {"target_segments": _SEGMENTS, "min_labels": _SEGMENTS},
    "active-contour": {},
}


def buildings(folder: Path) -> None:
    """Print the IoU of buildings on the Banepa scene: of the best segment, and of the best set of segments."""
    scene = _DATA / "banepa" / "banepa_dev_rgb.tif"
    truth = _burnt(_DATA / "banepa" / "banepa_dev_buildings.geojson", scene)
    print("| method | segments | IoU of the best one | of the best set | s |\n|---|--:|--:|--:|--:|", flush=True)
    print(f"| everything is building | 1 | {truth.mean():.3f} | {truth.mean():.3f} | 0 |", flush=True)
    pixels = _pixels(scene)[1]
    for count in (2, _SEGMENTS):
        started = time.perf_counter()
        labels = _assigned(pixels, _centres(pixels, count)).reshape(truth.shape)
        _tell(f"k-means on colours, k = {count}", labels, truth, time.perf_counter() - started)
    for resolution in (None, 0.5):
        for method, settings in _METHODS.items():
            started = time.perf_counter()
            out = folder / f"{method}-{resolution}.tif"
            geoseg.cluster(
                scene, out, method=method, settings=settings, resolution=resolution, output_grid="scene", overwrite=True
            )
            at = "" if resolution is None else f" at {resolution} m"
            _tell(method + at, _read(out), truth, time.perf_counter() - started)


def _tell(name: str, labels: NDArray[Any], truth: NDArray[np.bool_], seconds: float) -> None:
    one, several = best_naming(labels, truth)
    count = len(np.unique(labels[labels != 255]))
    scores = [iou(np.isin(labels, chosen), truth) for chosen in (one, several)]
    print(f"| {name} | {count} | {scores[0]:.3f} | {scores[1]:.3f} | {seconds:.0f} |", flush=True)


def seasons(folder: Path) -> None:
    """Print how well a model fitted on one NAIP date finds water on the others, with the names of its own date.

    Set GEOSEG_NAIP to the folder of the scenes.  Water is where the NDWI is above 0: a check, not the truth.
    """
    place = os.environ.get("GEOSEG_NAIP")
    if place is None:
        print("seasons: set GEOSEG_NAIP to a folder of NAIP scenes (red, green, blue, near infrared) of one place")
        return
    scenes = sorted(Path(place).glob("*.tif"))
    read = {scene: _pixels(scene) for scene in scenes}
    water = {scene: _water(values).reshape(valid.shape) for scene, (valid, values) in read.items()}
    print("| method | fitted on | " + " | ".join(f"water IoU {scene.stem[-8:]}" for scene in scenes) + " |", flush=True)
    print("|---|---|" + "--:|" * len(scenes), flush=True)
    for first in scenes:
        centres = _centres(read[first][1][read[first][0].ravel()], _SEGMENTS)
        assigned = {each: _assigned(read[each][1], centres).reshape(read[each][0].shape) for each in scenes}
        _row(f"k-means on colours, k = {_SEGMENTS}", first, assigned.__getitem__, water)
        for method, settings in _METHODS.items():
            model, out = folder / "model.safetensors", folder / "labels.tif"
            geoseg.cluster(first, out, method=method, settings=settings, save_model=model, overwrite=True)

            def labelled(each: Path, model: Path = model, out: Path = out) -> NDArray[Any]:
                geoseg.predict(each, out, model, overwrite=True)
                return _read(out)

            _row(method, first, labelled, water)


def _row(
    name: str, first: Path, labels: Callable[[Path], NDArray[Any]], water: Mapping[Path, NDArray[np.bool_]]
) -> None:
    chosen = best_naming(labels(first), water[first])[1]
    scores = [iou(np.isin(labels(each), chosen), truth) for each, truth in water.items()]
    print(f"| {name} | {first.stem[-8:]} | " + " | ".join(f"{score:.3f}" for score in scores) + " |", flush=True)


def iou(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the intersection over the union of two masks."""
    return float((found & truth).sum() / max(1, (found | truth).sum()))


def best_naming(labels: NDArray[Any], truth: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Return the segment whose IoU with ``truth`` is best, and the set of segments whose IoU is.

    The best set holds the segments of the largest shares of truth, so sets of 1, 2, … of these are tried.
    """
    inside = np.bincount(labels[truth], minlength=256)[:255]
    size = np.bincount(labels.ravel(), minlength=256)[:255]
    one = int(np.argmax(inside / np.maximum(size + truth.sum() - inside, 1)))
    order = [int(i) for i in np.argsort(-inside / np.maximum(size, 1), kind="stable") if size[i]]
    hit, area = np.cumsum(inside[order]), np.cumsum(size[order])
    return [one], order[: int(np.argmax(hit / (area + truth.sum() - hit))) + 1]


def _centres(values: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    sample = np.random.default_rng(0).choice(len(values), min(_SAMPLE, len(values)), replace=False)
    centres, _ = kmeans2(values[sample].astype(np.float64), count, iter=50, minit="++", seed=0)
    found: NDArray[np.float64] = centres
    return found


def _assigned(values: NDArray[np.float32], centres: NDArray[np.float64]) -> NDArray[np.uint8]:
    return vq(values.astype(np.float64), centres)[0].astype(np.uint8)


def _pixels(scene: Path) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return which pixels are valid (H, W), and all their values (H·W, C)."""
    with rasterio.open(scene) as file:
        data = file.read()
        return file.dataset_mask() > 0, data.reshape(len(data), -1).T.astype(np.float32)


def _water(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    green, infrared = values[:, 1], values[:, 3]
    found: NDArray[np.bool_] = (green > infrared) & (values.sum(1) > 0)
    return found


def _burnt(polygons: Path, scene: Path) -> NDArray[np.bool_]:
    import geopandas

    with rasterio.open(scene) as file:
        shapes = geopandas.read_file(polygons).to_crs(file.crs).geometry
        return rasterize(shapes, out_shape=file.shape, transform=file.transform, dtype="uint8") > 0


def _read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as file:
        return np.asarray(file.read(1))
