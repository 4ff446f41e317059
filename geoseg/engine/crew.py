"""The workers of a Dask client, shared by any number of runs whose parts go out in turn, in one bounded window."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from distributed import Client, Future
from distributed.comm import CommClosedError
from distributed.diagnostics.plugin import WorkerPlugin

from geoseg.engine.lots import WINDOW, Lot, Stream
from geoseg.errors import RunError, one_line

# Seconds for which the number of workers is remembered.
_REMEMBERED_S = 1.0
# No part takes so long: a worker hangs, in a file system that does not answer perhaps.
_STALLED_S = 4 * 3600.0
PATIENCE_S = 120.0


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
        self.lock = threading.RLock()
        self._streams: list[Stream] = []
        self._broken: RunError | None = None
        self._threads, self._counted = 0, -_REMEMBERED_S
        self._seen = self._settled = time.monotonic()

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
        with self.lock:
            if self._broken is not None:
                raise self._broken
            if not any(each.lots for each in self._streams):
                self._seen = self._settled = time.monotonic()
            self._streams.append(stream)
            self._streams.sort(key=lambda each: each.rank)
            self.refill()
        try:
            yield stream
        finally:
            with self.lock:
                self._streams.remove(stream)
                left, stream.lots = [lot.future for lot in stream.lots.values()], {}
                if self.client.status == "running":
                    with contextlib.suppress(Exception):
                        self.client.cancel(left)
                        self.refill()

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
        with self.lock:
            self._broken = self._broken or why
            for stream in self._streams:
                stream.results.put(self._broken)

    def check(self) -> None:
        """Look whether there are workers, after a while of silence.

        Raises:
            RunError: there has been none for too long, or nothing came of any for very long.
        """
        with self.lock:
            now = time.monotonic()
            if self._count(fresh=True):
                self._seen = now
            busy = any(each.lots for each in self._streams)
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
            self.refill()

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

    def refill(self) -> None:
        """Submit lots until the window is full or none is left, and tell the runs that are over."""
        try:
            self._fill()
        except RunError as error:
            self.close(error)
        except Exception as error:
            self.close(RunError(f"the work could not be handed out ({one_line(error)}): run the same command again."))

    def _fill(self) -> None:
        if self._broken is not None:
            return
        under_way = sum(each.under_way for each in self._streams)
        suspected = [each for each in self._streams if each.suspects and each.drained]
        if suspected:
            if not under_way:
                suspected[0].submit([(suspected[0].suspects.popleft(),)], alone=True)
        elif not any(each.alone for each in self._streams):
            window = WINDOW * self.threads
            room = window - under_way
            if room > window // 8:  # several at a time on a large cluster
                for stream in self._streams:
                    # Where a run is slow to read what is done, nothing more of it is sent: it would pile up in memory.
                    lots = stream.take(min(room, window - stream.unread))
                    stream.submit(lots)
                    room -= len(lots)
        for stream in self._streams:
            stream.end_if_over()

    def settle(self, stream: Stream, lot: Lot, future: Future) -> None:
        """Take note that a lot is done or has failed; Dask calls this in a thread of its own."""
        with self.lock:
            if lot.serial not in stream.lots:
                return  # withdrawn
            self._settled = time.monotonic()
            if future.cancelled() and self.client.status != "running":
                self.close(self._lost())
            else:
                lot.done = True
                stream.results.put(lot)
                self.refill()


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
