"""``geoseg vectorize``: a label raster into class polygons."""

from __future__ import annotations

from typing import Any

import click

from geoseg_cli.options import selection_options
from geoseg_cli.progress import shown


@click.command("vectorize")
@click.argument("labels")
@click.argument("out", type=click.Path())
@selection_options
def command(labels: str, out: str, quiet: bool, **options: Any) -> None:
    """Turn the class raster LABELS into polygons in OUT, without a seam.

    Class names and colours come from the raster where it has them.

    \b
    Example:
      geoseg vectorize landcover.tif landcover.gpkg --drop water --min-area 50
    """
    import geoseg

    with shown(quiet) as progress:
        count = geoseg.vectorize(labels, out, progress=progress, **options)
    click.echo(f"{count} polygons.", err=True)
    click.echo(out)
