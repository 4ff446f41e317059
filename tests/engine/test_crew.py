"""Runs that share workers: order, limits, workers that die, hang or never come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client
from distributed.comm import CommClosedError

from geoseg.engine import crew as crew_module
from geoseg.engine import lots as lots_module
from geoseg.engine.cluster import BusyTime, JobPlugin, segment_on_worker
from geoseg.engine.crew import Crew, places_for, shown_resources
from geoseg.engine.environment import (
    difference,
    refuse_other_versions,
    resources_there,
    versions_here,
    wanted_resources,
)
from geoseg.engine.predict import Options
from geoseg.errors import ConfigError, RunError

UNSEEN: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One worker thread in this process, without resources."""
    with Client(
        processes=False, n_workers=1, threads_per_worker=1, memory_limit=0, set_as_default=False, **UNSEEN
    ) as it:
        yield it


def double(key: str, number: int) -> int:
    """Return twice the number of a part."""
    return 2 * number


BLOCKED = threading.Event()
# Of whom each part was that no longer hangs, in the order of the worker.
DONE: list[str] = []


def hang(key: str, number: int) -> None:
    """Wait until a test lets go."""
    BLOCKED.wait(30)
    DONE.append(key)


@pytest.fixture
def blocked() -> Iterator[None]:
    """Parts that hang, until the test is over."""
    BLOCKED.clear()
    DONE.clear()
    yield
    BLOCKED.set()


def test_every_part_comes_once_and_few_are_under_way(client: Client) -> None:
    crew = Crew(client)
    taken, most = 0, 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        for number in range(2000):
            taken += 1
            yield number

    found = {}
    with crew.stream(double, "all", numbers()) as stream:
        for number, answer in stream:
            found[number] = answer.value
            most = max(most, taken - len(found))
    assert found == {number: 2 * number for number in range(2000)}
    # Two lots for the one thread, what is looked ahead for, and what has come back and waits to be seen.
    assert most <= 3 * lots_module.WINDOW * lots_module.MOST
    with crew.stream(double, "none", iter(())) as stream:
        assert list(stream) == []


def nap(key: str, number: int) -> None:
    """Take longer than it takes to hand a part out."""
    time.sleep(0.3)


@pytest.mark.parametrize(("task", "parts"), [(nap, 6), (double, 400)])
def test_what_is_under_way_at_any_time_is_bounded(client: Client, task: Any, parts: int) -> None:
    crew, most = Crew(client), 0
    with crew.stream(task, f"bounded{parts}", iter(range(parts))) as stream:
        for _ in stream:
            most = max(most, len(stream.lots))
    assert 0 < most <= lots_module.WINDOW


def test_a_lower_rank_goes_first(client: Client, blocked: None) -> None:
    crew, ready = Crew(client), threading.Barrier(2)
    seen = {0: 0, 1: 0}

    def run(rank: int) -> None:
        if rank == 0:
            ready.wait()
        with crew.stream(hang, f"rank{rank}", iter(range(20)), rank) as stream:
            if rank == 1:
                ready.wait()
            else:
                BLOCKED.set()  # only now, that both have begun, parts are done
            for _ in stream:
                seen[rank] += 1

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == {0: 20, 1: 20}
    assert sorted(DONE) == ["rank0"] * 20 + ["rank1"] * 20
    last = {rank: len(DONE) - DONE[::-1].index(f"rank{rank}") for rank in (0, 1)}
    assert last[0] < last[1]  # the second began first, and ends last


def test_without_a_worker_the_run_ends_and_says_how_to_go_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lots_module, "_LOOK_S", 0.05)
    crew = Crew(client, patience_s=0.2, resources={"GPU": 1})
    with (
        pytest.raises(RunError, match=r"no Dask worker with the resource GPU=1 has been there .* same command again"),
        crew.stream(double, "lonely", iter(range(3))) as stream,
    ):
        list(stream)
    assert crew.broken is not None
    with pytest.raises(RunError, match="GPU=1"), crew.stream(double, "later", iter(range(3))):
        pass


@pytest.mark.usefixtures("blocked")
def test_a_worker_that_hangs_ends_the_run(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lots_module, "_LOOK_S", 0.05)
    monkeypatch.setattr(crew_module, "_STALLED_S", 0.2)
    crew = Crew(client)
    with (
        pytest.raises(RunError, match="no chunk has been finished"),
        crew.stream(hang, "hanging", iter(range(1))) as stream,
    ):
        list(stream)


@pytest.mark.usefixtures("blocked")
def test_closing_ends_those_who_wait(client: Client) -> None:
    crew = Crew(client)
    with crew.stream(hang, "closed", iter(range(4))) as stream:
        crew.close(RunError("enough"))
        with pytest.raises(RunError, match="enough"):
            list(stream)


@pytest.mark.parametrize("text", ["=1", "GPU=0", "GPU=-1", "GPU=x", "GPU=inf", "GPU=nan", " "])
def test_a_resource_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=AMOUNT"):
        wanted_resources(Options(resource=text, scheduler="tcp://x"))


def test_resources_are_those_of_workers_elsewhere(client: Client) -> None:
    assert wanted_resources(Options()) == {}
    assert wanted_resources(Options(resource="GPU", scheduler="x")) == {"GPU": 1.0}
    assert wanted_resources(Options(resource="MEMORY=2.5", scheduler="x")) == {"MEMORY": 2.5}
    with pytest.raises(ConfigError, match="--scheduler"):
        wanted_resources(Options(resource="GPU"))
    with pytest.raises(RunError, match=r"no worker of here has the resource GPU=1 \(they have none\)"):
        resources_there(client, {"GPU": 1.0}, Options(), "here")
    assert resources_there(client, {}, Options(device="cuda"), "here") == {}
    assert shown_resources({"GPU": 1, "MEMORY": 2.5}) == "the resources GPU=1 and MEMORY=2.5"


def test_places_are_counted_by_what_workers_have() -> None:
    class Known:
        def scheduler_info(self, n_workers: int) -> dict[str, Any]:
            has = ({"GPU": 1}, {"GPU": 4, "DISK": 1}, {}, None)
            return {"workers": {str(i): {"nthreads": 2, "resources": each} for i, each in enumerate(has)}}

    client: Any = Known()
    assert places_for(client, {}) == 8
    assert places_for(client, {"GPU": 1}) == 3
    assert places_for(client, {"GPU": 2}) == 2
    assert places_for(client, {"GPU": 1, "DISK": 1}) == 1
    assert places_for(client, {"TPU": 1}) == 0
    assert resources_there(client, {}, Options(device="cuda:0"), "there") == {"GPU": 1.0}
    assert resources_there(client, {}, Options(device="auto"), "there") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"geoseg": "9.9"}, r"has geoseg 9\.9 and this side geoseg"),
        ({"geoseg": None}, "has no geoseg and this side geoseg"),
        ({"python": "3.99.1.final.0"}, r"has python 3\.99 and this side python 3"),
        ({"torch": "1.0.0"}, r"has torch 1\.0\.0"),
        ({"torch": "{torch}+cu999", "numpy": "0.1"}, None),
    ],
    ids=str,
)
def test_other_versions_are_refused_before_work(
    client: Client, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str | None
) -> None:
    found: Any = client.get_versions(packages=["geoseg", "torch", "distributed"])
    packages = found["client"]["packages"]
    filled = {k: v if v is None else v.format(torch=packages["torch"].partition("+")[0]) for k, v in changes.items()}
    there = {"packages": {**packages, **filled}}
    monkeypatch.setattr(client, "get_versions", lambda **_: {**found, "workers": {"tcp://a:1": there}})
    if message is None:
        refuse_other_versions(client, "the cluster")
    else:
        with pytest.raises(RunError, match=message):
            refuse_other_versions(client, "the cluster")


def test_the_same_versions_are_fine(client: Client) -> None:
    refuse_other_versions(client, "this cluster")
    assert difference(versions_here(), versions_here()) is None


def test_a_cluster_that_is_lost_while_it_is_asked_says_how_to_go_on(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(**_: Any) -> Any:
        raise CommClosedError("Stream is closed")

    monkeypatch.setattr(client, "get_versions", lost)
    with pytest.raises(RunError, match=r"the cluster does not say .*Stream is closed.* run the same command again"):
        refuse_other_versions(client, "the cluster")


def test_a_worker_of_another_version_that_joins_later_does_nothing() -> None:
    class Work:
        def task(self, workers: int) -> None:
            pytest.fail("it must not begin")

    plugin = JobPlugin("later", Work(), 1)  # type: ignore[arg-type]
    plugin.versions["geoseg"] = "9.9"
    worker: Any = SimpleNamespace(nanny=None)
    plugin.setup(worker)
    with pytest.raises(RunError, match=r"a worker has geoseg .* and this side geoseg 9\.9: install the same"):
        segment_on_worker("later", 0)
    plugin.teardown(worker)
    with pytest.raises(RunError, match="lost its job"):
        segment_on_worker("later", 0)


def test_the_time_of_a_process_is_shared_by_what_it_does_at_a_time() -> None:
    busy = BusyTime(iter((100.0, 104.0, 110.0, 111.0)).__next__)
    first = busy.change(1)
    second = busy.change(1)
    seconds = busy.change(-1) - first, busy.change(-1) - second
    assert seconds == pytest.approx((4 + 3, 3 + 1))  # of 11 seconds in all, none counted twice
