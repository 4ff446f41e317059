"""Outputs as a STAC collection: one item a scene, beside its files, after the STAC 1.1.0 specification.

Items follow the extensions processing 1.2.0, projection 2.0.0 and classification 2.0.0.  Where the model is one or more
files, collection and items name it after the machine learning model extension (mlm) 1.4.0, which wants such an asset.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from geoseg import __version__
from geoseg.classes import Classes
from geoseg.errors import OutputError
from geoseg.geodesy import projection
from geoseg.outputs.lonlat import LonLat
from geoseg.outputs.staging import staged, writing
from geoseg.places import Place, S3Place, as_place

VERSION = "1.1.0"
COLLECTION = "collection.json"
EXTENSIONS = "https://stac-extensions.github.io"
_PROCESSING = f"{EXTENSIONS}/processing/v1.2.0/schema.json"
_PROJECTION = f"{EXTENSIONS}/projection/v2.0.0/schema.json"
CLASSIFICATION = f"{EXTENSIONS}/classification/v2.0.0/schema.json"
MLM = f"{EXTENSIONS}/mlm/v1.4.0/schema.json"
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_TYPES = {
    ".geojson": "application/geo+json",
    ".geojsonl": "application/geo+json-seq",
    ".gpkg": "application/geopackage+sqlite3",
    ".fgb": "application/vnd.flatgeobuf",
    ".parquet": "application/vnd.apache.parquet",
    ".tif": _COG,
}
_TITLES = {
    "polygons": "Class polygons",
    "labels": "Class of each pixel",
    "confidence": "Probability of the class of each pixel",
    "uncertainty": "Entropy of the classes of each pixel, and what else the model says of its doubts",
    "candidates": "Boxes that the model looked at closely",
}


@dataclass(frozen=True)
class ModelNote:
    """What is said of the model.

    Attributes:
        name: of the model.
        architecture: of its network, or its method.
        paths: the bundles; empty for a model that is no file.
        bands: names of what it sees.
        tile_px: side of the tiles that it is shown.
        classes: what it tells apart, in the order of its scores; None for a model that is no file.
        parameters: number of its weights.
    """

    name: str
    architecture: str
    paths: tuple[str, ...] = ()
    bands: tuple[str, ...] = ()
    tile_px: int = 1
    classes: Classes | None = None
    parameters: int | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields that say which model it is, what it takes and what it gives."""
        if self.classes is None:
            return {}
        tasks = ["semantic-segmentation"]
        axes = {"dim_order": ["batch", "channel", "height", "width"], "data_type": "float32"}
        side = self.tile_px
        return {
            "bands": [{"name": band} for band in self.bands],
            "mlm:name": slug(self.name, "model"),
            "mlm:architecture": self.architecture,
            "mlm:tasks": tasks,
            "mlm:framework": "PyTorch",
            **({} if self.parameters is None else {"mlm:total_parameters": self.parameters}),
            "mlm:input": [
                {
                    "name": "tile",
                    "bands": list(self.bands),
                    "input": {"shape": [-1, len(self.bands), side, side], **axes},
                }
            ],
            "mlm:output": [
                {
                    "name": "scores",
                    "tasks": tasks,
                    "result": {"shape": [-1, len(self.classes), side, side], **axes},
                    "classification:classes": class_records(self.classes),
                }
            ],
        }

    def assets(self, folder: Place) -> dict[str, Any]:
        """Return the bundles as assets of what is written into ``folder``."""
        return {
            "model" if number == 1 else f"model-{number}": {
                "href": href_of(path, folder),
                "title": f"The model {Path(path).stem}",
                "type": "application/octet-stream; application=safetensors",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                # The extension wants them in the item, and the core allows that only where an asset has them.
                "bands": [{"name": band} for band in self.bands],
            }
            for number, path in enumerate(self.paths, 1)
        }


@dataclass(frozen=True)
class ItemNote:
    """What an item says of a scene and its outputs.

    Attributes:
        name: of the scene.
        geobox: grid of the outputs.
        pixel_m: ground length of a pixel in metres.
        classes: of the labels.
        files: outputs by what they are.
        model: what made them.
        source: where the scene lies, without secrets.
        item: where the scene's own item is.
        properties: of the scene's own item, of which the times are taken.
        when: when the scene was taken, if the scene says so.
        areas_m2: ground area of each class.
    """

    name: str
    geobox: GeoBox
    pixel_m: float
    classes: Classes
    files: Mapping[str, Place]
    model: ModelNote
    source: str
    item: str | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    when: str | None = None
    areas_m2: Mapping[str, float] = field(default_factory=dict)


def write_item(path: str | os.PathLike[str] | S3Place, note: ItemNote) -> dict[str, Any]:
    """Write the item of a scene, replacing ``path``, in a folder inside that of the collection; returns it.

    Raises:
        OutputError: it cannot be written.
    """
    path = as_place(path)
    geometry, bbox = footprint(note.geobox, note.pixel_m)
    made = _now()
    crs = projection(note.geobox)
    code = crs.to_authority()
    models = note.model.assets(path.parent)
    record: dict[str, Any] = {
        "type": "Feature",
        "stac_version": VERSION,
        "stac_extensions": [_PROCESSING, _PROJECTION, CLASSIFICATION, *([MLM] if models else [])],
        "id": note.name,
        "collection": path.parent.parent.absolute().name,
        "geometry": geometry,
        **({} if bbox is None else {"bbox": bbox}),
        "properties": {
            **_times(note, made),
            "created": made,
            "processing:software": {"geoseg": __version__},
            "processing:datetime": made,
            "processing:lineage": f"Segmented with the model {note.model.name} by geoseg {__version__}.",
            "proj:code": None if code is None else ":".join(code),
            **({"proj:wkt2": crs.to_wkt()} if code is None else {}),
            "proj:shape": [int(side) for side in note.geobox.shape],
            "proj:transform": [float(value) for value in list(note.geobox.affine)[:6]],
            **(note.model.fields() if models else {}),
            "geoseg:areas_m2": dict(note.areas_m2),
        },
        "links": [
            *({"rel": rel, "href": f"../{COLLECTION}", "type": "application/json"} for rel in _UP),
            *_origins(note, path.parent),
        ],
        "assets": {**{kind: _asset(kind, file, note) for kind, file in note.files.items()}, **models},
    }
    write_record(path, record)
    return record


_UP = ("root", "parent", "collection")
# Fields of a model that may stand in an asset; the others are of the items alone.
_OF_ASSETS = ("mlm:architecture", "mlm:tasks", "mlm:framework", "mlm:total_parameters")


def write_collection(
    folder: str | os.PathLike[str] | S3Place, items: Sequence[Mapping[str, Any]], model: ModelNote
) -> None:
    """Write the collection of items into ``folder``, each at ``<id>/<id>.json`` below it; replaces what is there.

    Args:
        folder: of the collection, whose name it takes.
        items: as :func:`write_item` returned them; at least one.
        model: what made them.

    Raises:
        OutputError: it cannot be written.
    """
    place = folder if isinstance(folder, S3Place) else Path(folder).absolute()
    times = sorted(time for item in items for time in _span(item["properties"]))
    boxes = [item["bbox"] for item in items if "bbox" in item]
    known = {name: value for name, value in model.fields().items() if name in _OF_ASSETS}
    assets = {name: {**asset, **known} for name, asset in model.assets(place).items()}
    record = {
        "type": "Collection",
        "stac_version": VERSION,
        "stac_extensions": [_PROCESSING, MLM] if assets else [_PROCESSING],
        "id": place.name,
        "title": f"Segmented with {model.name}",
        "description": f"{len(items)} scenes, segmented with the model {model.name} by geoseg {__version__}.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [_union(boxes)] if boxes else [[-180.0, -90.0, 180.0, 90.0]]},
            "temporal": {"interval": [[times[0], times[-1]]]},
        },
        # The extension takes every summary for one of a model.
        **({} if assets else {"summaries": {"processing:software": [{"geoseg": __version__}]}}),
        "links": [
            {"rel": "root", "href": f"./{COLLECTION}", "type": "application/json"},
            *(
                {"rel": "item", "href": f"./{item['id']}/{item['id']}.json", "type": "application/geo+json"}
                for item in items
            ),
        ],
        **({"assets": assets} if assets else {}),
    }
    write_record(place / COLLECTION, record)


def footprint(geobox: GeoBox, pixel_m: float) -> tuple[dict[str, Any] | None, list[float] | None]:
    """Return the outline of a grid as GeoJSON in longitude and latitude, and its bounds; None for other worlds.

    Where it crosses the antimeridian it is cut there, and its western bound is greater than its eastern.
    """
    height, width = (int(side) for side in geobox.shape)
    corners = [geobox.affine * corner for corner in ((0, 0), (width, 0), (width, height), (0, height))]
    outline = np.array([shapely.Polygon(corners)], object)
    try:
        (found,) = LonLat.open(projection(geobox), max(pixel_m, 1e-3), "the item").bring(outline)
    except OutputError:
        return None, None
    if found is None:
        return None, None
    west, south, east, north = (float(value) for value in found.bounds)
    if (west, east) == (-180.0, 180.0) and found.geom_type == "MultiPolygon":
        sides = [part.bounds for part in found.geoms]
        east_of_it = [bounds[2] for bounds in sides if bounds[0] == -180.0]
        west_of_it = [bounds[0] for bounds in sides if bounds[2] == 180.0]
        west, east = min(west_of_it), max(east_of_it)
    geometry: dict[str, Any] = json.loads(shapely.to_geojson(found))
    return geometry, [west, south, east, north]


def _asset(kind: str, file: Place, note: ItemNote) -> dict[str, Any]:
    record: dict[str, Any] = {
        "href": f"./{file.name}",
        "title": _TITLES[kind],
        "type": _TYPES.get(file.suffix.lower(), "application/octet-stream"),
        "roles": ["data"],
    }
    if kind == "labels":
        record |= {
            "data_type": "uint8",
            "nodata": note.classes.nodata,
            "classification:classes": class_records(note.classes),
        }
    return record


def class_records(classes: Classes) -> list[dict[str, Any]]:
    """Return classes as the classification extension has them."""
    return [
        {
            "value": item.id,
            "name": slug(item.name, "class"),
            "title": item.name,
            "description": item.name,
            "color_hint": item.color.removeprefix("#").upper(),
        }
        for item in classes
    ]


def href_of(name: str, folder: Place) -> str:
    """Return how a file or address is referred to from a folder."""
    if "://" in name:
        return name
    return Path(name).absolute().as_uri() if isinstance(folder, S3Place) else os.path.relpath(name, folder.absolute())


def _origins(note: ItemNote, folder: Place) -> list[dict[str, str]]:
    href = href_of(note.source, folder)
    links = [{"rel": "via", "href": href, "title": "The scene"}]
    if note.item is not None:
        links.append({"rel": "derived_from", "href": note.item, "type": "application/geo+json"})
    return links


def _times(note: ItemNote, made: str) -> dict[str, Any]:
    """Return when the scene was taken, as its item or the scene says; else, for want of better, the time of making."""
    known = {name: note.properties.get(name) for name in ("datetime", "start_datetime", "end_datetime")}
    if all(isinstance(known[name], str) for name in ("start_datetime", "end_datetime")):
        return known
    return {"datetime": known["datetime"] if isinstance(known["datetime"], str) else note.when or made}


def _span(properties: Mapping[str, Any]) -> list[str]:
    names = ("datetime", "start_datetime", "end_datetime")
    return [_utc(properties[name]) for name in names if properties.get(name)]


def _utc(text: str) -> str:
    """Return a time in UTC in one form, so that texts sort as times do; another text as it is."""
    try:
        return _text(datetime.fromisoformat(text))
    except ValueError:
        return text


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(time: datetime) -> str:
    known = time if time.tzinfo else time.replace(tzinfo=UTC)
    return known.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _union(boxes: Sequence[Sequence[float]]) -> list[float]:
    """Return the bounds of all boxes; one that crosses the antimeridian counts as all longitudes."""
    plain = [box if box[0] <= box[2] else (-180.0, box[1], 180.0, box[3]) for box in boxes]
    west, south, east, north = zip(*plain, strict=True)
    return [min(west), min(south), max(east), max(north)]


def slug(name: str, what: str) -> str:
    """Return a name of letters, digits, - and _ that begins with a letter and ends with no sign."""
    plain = re.sub(r"[^0-9A-Za-z_-]+", "-", name).strip("-_")
    return plain if re.match(r"[A-Za-z].*[0-9A-Za-z]$", plain) else f"{what}-{plain or 'x'}"


def write_record(path: Place, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, replacing ``path``.

    Raises:
        OutputError: it cannot be written.
    """
    with staged(path) as temporary, writing(path):
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
