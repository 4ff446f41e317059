"""``geoseg refine``: labels from any source, brought to the edges of the image."""

from __future__ import annotations

from typing import Any

import click

from geoseg_cli.options import a_file, a_model, run_options
from geoseg_cli.progress import shown
from geoseg_cli.report import say_report
from geoseg_cli.voice import speaking


@click.command("refine")
@click.argument("scene", shell_complete=a_file)
@click.argument("rough", metavar="LABELS", shell_complete=a_file)
@click.argument("out", type=click.Path())
@click.option(
    "-m",
    "--model",
    required=True,
    metavar="REFINER",
    shell_complete=a_model,
    help="Path, URL or name of the bundle of a refiner.",
)
@click.option("--class-field", metavar="NAME", help="Attribute of polygons that tells their class.")
@click.option("--class", "one_class", metavar="CLASS", help="Class of all polygons of a file that tells none.")
@click.option(
    "--refine-by",
    type=click.Choice(["tile", "object"]),
    default="tile",
    show_default=True,
    help="The refiner takes in a whole tile at once, or one connected object of a class after another "
    "(those under 1024 pixels stay as they are).",
)
@run_options
@speaking
def command(
    scene: str,
    rough: str,
    out: str,
    model: str,
    class_field: str | None,
    one_class: str | None,
    **options: Any,
) -> None:
    """Refine LABELS with the image SCENE, and write class polygons to OUT.

    LABELS is a label raster or a vector file of class polygons, in any CRS: an old map, the result of another program.
    Pixels in no polygon are background.  All classes but the background are refined.

    \b
    Example:
      geoseg refine scene.tif old_map.gpkg new_map.gpkg -m refiner.safetensors
    """
    import geoseg
    from geoseg.engine.allocator import keep_freed_memory

    keep_freed_memory()
    with shown() as progress:
        report = geoseg.refine(
            scene, rough, out, model, class_field=class_field, one_class=one_class, progress=progress, **options
        )
    say_report(report)
