"""Dask clients: in this process, on local processes, or on a cluster elsewhere; and the job that their workers hold."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Protocol

import dask
from distributed import Client, LocalCluster, get_worker
from distributed.comm import CommClosedError
from distributed.diagnostics.plugin import WorkerPlugin
from tornado.util import TimeoutError as TornadoTimeoutError

from geoseg.engine.allocator import keep_freed_memory, keeping_environment
from geoseg.engine.crew import Crew
from geoseg.engine.environment import (
    difference,
    refuse_other_versions,
    resources_there,
    versions_here,
    wanted_resources,
)
from geoseg.engine.plan import Plan, Recipe, Work
from geoseg.engine.store import store_at
from geoseg.errors import RunError, one_line

if TYPE_CHECKING:
    from geoseg.engine.canvas import Outcome
    from geoseg.engine.device import Runner
    from geoseg.engine.predict import Options

# Seconds to wait for a scheduler, for local workers, which import a good deal first, and for a client to close.
_REACH_TIMEOUT = 30
_START_TIMEOUT = 120
_CLOSE_TIMEOUT = 10
# Dask's own HTTP servers cannot be left out: on this machine alone, on any free port (its default may be taken).
_UNSEEN: dict[str, Any] = {
    "dashboard_address": "127.0.0.1:0",
    "worker_dashboard_address": "127.0.0.1:0",
    "scheduler_kwargs": {"dashboard": False},
}
# Chunks are small results and the store holds the pixels: nothing to spill, and no page to serve.
_SETTINGS: dict[str, Any] = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.comm.timeouts.connect": "60s",
    # After the second death of a worker, its chunk is tried alone, see the crew.
    "distributed.scheduler.allowed-failures": 1,
    # A worker that starts again on a busy machine takes a while; the crew knows how long to wait.
    "distributed.deploy.lost-worker-timeout": "1h",
    # Looks at every thread's stack a hundred times a second, for a page that is not served.
    "distributed.worker.profile.enabled": False,
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in keeping_environment().items()},
}
# Parts that a process does at a time: while the network computes for one, another is read, decided on or stored.
_PARTS = 2
# What goes wrong is told in one sentence; these would tell it in tracebacks besides.
_TALKERS = ("distributed", *(f"distributed.{name}" for name in ("client", "core", "nanny", "scheduler", "worker")))
# Event loops tell here of callbacks that failed: whatever was still to be sent when a scheduler went away.
_LOOPS = ("tornado.application", "asyncio")
# What the workers of this process hold, by fingerprint: several threads of one worker share one loaded model.
_JOBS: dict[str, Task] = {}
# Why this process cannot do a job, by its key.
_REFUSED: dict[str, str] = {}
# The model of the last job, for those who want it kept, by their keys.
_KEPT: dict[str, list[object]] = {}


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
        self._store = store_at(plan.store, plan.chunks)

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
                    batch=plan.batch or default_batch(plan.tiles.shape, device),
                    context=Context(plan),
                    engine=plan.engine,
                )
                for kept in list(_KEPT.values()):
                    kept[:] = [self._runner.segmenter]
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
        self.versions = versions_here()

    def setup(self, worker: Any) -> None:
        """Keep the plan on the worker, unless its programs are of other versions."""
        told = difference(versions_here(), self.versions)
        if told:
            _REFUSED[self.key] = told
            return
        if worker.nanny is not None:  # a process of Dask's, not one of somebody else's
            keep_freed_memory()
        _JOBS.setdefault(self.key, self.plan.task(self.workers))

    def teardown(self, worker: Any) -> None:
        """Drop it, and the model with it."""
        _JOBS.pop(self.key, None)
        _REFUSED.pop(self.key, None)


class KeepPlugin(WorkerPlugin):
    """Lets workers keep the last model from one run to the next."""

    idempotent = True

    def __init__(self, key: str) -> None:
        self.name = f"geoseg-keep-{key}"
        self.key = key

    def setup(self, worker: Any) -> None:
        """Make room for the model on the worker."""
        _KEPT.setdefault(self.key, [])

    def teardown(self, worker: Any) -> None:
        """Drop it."""
        _KEPT.pop(self.key, None)


class BusyTime:
    """The time of a process, shared alike by the parts that are under way at each moment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._parts, self._passed, self._since = 0, 0.0, 0.0

    def change(self, parts: int) -> float:
        """Note that so many parts begin, or end if negative; returns the seconds that each of those under way had."""
        with self._lock:
            now = self._clock()
            self._passed += (now - self._since) / max(1, self._parts)
            self._parts, self._since = self._parts + parts, now
            return self._passed


_BUSY = BusyTime()


def segment_on_worker(key: str, number: int) -> Outcome:
    """Compute chunk ``number`` of the job ``key``; this is the task that Dask runs.

    Raises:
        RunError: the worker does not hold the job.
    """
    job = _JOBS.get(key)
    if key in _REFUSED:
        raise RunError(f"a worker {_REFUSED[key]}")
    if job is None:
        raise RunError("a worker has lost its job: run the same command again.")
    began = _BUSY.change(1)
    try:
        outcome = job.segment(number)
    finally:
        ended = _BUSY.change(-1)
    return replace(outcome, seconds=ended - began)


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
def connected(options: Options) -> Iterator[Crew]:
    """Yield the workers that a run's ``options`` name: this process, local processes, or a cluster elsewhere.

    Raises:
        RunError: the cluster cannot be reached or started, its programs are of other versions, or no worker of it has
            what the run needs.
        ConfigError: a resource that makes no sense.
    """
    resources = wanted_resources(options)
    _quiet()
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        try:
            client = stack.enter_context(_client(options, stack))
        except Exception as error:  # of any kind: strange files and strange certificates end up in strange places
            _close_unborn(error)
            raise _unreachable(options, error) from error
        if options.scheduler:
            where = f"the cluster {options.scheduler}"
            refuse_other_versions(client, where)
            try:
                resources = resources_there(client, resources, options, where)
            except OSError as error:
                raise _unreachable(options, error) from error
            crew = Crew(client, where=where, patience_s=options.patience, resources=resources)
        else:
            crew = Crew(client, max(1, options.workers), patience_s=options.patience)
        try:
            yield crew
        finally:
            crew.close(RunError("the run was stopped."))


def _quiet() -> None:
    """Keep the libraries from telling in tracebacks what this module tells in a sentence, from now on.

    What was still to be sent on a lost connection may come to light only when the collector finds it.
    """
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _LOOPS:
        logging.getLogger(name).addFilter(_matters)  # once, however often it is added


def _matters(record: logging.LogRecord) -> bool:
    """Whether what an event loop tells is more than a connection lost or not closed in time, or a call called off.

    Dask calls off a call that Ctrl-C interrupts by a name that is not bound before its loop has taken the call up.
    """
    if not record.exc_info:
        return True
    _, error, trace = record.exc_info
    if isinstance(error, NameError) and trace is not None:
        frame, _ = list(traceback.walk_tb(trace))[-1]
        return (frame.f_globals.get("__name__"), frame.f_code.co_name) != ("distributed.utils", "cancel")
    return not isinstance(error, CommClosedError | TornadoTimeoutError)


def _client(options: Options, stack: contextlib.ExitStack) -> Client:
    from geoseg.engine.device import cores

    if options.scheduler:
        place = {"scheduler_file" if os.path.exists(options.scheduler) else "address": options.scheduler}
        return Client(**place, timeout=_REACH_TIMEOUT, set_as_default=False)
    if not options.workers:
        return Client(
            processes=False, n_workers=1, threads_per_worker=_PARTS, memory_limit=0, set_as_default=False, **_UNSEEN
        )
    with _children_deaf_to_interrupts():
        cluster = LocalCluster(
            n_workers=options.workers,
            # Where every process has one core, the others are what computes meanwhile.
            threads_per_worker=_PARTS if cores() > options.workers else 1,
            processes=True,
            **_UNSEEN,
            silence_logs=logging.CRITICAL,
            memory_limit=0,
            # Threads of several processes share the cores: let them sleep, not spin, while they wait.
            env={"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
        )
        stack.enter_context(cluster)
    return Client(cluster, timeout=_START_TIMEOUT, set_as_default=False)


@contextlib.contextmanager
def _children_deaf_to_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from the threads and processes that are started meanwhile, and from those that they start.

    A terminal sends it to every process of a run. The one that was started ends the others; each would end with a
    traceback. One that comes meanwhile reaches this process afterwards.
    """
    resource_tracker.ensure_running()  # the first process would start it, and hear again from then on
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _close_unborn(error: BaseException) -> None:
    """Close the client whose making failed with ``error``; only the frames of that know it.

    Left to the collector, it might be closed in a thread that is just being started, while the one that starts it holds
    the lock of Dask's which closing waits for.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        client = frame.f_locals.get("self")
        if isinstance(client, Client):
            with contextlib.suppress(Exception):  # what made it fail may make this fail
                client.close(timeout=_CLOSE_TIMEOUT)
                client._loop_runner.stop()  # one that has closed itself leaves its thread
            return


def _unreachable(options: Options, error: Exception) -> RunError:
    where = f"the Dask scheduler {options.scheduler}" if options.scheduler else f"{options.workers or 1} local workers"
    hint = ""
    if options.scheduler and options.scheduler.startswith("tls://"):
        hint = "; it asks for certificates: name yours in Dask's settings distributed.comm.tls (see docs/cluster.md)"
    told = "it does not answer" if isinstance(error, AssertionError) else one_line(error)
    return RunError(f"{where} cannot be reached or started ({told}){hint}.")
