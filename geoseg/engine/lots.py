"""Lots: the parts of a run that a worker gets in one Dask task, many at a time where each takes next to no time.

A task costs scheduler and client some milliseconds, whatever it does.  So a lot has as many parts as fill a fraction of
a second by the pace of those before, one where parts are slow.  That they will be quick is a guess: a worker that finds
them slow gives back those that it has not begun.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed import CancelledError, Future
from distributed.scheduler import KilledWorker

from geoseg.errors import GeosegError, RunError, one_line

if TYPE_CHECKING:
    from geoseg.engine.crew import Crew

# Lots in flight per worker thread: enough that none waits for the client, few enough to cost nothing.
WINDOW = 2
# Parts of a lot: what a worker that hangs may keep back is a few of these.
MOST = 64
# Seconds that a lot takes, about; longer where there are so many threads that lots would come faster than this.
_LOT_S = 0.25
_LOTS_A_SECOND = 200
# How much the latest lot counts in what parts are thought to take.
_LATEST = 0.5
# Seconds of silence after which somebody looks whether there are workers.
_LOOK_S = 5.0
# What a lot tells is some bytes a part, so it comes at once.  Where it does not, its worker may stand still: other lots
# are read first then, and after so long its parts are given to other workers.
_GLANCE_S = 2.0
_RESULT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What became of a part: what its task gave, or why it failed."""

    value: Any = None
    error: BaseException | None = None


Settled = tuple[int, Answer]


@dataclass(eq=False)
class Lot:
    """Parts sent to a worker together.

    Attributes:
        serial: its number in its run.
        numbers: of the parts.
        alone: whether nothing else is under way meanwhile.
        future: Dask's.
        done: whether Dask has said that it is done or failed.
        silent_since: when it was first asked for its answers in vain; None if it was not.
    """

    serial: int
    numbers: tuple[int, ...]
    alone: bool
    future: Future
    done: bool = False
    silent_since: float | None = None


def do_lot(task: Any, key: str, limit_s: float, numbers: Sequence[int]) -> tuple[list[Answer], float]:
    """Do parts one after the other until ``limit_s`` seconds have passed; this is the task that Dask runs.

    Returns:
        What became of the parts begun, which are the first ones and at least one, and the seconds that they took.
    """
    started = time.monotonic()
    answers: list[Answer] = []
    passed = 0.0
    for number in numbers:
        try:
            answers.append(Answer(task(key, number)))
        except Exception as error:
            answers.append(Answer(error=_portable(error)))
        passed = time.monotonic() - started
        if passed >= limit_s:
            break
    return answers, passed


def _portable(error: Exception) -> Exception:
    """Return an error as it reaches the client: its traceback, which would hold a chunk's arrays, stays behind.

    One of another kind than geoseg's own comes as words alone, for a library's may not survive the way.
    """
    if isinstance(error, GeosegError):
        return type(error)(*error.args)
    return RunError(one_line(error, 400))


class Stream:
    """The parts of one run on their way; iterating yields each with its answer, in the order in which lots are done.

    A part that fails is tried once more, by itself.

    Args:
        crew: who does them.
        task: called on a worker with ``key`` and the number of a part.
        key: of the run; no other run has it.
        numbers: of the parts.
        rank: the run's place among the runs.

    Attributes:
        lots: those sent whose answers have not been read, by their serial number.
        suspects: parts beside which a worker died.
        alone: whether a part of this run is under way alone.
        results: lots that are done, an error that ends the run, or None after the last.
    """

    def __init__(self, crew: Crew, task: Any, key: str, numbers: Iterator[int], rank: int) -> None:
        self.rank = rank
        self.lots: dict[int, Lot] = {}
        self.suspects: deque[int] = deque()
        self.alone = False
        self.results: queue.Queue[Lot | BaseException | None] = queue.Queue()
        self._crew, self._task, self._key, self._numbers = crew, task, key, numbers
        self._serial = itertools.count()
        self._upcoming: deque[int] = deque()
        self._again: deque[int] = deque()
        self._silent: deque[Lot] = deque()
        self._failed: set[int] = set()
        # Seconds that a part takes a worker; None as long as nothing is known.
        self._pace: float | None = None
        self._over = False
        self._look_ahead(1)

    def __iter__(self) -> Iterator[Settled]:
        """Yield number and answer of each part.

        Raises:
            RunError: the crew is gone, or was closed.
        """
        while (item := self._next()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield from self._read(item)

    def _next(self) -> Lot | BaseException | None:
        """Return what comes next of the results, or, where nothing comes, a lot that was silent."""
        while True:
            try:
                return self.results.get(timeout=_LOOK_S)
            except queue.Empty:
                self._crew.check()
            if self._silent:
                return self._silent.popleft()

    @property
    def under_way(self) -> int:
        """How many lots the workers have."""
        return sum(not lot.done for lot in self.lots.values())

    @property
    def unread(self) -> int:
        """How many lots the workers have or have done, without those whose worker is silent."""
        return len(self.lots) - len(self._silent)

    @property
    def drained(self) -> bool:
        """Whether no part waits to be sent or is under way, suspects apart."""
        return not (self._upcoming or self._again or self.lots)

    def take(self, most: int) -> list[tuple[int, ...]]:
        """Return the parts to be sent next, in so many lots at most.

        Towards the end they are shared, so that no worker has a full lot while another has nothing.
        """
        taken: list[tuple[int, ...]] = []
        shares = WINDOW * self._crew.threads
        while len(taken) < most and self._again:
            taken.append((self._again.popleft(),))
        while len(taken) < most and self._look_ahead(MOST * shares):
            quick = 1 if self._pace is None else int(self._limit_s / max(self._pace, 1e-6))
            size = max(1, min(MOST, quick, len(self._upcoming) // shares))
            taken.append(tuple(self._upcoming.popleft() for _ in range(size)))
        return taken

    def submit(self, lots: Sequence[tuple[int, ...]], alone: bool = False) -> None:
        """Send lots to the workers."""
        if not lots:
            return
        crew = self._crew
        self.alone = alone
        serials = [next(self._serial) for _ in lots]
        futures = crew.client.map(
            partial(do_lot, self._task, self._key, self._limit_s),
            lots,
            key=[f"geoseg-{self._key}-{serial}" for serial in serials],
            pure=False,
            priority=-self.rank,
            resources=crew.resources or None,
        )
        for serial, numbers, future in zip(serials, lots, futures, strict=True):
            self.lots[serial] = lot = Lot(serial, numbers, alone, future)
            future.add_done_callback(partial(crew.settle, self, lot))

    def end_if_over(self) -> None:
        """Tell who iterates that nothing is left."""
        if self.drained and not self.suspects and not self._over:
            self._over = True
            self.results.put(None)

    @property
    def _limit_s(self) -> float:
        return max(_LOT_S, self._crew.threads / _LOTS_A_SECOND)

    def _look_ahead(self, most: int) -> int:
        """Make sure that so many parts are known that wait to be sent, if there are; returns how many are."""
        missing = most - len(self._upcoming)
        if missing > 0:
            self._upcoming.extend(itertools.islice(self._numbers, missing))
        return len(self._upcoming)

    def _read(self, lot: Lot) -> list[Settled]:
        """Return what is settled by a lot that is done; all else in it will be tried again."""
        fetched = self._fetched(lot)
        if fetched is None:
            with self._crew.lock:
                self._silent.append(lot)
                self._crew.refill()
            return []
        answers, seconds, failure = fetched
        with self._crew.lock:
            settled = self._sorted(lot, answers, failure)
            if answers:
                latest = seconds / len(answers)
                self._pace = latest if self._pace is None else self._pace + _LATEST * (latest - self._pace)
            del self.lots[lot.serial]
            self.alone = False
            self._crew.refill()
        lot.future.release()  # else Dask computes it again when its worker dies
        return settled

    def _fetched(self, lot: Lot) -> tuple[list[Answer], float, BaseException | None] | None:
        """Return answers and seconds of a lot, or what has befallen it as a whole; None where its worker is silent."""
        status = lot.future.status
        if status == "error":
            return [], 0.0, lot.future.exception()
        if status != "cancelled":
            asked = time.monotonic()
            try:
                return *lot.future.result(timeout=_GLANCE_S), None
            except KilledWorker as error:
                return [], 0.0, error
            except (TimeoutError, CancelledError):
                self._crew.check()
                lot.silent_since = lot.silent_since or asked
                if lot.future.status != "cancelled" and time.monotonic() - lot.silent_since < _RESULT_S:
                    return None
        told = "its worker was gone before it could tell" if lot.silent_since else "cancelled by the scheduler"
        return [], 0.0, RunError(told)

    def _sorted(self, lot: Lot, answers: list[Answer], failure: BaseException | None) -> list[Settled]:
        """Return the parts of a lot that are settled, and put the others where they are taken from."""
        died = isinstance(failure, KilledWorker)
        if died and not lot.alone:
            self.suspects.extend(lot.numbers)
            return []
        if failure is not None:
            answers = [Answer(error=failure)] * len(lot.numbers)
        settled: list[Settled] = []
        for number, answer in zip(lot.numbers, answers, strict=False):
            if answer.error is None or died or number in self._failed:
                settled.append((number, answer))
            else:
                self._failed.add(number)
                self._again.append(number)
        self._upcoming.extendleft(reversed(lot.numbers[len(answers) :]))
        return settled
