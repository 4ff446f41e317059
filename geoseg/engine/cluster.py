"""Dask clients: in this process, on local processes, or on a cluster elsewhere; and the job that their workers hold."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import dask
from distributed import Client, LocalCluster, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from geoseg.engine.allocator import keep_freed_memory
from geoseg.engine.plan import Plan, Recipe, Work
from geoseg.engine.store import ChunkStore
from geoseg.errors import RunError, one_line

if TYPE_CHECKING:
    from geoseg.engine.canvas import Outcome
    from geoseg.engine.device import Runner

# Seconds to wait for a scheduler, and for local workers, which import a good deal first.
_REACH_TIMEOUT = 30
_START_TIMEOUT = 120
# Dask's own HTTP servers cannot be left out: on this machine alone, on any free port (its default may be taken).
_UNSEEN: dict[str, Any] = {
    "dashboard_address": "127.0.0.1:0",
    "worker_dashboard_address": "127.0.0.1:0",
    "scheduler_kwargs": {"dashboard": False},
}
# What the workers of this process hold, by fingerprint: several threads of one worker share one loaded model.
_JOBS: dict[str, Task] = {}


class Task(Protocol):
    """What a worker does of a run, part by part."""

    stopped: threading.Event

    def segment(self, number: int) -> Outcome:
        """Compute part ``number`` and put it where it is kept."""


class Job:
    """A plan on a worker, with the segmenter loaded on first use and kept for all chunks."""

    def __init__(self, plan: Plan, workers: int) -> None:
        self.plan = plan
        self.stopped = threading.Event()
        self._workers = workers
        self._loading = threading.Lock()
        self._runner: Runner | None = None
        self._store = ChunkStore(plan.store, plan.chunks)

    def runner(self) -> Runner:
        """Return the segmenter on this worker's device, loading it once."""
        from geoseg.engine.context import Context
        from geoseg.engine.device import Runner, choose_device, choose_precision, default_batch

        with self._loading:
            if self._runner is None:
                plan = self.plan
                device = choose_device(plan.device, worker_number())
                self._runner = Runner(
                    plan.method.build() if isinstance(plan.method, Recipe) else plan.method,
                    plan.state,
                    plan.classes,
                    device=device,
                    dtype=choose_precision(plan.precision, device),
                    batch=plan.batch or default_batch(plan.tiles.side, device),
                    context=Context(plan),
                )
            return self._runner

    def segment(self, number: int) -> Outcome:
        """Compute chunk ``number`` and put it into the store."""
        from geoseg.engine.chunk import segment_chunk
        from geoseg.engine.device import share_cores

        share_cores(self._workers)
        filled, outcome = segment_chunk(self.plan, self.runner(), number, self.stopped.is_set)
        self._store.write(number, filled.layers, filled.uncertainty)
        return outcome


class JobPlugin(WorkerPlugin):
    """Hands a plan to every worker, also to those that join or come back later."""

    idempotent = True

    def __init__(self, key: str, plan: Work, workers: int) -> None:
        self.name = f"geoseg-{key}"
        self.key = key
        self.plan = plan
        self.workers = workers

    def setup(self, worker: Any) -> None:
        """Keep the plan on the worker."""
        if worker.nanny is not None:  # a process of Dask's, not one of somebody else's
            keep_freed_memory()
        _JOBS.setdefault(self.key, self.plan.task(self.workers))

    def teardown(self, worker: Any) -> None:
        """Drop it, and the model with it."""
        _JOBS.pop(self.key, None)


def segment_on_worker(key: str, number: int) -> Outcome:
    """Compute chunk ``number`` of the job ``key``; this is the task that Dask runs.

    Raises:
        RunError: the worker does not hold the job.
    """
    job = _JOBS.get(key)
    if job is None:
        raise RunError("a worker has lost its job: run the same command again.")
    return job.segment(number)


def stop_local_job(key: str) -> None:
    """Make the tasks of job ``key`` in this process end at the next tile."""
    job = _JOBS.get(key)
    if job is not None:
        job.stopped.set()


def worker_number() -> int:
    """Return a number for this worker, to share GPUs by; 0 for one without a number."""
    with contextlib.suppress(ValueError):
        name = str(get_worker().name).rsplit("-", 1)[-1]
        return int(name)
    return 0


@contextlib.contextmanager
def connected(workers: int = 0, scheduler: str | None = None) -> Iterator[tuple[Client, int]]:
    """Yield a Dask client and the number of processes that share this machine's cores.

    Args:
        workers: 0 runs in this process; N starts N local worker processes.
        scheduler: address or scheduler file of a running cluster; ``workers`` is then not used.

    Raises:
        RunError: the cluster cannot be reached or started.
    """
    for name in ("distributed", "distributed.worker", "distributed.nanny", "distributed.scheduler", "distributed.core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        # Chunks are small results and the store holds the pixels: nothing to spill, and no page to serve.
        stack.enter_context(
            dask.config.set(
                {
                    "distributed.worker.memory.target": False,
                    "distributed.worker.memory.spill": False,
                    "distributed.worker.memory.pause": False,
                    "distributed.worker.memory.terminate": False,
                    "distributed.comm.timeouts.connect": "60s",
                }
            )
        )
        try:
            if scheduler:
                place = {"scheduler_file": scheduler} if os.path.exists(scheduler) else {"address": scheduler}
                client = stack.enter_context(Client(**place, timeout=_REACH_TIMEOUT, set_as_default=False))
                processes = 1
            elif workers:
                cluster = stack.enter_context(
                    LocalCluster(
                        n_workers=workers,
                        threads_per_worker=1,
                        processes=True,
                        **_UNSEEN,
                        silence_logs=logging.CRITICAL,
                        memory_limit=0,
                        # Threads of several processes share the cores: let them sleep, not spin, while they wait.
                        env={"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
                    )
                )
                client = stack.enter_context(Client(cluster, timeout=_START_TIMEOUT, set_as_default=False))
                processes = workers
            else:
                client = stack.enter_context(
                    Client(
                        processes=False,
                        n_workers=1,
                        threads_per_worker=1,
                        memory_limit=0,
                        set_as_default=False,
                        **_UNSEEN,
                    )
                )
                processes = 1
        except (OSError, TimeoutError, ValueError) as error:
            where = f"the Dask scheduler {scheduler}" if scheduler else f"{workers or 1} local workers"
            raise RunError(f"{where} cannot be reached or started ({one_line(error)}).") from error
        yield client, processes
