"""How quickly the command line answers, against an interpreter that does nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.measuring import geoseg, run


def main(folder: Path, rounds: int = 5) -> None:
    """Print wall seconds of ``geoseg --help`` (wanted: at most 0.5) and ``import geoseg``, and of bare Python."""
    bare = min(run(sys.executable, "-c", "pass").wall_s for _ in range(rounds))
    imported = min(run(sys.executable, "-c", "import geoseg").wall_s for _ in range(rounds))
    told = min(geoseg("--help").wall_s for _ in range(rounds))
    print(f"bare Python {bare:.3f} s; import geoseg {imported:.3f} s; geoseg --help {told:.3f} s ({told / bare:.1f} ×)")
