"""``geoseg preview``: outputs as a picture."""

from __future__ import annotations

import click

from geoseg_cli.options import a_file
from geoseg_cli.voice import answer, note, speaking


@click.command("preview")
@click.argument("outputs", nargs=-1, required=True, metavar="OUTPUT…", shell_complete=a_file)
@click.option(
    "-o", "--output", "out", type=click.Path(), metavar="PICTURE.png", help="The picture [default: beside OUTPUT]."
)
@click.option("--scene", multiple=True, metavar="SCENE", help="What the outputs were made of; repeatable.")
@click.option(
    "--side",
    type=click.IntRange(min=200, max=4000),
    default=900,
    show_default=True,
    metavar="PX",
    help="Longest side of the scene in the picture.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing picture.")
@speaking
def command(outputs: tuple[str, ...], out: str | None, scene: tuple[str, ...], side: int, overwrite: bool) -> None:
    """Make a picture of OUTPUT: the scene, its classes over it, a legend and a scale bar.

    \b
    Example:
      geoseg preview buildings.gpkg --scene scene.tif
    """
    import geoseg

    looked = geoseg.preview(outputs, out, scene=scene, side=side, overwrite=overwrite)
    for text in looked.notes:
        note(text)
    answer({}, [looked.file])
