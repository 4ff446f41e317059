"""``python -m tests.benchmarks [NAME…]``: run on purpose, on a quiet machine; prints ratios.  The names are below."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import (
    bench_cluster,
    bench_clustering,
    bench_engines,
    bench_global_local,
    bench_memory,
    bench_networks,
    bench_overhead,
    bench_recipes,
    bench_startup,
    bench_training,
    bench_vectorising,
    bench_writing,
)

_ALL: dict[str, Callable[[Path], None]] = {
    "startup": bench_startup.main,
    "overhead": bench_overhead.main,
    "engines": bench_engines.main,
    "memory": bench_memory.main,
    "chunks": bench_cluster.many_chunks,
    "workers": bench_cluster.against_processes,
    "glnet": bench_global_local.main,
    "networks": bench_networks.main,
    "training": bench_training.main,
    "decoders": bench_recipes.decoders,
    "losses": bench_recipes.losses,
    "clustering": bench_clustering.buildings,
    "seasons": bench_clustering.seasons,
    "vectorising": bench_vectorising.main,
    "large": bench_vectorising.large,
    "writing": bench_writing.main,
}


def main() -> None:
    """Run the benchmarks named on the command line, or all."""
    with tempfile.TemporaryDirectory(prefix="geoseg-bench-") as folder:
        for name in sys.argv[1:] or _ALL:
            _ALL[name](Path(folder))


if __name__ == "__main__":
    main()
