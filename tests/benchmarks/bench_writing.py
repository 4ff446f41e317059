"""Polygons from memory to file, against the libraries' own writers: CPU seconds of one thread, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyproj
import shapely
from affine import Affine
from rasterio.features import shapes

from geoseg.classes import Classes, LabelClass
from geoseg.outputs.attributes import Attributes
from geoseg.outputs.polygons import write_features
from geoseg.vector.features import Features
from tests.benchmarks.figures import tell
from tests.benchmarks.label_maps import CLASSES, Kind, label_map

_PIXEL_M = 0.25
_MAPS: tuple[tuple[Kind, int], ...] = (("easy", 4096), ("noisy", 2048))
_RIVALS: dict[str, dict[str, Any]] = {
    "geojson": {"driver": "GeoJSON", "RFC7946": "YES"},
    "gpkg": {"driver": "GPKG"},
    "fgb": {"driver": "FlatGeobuf"},
}


def main(folder: Path, rounds: int = 3) -> None:
    """Print ours over pyogrio's CPU seconds (wanted for GeoJSON: at most 0.3), the best of each, interleaved."""
    crs = pyproj.CRS(32631)
    classes = Classes(tuple(LabelClass(n, f"class {n}", f"#{40 * n:02x}8000") for n in range(CLASSES)))
    for kind, size in _MAPS:
        features = _features(label_map(kind, size, 0))
        frame = geopandas.GeoDataFrame(
            Attributes(classes, _PIXEL_M, True).columns(features), geometry=features.geometry, crs=crs
        )
        points = int(shapely.get_num_coordinates(features.geometry).sum())
        print(f"{kind} {size}²: {len(features)} polygons, {points} points", flush=True)
        for suffix, options in (*_RIVALS.items(), ("parquet", None)):
            path, other = folder / f"ours.{suffix}", folder / f"theirs.{suffix}"

            def ours(path: Path = path, features: Features = features) -> None:
                write_features(path, [features], classes=classes, crs=crs, pixel_m=_PIXEL_M, has_confidence=True)

            def theirs(
                path: Path = other,
                frame: geopandas.GeoDataFrame = frame,
                options: dict[str, Any] | None = options,
            ) -> None:
                if options is None:
                    frame.to_parquet(path)
                else:
                    pyogrio.write_dataframe(frame, path, **options)

            costs = [(_cpu_s(ours), _cpu_s(theirs)) for _ in range(rounds)]
            first = costs[0][0]
            own, rival = (min(column) for column in zip(*costs, strict=True))
            print(
                f"  .{suffix}: {own:.2f} CPU s (the first time {first:.2f}), theirs {rival:.2f}, "
                f"ratio {own / rival:.3f}, {path.stat().st_size / 1e6:.1f} and {other.stat().st_size / 1e6:.1f} MB",
                flush=True,
            )
            tell(
                "writing", f"{kind} {size}², .{suffix}, over pyogrio", own / rival, 0.3 if suffix == "geojson" else None
            )


def _features(labels: np.ndarray) -> Features:
    transform = Affine(_PIXEL_M, 0, 450_000, 0, -_PIXEL_M, 5_400_000)
    found = [(shapely.geometry.shape(shape), int(value)) for shape, value in shapes(labels, transform=transform)]
    geometry = np.array([shape for shape, _ in found], object)
    number = np.arange(len(found))
    return Features(
        geometry=geometry,
        id=number + 1,
        class_id=np.array([value for _, value in found]),
        area_m2=shapely.area(geometry),
        perimeter_m=shapely.length(geometry),
        confidence=np.random.default_rng(0).random(len(found)),
    )


def _cpu_s(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
