"""``python -m tests.benchmarks [NAME…]``: run on purpose, on a quiet machine; prints ratios.  The names are below."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks import (
    bench_cluster,
    bench_clustering,
    bench_engines,
    bench_global_local,
    bench_memory,
    bench_networks,
    bench_overhead,
    bench_peers,
    bench_recipes,
    bench_startup,
    bench_training,
    bench_vectorising,
    bench_writing,
    figures,
)

# What `make bench` runs: a scene from its start to its polygons.
_SUITE: dict[str, Callable[[Path], None]] = {
    "startup": bench_startup.main,
    "engines": bench_engines.main,
    "peers": bench_peers.main,
    "overhead": bench_overhead.main,
    "workers": bench_cluster.against_processes,
    "scaling": bench_cluster.scaling,
    "memory": bench_memory.main,
    "vectorising": bench_vectorising.main,
    "writing": bench_writing.main,
}
_FURTHER: dict[str, Callable[[Path], None]] = {
    "chunks": bench_cluster.many_chunks,
    "glnet": bench_global_local.main,
    "networks": bench_networks.main,
    "training": bench_training.main,
    "decoders": bench_recipes.decoders,
    "losses": bench_recipes.losses,
    "clustering": bench_clustering.buildings,
    "seasons": bench_clustering.seasons,
    "large": bench_vectorising.large,
}


def asked(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for; without a name, for all of `make bench`."""
    known = [*_SUITE, *_FURTHER]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=main.__doc__)
    # Of no names at all argparse makes a list, which it looks for among the choices.
    parser.add_argument("name", nargs="*", choices=[*known, []], metavar="NAME", help=", ".join(known))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--chart", type=Path, help="draw the figures that have a mark here, as a PNG")
    parser.add_argument("--folder", type=Path, help="keep scenes, models and environments here for the next time")
    given = parser.parse_args(arguments)
    given.name = given.name or list(_SUITE)
    return given


def main() -> None:
    """Run the benchmarks named on the command line, or those of a scene from its start to its polygons."""
    given = asked()
    with tempfile.TemporaryDirectory(prefix="geoseg-bench-") as passing:
        folder = given.folder or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        for name in given.name:
            {**_SUITE, **_FURTHER}[name](folder)
            if given.json:
                figures.write_json(given.json)
    if given.chart:
        figures.draw(given.chart)


if __name__ == "__main__":
    main()
