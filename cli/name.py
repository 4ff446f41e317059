"""``geoseg name``: segments that were found without labels get names."""

from __future__ import annotations

import click

from geoseg_cli.options import a_file
from geoseg_cli.voice import answer, note, speaking


@click.command("name")
@click.argument("source", shell_complete=a_file)
@click.argument("names", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@speaking
def command(source: str, names: str, out: str, overwrite: bool) -> None:
    """Write SOURCE to OUT with its segments called as the table NAMES says.

    SOURCE is a model that `geoseg cluster --save-model` made, or a label raster of geoseg (.tif).  NAMES holds lines
    value,name[,#rrggbb] or is a JSON object {value: name}; segments of one name are merged, values left out stay.

    \b
    Example:
      geoseg name segments.safetensors names.csv landcover.safetensors
      geoseg name segments.tif names.csv landcover.tif
    """
    import geoseg

    classes = geoseg.name(source, names, out, overwrite=overwrite)
    note("classes are now " + ", ".join(f"{each.id} {each.name}" for each in classes) + ".")
    answer({"classes": classes.as_dicts()}, [out])
