"""Machines that fail in other ways than by dying: a full disk, a worker that stands still, clocks that disagree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import geoseg
from geoseg.engine.cluster import connected
from geoseg.engine.crew import Crew
from geoseg.engine.lots import WINDOW
from geoseg.engine.predict import Options
from geoseg.errors import OutputError
from tests.engine.conftest import OUTPUTS, predict_command

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, town: Path, plain: Path) -> dict[str, bytes]:
    """The outputs of one run over the town in this process."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, town, plain)
    return outputs(folder)


def run(folder: Path, town: Path, plain: Path, **more: object) -> geoseg.Report:
    """Segment the town into ``OUTPUTS``."""
    return geoseg.predict(
        town,
        folder / "out.gpkg",
        plain,
        labels=folder / "labels.tif",
        confidence=folder / "confidence.tif",
        chunk=64,
        **more,
    )


def outputs(folder: Path) -> dict[str, bytes]:
    """Return what a run has written."""
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def test_a_disk_that_gets_full_on_the_workers_is_one_sentence_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, town: Path, plain: Path, small_disk: Path, two_workers: str, alone: dict[str, bytes]
) -> None:
    work = small_disk / "work"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(200 << 10))
    with pytest.raises(
        OutputError, match=r"^the disk is full at .*: free some space and run the same command"
    ) as caught:
        run(tmp_path, town, plain, workdir=work, scheduler=two_workers)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [small_disk]
    chunks = [path.name for path in work.rglob("*") if path.parent != work and path.is_file()]
    assert 0 < len(chunks) < 70
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    report = run(tmp_path, town, plain, workdir=work, scheduler=two_workers)
    assert report.resumed >= len([name for name in chunks if name.endswith(".tif")]) > 0
    assert outputs(tmp_path) == alone


@pytest.fixture
def standing_still(two_workers: str) -> Iterator[tuple[Crew, Callable[[], None], Callable[[], None]]]:
    """Two workers, and what makes one of them stand still and go on."""
    with connected(Options(scheduler=two_workers)) as crew:
        process = next(iter(crew.client.run(os.getpid).values()))
        yield crew, lambda: os.kill(process, signal.SIGSTOP), lambda: os.kill(process, signal.SIGCONT)
        os.kill(process, signal.SIGCONT)


def test_a_worker_that_stands_still_keeps_back_no_more_than_the_window(
    standing_still: tuple[Crew, Callable[[], None], Callable[[], None]],
) -> None:
    crew, stop, go_on = standing_still

    def task(key: str, number: int) -> int:
        time.sleep(0.15)  # so long that each is sent by itself
        return number

    found = []
    in_time = threading.Event()
    watch = threading.Timer(60, go_on)
    watch.start()
    with crew.stream(task, "still", iter(range(30))) as stream:
        for number, answer in stream:
            found.append(number)
            assert answer.value == number
            if len(found) == 5:
                stop()
            if len(found) == 30 - WINDOW * 2:
                if watch.is_alive():
                    in_time.set()
                go_on()
    watch.cancel()
    assert in_time.is_set()
    assert sorted(found) == list(range(30))


def test_a_worker_that_stands_still_for_a_while_changes_no_byte(
    tmp_path: Path,
    town: Path,
    plain: Path,
    two_workers: str,
    standing_still: tuple[Crew, Callable[[], None], Callable[[], None]],
    alone: dict[str, bytes],
) -> None:
    _, stop, go_on = standing_still
    later = threading.Timer(2, go_on)

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "segmenting" and done == 3:
            stop()
            later.start()

    run(tmp_path, town, plain, scheduler=two_workers, progress=progress)
    later.join()
    assert outputs(tmp_path) == alone


# Stands between a program and its C library, and tells another time of day.
_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long skew(void) {
    const char *text = getenv("CLOCK_SKEW_S");
    return text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += skew();
    return status;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    int status = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return status;
}

time_t time(time_t *kept) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (kept) *kept = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, str]]:
    """Return a function that gives the environment in which clocks are so many seconds off."""
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(_CLOCK)
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(folder / "clock.so"), str(folder / "clock.c"), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("clocks are set off by a library of a few lines, and there is no C compiler here to make it")
    environment = {"LD_PRELOAD": str(folder / "clock.so")}
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env=os.environ | environment | {"CLOCK_SKEW_S": "36000"},
        capture_output=True,
        text=True,
        check=True,
    )
    if float(told.stdout) - time.time() < 35_000:
        pytest.skip("this Python does not ask the C library for the time")
    return lambda seconds: os.environ | environment | {"CLOCK_SKEW_S": str(seconds)}


@pytest.mark.slow
def test_clocks_that_disagree_by_hours_change_no_byte_and_a_rerun_computes_nothing_again(
    tmp_path: Path, town: Path, plain: Path, skewed: Callable[[int], dict[str, str]]
) -> None:
    dask = [sys.executable, "-m", "dask"]
    file = tmp_path / "scheduler.json"
    own = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    processes = [subprocess.Popen([*dask, "scheduler", *own, "--port", "0"], **quiet)]
    try:
        while not file.exists():
            assert processes[0].poll() is None
            time.sleep(0.1)
        for seconds in (-36_000, 36_000):
            more = ["--nthreads", "1", "--memory-limit", "0", "--no-nanny"]
            processes.append(subprocess.Popen([*dask, "worker", *own, *more], env=skewed(seconds), **quiet))
        results = []
        for name, seconds in (("near", 0), ("ahead", 86_400), ("behind", -86_400)):
            (tmp_path / name).mkdir()
            command = predict_command(
                tmp_path / name, town, plain, "--scheduler", str(file), "--workdir", str(tmp_path / "work")
            )
            done = subprocess.run(command, env=skewed(seconds), capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            assert ("20 of them found done" in done.stderr) == (name != "near"), done.stderr
            results.append(outputs(tmp_path / name))
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("hours", [-100_000, 100_000])
def test_files_of_chunks_may_be_of_any_time(
    tmp_path: Path, town: Path, plain: Path, alone: dict[str, bytes], hours: int
) -> None:
    work = tmp_path / "work"
    first = run(tmp_path, town, plain, workdir=work)
    for path in work.rglob("*"):
        os.utime(path, times=(time.time() + 3600 * hours,) * 2)
    again = run(tmp_path, town, plain, workdir=work, overwrite=True)
    assert (again.resumed, again.tiles) == (first.chunks, 0)
    assert outputs(tmp_path) == alone
