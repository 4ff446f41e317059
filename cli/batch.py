"""``geoseg batch``: many scenes through a model on one cluster, with one report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from geoseg_cli.options import a_file, a_model, batch_options
from geoseg_cli.progress import shown
from geoseg_cli.report import told_areas
from geoseg_cli.voice import answer, note, remark, speaking

if TYPE_CHECKING:
    from geoseg.engine.batch import BatchReport

# So many faults are told on the terminal; all of them stand in the report.
_MOST_TOLD = 20


@click.command("batch")
@click.argument("scenes", nargs=-1, required=True, shell_complete=a_file)
@click.argument("outdir", type=click.Path())
@click.option(
    "-m",
    "--model",
    multiple=True,
    shell_complete=a_model,
    metavar="MODEL",
    help="Path, URL or name of a bundle; several make an ensemble [default: buildings, which ships with geoseg].",
)
@click.option("--refine", metavar="REFINER", help="Path, URL or name of a bundle that refines the model's labels.")
@click.option(
    "--refine-by",
    type=click.Choice(["tile", "object"]),
    default="tile",
    show_default=True,
    help="REFINER takes in a whole tile at once, or one connected object of a class after another.",
)
@click.option(
    "--format",
    "suffix",
    default="gpkg",
    show_default=True,
    metavar="SUFFIX",
    help="Of the polygons: geojson, geojsonl, gpkg, fgb or parquet; or tif for labels alone.",
)
@click.option("--labels", is_flag=True, help="Also write the labels, as COGs.")
@click.option("--confidence", is_flag=True, help="Also write the confidence, as COGs.")
@click.option("--uncertainty", is_flag=True, help="Also write the entropy of the classes, as COGs.")
@click.option("--candidates", is_flag=True, help="Also write the boxes that a model with two passes looked at closely.")
@click.option(
    "--asset", metavar="NAME", help="Asset of STAC items [default: the only raster, else visual, image, data]."
)
@batch_options
@speaking
@click.pass_context
def command(
    context: click.Context,
    scenes: tuple[str, ...],
    outdir: str,
    model: tuple[str, ...],
    suffix: str,
    asset: str | None,
    **options: Any,
) -> None:
    """Segment many SCENES with a model, each into a folder of its own in OUTDIR.

    SCENES are rasters (paths, URLs, globs), folders of VRTs or rasters, lists (.txt with a path a line, .csv with a
    column scene and perhaps name), and STAC item collections (.json, or the URL of a search).

    The workers take the scenes in order; a scene that fails is told, and the others go on.  OUTDIR, a folder or an
    s3:// address, gets report.json, report.csv and report.html, and a STAC collection.  The same command again does
    only what is missing.  The exit code is 0 when all scenes are done, and 1 when any is not.

    \b
    Example:
      geoseg batch 'scenes/*.tif' out --workers 2
      geoseg batch items.json out -m model.safetensors --scheduler tcp://10.0.0.1:8786 --labels
    """
    import geoseg
    from geoseg.engine.allocator import keep_freed_memory
    from geoseg.engine.batch import LAYERS

    keep_freed_memory()
    if not model:
        model = ("buildings",)
        note("no model was given: this is `buildings`, which ships with geoseg (`geoseg info buildings`).")
    layers = [name for name in LAYERS if options.pop(name)]
    with shown() as progress:
        report = geoseg.batch(
            scenes, outdir, list(model), suffix=suffix, layers=layers, asset=asset, progress=progress, **options
        )
    _say(report)
    if report.of("failed", "waiting"):
        context.exit(1)


def _say(report: BatchReport) -> None:
    """Print faults and counts on stderr and the reports on stdout."""
    failed, holes, kept = report.of("failed"), report.of("holes"), report.of("kept")
    for scene in failed[:_MOST_TOLD]:
        click.echo(f"Failed: {scene['name']}: {scene['error']}", err=True)
    if len(failed) > _MOST_TOLD:
        note(f"{len(failed) - _MOST_TOLD} more failed: see the report.")
    for scene in holes[:_MOST_TOLD]:
        note(f"{scene['name']} has holes: {scene['notes'][-1]}")
    done = len(report.of("done", "holes", "kept"))
    told = [f"{len(kept)} of them before"] * bool(kept) + [f"{len(failed)} failed"] * bool(failed)
    counts = f"{done} of {len(report.scenes)} scenes are done{''.join(f', {each}' for each in told)}"
    if ground := told_areas(report.areas_m2):
        remark(f"{ground}.")
    click.echo(f"{counts}; it took {report.seconds:.1f} s.", err=True)
    answer(report.as_dict(), report.files)
