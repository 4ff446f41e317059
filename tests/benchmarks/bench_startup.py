"""How quickly the command line answers, against an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.benchmarks.figures import tell
from tests.benchmarks.measuring import geoseg, run
from tests.benchmarks.scenes import write_scene


def _imports() -> list[tuple[float, str]]:
    """Return the packages that a run imports, slowest first, with the seconds they take themselves."""
    code = (
        "import geoseg.engine.execute, geoseg.engine.cluster, geoseg.segmenters.loading, geoseg.vector.polygons, torch"
    )
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    spent: dict[str, float] = defaultdict(float)
    for line in done.stderr.splitlines():
        own, _, name = (part.strip() for part in line.removeprefix("import time:").split("|"))
        if own.isdigit():
            spent[name.partition(".")[0]] += int(own) / 1e6
    return sorted(((seconds, name) for name, seconds in spent.items()), reverse=True)


def main(folder: Path, rounds: int = 5) -> None:
    """Print wall seconds of ``geoseg --help``, ``import geoseg`` and bare Python, and those of a whole small run."""
    bare = min(run(sys.executable, "-c", "pass").wall_s for _ in range(rounds))
    imported = min(run(sys.executable, "-c", "import geoseg").wall_s for _ in range(rounds))
    told = min(geoseg("--help").wall_s for _ in range(rounds))
    print(f"bare Python {bare:.3f} s; import geoseg {imported:.3f} s; geoseg --help {told:.3f} s ({told / bare:.1f} ×)")
    tell("startup", "geoseg --help", told, 0.3, unit="s")
    scene = write_scene(folder / "scene_512.tif", 512)
    colds = [
        geoseg(
            "predict", scene, folder / "small.geojson", "-m", "buildings", "--resolution", "0.25", "--overwrite", "-q"
        )
        for _ in range(rounds)
    ]
    tell("startup", "predict on 512², the shipped model,", min(cost.wall_s for cost in colds), 6, unit="s")
    print(f"of these, {min(cost.cpu_s for cost in colds):.1f} CPU s; the slowest imports:", flush=True)
    for seconds, module in _imports()[:8]:
        print(f"  {module} {seconds:.2f} s", flush=True)
