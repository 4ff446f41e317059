"""``geoseg info``: what a scene or a model is."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command("info")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: str, as_json: bool) -> None:
    """Show what geoseg sees in a SCENE (grid, ground resolution, bands, nodata) or a MODEL (network, classes, halo).

    \b
    Example:
      geoseg info scene.tif
      geoseg info model.safetensors --json
    """
    record = _model(path) if path.lower().endswith(".safetensors") else _scene(path)
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    width = max(len(key) for key in record)
    for key, value in record.items():
        click.echo(f"{key:<{width}}  {_told(value)}")


def _scene(path: str) -> dict[str, Any]:
    from geoseg.scene import open_scene

    scene = open_scene(path)
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

    bundle = read_bundle(path)
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
        "licence": description.licence,
        "training": description.training or "none",
        "sha256": bundle.digest,
    }


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return str(value)
