"""Client, worker and scheduler killed in turn at random moments, over and over: outputs come out byte for byte."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import OUTPUTS, predict_command

DASK = (sys.executable, "-m", "dask")
# A run takes no longer undisturbed, from its start to its last file; kills fall into this time.
LONGEST_S = 10.0
# Nothing waits longer than this: the client's own limits are below.
GIVEN_UP_S = 180.0


class Kept:
    """Processes that are started again whenever they end, as a service manager does, until this is closed."""

    def __init__(self, commands: dict[str, list[str]], folder: Path) -> None:
        self._commands, self._folder = commands, folder
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def kill(self, name: str) -> None:
        """Kill a process, once it is there."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with self._lock:
                process = self._processes.get(name)
                if process is not None and process.poll() is None:
                    process.kill()
                    return
            time.sleep(0.05)
        raise AssertionError(f"{name} does not stay alive")

    def close(self) -> None:
        """End all."""
        self._closed.set()
        self._thread.join()
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _keep(self) -> None:
        while not self._closed.wait(0.1):
            for name, command in self._commands.items():
                with self._lock:
                    process = self._processes.get(name)
                    if process is None or process.poll() is not None:
                        self._processes[name] = subprocess.Popen(
                            command, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kept, str]]:
    """A scheduler and two workers that come back, and the scheduler's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    more = ("--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--no-nanny", "--host", "127.0.0.1")
    kept = Kept(
        {
            "scheduler": [*DASK, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
            "worker 1": [*DASK, "worker", address, *more],
            "worker 2": [*DASK, "worker", address, *more],
        },
        tmp_path_factory.mktemp("cluster"),
    )
    yield kept, address
    kept.close()


class Run:
    """One run of the command line, started again until it has come to its end."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._command, self._folder = command, folder
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        # Killed between its renames it leaves some outputs, which the next start must be told to replace.
        again = ["--overwrite"] if any((self._folder / name).exists() for name in OUTPUTS) else []
        return subprocess.Popen([*self._command, *again], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ended(self, seconds: float, chunks: int) -> bool:
        """Whether the run comes to its end within so many seconds and chunks; one that fails is started again."""
        started, before = time.monotonic(), self._stored()
        while time.monotonic() - started < seconds or self._stored() - before < chunks:
            if time.monotonic() - started > GIVEN_UP_S:
                raise AssertionError("the run comes neither on nor to an end")
            try:
                _, told = self.process.communicate(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            if self.process.returncode == 0:
                return True
            if self.process.returncode > 0:
                assert "Traceback" not in told, told
                assert "run the same command again" in told or "cannot be reached" in told, told
            self.process = self._start()
        return False

    def _stored(self) -> int:
        return len(list(self._folder.glob("work/r*/c*.tif")))


@pytest.mark.dist
@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_in_turn_and_the_same_bytes_each_time(
    tmp_path: Path,
    town: Path,
    slow_model: Path,
    undisturbed: dict[str, bytes],
    cluster: tuple[Kept, str],
    kills: int,
) -> None:
    kept, address = cluster
    chance = random.Random(kills)
    killed, rounds = 0, 0
    while killed < kills:
        folder = tmp_path / str(rounds)
        folder.mkdir()
        command = predict_command(folder, town, slow_model, "--scheduler", address, "--patience", "60", "--workdir")
        run = Run([*command, str(folder / "work")], folder)
        # At any moment, or once the run has come on a little: for ever killed at its start it would never end.
        while not run.ended(chance.uniform(0, LONGEST_S), chance.randint(0, 6) if killed < kills else 1_000_000):
            victim = ("client", "worker 1", "scheduler", "client", "worker 2", "scheduler")[killed % 6]
            if victim == "client":
                run.process.kill()
            else:
                kept.kill(victim)
            killed += 1
        assert {name: (folder / name).read_bytes() for name in OUTPUTS} == undisturbed
        rounds += 1
    print(f"{killed} kills in {rounds} rounds")
