"""``geoseg vectorize``: a label raster into class polygons."""

from __future__ import annotations

from typing import Any

import click

from geoseg_cli.options import a_file, selection_options
from geoseg_cli.progress import shown
from geoseg_cli.voice import answer, note, speaking


@click.command("vectorize")
@click.argument("labels", shell_complete=a_file)
@click.argument("out", type=click.Path())
@click.option("--only", multiple=True, metavar="CLASS", help="Write this class only; repeatable.")
@click.option(
    "--names",
    type=click.Path(),
    metavar="FILE",
    help="What the values mean: CSV lines value,name[,#rrggbb], or JSON {value: name}.",
)
@click.option("--band", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Band of labels.")
@click.option("--confidence", type=click.Path(), metavar="F.tif", help="Probability of each pixel's class.")
@click.option(
    "--statistics",
    multiple=True,
    metavar="[NAME=]F.tif[:BAND]",
    help="Columns NAME_mean, _min, _max, _std and _count of this raster's values; repeatable.",
)
@click.option(
    "--pixel-coordinates", is_flag=True, help="Take a raster without a CRS; areas and lengths are then left empty."
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Threads to work with."
)
@selection_options
@speaking
def command(labels: str, out: str, **options: Any) -> None:
    """Turn the class raster LABELS into polygons in OUT, without a seam.

    Class names and colours come from the raster where it has them.

    \b
    Example:
      geoseg vectorize landcover.tif landcover.gpkg --drop water --min-area 50 --simplify 1
      geoseg vectorize roofs.tif roofs.geojson --only roof --regularize --statistics height=dsm.tif
    """
    import geoseg

    with shown() as progress:
        notes: list[str] = []
        count = geoseg.vectorize(labels, out, progress=progress, tell=notes.append, **options)
    for text in notes:
        note(text)
    click.echo(f"{count} polygons.", err=True)
    answer({"polygons": count}, [out])
