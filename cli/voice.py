"""How every command speaks: notes and progress on stderr, its answer on stdout, as lines or as one JSON document."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from geoseg import __version__

F = TypeVar("F", bound=Callable[..., Any])
_KEY = "geoseg.voice"


@dataclass
class Voice:
    """What a user wants to hear of a command, and what it has said so far.

    Attributes:
        quiet: no progress, and one line of summary.
        verbose: also how the work is done and what each stage took.
        json: one JSON document on stdout in place of lines.
        notes: what a user should know, as it was said.
        started: clock in seconds when the command began.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long the command has worked so far."""
        return time.monotonic() - self.started


def voice() -> Voice:
    """Return the voice of the command that is running."""
    context = click.get_current_context(silent=True)
    if context is None:
        return Voice()
    found: Voice = context.meta.setdefault(_KEY, Voice())
    return found


def _chosen(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def keep(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        own = context.meta.setdefault(_KEY, Voice())
        setattr(own, name, value)
        if own.quiet and own.verbose:
            raise click.UsageError("--quiet and --verbose are opposites: give one of them.")
        if name == "verbose" and value:
            _log(own, context)

    return keep


_QUIET = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_chosen("quiet"),
    help="No progress, and no more of a summary than a line.",
)
_VERBOSE = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_chosen("verbose"),
    help="Also how the work is done, and what each stage takes.",
)
_JSON = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_chosen("json"),
    help="Print one JSON document for programs, and nothing else, on stdout.",
)


def speaking(function: F) -> F:
    """Add ``-q``, ``-v`` and ``--json`` to a command; :func:`voice` tells what was chosen."""
    return _QUIET(_VERBOSE(_JSON(function)))


def speaking_without_json(function: F) -> F:
    """Add ``-q`` and ``-v`` to a command that has a ``--json`` of its own, or nothing to report."""
    return _QUIET(_VERBOSE(function))


def note(text: str) -> None:
    """Say on stderr what a user should know."""
    voice().notes.append(text)
    click.echo(f"Note: {text}", err=True)


def remark(text: str) -> None:
    """Say on stderr what a user may want to know, unless the command is to be quiet."""
    if not voice().quiet:
        click.echo(text, err=True)


def answer(record: Mapping[str, Any], files: Sequence[object] = ()) -> None:
    """Print what a command made: the files, one a line; with ``--json`` one document that tells all.

    Args:
        record: what it found or did, plain values by stable names.
        files: what it wrote, in the order of importance.
    """
    if voice().json:
        document(record, files)
        return
    for name in files:
        click.echo(name)


def document(record: Mapping[str, Any], files: Sequence[object] = ()) -> None:
    """Print the JSON document of a command: who speaks, the record, files, notes and seconds."""
    own = voice()
    whole = {
        "command": click.get_current_context().info_name,
        "version": __version__,
        **record,
        "files": [str(name) for name in files],
        "notes": own.notes,
        "seconds": round(own.seconds, 3),
    }
    click.echo(as_json(whole))


def as_json(value: Any) -> str:
    """Return a record as JSON; a number that is none becomes null."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _log(own: Voice, context: click.Context) -> None:
    """Show what the modules of geoseg log, each line with the seconds since the command began."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            click.echo(f"{own.seconds:8.1f} s  {record.getMessage()}", err=True)

    logger = logging.getLogger("geoseg")
    handler = Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)

    def end() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)

    context.call_on_close(end)
