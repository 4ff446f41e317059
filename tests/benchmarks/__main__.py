"""``python -m tests.benchmarks [startup] [overhead] [memory]``: run on purpose, on a quiet machine; prints ratios."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.benchmarks import bench_memory, bench_overhead, bench_startup

_ALL = {"startup": bench_startup.main, "overhead": bench_overhead.main, "memory": bench_memory.main}


def main() -> None:
    """Run the benchmarks named on the command line, or all."""
    with tempfile.TemporaryDirectory(prefix="geoseg-bench-") as folder:
        for name in sys.argv[1:] or _ALL:
            _ALL[name](Path(folder))


if __name__ == "__main__":
    main()
