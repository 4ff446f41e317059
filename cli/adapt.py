"""``geoseg adapt``: a model moved to scenes of another region without labels."""

from __future__ import annotations

from typing import Any, get_args

import click

from geoseg.training.adaptation_config import Method
from geoseg_cli.options import a_model
from geoseg_cli.progress import shown
from geoseg_cli.train import _area as area
from geoseg_cli.train import _setting as setting
from geoseg_cli.voice import answer, speaking, voice

# Flags that stand for one setting each; every other setting is reached with --set.
_FLAGS = {
    "steps": "training.steps",
    "batch": "training.batch",
    "patch": "training.patch",
    "lr": "training.lr",
    "seed": "training.seed",
    "device": "training.device",
    "workers": "training.workers",
    "mixup": "mixing.alpha",
}


@click.command("adapt")
@click.argument("model", metavar="MODEL", shell_complete=a_model)
@click.option(
    "--source",
    "sources",
    multiple=True,
    required=True,
    nargs=2,
    metavar="SCENE LABELS",
    help="A scene with its labels, such as the model was trained on; repeatable.",
)
@click.option(
    "--target", "targets", multiple=True, required=True, metavar="SCENE", help="A scene to move to; repeatable."
)
@click.option(
    "--target-labels",
    multiple=True,
    metavar="FILE",
    help="Labels of each target, to report scores and for nothing else.",
)
@click.option("-o", "--output", required=True, type=click.Path(), metavar="ADAPTED", help="The bundle to write.")
@click.option(
    "--method",
    type=click.Choice(get_args(Method)),
    default="self-training",
    show_default=True,
    help="outputs is UDA1, features UDA2; batch-norm and scaling learn nothing.",
)
@click.option(
    "--validation", callback=area, metavar="FILE|FROM:TO", help="Judge the sources there, and train elsewhere."
)
@click.option("--class-field", metavar="NAME", help="Attribute of the labels that says their class.")
@click.option("--steps", type=int, metavar="N", help="Steps of the optimiser [default: 200].")
@click.option("--batch", type=int, metavar="N", help="Patches of the sources, and as many of the targets, a step.")
@click.option("--patch", type=int, metavar="PX", help="Side of a patch [default: the model's].")
@click.option("--lr", type=float, metavar="RATE", help="Largest learning rate [default: 0.001].")
@click.option("--mixup", type=float, metavar="ALPHA", help="Blend patches of the sources; 0.7 is as published.")
@click.option("--seed", type=int, metavar="N", help="Of everything that is drawn [default: 0].")
@click.option("--device", metavar="auto|cpu|cuda", help="Where to train [default: auto].")
@click.option("--workers", type=int, metavar="N", help="Threads that read patches ahead [default: 2].")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting by its path; repeatable.")
@click.option("--workdir", type=click.Path(), metavar="DIR", help="Where checkpoints are kept until the end.")
@click.option("--fresh", is_flag=True, help="Throw away what an interrupted run left.")
@click.option("--overwrite", is_flag=True, help="Replace ADAPTED.")
@speaking
def command(
    model: str,
    sources: tuple[tuple[str, str], ...],
    targets: tuple[str, ...],
    target_labels: tuple[str, ...],
    output: str,
    method: Method,
    validation: Any,
    class_field: str | None,
    settings: tuple[str, ...],
    workdir: str | None,
    fresh: bool,
    overwrite: bool,
    **flags: Any,
) -> None:
    """Move MODEL to scenes of another region that have no labels, and write it to ADAPTED.

    The weights after a fixed number of steps are kept; labels of targets have no part in it.  An interrupted run goes
    on where it stopped when started again.

    \b
    Example:
      geoseg adapt buildings --source old.tif old.gpkg --target new.tif --validation 0.8:1 -o new.safetensors
    """
    from geoseg.training.adapt import adapt

    chosen = {key: flags[name] for name, key in _FLAGS.items() if flags[name] is not None}
    with shown() as progress:
        report = adapt(
            model,
            output,
            sources=sources,
            targets=targets,
            target_labels=target_labels,
            method=method,
            validation=validation if isinstance(validation, str | None) else (validation[0], validation[1]),
            class_field=class_field,
            settings={**chosen, **dict(map(setting, settings))},
            overwrite=overwrite,
            fresh=fresh,
            workdir=workdir,
            progress=progress,
            tell=None if voice().quiet else lambda text: click.echo(text, err=True),
        )
    taken_up = "" if report.resumed is None else f", taken up at {report.resumed}"
    click.echo(
        f"{report.steps} steps{taken_up} in {report.seconds:.1f} s; kept are the weights of {report.kept}.", err=True
    )
    for where, found in report.scores.items():
        before, after = found["before"], found["after"]
        each = ", ".join(
            f"{name} {_shown(before['iou'][name])} → {_shown(value)}" for name, value in after["iou"].items()
        )
        click.echo(f"{where}: mean IoU {before['mean_iou']:.3f} → {after['mean_iou']:.3f} ({each})", err=True)
    done = {"method": report.method, "steps": report.steps, "kept": report.kept, "resumed": report.resumed}
    answer({**done, "scores": report.scores, "training_s": report.seconds}, [report.model])


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
