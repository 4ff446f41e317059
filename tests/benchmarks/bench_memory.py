"""Peak memory of a whole ``geoseg predict`` must not grow with the scene: 16384² against 4096²."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.figures import tell
from tests.benchmarks.measuring import geoseg
from tests.benchmarks.models import write_model
from tests.benchmarks.scenes import write_scene


def main(folder: Path, encoder: str = "resnet18", sides: tuple[int, int] = (4096, 16384)) -> None:
    """Print peak memory for both scenes and their ratio (wanted: at most 1.1, and under 2 GB for U-Net resnet18)."""
    model = write_model(folder, encoder)
    peaks = []
    for side in sides:
        scene = write_scene(folder / f"scene_{side}.tif", side)
        cost = geoseg(
            *("predict", scene, folder / f"out_{side}.geojson", "-m", model, "--labels", folder / f"labels_{side}.tif"),
            *("--overwrite", "--fresh", "--keep-background", "-q"),
        )
        size = (folder / f"out_{side}.geojson").stat().st_size / 1e6
        peaks.append(cost.peak_mb)
        print(
            f"unet {encoder} {side}²: peak {cost.peak_mb:.0f} MB, {cost.cpu_s:.0f} CPU s, {cost.wall_s:.0f} s, "
            f"GeoJSON {size:.1f} MB",
            flush=True,
        )
    tell("memory", f"unet {encoder}, peak at {sides[1]}² over that at {sides[0]}²", peaks[1] / peaks[0], 1.1)
    tell("memory", f"unet {encoder}, peak at {sides[1]}²", peaks[1], 2000, unit="MB")
