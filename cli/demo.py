"""``geoseg demo``: the main job on the sample scene."""

from __future__ import annotations

from pathlib import Path

import click

from geoseg_cli.progress import shown
from geoseg_cli.report import say_report


@click.command("demo")
@click.argument("folder", type=click.Path(file_okay=False), default="demo")
@click.option("--workers", type=click.IntRange(min=0), default=0, metavar="N", help="Local worker processes.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(folder: str, workers: int, quiet: bool) -> None:
    """Segment the sample scene (houses in Banepa, Nepal) without a model, and write everything to FOLDER.

    Open FOLDER/segments.qlr in QGIS: polygons, labels and confidence come up with names and colours.

    \b
    Example:
      geoseg demo demo
    """
    import geoseg
    from geoseg.data import sample_scene
    from geoseg.engine.allocator import keep_freed_memory
    from geoseg.outputs.preview import write_preview
    from geoseg.segmenters.clustering_fit import ClusteringSettings

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    with shown(quiet) as progress:
        report = geoseg.cluster(
            sample_scene(),
            place / "segments.gpkg",
            settings=ClusteringSettings(target_segments=6),
            labels=str(place / "labels.tif"),
            confidence=str(place / "confidence.tif"),
            save_model=place / "segments.safetensors",
            min_area=2.0,
            workers=workers,
            overwrite=True,
            fresh=True,
            progress=progress,
        )
        write_preview(sample_scene(), place / "labels.tif", place / "preview.png")
    say_report(report)
    click.echo(place / "preview.png")
