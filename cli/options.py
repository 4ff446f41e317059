"""Options that several commands share, so that a name means the same everywhere.

Short flags in use: ``-m`` model or refiner, ``-o`` file to write, ``-q`` quiet, ``-v`` verbose, ``-h`` help (all).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])


def a_file(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a path where an address may stand, too."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def a_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the name of a model that ships, or a path."""
    from click.shell_completion import CompletionItem

    from geoseg.segmenters.loading import shipped

    return [CompletionItem(name) for name in shipped() if name.startswith(incomplete)] or a_file(ctx, param, incomplete)


def a_network(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the name of a network."""
    from click.shell_completion import CompletionItem

    from geoseg import networks

    return [CompletionItem(name) for name in networks.every_name() if name.startswith(incomplete)]


def _bands(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[int | str] | None:
    if value is None:
        return None
    return [int(part) if part.strip().isdigit() else part.strip() for part in value.split(",") if part.strip()]


def _halo(_ctx: click.Context, _param: click.Parameter, value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isdigit():
        raise click.BadParameter(f"{value!r} is neither a number of pixels nor 'auto'.")
    return int(value)


def _number(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Read a number; unlike click's own float, say what else is meant by nan."""
    if value is None:
        return None
    try:
        return float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a number (nan is one).") from error


def _whole(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    return int(value)


_SELECTION = (
    click.option(
        "--min-area", type=click.FloatRange(min=0), default=0.0, metavar="M2", help="Keep no polygons under M2 m²."
    ),
    click.option(
        "--small",
        type=click.Choice(["merge", "drop"]),
        default="merge",
        show_default=True,
        help="Those become part of the neighbour with the longest shared border, or nothing.",
    ),
    click.option(
        "--fill-holes",
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="M2",
        help="Fill holes in the data under M2 m².",
    ),
    click.option(
        "--simplify", type=click.FloatRange(min=0), metavar="M", help="Let outlines move by M metres on the ground."
    ),
    click.option("--smooth", is_flag=True, help="Cut the corners of pixels."),
    click.option(
        "--connectivity",
        type=click.Choice(["4", "8"]),
        default="4",
        show_default=True,
        callback=_whole,
        help="With 8, pixels that touch in a corner belong to one feature.",
    ),
    click.option(
        "--regularize",
        is_flag=True,
        help="Right-angled outlines, for buildings; polygons of several classes may then overlap or leave gaps.",
    ),
    click.option(
        "--regularize-class", multiple=True, metavar="CLASS", help="The same for this class only; repeatable."
    ),
    click.option("--drop", multiple=True, metavar="CLASS", help="Do not write this class; repeatable."),
    click.option("--keep-background", is_flag=True, help="Write background polygons too."),
    click.option("--overwrite", is_flag=True, help="Replace existing outputs."),
)

_BESIDE = (
    click.option("--labels", type=click.Path(), metavar="F.tif", help="Also write the labels, as a COG."),
    click.option("--confidence", type=click.Path(), metavar="F.tif", help="Also write the confidence, as a COG."),
    click.option(
        "--uncertainty",
        type=click.Path(),
        metavar="F.tif",
        help="Also write the entropy of the classes, and what else the model says of its doubts, as a COG.",
    ),
)

_RUN = (
    click.option("--aoi", type=click.Path(), metavar="FILE", help="Only inside the polygons of this vector file."),
    click.option("--bands", callback=_bands, metavar="1,2,3", help="Bands by index or name, in the model's order."),
    click.option("--nodata", callback=_number, metavar="V", help="Value that means no data, whatever the file says."),
    click.option(
        "--resolution", type=click.FloatRange(min=0, min_open=True), metavar="M", help="Work at M metres per pixel."
    ),
    click.option(
        "--output-grid",
        type=click.Choice(["model", "scene"]),
        default="model",
        show_default=True,
        help="Where the model works at another resolution: write on its grid, or on the scene's.",
    ),
    click.option(
        "--chunk",
        type=click.IntRange(min=1),
        metavar="PX",
        help="Side of a chunk, rounded to whole tile cores [default: 2048, or 4096 for --blend hann].",
    ),
    click.option("--tile", type=click.IntRange(min=1), metavar="PX", help="Side of a tile, halo included."),
    click.option(
        "--halo", callback=_halo, default="auto", show_default=True, metavar="PX|auto", help="Context round a tile."
    ),
    click.option(
        "--blend",
        type=click.Choice(["crop", "hann"]),
        help="Cut tiles at their core, or weight them where they overlap [default: crop; for glnet hann].",
    ),
    click.option("--tta", is_flag=True, help="Average over flips and quarter turns of each tile (8 times the work)."),
    click.option(
        "--batch",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Tiles per forward pass [default: by device].",
    ),
    click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where networks run."),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="Number format of the network; auto is float32 on a CPU.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "torch", "openvino", "onnxruntime"]),
        default="torch",
        show_default=True,
        help="What computes networks on a CPU; auto takes the fastest on a tile of the scene.",
    ),
    click.option(
        "--workers", type=click.IntRange(min=0), default=0, metavar="N", help="Local worker processes [default: none]."
    ),
    click.option("--scheduler", metavar="ADDRESS|FILE", help="Run on this Dask cluster."),
    click.option("--resource", metavar="NAME=N", help="What a chunk takes of a worker of that cluster, such as GPU=1."),
    click.option(
        "--patience",
        type=click.FloatRange(min=1),
        default=120.0,
        show_default=True,
        metavar="S",
        help="End the run after S seconds without a worker of use; it can be gone on with.",
    ),
    click.option("--allow-holes", is_flag=True, help="Write outputs although chunks failed: no data where they are."),
    click.option(
        "--allow-vrt-elsewhere",
        is_flag=True,
        help="Let a VRT that you trust refer to files outside of its folder, and a raster to servers.",
    ),
    click.option(
        "--workdir",
        type=click.Path(),
        metavar="DIR",
        help="Where finished chunks are kept until the end; a folder or s3://bucket/name.",
    ),
    click.option("--fresh", is_flag=True, help="Throw away what an earlier run left in the work folder."),
)


def setting(text: str) -> tuple[str, Any]:
    """Return key and value of ``KEY=VALUE``; a value that is no JSON is text.

    Raises:
        click.BadParameter: there is no equals sign.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE.", param_hint="--set")
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value


def selection_options(function: F) -> F:
    """Add the options that say which polygons are written, and how."""
    return _with(_SELECTION, function)


def run_options(function: F) -> F:
    """Add the options of a run over a scene, those of :func:`selection_options` included."""
    return _with(_BESIDE + _RUN + _SELECTION, function)


def batch_options(function: F) -> F:
    """Add the options of runs over many scenes, whose files are named for them."""
    return _with(_RUN + _SELECTION, function)


def _with(options: tuple[Callable[[Any], Any], ...], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function
