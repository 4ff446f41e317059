"""``geoseg import``: a bundle made of weights or a model that another program wrote."""

from __future__ import annotations

from typing import Any, Literal

import click

from geoseg_cli.init import summary
from geoseg_cli.options import a_network, setting
from geoseg_cli.voice import answer, remark, speaking


def _figures(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 0.4,0.5,0.4.") from error


@click.command("import")
@click.argument("checkpoint", type=click.Path())
@click.option("-o", "--output", "model", required=True, type=click.Path(), metavar="MODEL", help="The bundle to write.")
@click.option("--network", metavar="NAME", shell_complete=a_network, help="One of `geoseg networks`; not for ONNX.")
@click.option("--encoder", metavar="NAME", help="The encoder that was trained [default: the network's].")
@click.option("--bands", metavar="N|a,b,c", help="Number or names of bands, in order [default: red,green,blue].")
@click.option("--classes", metavar="a[:#rrggbb],b,…", help="Names and colours, in order [default: the file's].")
@click.option(
    "--resolution", type=click.FloatRange(min=0, min_open=True), metavar="M", help="Ground metres per pixel it is for."
)
@click.option(
    "--normalisation",
    type=click.Choice(["scene", "imagenet", "unit"]),
    help="Measured on each scene, as pretrained encoders want it, or on 0 to 1 [default: scene; for ONNX unit].",
)
@click.option("--mean", callback=_figures, metavar="A,B,…", help="Of each band, where the full scale is 1.")
@click.option("--std", callback=_figures, metavar="A,B,…", help="Of each band, where the full scale is 1.")
@click.option(
    "--full-scale", type=float, default=255.0, show_default=True, metavar="V", help="The pixel value that becomes 1."
)
@click.option("--tile", type=click.IntRange(min=1), metavar="PX", help="Side of its tiles [default: by model].")
@click.option("--halo", default="auto", show_default=True, metavar="PX|auto", help="auto measures it.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Further option of the network; repeatable."
)
@click.option("--prefix", metavar="TEXT", help="What stands before the network's names, if the file holds several.")
@click.option("--inplace-abn", is_flag=True, help="The HRNet was trained with InPlaceABN (files called torch04).")
@click.option(
    "--answer",
    type=click.Choice(["auto", "logits", "probabilities"]),
    default="auto",
    show_default=True,
    help="What an ONNX model gives.",
)
@click.option("--licence", default="not stated", show_default=True, help="Of the weights: an SPDX name or a sentence.")
@click.option("--overwrite", is_flag=True, help="Replace MODEL.")
@speaking
def command(checkpoint: str, model: str, overwrite: bool, **options: Any) -> None:
    """Make a bundle of a CHECKPOINT: weights of a network of ours, in a torch or safetensors file, or an ONNX model.

    Nothing in the file is executed. What an ONNX model says of itself (GeoDeep, Deepness) need not be said again.

    \b
    Example:
      geoseg import last.ckpt --network unet --encoder resnet50 --classes background,field -o fields.safetensors
      geoseg import roads.onnx -o roads.safetensors
    """
    from geoseg.bundle import write_bundle
    from geoseg.classes import Classes
    from geoseg.outputs.staging import check_place
    from geoseg.segmenters.scaling import Scaling

    check_place(model, overwrite)
    options["scaling"] = Scaling(
        options.pop("normalisation"), options.pop("full_scale"), options.pop("mean"), options.pop("std")
    )
    options["halo"] = _halo(options["halo"])
    options["classes"] = Classes.parse(options["classes"]) if options["classes"] else None
    options["bands"] = _band_names(options["bands"])
    options["settings"] = dict(setting(text) for text in options["settings"])
    make = _of_onnx if checkpoint.lower().endswith(".onnx") else _of_weights
    description, tensors = make(checkpoint, **options)
    write_bundle(model, description, tensors, overwrite=overwrite)
    answer(summary(description), [model])


def _of_weights(
    path: str, *, network: str | None, bands: list[str] | None, settings: dict[str, Any], answer: str, **options: Any
) -> tuple[Any, Any]:
    from geoseg.errors import ConfigError
    from geoseg.segmenters.making import import_model

    if network is None:
        raise ConfigError(f"{path} holds weights alone: say with --network which of `geoseg networks` they belong to.")
    if answer != "auto":
        raise ConfigError("--answer is for ONNX models: leave it out.")
    description, tensors, match = import_model(
        path, network, bands=bands or ["red", "green", "blue"], options=settings, **options
    )
    where = f" behind {match.prefix!r}" if match.prefix else ""
    remark(f"{match.taken} tensors taken{where}.")
    if match.left_out:
        some = ", ".join(match.left_out[:5]) + (", …" if len(match.left_out) > 5 else "")
        remark(f"{len(match.left_out)} left out, which inference does not need: {some}.")
    return description, tensors


def _of_onnx(
    path: str,
    *,
    network: str | None,
    encoder: str | None,
    settings: dict[str, Any],
    prefix: str | None,
    inplace_abn: bool,
    **options: Any,
) -> tuple[Any, Any]:
    from geoseg.errors import ConfigError
    from geoseg.segmenters.onnx_import import import_onnx

    if network or encoder or settings or prefix is not None or inplace_abn:
        raise ConfigError(
            f"{path} is a whole model: leave out --network, --encoder, --set, --prefix and --inplace-abn."
        )
    return import_onnx(path, **options)


def _halo(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdigit():
        raise click.BadParameter(f"{text!r} is neither a number of pixels nor 'auto'.", param_hint="--halo")
    return int(text)


def _band_names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [f"band {i + 1}" for i in range(int(text))] if text.isdigit() else [b.strip() for b in text.split(",")]
