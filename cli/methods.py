"""``geoseg methods``: the ways of segmenting a scene, and how each is run."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command("methods")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known, for programs.")
def command(name: str | None, as_json: bool) -> None:
    """List the ways of segmenting a scene, or all that is known of the one called NAME.

    \b
    Example:
      geoseg methods
      geoseg methods cascadepsp
    """
    from geoseg.segmenters.methods import method, methods

    chosen = methods() if name is None else (method(name),)
    if as_json:
        records = [asdict(each) for each in chosen]
        click.echo(json.dumps(records if name is None else records[0], indent=1, ensure_ascii=False))
    elif name is None:
        width = max(len(each.name) for each in chosen)
        for each in chosen:
            click.echo(f"{each.name.ljust(width)}  {each.summary}")
            click.echo(f"{' ' * width}    {each.command}")
    else:
        for key, value in asdict(chosen[0]).items():
            click.echo(f"{key.ljust(8)}  {value}")
