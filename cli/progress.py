"""Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

import click

from geoseg.errors import ConfigError
from geoseg_cli.voice import voice

# Seconds between lines, for programs that show progress of their own; ten unless it is set.
INTERVAL = "GEOSEG_PROGRESS_SECONDS"


@contextlib.contextmanager
def shown() -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a function to call with a stage, steps done, and steps in all; None where the command is to be quiet.

    Raises:
        ConfigError: the environment asks for lines every so often that it is no number of seconds.
    """
    if voice().quiet:
        yield None
    elif sys.stderr.isatty():
        with _bars() as tell:
            yield tell
    else:
        yield _Lines(_interval())


def _interval() -> float:
    given = os.environ.get(INTERVAL, "10")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{INTERVAL} is {given!r}: set it to a number of seconds, or not at all.")
    return seconds


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<19}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, int] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield tell


class _Lines:
    """One line when a stage begins and ends, and one every so many seconds between; in a verbose command with times."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._told: dict[str, tuple[float, int]] = {}
        self._begun: dict[str, float] = {}
        self._timed = voice().verbose

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        begun = self._begun.setdefault(stage, now)
        last, before = self._told.get(stage, (-self._seconds, -1))
        if done != before and (done == total or now - last >= self._seconds):
            self._told[stage] = (now, done)
            took = f" after {now - begun:.1f} s" if self._timed and done == total else ""
            click.echo(f"{stage}: {done}/{total}{took}", err=True)
