"""``geoseg init``: an untrained model, ready for training or for trying out a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from geoseg_cli.options import a_network, setting
from geoseg_cli.voice import answer, speaking

if TYPE_CHECKING:
    from geoseg.bundle import Description


@click.command("init")
@click.argument("model", type=click.Path())
@click.option("--network", required=True, metavar="NAME", shell_complete=a_network, help="One of `geoseg networks`.")
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
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Further option of the network; repeatable."
)
@click.option("--overwrite", is_flag=True, help="Replace MODEL.")
@speaking
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
        options=dict(setting(text) for text in settings),
        **options,
    )
    write_bundle(model, description, tensors, overwrite=overwrite)
    answer(summary(description), [model])


def summary(description: Description) -> dict[str, Any]:
    """Return what a script may want to know of a model that was made."""
    names = ("method", "bands", "resolution", "classes", "tile", "halo", "stride", "tile_exact", "licence")
    record = description.model_dump()
    return {name: record[name] for name in names}
