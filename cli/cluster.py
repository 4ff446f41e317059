"""``geoseg cluster``: a scene into segments, without a model or labels."""

from __future__ import annotations

from typing import Any

import click

from geoseg_cli.options import a_file, run_options, setting
from geoseg_cli.progress import shown
from geoseg_cli.report import say_report
from geoseg_cli.voice import speaking


@click.command("cluster")
@click.argument("scene", shell_complete=a_file)
@click.argument("out", type=click.Path())
@click.option(
    "--method",
    default="feature-clustering",
    show_default=True,
    metavar="NAME",
    help="feature-clustering, superpixel-backprop (borders along superpixels) or active-contour (bright and dark).",
)
@click.option(
    "--segments", type=click.IntRange(min=1), metavar="K", help="Merge to K segments [default: as many as are found]."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random start.")
@click.option(
    "--scribbles",
    type=click.Path(),
    metavar="F",
    help="Vector file of marks on the scene, whose names become segments.",
)
@click.option(
    "--scribble-field", default="class", show_default=True, metavar="NAME", help="Attribute that names the marks."
)
@click.option(
    "--reference", "references", multiple=True, metavar="F", help="Fit to this scene in place of SCENE; repeatable."
)
@click.option(
    "--names",
    type=click.Path(),
    metavar="FILE",
    help="What segments are called: CSV lines value,name[,#rrggbb], or JSON; those of one name are merged.",
)
@click.option("--save-model", type=click.Path(), metavar="F", help="Keep the fitted method as a bundle for predict.")
@click.option("--set", "more", multiple=True, metavar="KEY=VALUE", help="Further setting of the method; repeatable.")
@run_options
@speaking
def command(
    scene: str,
    out: str,
    segments: int | None,
    seed: int,
    more: tuple[str, ...],
    **options: Any,
) -> None:
    """Segment SCENE without a model or labels, and write the segments as polygons to OUT.

    The method is fitted once to a sample of the scene and then applied everywhere, so a segment's number means the
    same in every corner; what it means on the ground is for you to say, with --names or `geoseg name`.

    \b
    Example:
      geoseg cluster scene.tif segments.gpkg --segments 6 --save-model segments.safetensors
      geoseg cluster scene.tif water.gpkg --method active-contour --bands 4 --set polarity=dark
    """
    import geoseg
    from geoseg.engine.allocator import keep_freed_memory

    settings = {"target_segments": segments, "seed": seed, **dict(map(setting, more))}
    keep_freed_memory()
    with shown() as progress:
        report = geoseg.cluster(scene, out, settings=settings, progress=progress, **options)
    say_report(report)
