"""CPU time and memory of a command and all its children, as the operating system counts them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """CPU seconds (user and system), wall seconds, and peak resident memory of the largest process in MB."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def run(*command: str) -> Cost:
    """Run a command to its end and return what it cost.

    Raises:
        RuntimeError: it failed.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    told: list[bytes] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: told.append(process.stderr.read()))
    reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    reader.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {told[0].decode()}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss / 1024)


def geoseg(*arguments: str | Path) -> Cost:
    """Run the command line and return what it cost."""
    return run(sys.executable, "-m", "geoseg_cli", *map(str, arguments))
