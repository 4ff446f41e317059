"""The workers of a Dask client, shared by any number of runs whose parts go out in turn, in one bounded window."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from distributed import Client, Future
from distributed.comm import CommClosedError
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.scheduler import KilledWorker

from geoseg.errors import RunError, one_line

# Futures in flight per worker thread: enough that none waits for the client, few enough to cost nothing.  Parts that
# take next to no time go out in larger lots, for so many seconds ahead, since each lot costs the scheduler some work.
_WINDOW = 2
_MOST = 64
_AHEAD_S = 0.25
# How much the latest part counts in what parts are thought to take.
_LATEST = 0.1
# Seconds of silence after which somebody looks whether there are workers, and for which their number is remembered.
_LOOK_S = 5.0
_REMEMBERED_S = 1.0
# No part takes so long: a worker hangs, in a file system that does not answer perhaps.
_STALLED_S = 4 * 3600.0
PATIENCE_S = 120.0

Settled = tuple[int, Future]


class Crew:
    """Sends parts of runs to workers, the run of the lowest rank first, and hands back what became of each.

    A part whose worker dies is given to others by Dask, some times.  Others may have stood beside the one that killed
    the worker, so such parts are tried again when nothing else is under way, one at a time: what then kills its
    workers is found out with certainty, and set aside.

    Args:
        client: connected.
        processes: processes that share the cores of this machine.
        where: the cluster, for messages.
        patience_s: seconds without a worker (that has the ``resources``) after which runs end.
        resources: what each part takes of a worker, by Dask's names for it.
    """

    def __init__(
        self,
        client: Client,
        processes: int = 1,
        *,
        where: str = "the local workers",
        patience_s: float = PATIENCE_S,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        self.client = client
        self.processes = processes
        self.resources = dict(resources or {})
        self._where = where
        self._patience_s = patience_s
        self._lock = threading.RLock()
        self._streams: list[Stream] = []
        self._broken: RunError | None = None
        self._threads, self._counted = 0, -_REMEMBERED_S
        self._seen = self._settled = time.monotonic()
        # Seconds from one finished part to the next.
        self._pace = _AHEAD_S

    @contextlib.contextmanager
    def stream(self, task: Any, key: str, numbers: Iterator[int], rank: int = 0) -> Iterator[Stream]:
        """Send out the parts of a run; what is still under way when the block ends is cancelled.

        Args:
            task: called on a worker with ``key`` and the number of a part.
            key: of the run; no other run has it.
            numbers: of the parts.
            rank: its place among the runs.

        Raises:
            RunError: the crew is gone.
        """
        stream = Stream(self, task, key, numbers, rank)
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if not any(each.pending for each in self._streams):
                self._seen = self._settled = time.monotonic()
            self._streams.append(stream)
            self._streams.sort(key=lambda each: each.rank)
            self._refill()
        try:
            yield stream
        finally:
            with self._lock:
                self._streams.remove(stream)
                left, stream.pending = list(stream.pending.values()), {}
                if self.client.status == "running":
                    with contextlib.suppress(Exception):
                        self.client.cancel(left)
                        self._refill()

    @property
    def broken(self) -> RunError | None:
        """What ended all runs, if anything did."""
        return self._broken

    @property
    def threads(self) -> int:
        """How many parts the workers compute at a time, as last counted; at least 1."""
        return max(1, self._count())

    def close(self, why: RunError) -> None:
        """End all runs with an error, those that come too."""
        with self._lock:
            self._broken = self._broken or why
            for stream in self._streams:
                stream.results.put(self._broken)

    def check(self) -> None:
        """Look whether there are workers, after a while of silence.

        Raises:
            RunError: there has been none for too long, or nothing came of any for very long.
        """
        with self._lock:
            now = time.monotonic()
            if self._count(fresh=True):
                self._seen = now
            busy = any(each.pending for each in self._streams)
            if now - self._seen >= self._patience_s:
                self.close(RunError(self._deserted(now - self._seen)))
            elif busy and now - self._settled >= _STALLED_S:
                hours = (now - self._settled) / 3600
                self.close(
                    RunError(
                        f"no chunk has been finished for {hours:.1f} h although {self._where} has workers: look what "
                        "they wait for, then run the same command again, it goes on from the chunks that are done."
                    )
                )
            if self._broken is not None:
                raise self._broken
            self._refill()

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Turn what Dask says inside the block when the scheduler goes away into one sentence.

        Raises:
            RunError: it went away.
        """
        try:
            yield
        except CommClosedError as error:
            self.close(lost := self._lost())
            raise lost from error

    def register(self, plugin: WorkerPlugin) -> None:
        """Give a plugin to every worker, also to those that come later.

        Raises:
            RunError: the cluster is gone.
        """
        try:
            self.client.register_plugin(plugin)
        except Exception as error:  # of several kinds, by the moment at which the scheduler went away
            self.close(lost := self._lost())
            raise lost from error

    def unregister(self, name: str) -> None:
        """Take a plugin back by its name, from a cluster that is still there."""
        if self.client.status == "running":
            with contextlib.suppress(Exception):
                self.client.unregister_worker_plugin(name)

    def _lost(self) -> RunError:
        return RunError(
            f"the connection to {self._where} was lost: run the same command again, it goes on from the chunks that "
            "are done."
        )

    def _deserted(self, seconds: float) -> str:
        wanted = f" with {shown_resources(self.resources)}" if self.resources else ""
        died = " (were they killed for their memory?)" if not self.resources else ""
        return (
            f"no Dask worker{wanted} has been there for {seconds:.0f} s{died}: start some, and run the same command "
            "again, it goes on from the chunks that are done."
        )

    def _count(self, fresh: bool = False) -> int:
        """Return how many parts the workers can compute at a time."""
        now = time.monotonic()
        if fresh or now - self._counted >= _REMEMBERED_S:
            self._threads = places_for(self.client, self.resources) if self.client.status == "running" else 0
            self._counted = now
        return self._threads

    def _refill(self) -> None:
        """Submit parts until the window is full or none is left, and tell the runs that are over."""
        under_way = sum(len(each.pending) for each in self._streams)
        suspected = [each for each in self._streams if each.suspects and each.drained]
        if suspected:
            if not under_way:
                suspected[0].submit([suspected[0].suspects.pop(0)], alone=True)
        elif not any(each.alone for each in self._streams):
            window = self._window()
            room = window - under_way if under_way <= window // 2 else 0
            for stream in self._streams:
                numbers = stream.take(room)
                stream.submit(numbers)
                room -= len(numbers)
        for stream in self._streams:
            stream.end_if_over()

    def _window(self) -> int:
        """Return how many parts may be under way."""
        quick = int(_AHEAD_S / max(self._pace, 1e-6))
        return max(_WINDOW * self.threads, min(_MOST * self.threads, quick))

    def settle(self, stream: Stream, number: int, alone: bool, future: Future) -> None:
        """Take note that a part is finished or has failed; Dask calls this in a thread of its own."""
        with self._lock:
            if stream.pending.pop(number, None) is None:
                return  # withdrawn
            now = time.monotonic()
            self._pace += _LATEST * (now - self._settled - self._pace)
            self._settled = now
            stream.alone = False
            try:
                if future.cancelled() and self.client.status != "running":
                    raise self._lost()
                if not alone and future.status == "error" and isinstance(future.exception(), KilledWorker):
                    stream.suspects.append(number)
                else:
                    stream.results.put((number, future))
                self._refill()
            except RunError as error:
                self.close(error)
            except Exception as error:
                self.close(
                    RunError(f"the work could not be handed out ({one_line(error)}): run the same command again.")
                )


class Stream:
    """The parts of one run on their way; iterating yields each with its future, in the order they are finished."""

    def __init__(self, crew: Crew, task: Any, key: str, numbers: Iterator[int], rank: int) -> None:
        self.rank = rank
        self.pending: dict[int, Future] = {}
        self.suspects: list[int] = []
        self.alone = False
        self.results: queue.Queue[Settled | BaseException | None] = queue.Queue()
        self._crew, self._task, self._key, self._numbers = crew, task, key, numbers
        self._over = False
        self.upcoming = next(numbers, None)

    def __iter__(self) -> Iterator[Settled]:
        """Yield number and future of each part.

        Raises:
            RunError: the crew is gone, or was closed.
        """
        while True:
            try:
                item = self.results.get(timeout=_LOOK_S)
            except queue.Empty:
                self._crew.check()
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    @property
    def drained(self) -> bool:
        """Whether no part waits to be sent or is under way, suspects apart."""
        return self.upcoming is None and not self.pending

    def take(self, most: int) -> list[int]:
        """Return the next parts to be sent, so many at most."""
        taken: list[int] = []
        while len(taken) < most and self.upcoming is not None:
            taken.append(self.upcoming)
            self.upcoming = next(self._numbers, None)
        return taken

    def submit(self, numbers: list[int], alone: bool = False) -> None:
        """Send parts to the workers."""
        if not numbers:
            return
        crew = self._crew
        self.alone = alone
        futures = crew.client.map(
            partial(self._task, self._key),
            numbers,
            key=[f"geoseg-{self._key}-{number}{'-alone' if alone else ''}" for number in numbers],
            retries=1,
            pure=False,
            priority=-self.rank,
            resources=crew.resources or None,
        )
        self.pending.update(zip(numbers, futures, strict=True))
        for number, future in zip(numbers, futures, strict=True):
            future.add_done_callback(partial(crew.settle, self, number, alone))

    def end_if_over(self) -> None:
        """Tell who iterates that nothing is left."""
        if self.drained and not self.suspects and not self._over:
            self._over = True
            self.results.put(None)


def places_for(client: Client, resources: Mapping[str, float]) -> int:
    """Return how many tasks that take ``resources`` the workers of a cluster compute at a time; 0 if it is gone."""
    try:
        workers = workers_of(client)
    except Exception:
        return 0  # gone, or going: what waits for it has its own limit
    places = 0
    for worker in workers:
        has = worker.get("resources") or {}
        fitting = [int(has.get(name, 0) // amount) for name, amount in resources.items()]
        places += min([int(worker["nthreads"]), *fitting])
    return places


def workers_of(client: Client) -> list[Any]:
    """Return what the scheduler says of each worker."""
    # Some versions tell of five workers unless asked for all.
    return list(client.scheduler_info(n_workers=-1)["workers"].values())


def shown_resources(resources: Mapping[str, float]) -> str:
    """Return resources as a message names them."""
    told = " and ".join(f"{name}={amount:g}" for name, amount in resources.items())
    return f"the resource {told}" if len(resources) == 1 else f"the resources {told}"
