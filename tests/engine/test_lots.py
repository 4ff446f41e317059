"""Parts that go to workers in lots: of what size, and what becomes of those beside one that fails, kills or is slow."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed.scheduler import KilledWorker

from geoseg.engine.cluster import connected
from geoseg.engine.crew import Crew
from geoseg.engine.lots import MOST, WINDOW, Stream, do_lot
from geoseg.engine.predict import Options
from geoseg.errors import OutputError, RunError, SceneError


def doubled(key: str, number: int) -> int:
    """Return twice the number of a part; some fail, each in its way."""
    if number == 3:
        raise OutputError("the disk is full.")
    if number == 5:
        raise UnportableError(number)
    return 2 * number


class UnportableError(Exception):
    """An error that cannot be read where it arrives."""

    def __reduce__(self) -> Any:
        return UnportableError, ("too", "many")

    def __init__(self, number: int) -> None:
        super().__init__(f"part {number} cannot be told")


def test_a_part_that_fails_leaves_its_mates_alone() -> None:
    answers, seconds = do_lot(doubled, "key", 60.0, range(8))
    assert [answer.value for answer in answers] == [0, 2, 4, None, 8, None, 12, 14]
    assert isinstance(answers[3].error, OutputError)
    assert str(answers[3].error) == "the disk is full."
    assert answers[3].error.__traceback__ is None  # it would keep the arrays of the chunk alive
    assert isinstance(answers[5].error, RunError)
    assert str(answers[5].error) == "part 5 cannot be told"
    assert 0 <= seconds < 60


def test_a_lot_ends_when_its_time_is_over() -> None:
    def slow_at_two(key: str, number: int) -> int:
        time.sleep(0.2 if number == 2 else 0)
        return number

    answers, seconds = do_lot(slow_at_two, "key", 0.2, range(8))
    assert [answer.value for answer in answers] == [0, 1, 2]
    assert seconds >= 0.2
    assert len(do_lot(slow_at_two, "key", 0.0, range(8))[0]) == 1


@pytest.fixture(scope="module")
def crew(two_workers: str) -> Iterator[Crew]:
    """Two worker processes with one thread each."""
    with connected(Options(scheduler=two_workers)) as crew:
        yield crew


def seen(stream: Stream) -> list[tuple[int, ...]]:
    """Return a list that the lots of a stream are put into as they are sent."""
    lots: list[tuple[int, ...]] = []
    sent = stream.submit

    def submit(more: Any, alone: bool = False) -> None:
        lots.extend(more)
        sent(more, alone)

    stream.submit = submit  # type: ignore[method-assign]
    return lots


def begun(path: Path) -> Counter[int]:
    """Return how often each part was begun, as :func:`noting` wrote it."""
    return Counter(int(line) for line in path.read_text().split())


def noting(path: Path, do: Callable[[int], Any]) -> Callable[[str, int], Any]:
    """Return a task that notes the number of each part before it is done."""

    def task(key: str, number: int) -> Any:
        import os

        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{number}\n".encode())
        os.close(handle)
        return do(number)

    return task


@pytest.mark.dist
def test_quick_parts_share_lots_which_get_small_towards_the_end(crew: Crew) -> None:
    with crew.stream(lambda key, number: number, "quick", iter(range(3000))) as stream:
        lots = seen(stream)
        found = {number: answer.value for number, answer in stream}
    assert found == {number: number for number in range(3000)}
    sizes = [len(lot) for lot in lots]
    assert max(sizes) == MOST
    for place, size in enumerate(sizes):
        assert size <= max(1, sum(sizes[place:]) // (2 * WINDOW))
    assert sizes[-1] == 1


@pytest.mark.dist
def test_a_part_that_fails_is_tried_once_more_alone_and_its_mates_once(crew: Crew, tmp_path: Path) -> None:
    def fail_at_times(number: int) -> int:
        if number % 100 == 77:
            raise ValueError(f"part {number} is bad")
        return number

    with crew.stream(noting(tmp_path / "begun", fail_at_times), "failing", iter(range(400))) as stream:
        lots = seen(stream)
        found = dict(stream)
    bad = {77, 177, 277, 377}
    assert {number: answer.value for number, answer in found.items() if answer.error is None} == {
        number: number for number in range(400) if number not in bad
    }
    assert {number: str(found[number].error) for number in bad} == {number: f"part {number} is bad" for number in bad}
    assert begun(tmp_path / "begun") == Counter({number: 1 + (number in bad) for number in range(400)})
    assert any(len(lot) > 1 and bad & set(lot) for lot in lots)
    assert all((number,) in lots for number in bad)


@pytest.mark.dist
def test_what_fails_but_once_is_no_failure(crew: Crew, tmp_path: Path) -> None:
    def fail_at_first(number: int) -> int:
        if number == 50 and not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise SceneError("the server was busy.")
        return number

    with crew.stream(noting(tmp_path / "begun", fail_at_first), "busy", iter(range(100))) as stream:
        assert {number: answer.value for number, answer in stream} == {number: number for number in range(100)}
    assert begun(tmp_path / "begun")[50] == 2


@pytest.mark.dist
def test_slow_parts_among_quick_ones_each_end_their_lot_and_nothing_is_done_twice(crew: Crew, tmp_path: Path) -> None:
    slow = range(300, 304)

    def where(number: int) -> str:
        from distributed import get_worker

        time.sleep(0.4 if number in slow else 0)
        return str(get_worker().get_current_task())

    with crew.stream(noting(tmp_path / "begun", where), "mixed", iter(range(600))) as stream:
        lots = seen(stream)
        tasks = {number: answer.value for number, answer in stream}
    assert begun(tmp_path / "begun") == Counter(range(600))
    assert any(len(set(lot) & set(slow)) > 1 for lot in lots)  # they were thought to be quick
    assert len({tasks[number] for number in slow}) == len(slow)
    assert len(set(tasks.values())) < 300


@pytest.mark.dist
def test_a_run_of_lower_rank_that_begins_later_ends_first(crew: Crew) -> None:
    def task(key: str, number: int) -> None:
        time.sleep(0.001)

    read, under_way = [], threading.Event()

    def run_later() -> None:
        with crew.stream(task, "later", iter(range(3000)), rank=1) as stream:
            for number, _ in stream:
                read.append(number)
                if len(read) == 100:
                    under_way.set()

    thread = threading.Thread(target=run_later)
    thread.start()
    assert under_way.wait(60)
    with crew.stream(task, "first", iter(range(300)), rank=0) as first:
        assert sorted(number for number, _ in first) == list(range(300))
    assert len(read) < 3000
    thread.join(60)
    assert sorted(read) == list(range(3000))


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("parts", [12, 300])
def test_a_part_that_kills_its_workers_is_found_and_the_others_are_done(parts: int) -> None:
    bad = parts // 2 - 1

    def die_on_bad(key: str, number: int) -> int:
        import os
        import signal

        if number == bad:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with connected(Options(workers=2)) as crew, crew.stream(die_on_bad, "poison", iter(range(parts))) as stream:
        lots = seen(stream)
        found = dict(stream)
    assert isinstance(found.pop(bad).error, KilledWorker)
    assert {number: answer.value for number, answer in found.items()} == {
        number: number for number in range(parts) if number != bad
    }
    assert parts == 12 or any(bad in lot and len(lot) > 1 for lot in lots)
    assert lots.count((bad,)) >= 1
