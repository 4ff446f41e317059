"""Labels to polygons against GDAL's polygonizer through rasterio: time, memory, workers, and a very large raster."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import shapely
import shapely.geometry

from geoseg.engine.allocator import keep_freed_memory
from geoseg.vector.label_map import LabelArray
from geoseg.vector.polygons import polygonize
from geoseg.vector.simplify import simplified
from tests.benchmarks.figures import tell
from tests.benchmarks.label_maps import Kind, label_map
from tests.benchmarks.measuring import geoseg

_REPEATS = 3


def main(folder: Path) -> None:
    """Print CPU seconds of one thread, their ratios, peak memory, and what a second thread brings."""
    list(
        polygonize(LabelArray(np.zeros((64, 64), np.uint8), size=32))
    )  # machine code is loaded before any clock starts
    maps: tuple[tuple[Kind, int], ...] = (("easy", 4096), ("noisy", 4096), ("hard", 1024))
    for kind, side in maps:
        _speed(f"{kind} {side}²", label_map(kind, side, 0))
    _simplifying(label_map("easy", 4096, 0))
    path = folder / "noisy.npy"
    np.save(path, label_map("noisy", 8192, 0))
    _workers(np.load(path))
    _memory(path)


def large(folder: Path, side: int = 32768) -> None:
    """Print what ``geoseg vectorize`` costs on an easy label COG of ``side``²: GeoJSON and GeoPackage."""
    path = folder / "labels.tif"
    _write_large(path, side)
    for suffix in ("geojson", "gpkg"):
        cost = geoseg("vectorize", path, folder / f"out.{suffix}", "-q")
        size = (folder / f"out.{suffix}").stat().st_size / 1e6
        print(
            f"easy {side}² to {suffix}: {cost.cpu_s:.0f} CPU s, peak {cost.peak_mb:.0f} MB, file {size:.0f} MB",
            flush=True,
        )


def _best(function: Callable[[], Any]) -> float:
    """Return the least CPU seconds of a few runs."""
    times = []
    for _ in range(_REPEATS):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


def _speed(name: str, labels: np.ndarray) -> None:
    counts: dict[str, int] = {}

    def arrays() -> None:
        counts["ours"] = sum(len(batch) for batch in polygonize(LabelArray(labels)))

    def objects() -> None:
        batches = [batch.geometry for batch in polygonize(LabelArray(labels))]
        assert sum(map(len, batches)) == counts["ours"]

    def shapes() -> None:
        counts["gdal"] = sum(1 for _ in rasterio.features.shapes(labels, connectivity=4))

    def shapes_and_objects() -> None:
        assert len([shapely.geometry.shape(s) for s, _ in rasterio.features.shapes(labels, connectivity=4)])

    ours, theirs = _best(arrays), _best(shapes)
    ours_objects, theirs_objects = _best(objects), _best(shapes_and_objects)
    assert counts["ours"] == counts["gdal"]
    print(
        f"{name}, {counts['ours']} polygons: arrays {ours:.2f} CPU s, shapes dropped {theirs:.2f}, ratio "
        f"{ours / theirs:.3f}; shapely objects {ours_objects:.2f}, shapes + shapely {theirs_objects:.2f}, ratio "
        f"{ours_objects / theirs_objects:.3f}",
        flush=True,
    )
    tell("vectorising", f"{name}, arrays over rasterio's shapes", ours / theirs)
    tell("vectorising", f"{name}, objects over rasterio's shapes and shapely", ours_objects / theirs_objects)


def _simplifying(labels: np.ndarray) -> None:
    batches = list(polygonize(LabelArray(labels)))
    geometry = np.concatenate([batch.geometry for batch in batches])
    for tolerance in (1.0, 2.0):
        simple: list[Any] = []

        def ours(tolerance: float = tolerance, simple: list[Any] = simple) -> None:
            simple[:] = [simplified(batch, labels, tolerance_m=tolerance, pixel_m=(1, 1)) for batch in batches]

        mine = _best(ours)
        theirs = _best(lambda tolerance=tolerance: shapely.coverage_simplify(geometry, tolerance))  # type: ignore[misc]
        other = shapely.get_num_coordinates(shapely.coverage_simplify(geometry, tolerance)).sum()
        print(
            f"simplifying by {tolerance:g} px, {sum(len(b.corners) for b in batches)} vertices: {mine:.2f} CPU s to "
            f"{sum(len(s.corners) for s in simple)}; shapely.coverage_simplify {theirs:.2f} to {other}, ratio "
            f"{mine / theirs:.2f}",
            flush=True,
        )


def _workers(labels: np.ndarray, rounds: int = 9) -> None:
    """Print what a second thread brings (wanted: 1.7 times), by turns; blocks of 2048 are what commands take."""

    def seconds(size: int, workers: int) -> float:
        started = time.monotonic()
        for _ in polygonize(LabelArray(labels, size=size), workers=workers):
            pass
        return time.monotonic() - started

    keep_freed_memory()  # as the command line does
    for size in (2048, 1024):
        turns = [(seconds(size, 1), seconds(size, 2)) for _ in range(rounds + 1)][1:]
        one, two = (statistics.median(times) for times in zip(*turns, strict=True))
        ratios = sorted(alone / both for alone, both in turns)
        print(
            f"noisy 8192² in blocks of {size}: {one:.2f} s with one thread, {two:.2f} s with two, median of {rounds} "
            f"ratios {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


_MEASURED = """
import sys
import numpy as np
labels = np.load(sys.argv[1])
import shapely, shapely.geometry, rasterio.features
from pathlib import Path
from affine import Affine
from pyproj import CRS
from geoseg.engine.allocator import keep_freed_memory
from geoseg.vector.label_map import LabelArray
from geoseg.vector.polygons import polygonize
from geoseg.vector.spool import PolygonSpool
list(polygonize(LabelArray(labels[:64, :64].copy(), size=32)))
def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = status("VmRSS")
if sys.argv[2] == "ours":
    with PolygonSpool(Path(sys.argv[1]).parent, labels.shape[1]) as spool:
        for batch in polygonize(LabelArray(labels)):
            spool.add(batch)
        count = sum(len(batch.geometry) for batch in spool.ordered())
elif sys.argv[2] == "shapes":
    count = sum(1 for _ in rasterio.features.shapes(labels, connectivity=4))
else:
    count = len([shapely.geometry.shape(s) for s, _ in rasterio.features.shapes(labels, connectivity=4)])
print(status("VmHWM") - before, count)
"""


def _memory(path: Path) -> None:
    """Print peak memory above the input of a process each; ours streams objects in the order of their ids."""
    peaks = {}
    for way in ("ours", "shapes", "shapes + shapely"):
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, str(path), way], check=True, capture_output=True, text=True
        )
        megabytes, count = done.stdout.split()
        peaks[way] = float(megabytes)
        print(f"noisy 8192², {way}: {float(megabytes):.0f} MB above the input, {count} polygons", flush=True)
    print(f"memory, ours to shapes + shapely: {peaks['ours'] / peaks['shapes + shapely']:.3f}", flush=True)


def _write_large(path: Path, side: int) -> None:
    """Write an easy label COG from maps of 4096² beside each other."""
    tile = 4096
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": side,
        "width": side,
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "crs": "EPSG:32645",
        "transform": rasterio.Affine(0.5, 0, 300_000, 0, -0.5, 3_100_000),
    }
    with rasterio.open(path, "w", **profile) as dataset:
        for number, (row, col) in enumerate(np.ndindex(side // tile, side // tile)):
            window = rasterio.windows.Window(col * tile, row * tile, tile, tile)
            dataset.write(label_map("easy", tile, number), 1, window=window)
