"""``geoseg export``: a model for other programs, or a description of it for catalogues."""

from __future__ import annotations

import click

from geoseg_cli.options import a_file, a_model
from geoseg_cli.voice import answer, note, speaking


@click.command("export")
@click.argument("model", shell_complete=a_model)
@click.argument("out", type=click.Path())
@click.option(
    "--scene",
    metavar="SCENE",
    shell_complete=a_file,
    help="For ONNX and a model that measures the scaling of its bands on each scene: keep that of this one.",
)
@click.option(
    "--tile", type=click.IntRange(min=1), metavar="PX", help="For ONNX: side of its tiles [default: MODEL's]."
)
@click.option(
    "--any-size", is_flag=True, help="For ONNX: let it take tiles of any size, which GeoDeep and Deepness do not know."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@speaking
def command(model: str, out: str, scene: str | None, tile: int | None, any_size: bool, overwrite: bool) -> None:
    """Write MODEL to OUT as an ONNX file (.onnx), or describe it as a STAC item (.json).

    An ONNX file holds the network and the scaling of its bands: pixel values divided by 255 go in, probabilities come
    out.  GeoDeep and the QGIS plugin Deepness read from it what it is for, and geoseg all that MODEL says.

    A STAC item tells catalogues of models what MODEL takes and gives, after the machine learning model extension.

    \b
    Example:
      geoseg export buildings buildings.onnx
      geoseg export model.safetensors model.onnx --scene scene.tif --tile 512
      geoseg export model.safetensors model.json
    """
    import geoseg

    report = geoseg.export(model, out, scene=scene, tile=tile, any_size=any_size, overwrite=overwrite)
    for text in report.notes:
        note(text)
    answer(report.as_dict(), [report.file])
