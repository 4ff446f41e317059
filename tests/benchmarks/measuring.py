"""CPU time and memory of a command and all its children, as the operating system counts them.

A process inherits the peak memory of the one that started it, up to that moment.  So each command is started, and its
cost read, by a small process in between.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Runs the command after its first argument, and writes to that file descriptor what it cost.
_WATCHER = """
import json, os, resource, subprocess, sys, time
started = time.monotonic()
code = subprocess.call(sys.argv[2:], stdout=subprocess.DEVNULL)
wall, usage = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
told = [usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024]
os.write(int(sys.argv[1]), json.dumps(told).encode())
sys.exit(code != 0)
"""


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
    reading, writing = os.pipe()
    watcher = (sys.executable, "-S", "-c", _WATCHER, str(writing), *command)
    done = subprocess.run(watcher, stderr=subprocess.PIPE, pass_fds=(writing,), check=False)
    os.close(writing)
    with os.fdopen(reading) as told:
        cost = told.read()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.decode()}")
    return Cost(*json.loads(cost))


def geoseg(*arguments: str | Path) -> Cost:
    """Run the command line and return what it cost."""
    return run(sys.executable, "-m", "geoseg_cli", *map(str, arguments))
