"""``geoseg train``: a model from scenes with labels."""

from __future__ import annotations

from typing import Any

import click

from geoseg_cli.options import a_network
from geoseg_cli.progress import shown
from geoseg_cli.voice import answer, note, speaking, voice

# Flags that stand for one setting each; every other setting is reached with --set.
_FLAGS = {
    "classes": "data.classes",
    "class_field": "data.class_field",
    "resolution": "data.resolution",
    "bands": "data.bands",
    "network": "network.name",
    "encoder": "network.encoder",
    "pretrained": "network.pretrained",
    "loss": "loss",
    "steps": "training.steps",
    "batch": "training.batch",
    "patch": "training.patch",
    "lr": "training.lr",
    "seed": "training.seed",
    "device": "training.device",
    "precision": "training.precision",
    "workers": "training.workers",
    "logs": "training.logs",
    "licence": "licence",
}


def _bands(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


def _area(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    """Read a vector file's name, or two shares of the width as FROM:TO."""
    if value is None:
        return None
    first, colon, second = value.partition(":")
    try:
        return [float(first), float(second)] if colon else value
    except ValueError:
        return value


@click.command("train")
@click.argument("config", required=False, type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), metavar="MODEL", help="The bundle to write.")
@click.option("--scene", "scenes", multiple=True, metavar="SCENE", help="A scene to train on; repeatable.")
@click.option("--labels", multiple=True, metavar="FILE", help="Its labels: polygons or a raster; one for each scene.")
@click.option(
    "--train-area", callback=_area, metavar="FILE|FROM:TO", help="Train only there: polygons, or shares of the width."
)
@click.option(
    "--validation", callback=_area, metavar="FILE|FROM:TO", help="Judge the network there, and train elsewhere."
)
@click.option("--classes", metavar="a[:#rrggbb],b,…", help="Names and colours; ids count from 0.")
@click.option("--class-field", metavar="NAME", help="Attribute of the polygons that says their class.")
@click.option("--resolution", type=float, metavar="M", help="Ground metres per pixel [default: the first scene's].")
@click.option("--bands", callback=_bands, metavar="1,2,3", help="Bands by index or name [default: all].")
@click.option("--network", metavar="NAME", shell_complete=a_network, help="One of `geoseg networks` [default: unet].")
@click.option("--encoder", metavar="NAME", help="Any timm encoder [default: the network's].")
@click.option("--pretrained", is_flag=True, default=None, help="Start from ImageNet weights (downloads them).")
@click.option("--loss", metavar="SUM", help="Such as ce+0.5*aaf [default: ce].")
@click.option("--steps", type=int, metavar="N", help="Steps of the optimiser [default: 1000].")
@click.option("--batch", type=int, metavar="N", help="Patches a step [default: 8].")
@click.option("--patch", type=int, metavar="PX", help="Side of a patch [default: 256].")
@click.option("--lr", type=float, metavar="RATE", help="Largest learning rate [default: 0.001].")
@click.option("--seed", type=int, metavar="N", help="Of everything that is drawn [default: 0].")
@click.option("--device", metavar="auto|cpu|cuda", help="Where to train [default: auto].")
@click.option("--precision", metavar="FORMAT", help="auto, float32, bfloat16 or float16 [default: auto].")
@click.option("--workers", type=int, metavar="N", help="Threads that read patches ahead [default: 2].")
@click.option("--logs", type=click.Path(), metavar="DIR", help="Write CSV and TensorBoard logs there.")
@click.option("--licence", metavar="TEXT", help="Of the weights, as the model will state it.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting by its path; repeatable.")
@click.option("--workdir", type=click.Path(), metavar="DIR", help="Where checkpoints are kept until the end.")
@click.option("--fresh", is_flag=True, help="Throw away what an interrupted training left.")
@click.option("--overwrite", is_flag=True, help="Replace MODEL.")
@speaking
def command(
    config: str | None,
    output: str,
    scenes: tuple[str, ...],
    labels: tuple[str, ...],
    train_area: Any,
    validation: Any,
    settings: tuple[str, ...],
    workdir: str | None,
    fresh: bool,
    overwrite: bool,
    **flags: Any,
) -> None:
    """Train a network on scenes with labels, as the YAML file CONFIG or the flags say, and write it to MODEL.

    Flags win over the file.  An interrupted training goes on where it stopped when started again.

    \b
    Example:
      geoseg train roofs.yaml -o roofs.safetensors --set training.steps=2000
      geoseg train --scene a.tif --labels a.gpkg --classes background,roof --validation 0.8:1 -o roofs.safetensors
    """
    from geoseg.training.config import check, read_config, set_value
    from geoseg.training.fit import train

    if len(scenes) != len(labels):
        raise click.UsageError(
            f"{len(scenes)} --scene and {len(labels)} --labels were given: each scene has its labels."
        )
    if config is None and not scenes:
        raise click.UsageError("give a CONFIG file, or --scene with --labels and --classes.")
    given: dict[str, Any] = {"data": {}} if config is None else read_config(config)
    if scenes:
        set_value(given, "data.folder", None)
        pairs = zip(scenes, labels, strict=True)
        set_value(given, "data.scenes", [{"image": scene, "labels": each} for scene, each in pairs])
    for name, key in _FLAGS.items():
        if flags[name] is not None:
            set_value(given, key, flags[name])
    for name, area in (("train", train_area), ("validation", validation)):
        for i in range(len(given["data"].get("scenes") or []) if area is not None else 0):
            set_value(given, f"data.scenes.{i}.{name}", area)
    for text in settings:
        set_value(given, *_setting(text))
    with shown() as progress:
        report = train(
            check(given),
            output,
            overwrite=overwrite,
            fresh=fresh,
            workdir=workdir,
            progress=progress,
            tell=None if voice().quiet else lambda text: click.echo(text, err=True),
        )
    for text in report.notes:
        note(f"{text}.")
    taken_up = "" if report.resumed is None else f", taken up at {report.resumed}"
    click.echo(f"{report.steps} steps{taken_up} in {report.seconds:.1f} s.", err=True)
    if report.figures:
        each = ", ".join(f"{name} {v:.3f}" for name, v in report.figures["iou"].items() if v is not None)
        click.echo(f"mean IoU {report.figures['mean_iou']:.3f} ({each}) at step {report.figures['step']}.", err=True)
    done = {"steps": report.steps, "resumed": report.resumed, "figures": report.figures, "training_s": report.seconds}
    answer(done, [report.model])


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    from geoseg.parsing import read_yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE.", param_hint="--set")
    try:
        return key.strip(), read_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        raise click.BadParameter(f"{value!r} is not a YAML value.", param_hint="--set") from error
