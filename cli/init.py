"""``geoseg init``: an untrained model, ready for training or for trying out a pipeline."""

from __future__ import annotations

import json
from typing import Any, Literal

import click


@click.command("init")
@click.argument("model", type=click.Path())
@click.option("--network", required=True, metavar="NAME", help="One of `geoseg networks`.")
@click.option("--encoder", metavar="NAME", help="Any timm encoder [default: the network's].")
@click.option(
    "--bands", default="red,green,blue", show_default=True, metavar="N|a,b,c", help="Number or names of bands."
)
@click.option(
    "--classes",
    required=True,
    metavar="a[:#rrggbb],b,…",
    help="Names and colours; ids count from 0; one called background is not written as polygons.",
)
@click.option(
    "--resolution", type=click.FloatRange(min=0, min_open=True), metavar="M", help="Ground metres per pixel it is for."
)
@click.option("--tile", type=click.IntRange(min=1), metavar="PX", help="Side of its tiles [default: by network].")
@click.option("--halo", default="auto", show_default=True, metavar="PX|auto", help="auto measures the receptive field.")
@click.option("--pretrained", is_flag=True, help="Start the encoder from ImageNet weights (downloads them).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random weights.")
@click.option("--set", "settings", multiple=True, metavar="KEY=JSON", help="Further option of the network; repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace MODEL.")
def command(
    model: str,
    network: str,
    encoder: str | None,
    bands: str,
    classes: str,
    halo: str,
    settings: tuple[str, ...],
    overwrite: bool,
    **options: Any,
) -> None:
    """Make an untrained bundle: random weights with everything that is needed to use and train them.

    \b
    Example:
      geoseg init roofs.safetensors --network unet --encoder resnet18 --classes background,roof:#d55e00
    """
    from geoseg.bundle import write_bundle
    from geoseg.classes import Classes
    from geoseg.outputs.staging import check_place
    from geoseg.segmenters.making import new_model

    check_place(model, overwrite)
    if halo != "auto" and not halo.isdigit():
        raise click.BadParameter(f"{halo!r} is neither a number of pixels nor 'auto'.", param_hint="--halo")
    reach: int | Literal["auto"] = "auto" if halo == "auto" else int(halo)
    names = [f"band {i + 1}" for i in range(int(bands))] if bands.isdigit() else [b.strip() for b in bands.split(",")]
    description, tensors = new_model(
        network,
        bands=names,
        classes=Classes.parse(classes),
        encoder=encoder,
        halo=reach,
        options=dict(_setting(text) for text in settings),
        **options,
    )
    write_bundle(model, description, tensors, overwrite=overwrite)
    click.echo(model)


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE.", param_hint="--set")
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value
