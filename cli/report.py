"""What a finished run tells its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from geoseg_cli.voice import answer, note, remark, voice

if TYPE_CHECKING:
    from geoseg.engine.execute import Report

# Classes that are told one by one; the JSON document has them all.
_MOST_CLASSES = 12


def say_report(report: Report, more: Sequence[object] = ()) -> None:
    """Print notes and summary on stderr, and the files, ``more`` among them, on stdout."""
    for text in report.notes:
        note(text)
    resumed = f", {report.resumed} of them found done" if report.resumed else ""
    polygons = "" if report.polygons is None else f"{report.polygons} polygons from "
    times = "" if report.amplification is None else f" ({report.amplification:.2f} times the scene's pixels)"
    click.echo(
        f"{polygons}{report.chunks} chunks{resumed}; {report.tiles} tiles{times} computed in {report.seconds:.1f} s.",
        err=True,
    )
    for line in _ground(report):
        remark(line)
    answer(report.as_dict(), [*report.files, *more])


def _ground(report: Report) -> list[str]:
    """Return the lines about pixels, time and area."""
    lines = []
    if report.pixels and report.seconds:
        speed = f", {_short(report.pixels / report.seconds)} pixels a second"
        lines.append(f"{_short(report.pixels)} pixels{speed}; {voice().seconds:.1f} s from beginning to end.")
    if told := told_areas(report.areas_m2):
        lines.append(f"{told}.")
    return lines


def told_areas(areas_m2: Mapping[str, float]) -> str:
    """Return the ground that classes cover, the largest first, as text; nothing where there is none."""
    whole = sum(areas_m2.values())
    if not whole:
        return ""
    ranked = sorted(areas_m2.items(), key=lambda item: -item[1])
    told = [f"{name} {_area(area)} ({100 * area / whole:.1f} %)" for name, area in ranked[:_MOST_CLASSES]]
    rest = len(ranked) - len(told)
    return f"{_area(whole)}: {', '.join(told)}" + (f" and {rest} classes more" if rest else "")


def _area(square_metres: float) -> str:
    return f"{square_metres / 1e6:.3g} km²" if square_metres >= 1e5 else f"{square_metres:.4g} m²"


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "
