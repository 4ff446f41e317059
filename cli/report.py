"""What a finished run tells its user."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from geoseg.engine.predict import Report


def say_note(note: str) -> None:
    """Print what a user should know on stderr."""
    click.echo(f"Note: {note}", err=True)


def say_report(report: Report) -> None:
    """Print the notes on stderr and the files on stdout, one a line."""
    for note in report.notes:
        say_note(note)
    resumed = f", {report.resumed} of them found done" if report.resumed else ""
    polygons = "" if report.polygons is None else f"{report.polygons} polygons from "
    times = "" if report.amplification is None else f" ({report.amplification:.2f} times the scene's pixels)"
    click.echo(
        f"{polygons}{report.chunks} chunks{resumed}; {report.tiles} tiles{times} computed in {report.seconds:.1f} s.",
        err=True,
    )
    for name in report.files:
        click.echo(name)
