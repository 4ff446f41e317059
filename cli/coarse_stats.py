"""``geoseg coarse-stats``: what coarse classes are made of."""

from __future__ import annotations

from typing import Any

import click

from geoseg_cli.progress import shown
from geoseg_cli.voice import document, note, speaking, voice


def _shares(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[float, float]:
    first, _, second = value.partition(":")
    try:
        area = float(first), float(second)
    except ValueError:
        area = (1.0, 0.0)
    if not 0 <= area[0] < area[1] <= 1:
        raise click.BadParameter(f"{value!r} is not FROM:TO, two rising shares of the width such as 0:0.8.")
    return area


@click.command("coarse-stats")
@click.argument("grid")
@click.argument("coarse")
@click.argument("labels")
@click.argument("out", type=click.Path())
@click.option("--classes", required=True, metavar="a[:#rrggbb],b,…", help="Fine classes; ids count from 0.")
@click.option("--class-field", metavar="NAME", help="Attribute of fine polygons that says their class.")
@click.option("--coarse-field", metavar="NAME", help="Attribute of coarse polygons that says their code.")
@click.option("--ignore", multiple=True, metavar="CODE", help="Leave out this coarse class; repeatable.")
@click.option(
    "--resolution", type=click.FloatRange(min=0, min_open=True), metavar="M", help="Count pixels of M metres."
)
@click.option(
    "--area", callback=_shares, default="0:1", show_default=True, metavar="FROM:TO", help="Shares of the grid's width."
)
@click.option(
    "--min-labelled",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    metavar="SHARE",
    help="Least part of a block that must have a fine label.",
)
@click.option(
    "--min-blocks",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    metavar="N",
    help="Leave out classes with fewer blocks.",
)
@click.option("--fallback", type=click.Path(), metavar="TABLE", help="Rows for classes that would be left out.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@speaking
def command(grid: str, coarse: str, labels: str, out: str, **options: Any) -> None:
    """Measure what each class of COARSE is made of where there are LABELS, and write the table OUT.

    Pixels of the raster GRID are counted.  The table goes into `coarse.sources` of `geoseg train`.

    \b
    Example:
      geoseg coarse-stats image.tif nlcd.tif fine.tif table.csv --classes water,trees,grass,sealed
    """
    import geoseg

    with shown() as progress:
        table = geoseg.coarse_stats(grid, coarse, labels, out, progress=progress, **options)
    told = table.warn_if_blind(range(len(table.codes)))
    if voice().json:
        note(told)
        rows = zip(table.codes, table.blocks, table.means, table.deviations, strict=True)
        found = [
            {
                "code": code,
                "blocks": int(blocks),
                "means": [float(value) for value in means],
                "deviations": [float(value) for value in deviations],
            }
            for code, blocks, means, deviations in rows
        ]
        document({"classes": list(table.classes), "coarse_classes": found}, [out])
        return
    width = max(len(code) for code in ("coarse class", *table.codes))
    click.echo("  ".join(["coarse class".ljust(width), "blocks", *(f"{name:>16}" for name in table.classes)]))
    for z, code in enumerate(table.codes):
        pairs = zip(table.means[z], table.deviations[z], strict=True)
        cells = [f"{f'{mean:.4f} ± {deviation:.4f}':>16}" for mean, deviation in pairs]
        click.echo("  ".join([code.ljust(width), f"{table.blocks[z]:>6}", *cells]))
    click.echo(told, err=True)
    click.echo(out)
