"""The run: chunks submitted to Dask with a bounded window, outcomes gathered, failures told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from distributed import Client, Future, wait

from geoseg.engine.cluster import JobPlugin, segment_on_worker, stop_local_job
from geoseg.engine.plan import Work
from geoseg.errors import OutputError, RunError, one_line

Progress = Callable[[str, int, int], None]

# Futures in flight per worker thread: enough that none waits for the client, few enough to cost nothing.
_WINDOW = 2
_PATIENCE_S = 5.0
_NO_WORKER_S = 120.0
# So many failures without one success are not bad luck.
_HOPELESS = 6


@dataclass
class Tally:
    """What a run did: chunks in all, those found done, tiles computed, pixels labelled, and failures by chunk."""

    chunks: int
    resumed: int = 0
    finished: int = 0
    tiles: int = 0
    labelled: int = 0
    seconds: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def settled(self) -> int:
        """Chunks that need no more work, finished or failed."""
        return self.resumed + self.finished + len(self.failures)


def run_chunks(
    plan: Work,
    client: Client,
    processes: int,
    key: str,
    done: Collection[int],
    progress: Progress | None = None,
    stage: str = "segmenting",
) -> Tally:
    """Compute every chunk of ``plan`` that is not ``done``, on the workers of ``client``.

    What comes out does not depend on their number or on the order in which chunks finish.  A chunk that fails is
    tried once more, then noted, and the run goes on.  Progress is told as that of ``stage``.

    Raises:
        RunError: chunks failed, or no worker was left; what is finished stays in the store.
        OutputError: the store's disk is full.
    """
    tally = Tally(len(plan.chunks), resumed=len(done))
    started = time.monotonic()
    todo = (number for number in range(len(plan.chunks)) if number not in done)
    pending: dict[Future, int] = {}
    with _job(client, key, plan, processes):
        try:
            while True:
                if progress:
                    progress(stage, tally.settled, tally.chunks)
                _refill(client, key, todo, pending)
                if not pending:
                    break
                for future in _finished(client, pending):
                    _note(plan, tally, pending.pop(future), future)
        finally:
            stop_local_job(key)
            with contextlib.suppress(Exception):
                client.cancel(list(pending))
    tally.seconds = time.monotonic() - started
    if tally.failures:
        raise RunError(_told(plan, tally))
    return tally


@contextlib.contextmanager
def _job(client: Client, key: str, plan: Work, processes: int) -> Iterator[None]:
    plugin = JobPlugin(key, plan, processes)
    client.register_plugin(plugin)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            client.unregister_worker_plugin(plugin.name)


def _refill(client: Client, key: str, todo: Iterator[int], pending: dict[Future, int]) -> None:
    """Submit chunks until the window is full or none is left."""
    threads = max(1, sum(client.nthreads().values()))
    while len(pending) < _WINDOW * threads:
        number = next(todo, None)
        if number is None:
            return
        future = client.submit(segment_on_worker, key, number, key=f"geoseg-{key}-{number}", retries=1, pure=False)
        pending[future] = number


def _finished(client: Client, pending: dict[Future, int]) -> list[Future]:
    """Wait until some futures are finished and return them.

    Raises:
        RunError: no worker has been there for two minutes.
    """
    lonely = 0.0
    while True:
        try:
            with client.as_current():
                return list(wait(list(pending), timeout=_PATIENCE_S, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            lonely = 0.0 if client.nthreads() else lonely + _PATIENCE_S
        if lonely >= _NO_WORKER_S:
            raise RunError(
                f"no Dask worker has been there for {lonely:.0f} s (were they killed for their memory?): "
                "run the same command again, it goes on from the chunks that are done."
            )


def _note(plan: Work, tally: Tally, number: int, future: Future) -> None:
    if future.status == "finished":
        outcome = future.result()
        tally.finished += 1
        tally.tiles += outcome.tiles
        tally.labelled += outcome.labelled
        return
    error = future.exception() if future.status == "error" else RunError("cancelled by the scheduler")
    if isinstance(error, OutputError):
        raise error
    tally.failures[number] = one_line(error)
    if not tally.finished and not tally.resumed and len(tally.failures) >= _HOPELESS:
        raise RunError(_told(plan, tally))


def _told(plan: Work, tally: Tally) -> str:
    number, cause = min(tally.failures.items())
    count = len(tally.failures)
    kept = "run the same command again to retry it" if count == 1 else "run the same command again to retry them"
    return (
        f"{count} of {tally.chunks} chunks failed; the first is {plan.chunks.window(number)} of {plan.source.path}: "
        f"{cause.rstrip('.')}; the other chunks are kept, {kept}."
    )
