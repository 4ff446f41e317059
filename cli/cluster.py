"""``geoseg cluster``: a scene into segments, without a model or labels."""

from __future__ import annotations

from typing import Any

import click

from geoseg_cli.options import run_options
from geoseg_cli.progress import shown
from geoseg_cli.report import say_report


@click.command("cluster")
@click.argument("scene")
@click.argument("out", type=click.Path())
@click.option(
    "--method", default="feature-clustering", show_default=True, metavar="NAME", help="How segments are found."
)
@click.option(
    "--segments", type=click.IntRange(min=1), metavar="K", help="Merge to K segments [default: as many as are found]."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random start.")
@click.option("--save-model", type=click.Path(), metavar="F", help="Keep the fitted method as a bundle for predict.")
@run_options
def command(
    scene: str,
    out: str,
    method: str,
    segments: int | None,
    seed: int,
    save_model: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Segment SCENE without a model or labels, and write the segments as polygons to OUT.

    The method is fitted once to a sample of the scene and then applied everywhere, so a segment's number means the
    same in every corner; what it means on the ground is for you to say.

    \b
    Example:
      geoseg cluster scene.tif segments.gpkg --segments 6 --save-model segments.safetensors
    """
    import geoseg
    from geoseg.engine.allocator import keep_freed_memory
    from geoseg.segmenters.clustering_fit import ClusteringSettings

    settings = ClusteringSettings(target_segments=segments, seed=seed)
    keep_freed_memory()
    with shown(quiet) as progress:
        report = geoseg.cluster(
            scene, out, method=method, settings=settings, save_model=save_model, progress=progress, **options
        )
    say_report(report)
