"""``geoseg coarse-check``: where a prediction contradicts a coarse map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from geoseg_cli.progress import shown
from geoseg_cli.voice import document, speaking, voice

if TYPE_CHECKING:
    from geoseg.engine.coarse_check import CoarseCheck


@click.command("coarse-check")
@click.argument("prediction")
@click.argument("coarse")
@click.argument("out", type=click.Path())
@click.option("--table", required=True, metavar="TABLE", help="What coarse classes are made of: a CSV file, or nlcd.")
@click.option(
    "--classes", metavar="a[:#rrggbb],b,…", help="What the numbers 0, 1, … mean, where PREDICTION does not say it."
)
@click.option("--coarse-field", metavar="NAME", help="Attribute of coarse polygons that says their code.")
@click.option("--ignore", multiple=True, metavar="CODE", help="Leave out this coarse class; repeatable.")
@click.option(
    "--min-block-fraction",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    metavar="SHARE",
    help="Least part of a block that must have been predicted.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@speaking
def command(prediction: str, coarse: str, out: str, **options: Any) -> None:
    """Map how far the shares of classes in the label raster PREDICTION are off what the classes of COARSE are made of.

    OUT is a raster of the cells of COARSE (.tif), or its polygons (.gpkg), in standard deviations, class by class:
    large values are where the image contradicts the coarse map, or the prediction is wrong.

    \b
    Example:
      geoseg coarse-check labels.tif nlcd.tif doubts.tif --table nlcd
    """
    import numpy as np

    import geoseg

    with shown() as progress:
        found = geoseg.coarse_check(prediction, coarse, out, progress=progress, **options)
    rows = [int(row) for row in np.unique(found.rows)]
    if voice().json:
        document({"classes": list(found.table.classes), "coarse_classes": [_row(found, row) for row in rows]}, [out])
        return
    width = max(len(code) for code in ("coarse class", *found.table.codes))
    click.echo(
        "  ".join(["coarse class".ljust(width), "blocks", "beyond 4", *(f"{n:>12}" for n in found.table.classes)])
    )
    for row in rows:
        own = found.rows == row
        means = [f"{value:>+12.2f}" for value in found.residuals[own].mean(0)]
        cells = [found.table.codes[row].ljust(width), f"{own.sum():>6}", f"{found.far[own].sum():>8}", *means]
        click.echo("  ".join(cells))
    click.echo(out)


def _row(found: CoarseCheck, row: int) -> dict[str, Any]:
    """Return what was found of the blocks of one coarse class: mean residuals are in standard deviations."""
    own = found.rows == row
    return {
        "code": found.table.codes[row],
        "blocks": int(own.sum()),
        "beyond_4": int(found.far[own].sum()),
        "mean_residuals": [float(value) for value in found.residuals[own].mean(0)],
    }
