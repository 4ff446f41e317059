"""Runs commands that it is told, one after another, for the test of hostile inputs.

A line of JSON comes in (``arguments``, ``folder``, ``log``), and one goes out (``code``, ``peak``: memory in bytes).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path


def _run(arguments: list[str]) -> int:
    from geoseg_cli.main import main

    try:
        if arguments[0] == "config":
            _config(arguments[1])
        else:
            main(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _config(path: str) -> None:
    """Check the settings of a training as ``geoseg train`` does, and do not train."""
    from geoseg.errors import GeosegError
    from geoseg.training.config import check, read_config

    try:
        check(read_config(path))
    except GeosegError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        task = json.loads(line)
        os.chdir(task["folder"])
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        with open(task["log"], "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            code = _run(task["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
        print(json.dumps({"code": code, "peak": _peak()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
