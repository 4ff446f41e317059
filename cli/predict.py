"""``geoseg predict``: a scene through a model, out as class polygons."""

from __future__ import annotations

from typing import Any

import click

from geoseg_cli.options import a_file, a_model, run_options
from geoseg_cli.progress import shown
from geoseg_cli.report import say_report
from geoseg_cli.voice import note, speaking


@click.command("predict")
@click.argument("scene", shell_complete=a_file)
@click.argument("out", type=click.Path())
@click.option(
    "-m",
    "--model",
    multiple=True,
    shell_complete=a_model,
    metavar="MODEL",
    help="Path, URL or name of a bundle; several make an ensemble [default: buildings, which ships with geoseg].",
)
@click.option(
    "--refine",
    metavar="REFINER",
    shell_complete=a_file,
    help="Path, URL or name of a bundle that refines the model's labels.",
)
@click.option(
    "--refine-by",
    type=click.Choice(["tile", "object"]),
    default="tile",
    show_default=True,
    help="REFINER takes in a whole tile at once, or one connected object of a class after another "
    "(those under 1024 pixels stay as they are).",
)
@click.option(
    "--candidates",
    type=click.Path(),
    metavar="FILE",
    help="Also write the boxes that a model with two passes looked at closely, with rounds and agreement.",
)
@run_options
@speaking
def command(scene: str, out: str, model: tuple[str, ...], **options: Any) -> None:
    """Segment SCENE with a model and write class polygons to OUT.

    OUT's suffix chooses the format: .geojson .geojsonl .gpkg .fgb .parquet, or .tif for labels only.  Outputs may be
    paths or s3:// addresses.  A .qml beside OUT makes QGIS open it with names and colours.  An interrupted run goes on
    where it stopped when started again.

    \b
    Example:
      geoseg predict scene.tif buildings.geojson
      geoseg predict scene.tif roofs.gpkg -m model.safetensors --labels roofs.tif --min-area 10
    """
    import geoseg
    from geoseg.engine.allocator import keep_freed_memory

    keep_freed_memory()
    if not model:
        model = ("buildings",)
        note("no model was given: this is `buildings`, which ships with geoseg (`geoseg info buildings`).")
    with shown() as progress:
        report = geoseg.predict(scene, out, list(model), progress=progress, **options)
    say_report(report)
