"""What a cluster costs: scheduler and client for each of very many chunks, and two workers against two processes."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rasterio
from rasterio.windows import Window

from geoseg.engine.canvas import Outcome
from geoseg.engine.cluster import connected
from geoseg.engine.predict import Options
from geoseg.engine.run import run_chunks
from geoseg.grid import ChunkGrid
from tests.benchmarks.figures import tell
from tests.benchmarks.measuring import geoseg
from tests.benchmarks.models import write_model
from tests.benchmarks.scenes import write_scene

_DASK = (sys.executable, "-m", "dask")


class _Nothing:
    """A task that computes nothing."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def segment(self, number: int) -> Outcome:
        """Tell that a chunk is done."""
        return Outcome(number, 1, 0)


@dataclass(frozen=True)
class _Empty:
    """A run over chunks without content."""

    chunks: ChunkGrid
    source: Any = field(default=None)

    def task(self, workers: int) -> _Nothing:
        """Return what does nothing."""
        return _Nothing()


def many_chunks(folder: Path, count: int = 100_000, workers: int = 2) -> None:
    """Print what empty chunks cost scheduler and client (wanted: 2 ms each at most, and under 50 MB of the client)."""
    with _cluster(folder, workers) as (address, scheduler), connected(Options(scheduler=address)) as crew:
        marks: list[tuple[int, float]] = []

        def mark(stage: str, done: int, total: int) -> None:
            if done % (count // 10) == 0:
                marks.append((done, _resident_mb(os.getpid())))

        run_chunks(_Empty(ChunkGrid((1, count // 10), 1)), crew, uuid.uuid4().hex, ())  # whatever is done but once
        before, held = _cpu_s(scheduler), _resident_mb(scheduler)
        client, wall = time.process_time(), time.monotonic()
        tally = run_chunks(_Empty(ChunkGrid((1, count), 1)), crew, uuid.uuid4().hex, (), mark)
        client, wall = time.process_time() - client, time.monotonic() - wall
        assert tally.finished == count
        scheduling = _cpu_s(scheduler) - before
        growth = max(mb for _, mb in marks) - marks[0][1]
        grown = _resident_mb(scheduler) - held
    for done, mb in marks:
        print(f"  {done:7d} chunks: client {mb:.0f} MB", flush=True)
    print(
        f"{count} empty chunks on {workers} workers: scheduler {1e3 * scheduling / count:.2f} CPU ms a chunk, client "
        f"{1e3 * client / count:.2f}, together {1e3 * (scheduling + client) / count:.2f}; {1e3 * wall / count:.2f} ms "
        f"of the clock; client memory grew by {growth:.1f} MB, the scheduler's by {grown:.1f}",
        flush=True,
    )


def against_processes(folder: Path, side: int = 4096, encoder: str = "resnet18", rounds: int = 3) -> None:
    """Print time and CPU of ``--workers 2`` over those of two processes with half the scene each, interleaved.

    Both write labels alone, chunk by chunk, so that what is compared is the way there (wanted: at most 1.10).
    """
    scene = write_scene(folder / f"scene_{side}.tif", side)
    model = write_model(folder, encoder)
    halves = [_half(scene, folder / f"half_{number}.tif", number) for number in range(2)]
    os.environ["OMP_NUM_THREADS"] = "1"
    times, costs = [], []
    for _ in range(rounds):
        started = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            apart = list(pool.map(lambda half: _predict(half, folder / f"{half.stem}_labels.tif", model), halves))
        alone = time.monotonic() - started
        together = _predict(scene, folder / "labels.tif", model, "--workers", "2")
        times.append(together.wall_s / alone)
        costs.append(together.cpu_s / sum(each.cpu_s for each in apart))
        print(
            f"unet {encoder} {side}²: two processes {alone:.1f} s, --workers 2 {together.wall_s:.1f} s, "
            f"ratio {times[-1]:.3f}; CPU ratio {costs[-1]:.3f}",
            flush=True,
        )
    middle = rounds // 2
    tell("workers", "--workers 2 over two processes, time", sorted(times)[middle], 1.10)
    tell("workers", "--workers 2 over two processes, CPU seconds", sorted(costs)[middle], 1.10)


def scaling(folder: Path, side: int = 8192, encoder: str = "resnet18", rounds: int = 1) -> None:
    """Print how many times as fast two workers on two cores are as one on one core (wanted: at least 1.8)."""
    scene = write_scene(folder / f"scene_{side}.tif", side)
    model = write_model(folder, encoder)
    ratios = []
    for _ in range(rounds):
        one, two = (_predict_on(count, scene, folder / "labels.tif", model) for count in (1, 2))
        ratios.append(one.wall_s / two.wall_s)
        print(f"unet {encoder} {side}²: one worker {one.wall_s:.1f} s, two {two.wall_s:.1f} s", flush=True)
    tell("scaling", "two workers over one, times as fast", statistics.median(ratios), 1.8, least=True)


def _predict_on(cores: int, scene: Path, output: Path, model: Path) -> Any:
    """Return what a run on so many cores costs, with as many workers; its processes inherit the cores of this one."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[:cores])
    try:
        return _predict(scene, output, model, "--workers", str(cores))
    finally:
        os.sched_setaffinity(0, every)


def _predict(scene: Path, output: Path, model: Path, *more: str) -> Any:
    return geoseg("predict", scene, output, "-m", model, "--overwrite", "--fresh", "-q", *more)


def _half(scene: Path, path: Path, number: int) -> Path:
    """Write the upper or the lower half of a scene."""
    with rasterio.open(scene) as file:
        window = Window(0, number * file.height // 2, file.width, file.height // 2)
        profile = file.profile | {"height": file.height // 2, "transform": file.window_transform(window)}
        with rasterio.open(path, "w", **profile) as half:
            half.write(file.read(window=window))
    return path


@contextlib.contextmanager
def _cluster(folder: Path, workers: int) -> Iterator[tuple[str, int]]:
    """Start a scheduler and workers, each a process; yields the scheduler file and its process id."""
    file = folder / "scheduler.json"
    # Workers find this module where this process did.
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": Path.cwd()}
    own = ("--host", "127.0.0.1", "--no-dashboard")
    processes = [subprocess.Popen([*_DASK, "scheduler", *own, "--port", "0", "--scheduler-file", str(file)], **quiet)]
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        more = ("--nthreads", "1", "--memory-limit", "0", "--no-nanny")
        command = [*_DASK, "worker", "--scheduler-file", str(file), *own, *more]
        processes += [subprocess.Popen(command, **quiet) for _ in range(workers)]
        yield str(file), processes[0].pid
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def _cpu_s(process: int) -> float:
    """Return the CPU seconds of a process until now."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
