"""``geoseg info``: what a scene or a model is."""

from __future__ import annotations

import os
from typing import Any

import click

from geoseg_cli.options import a_model
from geoseg_cli.voice import as_json, speaking, voice


@click.command("info")
@click.argument("path", shell_complete=a_model)
@click.option(
    "--tiling", metavar="SCENE", help="Measure on this scene how the labels of a MODEL's tiles depend on the halo."
)
@click.option(
    "--crop", type=click.IntRange(min=64), default=1024, show_default=True, metavar="PX", help="Side of what is read."
)
@click.option(
    "--bound",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=1e-4,
    show_default=True,
    help="Share of labels that may differ from those of one pass.",
)
@click.option("--allow-vrt-elsewhere", is_flag=True, help="Let a VRT that you trust refer to files elsewhere.")
@speaking
def command(path: str, tiling: str | None, crop: int, bound: float, allow_vrt_elsewhere: bool) -> None:
    """Show what geoseg sees in a SCENE (grid, ground resolution, bands, nodata) or a MODEL (network, classes, halo).

    \b
    Example:
      geoseg info scene.tif
      geoseg info model.safetensors --json
      geoseg info model.safetensors --tiling scene.tif
    """
    if tiling is not None:
        _tiling(path, tiling, crop, bound)
        return
    record = _model(path) if _is_model(path) else _scene(path, allow_vrt_elsewhere)
    if voice().json:
        click.echo(as_json(record))
        return
    width = max(len(key) for key in record)
    for key, value in record.items():
        click.echo(f"{key:<{width}}  {_told(value)}")


def _is_model(path: str) -> bool:
    """Whether PATH is a bundle's file or, where no file is called so, the name of one that ships with the package."""
    from geoseg.segmenters.loading import shipped

    return path.lower().endswith(".safetensors") or (path in shipped() and not os.path.exists(path))


def _scene(path: str, elsewhere: bool) -> dict[str, Any]:
    from geoseg.scene import open_scene

    scene = open_scene(path, elsewhere=elsewhere)
    crs = scene.geobox.crs
    height, width = scene.shape
    across, down = scene.resolution
    bounds = scene.geobox.boundingbox
    nodata = sorted({repr(value) for value in scene.nodata if value is not None})
    validity = [f"value {value}" for value in nodata]
    validity += ["alpha band"] if scene.alpha else []
    validity += ["internal mask"] if scene.masked else []
    return {
        "scene": scene.path,
        "size": f"{width} × {height} pixels",
        "crs": (f"EPSG:{crs.epsg}" if crs.epsg else crs.to_wkt()) if crs else None,
        "transform": [float(value) for value in list(scene.geobox.affine)[:6]],
        "bounds": [float(value) for value in bounds],
        "ground resolution": f"{across:.4g} × {down:.4g} m",
        "bands": [f"{index} {name}" for index, name in zip(scene.bands, scene.band_names, strict=True)],
        "type": scene.dtype,
        "no data": validity or ["not declared"],
        "grid": "warped from ground control points" if scene.warp else "the file's own",
    }


def _model(path: str) -> dict[str, Any]:
    from geoseg.bundle import read_bundle
    from geoseg.segmenters.loading import resolve_bundle

    bundle = read_bundle(resolve_bundle(path))
    description = bundle.description
    classes = [f"{c.id} {c.name} {c.color}{' (background)' if c.background else ''}" for c in description.class_table()]
    return {
        "model": bundle.path,
        "method": description.method,
        "settings": {k: v for k, v in description.settings.items() if not isinstance(v, list)},
        "values": bundle.parameters,
        "bands": description.bands,
        "resolution": f"{description.resolution:g} m" if description.resolution else "any",
        "normalisation": "stored" if description.normalisation else "measured on each scene",
        "classes": classes,
        "tile": f"{description.tile} px, halo {description.halo}, stride {description.stride}",
        "tiles exact": "yes" if description.tile_exact else "no",
        "tiling": _measured(description.tiling),
        **_pooling(description.settings),
        "licence": description.licence,
        **description.card,
        "training": description.training or "none",
        "sha256": bundle.digest,
    }


def _pooling(settings: dict[str, Any]) -> dict[str, str]:
    """Return what a network that is given more than its tile is given."""
    scene = (settings.get("options") or {}).get("pooling") == "scene"
    return {"pooling": "over the scene, which a run looks at once before its tiles"} if scene else {}


def _measured(record: Any) -> str:
    """Return what a bundle tells of its tiles against one pass."""
    if record is None:
        return "not measured"
    reach = f"exact from a halo of {record.halo_exact}" if record.halo_exact is not None else "looks at the whole tile"
    error = "" if record.score_error is None else f", scores by {record.score_error:.1g}"
    return f"{reach}; labels differ by {record.disagreement:.2g}{error}, measured on {record.measured_on}"


def _tiling(model: str, scene: str, crop: int, bound: float) -> None:
    """Print disagreement against halo."""
    from dataclasses import asdict

    from geoseg.engine.tiling import measure_on_scene

    found = measure_on_scene(model, scene, crop=crop, bound=bound)
    if voice().json:
        click.echo(as_json(asdict(found)))
        return
    click.echo(f"{found.scene}: {found.crop}, at {found.resolution:.3g} m per pixel")
    click.echo(f"{'halo px':>8}  {'labels differ':>13}  {'score error':>11}")
    for row in found.comparison.differences:
        mark = "  the model's halo" if row.halo == found.stored else ""
        click.echo(f"{row.halo:>8}  {row.disagreement:>13.2e}  {row.score_error:>11.2e}{mark}")
    reasons = {
        "scores": " (judged by the scores: nearly all labels are the same)",
        "nothing": " (the scores are the same everywhere)",
    }
    by = reasons.get(found.comparison.decision, "")
    if found.chosen is None:
        click.echo(f"No halo that was tried keeps the share of labels that differ within {found.bound:g}{by}.")
    else:
        kept = f"keeps the share of labels that differ within {found.bound:g}"
        click.echo(f"A halo of {found.chosen.halo} px {kept}{by}.")


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return str(value)
