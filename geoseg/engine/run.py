"""The run: chunks sent to the workers, outcomes gathered, failures told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from distributed.scheduler import KilledWorker

from geoseg.engine.cluster import JobPlugin, segment_on_worker, stop_local_job
from geoseg.engine.crew import Crew
from geoseg.engine.lots import Answer
from geoseg.engine.plan import Work
from geoseg.errors import OutputError, RunError, one_line

Progress = Callable[[str, int, int], None]

# So many failures without one success are not bad luck.
_HOPELESS = 6


@dataclass
class Tally:
    """What a run did: chunks in all, those found done, tiles computed, pixels labelled, and failures by chunk.

    ``pixels`` are those of the finished chunks, and ``busy_s`` the seconds that workers took for them.
    """

    chunks: int
    resumed: int = 0
    finished: int = 0
    tiles: int = 0
    labelled: int = 0
    seconds: float = 0.0
    pixels: int = 0
    busy_s: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def settled(self) -> int:
        """Chunks that need no more work, finished or failed."""
        return self.resumed + self.finished + len(self.failures)


def run_chunks(
    plan: Work,
    crew: Crew,
    key: str,
    done: Collection[int],
    progress: Progress | None = None,
    stage: str = "segmenting",
    *,
    rank: int = 0,
    holes: bool | None = None,
) -> Tally:
    """Compute every chunk of ``plan`` that is not ``done``, on the workers of ``crew``.

    What comes out does not depend on their number or on the order in which chunks finish.  A chunk that fails is
    tried once more, then noted, and the run goes on.  Progress is told as that of ``stage``.

    Args:
        plan: what is computed.
        crew: who computes it.
        key: of this run and no other.
        done: chunks that are there already.
        progress: called with a stage, chunks settled and chunks in all.
        stage: what the progress is of.
        rank: see :class:`Crew`.
        holes: whether to go on where chunks failed, as long as any did not; None where that makes no sense.

    Raises:
        RunError: chunks failed, or no worker was left; what is finished stays in the store.
        OutputError: the store's disk is full.
    """
    tally = Tally(len(plan.chunks), resumed=len(done))
    started = time.monotonic()
    todo = (number for number in range(len(plan.chunks)) if number not in done)
    if progress:
        progress(stage, tally.settled, tally.chunks)
    with _job(crew, key, plan), crew.reached(), crew.stream(segment_on_worker, key, todo, rank) as stream:
        try:
            for number, answer in stream:
                _note(plan, tally, number, answer)
                if progress:
                    progress(stage, tally.settled, tally.chunks)
        finally:
            stop_local_job(key)
    tally.seconds = time.monotonic() - started
    some = bool(tally.finished or tally.resumed)
    if tally.failures and not (holes and some):
        hint = ", or leave them empty with --allow-holes" if some and holes is not None else ""
        raise RunError(_told(plan, tally, hint))
    return tally


@contextlib.contextmanager
def _job(crew: Crew, key: str, plan: Work) -> Iterator[None]:
    plugin = JobPlugin(key, plan, crew.processes)
    crew.register(plugin)
    try:
        yield
    finally:
        crew.unregister(plugin.name)


def _note(plan: Work, tally: Tally, number: int, answer: Answer) -> None:
    error = answer.error
    if error is None:
        outcome = answer.value
        tally.finished += 1
        tally.tiles += outcome.tiles
        tally.labelled += outcome.labelled
        tally.busy_s += outcome.seconds
        window = plan.chunks.window(number)
        tally.pixels += window.height * window.width
        return
    if isinstance(error, OutputError):
        raise error
    tally.failures[number] = _died(error) if isinstance(error, KilledWorker) else one_line(error, 400)
    if not tally.finished and not tally.resumed and len(tally.failures) >= _HOPELESS:
        raise RunError(_told(plan, tally))


def _died(error: KilledWorker) -> str:
    return (
        f"each of the {error.allowed_failures + 1} workers that it was given to alone died (for want of memory, or a "
        "library crashed)"
    )


def _told(plan: Work, tally: Tally, hint: str = "") -> str:
    number, cause = min(tally.failures.items())
    count = len(tally.failures)
    kept = f"run the same command again to retry {'it' if count == 1 else 'them'}{hint}"
    return (
        f"{count} of {tally.chunks} chunks failed; the first is {plan.chunks.window(number)} of {plan.source.path}: "
        f"{cause.rstrip('.')}; the other chunks are kept, {kept}."
    )
