"""``geoseg evaluate``: a prediction against a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from geoseg.errors import ConfigError
from geoseg_cli.options import a_file
from geoseg_cli.progress import shown
from geoseg_cli.voice import document, note, speaking_without_json

if TYPE_CHECKING:
    from geoseg.engine.evaluation import Evaluation


_STRUCTURE = {
    "s1": "mean S1 (level), {}",
    "s2": "mean S2 (structure), {}",
    "ssim": "mean SSIM, {}",
    "d2": "D2 of the maps",
}
# Where --json writes that names no file.
_STDOUT = "-"
# What goes with --values: all else is about classes.
_OF_VALUES = {"structure_file", "data_range", "json_file", "chunk", "overwrite"}


@click.command("evaluate")
@click.argument("prediction", shell_complete=a_file)
@click.argument("reference", shell_complete=a_file)
@click.option(
    "--classes", metavar="a[:#rrggbb],b,…", help="What the numbers 0, 1, … mean, where the files do not say it."
)
@click.option("--class-field", metavar="NAME", help="Attribute of polygons that tells their class.")
@click.option("--class", "one_class", metavar="CLASS", help="One class for all polygons of the reference.")
@click.option("--ignore", multiple=True, metavar="CLASS", help="Leave out this class of the reference; repeatable.")
@click.option(
    "--outside",
    type=click.Choice(["background", "ignore"]),
    default="background",
    show_default=True,
    help="What pixels in no polygon of a vector file are.",
)
@click.option("--all-touched", is_flag=True, help="Burn every pixel that a polygon touches, not only by the centre.")
@click.option(
    "--grid",
    type=click.Choice(["auto", "reference", "prediction"]),
    default="auto",
    show_default=True,
    help="Compare on this raster's grid; auto prefers the reference's.",
)
@click.option(
    "--resolution", type=click.FloatRange(min=0, min_open=True), metavar="M", help="Compare at M metres per pixel."
)
@click.option("--aoi", type=click.Path(), metavar="FILE", help="Only inside the polygons of this vector file.")
@click.option(
    "--erode",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="PX",
    help="Also score without reference pixels within PX of another class.",
)
@click.option(
    "--boundary",
    default="3px",
    show_default=True,
    metavar="DISTANCE",
    help="Distance of boundary IoU, in pixels (3px) or ground metres (0.5m).",
)
@click.option("--no-objects", is_flag=True, help="Do not match polygons.")
@click.option("--confidence", type=click.Path(), metavar="F.tif", help="Judge this confidence of the prediction.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(),
    is_flag=False,
    flag_value=_STDOUT,
    metavar="[F]",
    help="Also write all figures as JSON; without F to stdout, in place of the tables (give it last, or as --json=-).",
)
@click.option("--html", "html_file", type=click.Path(), metavar="F", help="Also write a page with tables and maps.")
@click.option("--errors", "errors_file", type=click.Path(), metavar="F.tif", help="Also write where it is wrong (COG).")
@click.option(
    "--structure",
    "structure_file",
    type=click.Path(),
    metavar="F.tif",
    help="Also compare in windows of 11 pixels and write structural similarity: bands S1, S2 and D2 (COG).",
)
@click.option(
    "--values",
    is_flag=True,
    help="Compare the values of two rasters, band by band, not classes: structural similarity alone.",
)
@click.option(
    "--data-range",
    type=click.FloatRange(min=0, min_open=True),
    metavar="L",
    help="With --values: what lies between the least and the largest possible value; by default the pixel type's.",
)
@click.option("--chunk", type=click.IntRange(min=1), default=2048, show_default=True, metavar="PX", help="Block side.")
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@speaking_without_json
@click.pass_context
def command(
    context: click.Context,
    prediction: str,
    reference: str,
    classes: str | None,
    no_objects: bool,
    values: bool,
    data_range: float | None,
    **options: Any,
) -> None:
    """Compare PREDICTION with REFERENCE: label rasters or polygons, in any CRS and on any grid.

    All figures are of counts pooled over the whole grid.  Pixels without a label on either side are left out.  With
    --values the two are rasters of measurements, compared for structure alone.

    \b
    Example:
      geoseg evaluate roofs.tif truth.gpkg --class building --html report.html --errors wrong.tif
    """
    import geoseg
    from geoseg.classes import Classes

    to_stdout = options["json_file"] == _STDOUT
    if to_stdout:
        options["json_file"] = None
    if values:
        _refuse_options_of_classes(context)
        given = {name: options[name] for name in _OF_VALUES - {"data_range"}}
        _compare_values(prediction, reference, to_stdout, data_range=data_range, **given)
        return
    if data_range is not None:
        raise ConfigError("--data-range goes with --values: a class is 0 or 1.")
    table = None if classes is None else Classes.parse(classes)
    with shown() as progress:
        result = geoseg.evaluate(
            prediction, reference, classes=table, objects=not no_objects, progress=progress, **options
        )
    for text in result.notes:
        note(text)
    if to_stdout:
        files = [options[name] for name in ("html_file", "errors_file", "structure_file") if options[name]]
        document(result.as_dict(), files)
        return
    _say(result)


def _refuse_options_of_classes(context: click.Context) -> None:
    source = click.core.ParameterSource.COMMANDLINE
    for option in context.command.params:
        name = str(option.name)
        fits = name in _OF_VALUES | {"prediction", "reference", "values", "quiet", "verbose"}
        if not fits and context.get_parameter_source(name) is source:
            raise ConfigError(f"{option.opts[0]} is about classes: leave it out, or leave out --values.")


def _compare_values(prediction: str, reference: str, to_stdout: bool, **options: Any) -> None:
    """Compare two rasters of values, and print the figures."""
    from geoseg.engine.values import compare_values

    with shown() as progress:
        record = compare_values(prediction, reference, progress=progress, **options)
    for text in record["notes"]:
        note(text)
    if to_stdout:
        document(record, [options["structure_file"]] if options["structure_file"] else [])
        return
    found = record["structure"]
    if len(found["planes"]) > 1:
        bands = [[each["name"], *(_number(each[key]) for key in _STRUCTURE)] for each in found["planes"]]
        _table([["band", "S1", "S2", "SSIM", "D2"], *bands])
        click.echo()
    lines = [[name.format("bands"), _number(found[key])] for key, name in _STRUCTURE.items()]
    _table([*lines, ["data range", f"{found['data_range']:g}"], ["windows compared", str(found["windows"])]])


def _say(result: Evaluation) -> None:
    """Print the tables."""
    record = result.as_dict()
    head = ["class", "IoU", "F1", "precision", "recall", "boundary IoU", "pixels"]
    names = ("iou", "f1", "precision", "recall", "boundary_iou")
    objects = "objects" in record
    rows = []
    for item in record["classes"]:
        row = [item["name"], *(_number(item[name]) for name in names), str(item["reference_pixels"])]
        if objects:
            found = item.get("objects", {})
            row += [_number(found[name]) if found else "" for name in ("precision", "recall", "f1")]
        rows.append(row)
    if objects:
        head += ["object precision", "recall", "F1"]
    _table([head, *rows])
    click.echo()
    pixels = record["pixels"]
    lines = [
        ["mean IoU", _number(record["mean_iou"])],
        ["mean F1", _number(record["mean_f1"])],
        ["overall accuracy", _number(record["overall_accuracy"])],
        ["kappa", _number(record["kappa"])],
        [f"mean boundary IoU, {record['boundary']['distance']}", _number(record["boundary"]["mean_iou"])],
    ]
    if "eroded" in record:
        for name, told in (("mean_iou", "mean IoU"), ("mean_f1", "mean F1"), ("overall_accuracy", "overall accuracy")):
            lines.append([f"{told}, {record['eroded']['distance']} off boundaries", _number(record["eroded"][name])])
    if objects:
        scores = {"precision": "precision", "recall": "recall", "f1": "F1"}
        lines += [[f"object {told} at IoU 0.5", _number(record["objects"][name])] for name, told in scores.items()]
    if "structure" in record:
        lines += [
            [name.format("classes present"), _number(record["structure"][key])] for key, name in _STRUCTURE.items()
        ]
    if "calibration" in record:
        lines.append(["expected calibration error", _number(record["calibration"]["expected_error"])])
    lines += [
        ["pixels compared", str(pixels["evaluated"])],
        ["no label in the reference", str(pixels["reference_ignored"])],
        ["no label in the prediction", str(pixels["prediction_ignored"])],
    ]
    if pixels["outside_area"]:
        lines.append(["outside of the area", str(pixels["outside_area"])])
    _table(lines)
    if "calibration" in record:
        click.echo()
        bins = [
            [f"{b['from']:.1f} to {b['to']:.1f}", _number(b["confidence"]), _number(b["accuracy"]), str(b["pixels"])]
            for b in record["calibration"]["bins"]
        ]
        _table([["confidence", "mean", "share right", "pixels"], *bins])


def _table(rows: list[list[str]]) -> None:
    """Print rows in columns, the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        click.echo("  ".join(cells).rstrip())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
