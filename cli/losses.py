"""``geoseg losses``: what a network can be trained with."""

from __future__ import annotations

import click

from geoseg_cli.voice import as_json, speaking, voice


@click.command("losses")
@click.argument("name", required=False)
@speaking
def command(name: str | None) -> None:
    """List the losses with their source, or the one called NAME with its options.

    They are summed with weights, and options stand in brackets: ce+0.5*aaf[margin=2].

    \b
    Example:
      geoseg losses
      geoseg losses aaf
      geoseg losses --json
    """
    from dataclasses import asdict

    from geoseg import losses

    chosen = [losses.info(each) for each in (losses.names() if name is None else (name,))]
    if voice().json:
        records = [asdict(info) for info in chosen]
        click.echo(as_json(records if name is None else records[0]))
    elif name is None:
        _echo([("name", "what it is", "source"), *((info.name, info.summary, info.source) for info in chosen)])
    else:
        (info,) = chosen
        _echo(
            [
                ("name", info.name),
                ("what it is", info.summary),
                ("source", info.source),
                ("options", ", ".join(info.options) or "-"),
                ("takes mixed labels", "yes" if info.takes_soft else "no"),
            ]
        )


def _echo(rows: list[tuple[str, ...]]) -> None:
    """Print rows of equally many cells, columns aligned, the last one as long as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))
