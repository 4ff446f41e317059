"""A web map of outputs as one page that holds all it shows: nothing is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from geoseg.classes import Classes
from geoseg.errors import SceneError
from geoseg.looking.found import Found, Kind
from geoseg.looking.frame import Bounds, Floats, Frame, frame_of
from geoseg.looking.packing import json_for_page, packed, packed_json, varints, zigzag
from geoseg.looking.pictures import Layer, ScenePicture, pixel_of, webp
from geoseg.looking.shapes import Shapes, attribute_columns, on_lattice, read_shapes
from geoseg.outputs.html_page import text as html_text
from geoseg.outputs.qgis import ramp_colors

# What a page holds at most, all files together: some 30 MB of HTML, and what a browser draws in a moment.
MOST_POLYGONS = 100_000
MOST_POINTS = 3_000_000
MOST_SCENE_PIXELS = 4096**2
MOST_LABEL_PIXELS = 2048**2
# Where polygons lack more of their area than this, labels tell more.
_SPARSE = 0.1


@dataclass(frozen=True)
class Opened:
    """Files with where they lie, read as far as needed to lay them in one plane.

    Attributes:
        shapes: polygons.
        labels: label rasters with their classes.
        doubts: confidence and uncertainty rasters, and which of these.
        scenes: scenes.
        frame: the plane.
    """

    shapes: list[Shapes]
    labels: list[tuple[Layer, Classes]]
    doubts: list[tuple[Layer, Kind]]
    scenes: list[ScenePicture]
    frame: Frame

    @property
    def bounds(self) -> Bounds:
        """Where the outputs lie in the plane, or the scenes if the outputs are empty."""
        borders = [shapes.points for shapes in self.shapes if len(shapes)]
        borders += [layer.lonlat for layer, _ in (*self.labels, *self.doubts)]
        borders = borders or [scene.lonlat for scene in self.scenes]
        every = [self.frame.bounds(border) for border in borders]
        if not every:
            raise SceneError("there is nothing to show: the outputs hold no polygons, and no scene was given.")
        left, bottom, right, top = zip(*every, strict=True)
        return min(left), min(bottom), max(right), max(top)


def opened(found: Found) -> Opened:
    """Read polygons, look where rasters lie, and choose the plane for them.

    Raises:
        SceneError: a file cannot be read, or has no place that goes with that of the others.
    """
    scenes = [ScenePicture.open(path) for path in found.scenes]
    labels = [(Layer.open(path), classes) for path, classes in found.labels]
    doubts = [(Layer.open(path), kind) for path, kind in found.doubts]
    known = found.labels[0][1] if found.labels else None
    most = MOST_POLYGONS // max(1, len(found.polygons))
    shapes = [read_shapes(path, most, known) for path in found.polygons]
    borders: list[Floats] = [scene.lonlat for scene in scenes]
    borders += [layer.lonlat for layer, _ in (*labels, *doubts)]
    placeless = [each for each in shapes if each.crs is None]
    if placeless and (borders or len(placeless) < len(shapes)):
        raise SceneError(
            f"{placeless[0].path} has no CRS, so it cannot be laid over files that have one: look at it alone."
        )
    borders += [each.points for each in shapes if len(each)]
    plane = frame_of(borders) if borders else Frame(0)
    return Opened(shapes, labels, doubts, scenes, Frame(None) if placeless else plane)


def page(this: Opened, title: str, scenes: Sequence[dict[str, Any]] | None = None) -> tuple[str, list[str]]:
    """Return the page, and what it leaves out, in sentences.

    Args:
        this: what is shown.
        title: the name of it.
        scenes: descriptions of the scenes, where they lie beside the page rather than in it.
    """
    legend = _Legend()
    notes: list[str] = []
    polygons = [_polygons(shapes, this.frame, legend, len(this.shapes), notes) for shapes in this.shapes]
    rasters = [_labels(layer, classes, this, legend) for layer, classes in this.labels]
    rasters += [_doubts(layer, kind, this) for layer, kind in this.doubts]
    tiled = scenes is not None
    data = {
        "mercator": this.frame.centre is not None,
        "bounds": _shifted(this.bounds, this.frame),
        "classes": legend.entries,
        "scenes": _scene_pictures(this) if scenes is None else list(scenes),
        "tiled": tiled,
        "rasters": rasters,
        "doubts": " and ".join(dict.fromkeys(kind.capitalize() for _, kind in this.doubts)),
        "polygons": polygons,
        "labels first": bool(this.labels) and any(_share_left_out(shapes) > _SPARSE for shapes in this.shapes),
        "notes": notes,
    }
    return _html(title, data, tiled), notes


class _Legend:
    """The classes of all files, one for each name."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}

    def place(self, name: str, color: str) -> int:
        """Return the index of a class, new or known."""
        if name not in self._places:
            self._places[name] = len(self.entries)
            self.entries.append({"name": name, "color": color, "count": 0, "area_m2": 0.0})
        return self._places[name]

    def add(self, place: int, count: int, area_m2: float) -> None:
        """Add polygons to a class."""
        self.entries[place]["count"] += count
        self.entries[place]["area_m2"] = round(self.entries[place]["area_m2"] + area_m2, 2)


def _polygons(shapes: Shapes, frame: Frame, legend: _Legend, files: int, notes: list[str]) -> dict[str, Any]:
    lattice = on_lattice(shapes, frame, MOST_POINTS // files)
    of = shapes.class_index
    places = np.array([legend.place(item.name, item.color) for item in shapes.classes] or [0], np.int64)
    area = np.nan_to_num(shapes.area_m2)
    for index, place in enumerate(places.tolist()[: len(shapes.classes)]):
        chosen = of == index
        legend.add(place, int(chosen.sum()), float(area[chosen].sum()))
    notes += _left_out(shapes)
    confidence = shapes.confidence
    known = np.isfinite(confidence)
    thousandths = np.where(known, 1 + np.rint(1000 * np.clip(np.where(known, confidence, 0), 0, 1)), 0)
    deltas = np.diff(lattice.points, axis=0, prepend=np.zeros((1, 2), np.int64)).ravel()
    return {
        "name": shapes.path.name,
        "count": len(shapes),
        "step": lattice.step,
        "origin": [lattice.origin[0] + frame.shift, lattice.origin[1]],
        "rings": packed(varints(np.diff(lattice.features).astype(np.uint64))),
        "points": packed(varints(np.diff(lattice.rings).astype(np.uint64))),
        "deltas": packed(varints(zigzag(deltas))),
        "classes": packed(varints(places[of].astype(np.uint64))),
        "confidence": packed(varints(thousandths.astype(np.uint64))),
        "columns": packed_json(attribute_columns(shapes)),
    }


def _left_out(shapes: Shapes) -> list[str]:
    """Say what of a file is not on the map."""
    told = []
    if shapes.left_out:
        size = ""
        if math.isfinite(shapes.left_out_m2):
            size = f", {100 * _share_left_out(shapes):.2g} % of the area"
        which = "further" if math.isnan(shapes.left_out_m2) else "smaller"
        told.append(
            f"{shapes.left_out:,} {which} polygons of {shapes.path.name} are not shown{size}: the map has room for "
            f"{len(shapes):,}, the file has them all."
        )
    if shapes.left_out_columns:
        told.append(f"These attributes of {shapes.path.name} are not shown: {', '.join(shapes.left_out_columns)}.")
    return told


def _share_left_out(shapes: Shapes) -> float:
    """Return what part of the area of a file, or else of its polygons, is not on the map."""
    if math.isfinite(shapes.left_out_m2):
        return shapes.left_out_m2 / max(shapes.left_out_m2 + float(np.nansum(shapes.area_m2)), 1e-9)
    return shapes.left_out / max(shapes.left_out + len(shapes), 1)


def _labels(layer: Layer, classes: Classes, this: Opened, legend: _Legend) -> dict[str, Any]:
    most = MOST_LABEL_PIXELS // len(this.labels)
    bounds, pixel = pixel_of(layer.lonlat, layer.place.shape, this.frame, most)
    grid = this.frame.grid(bounds, pixel)
    values = layer.values(this.frame, grid, classes.nodata)
    table: list[int | None] = [None] * 256
    shown = np.zeros(values.shape, np.uint8)
    for number, item in enumerate(classes, 1):
        shown[values == item.id] = number
        # Background is see-through, as it is in QGIS.
        table[number] = None if item.background else legend.place(item.name, item.color)
    sure = next((doubt for doubt, kind in this.doubts if kind == "confidence" and _on(doubt, layer)), None)
    return {
        "name": Path(layer.path).name,
        "bounds": _shifted(_bounds_of(bounds, grid.shape, pixel), this.frame),
        "size": [int(grid.shape[1]), int(grid.shape[0])],
        "values": packed(shown.tobytes()),
        "classes": table,
        "sure": None if sure is None else packed(sure.hundredths(this.frame, grid).tobytes()),
    }


def _on(one: Layer, other: Layer) -> bool:
    return one.place.shape == other.place.shape and one.place.affine.almost_equals(other.place.affine)


def _doubts(layer: Layer, kind: Kind, this: Opened) -> dict[str, Any]:
    most = MOST_LABEL_PIXELS // (2 * len(this.doubts))
    bounds, pixel = pixel_of(layer.lonlat, layer.place.shape, this.frame, most)
    grid = this.frame.grid(bounds, pixel)
    return {
        "name": kind,
        "bounds": _shifted(_bounds_of(bounds, grid.shape, pixel), this.frame),
        "size": [int(grid.shape[1]), int(grid.shape[0])],
        "values": packed(layer.hundredths(this.frame, grid).tobytes()),
        "ramp": ramp_colors("uncertainty" if kind == "uncertainty" else "confidence"),
        "sure": None,
    }


def _scene_pictures(this: Opened) -> list[dict[str, Any]]:
    made = []
    for scene in this.scenes:
        most = MOST_SCENE_PIXELS // len(this.scenes)
        bounds, pixel = pixel_of(scene.lonlat, scene.scene.shape, this.frame, most)
        grid = this.frame.grid(bounds, pixel)
        picture = base64.b64encode(webp(scene.whole(this.frame, grid))).decode("ascii")
        made.append(
            {
                "name": Path(scene.scene.path).name,
                "bounds": _shifted(_bounds_of(bounds, grid.shape, pixel), this.frame),
                "picture": f"data:image/webp;base64,{picture}",
            }
        )
    return made


def _bounds_of(bounds: Bounds, shape: Sequence[int], pixel: float) -> Bounds:
    """Return the bounds of the whole pixels of a grid."""
    left, _, _, top = bounds
    return left, top - int(shape[0]) * pixel, left + int(shape[1]) * pixel, top


def _shifted(bounds: Bounds, frame: Frame) -> list[float]:
    left, bottom, right, top = bounds
    return [left + frame.shift, bottom, right + frame.shift, top]


@lru_cache(maxsize=8)
def _asset(name: str) -> str:
    text = resources.files("geoseg.looking").joinpath("web").joinpath(name).read_text("utf-8")
    # Only tools of developers look for it, on the network.
    return text.replace("//# sourceMappingURL=leaflet.js.map", "")


def _html(title: str, data: dict[str, Any], tiled: bool) -> str:
    """Return the page; its policy lets it run its own scripts alone, and fetch nothing but tiles beside it."""
    scripts = [_asset("leaflet/leaflet.js"), _asset("map.js")]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'" for script in scripts
    )
    images = "data: 'self' file:" if tiled else "data:"
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src {images}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html_text(title)}</title>\n'
        '<link rel="icon" href="data:,">\n'
        f"<!-- Leaflet 1.9.4\n\n{_asset('leaflet/LICENSE')}-->\n"
        f"<style>{_asset('leaflet/leaflet.css')}</style>\n<style>{_asset('map.css')}</style>\n</head>\n<body>\n"
        f'<div id="map"></div>\n<details id="side" open><summary><h1>{html_text(title)}</h1></summary>'
        '<div id="panel"></div></details>\n'
        f'<script type="application/json" id="data">{json_for_page(data)}</script>\n'
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body></html>\n"
    )
