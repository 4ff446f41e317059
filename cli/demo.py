"""``geoseg demo``: the main job on the sample scene."""

from __future__ import annotations

from pathlib import Path

import click

from geoseg_cli.progress import shown
from geoseg_cli.report import say_report
from geoseg_cli.voice import speaking


@click.command("demo")
@click.argument("folder", type=click.Path(file_okay=False), default="demo")
@click.option("--workers", type=click.IntRange(min=0), default=0, metavar="N", help="Local worker processes.")
@speaking
def command(folder: str, workers: int) -> None:
    """Find the buildings in the sample scene (Banepa, Nepal) with the model that ships, and write all to FOLDER.

    Open FOLDER/map.html in a browser, or FOLDER/buildings.qlr in QGIS: polygons, labels and confidence come up with
    names and colours.

    \b
    Example:
      geoseg demo demo
    """
    import geoseg
    from geoseg.data import sample_scene
    from geoseg.engine.allocator import keep_freed_memory

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    with shown() as progress:
        report = geoseg.predict(
            sample_scene(),
            place / "buildings.gpkg",
            labels=str(place / "labels.tif"),
            confidence=str(place / "confidence.tif"),
            min_area=5.0,
            fill_holes=5.0,
            simplify=0.3,
            workers=workers,
            overwrite=True,
            fresh=True,
            progress=progress,
        )
        beside = [place / name for name in ("buildings.gpkg", "labels.tif", "confidence.tif")]
        geoseg.preview(beside[:1], place / "preview.png", scene=sample_scene(), overwrite=True)
        geoseg.view(beside, place / "map.html", scene=sample_scene(), overwrite=True)
    say_report(report, [place / "preview.png", place / "map.html"])
