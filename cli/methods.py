"""``geoseg methods``: the ways of segmenting a scene, and how each is run."""

from __future__ import annotations

from dataclasses import asdict

import click

from geoseg_cli.voice import as_json, speaking, voice


@click.command("methods")
@click.argument("name", required=False)
@speaking
def command(name: str | None) -> None:
    """List the ways of segmenting a scene, or all that is known of the one called NAME.

    \b
    Example:
      geoseg methods
      geoseg methods cascadepsp
    """
    from geoseg.segmenters.methods import method, methods

    chosen = methods() if name is None else (method(name),)
    if voice().json:
        records = [asdict(each) for each in chosen]
        click.echo(as_json(records if name is None else records[0]))
    elif name is None:
        width = max(len(each.name) for each in chosen)
        for each in chosen:
            click.echo(f"{each.name.ljust(width)}  {each.summary}")
            click.echo(f"{' ' * width}    {each.command}")
    else:
        for key, value in asdict(chosen[0]).items():
            click.echo(f"{key.ljust(8)}  {value}")
