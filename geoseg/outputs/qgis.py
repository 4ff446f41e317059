"""QGIS styles written by hand: layers open with class names and colours without a click.

A style lies beside its layer under the same stem (``map.qml`` for ``map.geojson``).  A raster and a vector layer of one
stem share that file, so it may hold one part for each; writing one part leaves the other alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import pyproj

from geoseg.classes import Classes
from geoseg.outputs.qgis_renderers import (
    CONFIDENCE_RAMP,
    RESIDUAL_RAMP,
    UNCERTAINTY_RAMP,
    Colors,
    image_renderer,
    label_renderer,
    pipe,
    ramp_renderer,
    ranges_renderer,
    vector_renderer,
)
from geoseg.outputs.staging import staged, writing
from geoseg.places import Place, S3Place, as_place, below

Kind = Literal["polygons", "labels", "confidence", "uncertainty", "image"]

_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_VERSION = "3.22.0"
_LONLAT_SUFFIXES = {".geojson", ".geojsonl", ".geojsons", ".ndjson"}
_RESERVED = re.compile(r"gpkg_|sqlite_|rtree_|layer_styles$|\d", re.I)


@dataclass(frozen=True)
class Layer:
    """One layer of a layer definition.

    Attributes:
        path: the file, in the definition's folder or below it if both are to be moved together.  What an image is
            called by GDAL, where it is no file, is a ``str``.
        kind: what it shows: class polygons, a label raster, a confidence raster, an uncertainty raster, of which the
            first band is shown, or the image below all of them.
        crs: the CRS of the scene (GeoJSON is known to be in longitude and latitude).
        classes: the classes of polygons and labels.
        title: its name in QGIS, by default the file's stem and kind.
        shown: whether it is switched on at first.
        colors: of an image; None leaves it to QGIS.
    """

    path: Place | str
    kind: Kind
    crs: pyproj.CRS
    classes: Classes | None = None
    title: str = ""
    shown: bool = True
    colors: Colors | None = None


def vector_style(classes: Classes) -> str:
    """Return the QML of class polygons: one colour a class, without outlines, which would hide small polygons."""
    return _document("Symbology", [vector_renderer(classes)])


def label_style(classes: Classes, band: int = 1) -> str:
    """Return the QML of a label raster: class names and colours, background see-through."""
    return _document("AllStyleCategories", [pipe(label_renderer(classes, band))])


def confidence_style(band: int = 1) -> str:
    """Return the QML of a confidence raster: a ramp from 0 to 1."""
    return _document("AllStyleCategories", [pipe(ramp_renderer(CONFIDENCE_RAMP, band))])


def ramp_colors(kind: Literal["confidence", "uncertainty"]) -> list[str]:
    """Return the colours from 0 to 1, at even steps, in which a raster of this kind is shown."""
    ramp = CONFIDENCE_RAMP if kind == "confidence" else UNCERTAINTY_RAMP
    return [color for _, color in ramp]


def write_vector_style(
    path: str | os.PathLike[str], classes: Classes, beside: str | os.PathLike[str] | S3Place = ""
) -> Path:
    """Write the style of the polygons in ``path`` beside it and return its path.

    Args:
        path: the layer.
        classes: names and colours.
        beside: where the layer will lie, if ``path`` is temporary: a style there keeps its part for rasters.

    Raises:
        OutputError: the file cannot be written.
    """
    return _write_style(Path(path), vector_renderer(classes), as_place(beside or path))


def write_label_style(
    path: str | os.PathLike[str], classes: Classes, beside: str | os.PathLike[str] | S3Place = ""
) -> Path:
    """Write the style of the label raster ``path`` beside it; see :func:`write_vector_style`."""
    return _write_style(Path(path), pipe(label_renderer(classes, 1)), as_place(beside or path))


def write_confidence_style(path: str | os.PathLike[str], beside: str | os.PathLike[str] | S3Place = "") -> Path:
    """Write the style of the confidence raster ``path`` beside it; see :func:`write_vector_style`."""
    return _write_style(Path(path), pipe(ramp_renderer(CONFIDENCE_RAMP, 1)), as_place(beside or path))


def write_uncertainty_style(path: str | os.PathLike[str], beside: str | os.PathLike[str] | S3Place = "") -> Path:
    """Write the style of the uncertainty raster ``path`` beside it; see :func:`write_vector_style`."""
    return _write_style(Path(path), pipe(ramp_renderer(UNCERTAINTY_RAMP, 1)), as_place(beside or path))


def write_structure_style(path: str | os.PathLike[str], beside: str | os.PathLike[str] | S3Place = "") -> Path:
    """Write the style of the structural comparison ``path``: its third band, the distance; see the functions above."""
    return _write_style(Path(path), pipe(ramp_renderer(UNCERTAINTY_RAMP, 3)), as_place(beside or path))


def write_residual_style(
    path: str | os.PathLike[str], beside: str | os.PathLike[str], *, band: int = 0, attribute: str = ""
) -> Path:
    """Write the style of residuals in standard deviations beside ``path``, pale to dark red by their size.

    Args:
        path: the layer.
        beside: where it will lie.
        band: of a raster (from 1).
        attribute: of polygons, in place of a band.

    Raises:
        OutputError: the file cannot be written.
    """
    part = ranges_renderer(RESIDUAL_RAMP, attribute) if attribute else pipe(ramp_renderer(RESIDUAL_RAMP, band))
    return _write_style(Path(path), part, as_place(beside))


def layer_name(path: str | os.PathLike[str] | S3Place) -> str:
    """Return the name of the layer in ``path``: the file's stem as a plain identifier.

    >>> layer_name("runs/2024 fields.gpkg")
    'polygons_2024_fields'
    """
    name = re.sub(r"\W+", "_", as_place(path).stem).strip("_")
    return f"polygons_{name}" if _RESERVED.match(name) else name or "polygons"


def write_layer_definition(path: str | os.PathLike[str] | S3Place, layers: Sequence[Layer]) -> None:
    """Write a ``.qlr`` that brings several styled layers at once, in a group of its name, the first on top.

    Files in its folder are named relative to it, so the folder may be moved.

    Raises:
        OutputError: the file cannot be written.
    """
    path = as_place(path)
    root = ET.Element("qlr")
    top = ET.SubElement(root, "layer-tree-group", name="", checked="Qt::Checked", expanded="1")
    group = ET.SubElement(top, "layer-tree-group", name=path.stem, checked="Qt::Checked", expanded="1")
    maps = ET.SubElement(root, "maplayers")
    for layer in layers:
        source = _source(layer, path.parent)
        provider = "ogr" if layer.kind == "polygons" else "gdal"
        title = layer.title or f"{_stem(layer.path)} {layer.kind}"
        # QGIS replaces identifiers of ten characters or fewer; this one is longer and the same in every run.
        identifier = f"{layer.kind}_{hashlib.sha256(source.encode()).hexdigest()[:12]}"
        ET.SubElement(
            group,
            "layer-tree-layer",
            id=identifier,
            name=title,
            source=source,
            providerKey=provider,
            checked="Qt::Checked" if layer.shown else "Qt::Unchecked",
            expanded="1" if layer.shown else "0",
        )
        maps.append(_map_layer(layer, identifier, title, source, provider))
    ET.indent(root, " ")
    text = "<!DOCTYPE qgis-layer-definition>\n" + ET.tostring(root, encoding="unicode") + "\n"
    with staged(path) as temporary, writing(path):
        temporary.write_text(text, encoding="utf-8", newline="\n")


def add_layer_style(connection: sqlite3.Connection, layer: str, classes: Classes, time: str) -> None:
    """Make the style of class polygons the default of a layer in an open GeoPackage.

    Args:
        connection: to the GeoPackage; the caller commits.
        layer: name of the table.
        classes: names and colours.
        time: written as the time of the change, ``YYYY-MM-DDThh:mm:ss.sssZ``.
    """
    (column,) = connection.execute(
        "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (layer,)
    ).fetchone()
    connection.execute(
        "CREATE TABLE IF NOT EXISTS layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,"
        " f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256),"
        " styleName TEXT(30), styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT(30),"
        " ui TEXT(30), update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"
    )
    connection.execute(
        "INSERT OR REPLACE INTO gpkg_contents (table_name, data_type, identifier, description, last_change, srs_id)"
        " VALUES ('layer_styles', 'attributes', 'layer_styles', '', ?, 0)",
        (time,),
    )
    connection.execute(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName,"
        " styleQML, styleSLD, useAsDefault, description, owner, ui, update_time)"
        " VALUES ('', '', ?, ?, 'classes', ?, '', 1, 'class names and colours', '', NULL, ?)",
        (layer, column, vector_style(classes), time),
    )


def _write_style(path: Path, part: ET.Element, beside: Place) -> Path:
    """Write ``part`` beside ``path``, with what an older style beside ``beside`` says about the other kind of layer."""
    target = path.with_suffix(".qml")
    other = {"renderer-v2": "pipe", "pipe": "renderer-v2"}[part.tag]
    parts = [part]
    try:
        kept = ET.fromstring(_content(beside.with_suffix(".qml"))).find(other)
        parts += [kept] if kept is not None else []
    except (OSError, ET.ParseError):
        pass  # none there, or not XML: a new one takes its place
    categories = "Symbology" if part.tag == "renderer-v2" else "AllStyleCategories"
    with staged(target) as temporary, writing(target):
        text = _document(categories if len(parts) == 1 else "AllStyleCategories", sorted(parts, key=lambda e: e.tag))
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return target


def _content(place: Place) -> bytes:
    """Return what a style holds, nothing where there is none."""
    if isinstance(place, S3Place):
        from geoseg.object_storage import read

        return read(place) or b""
    return place.read_bytes() if place.is_file() else b""


def _document(categories: str, parts: Sequence[ET.Element]) -> str:
    root = ET.Element("qgis", version=_VERSION, styleCategories=categories)
    root.extend(parts)
    ET.indent(root, " ")
    return _DOCTYPE + ET.tostring(root, encoding="unicode") + "\n"


def _stem(path: Place | str) -> str:
    return PurePosixPath(path).stem if isinstance(path, str) else path.stem


def _source(layer: Layer, folder: Place) -> str:
    if isinstance(layer.path, str):
        return layer.path
    try:
        name = "./" + below(layer.path, folder)
    except ValueError:
        name = layer.path.gdal_name if isinstance(layer.path, S3Place) else str(layer.path.absolute())
    # A GeoPackage also holds the table of its styles.
    table = layer.kind == "polygons" and layer.path.suffix.lower() == ".gpkg"
    return f"{name}|layername={layer_name(layer.path)}" if table else name


def _map_layer(layer: Layer, identifier: str, title: str, source: str, provider: str) -> ET.Element:
    if layer.kind == "polygons":
        element = ET.Element("maplayer", type="vector", geometry="Polygon")
    else:
        element = ET.Element("maplayer", type="raster")
    for tag, text in (("id", identifier), ("datasource", source), ("layername", title)):
        ET.SubElement(element, tag).text = text
    lonlat = layer.kind == "polygons" and PurePosixPath(str(layer.path)).suffix.lower() in _LONLAT_SUFFIXES
    crs = pyproj.CRS("OGC:CRS84") if lonlat else layer.crs
    reference = ET.SubElement(ET.SubElement(element, "srs"), "spatialrefsys")
    # The code alone would give an empty CRS: QGIS reads the definition.
    ET.SubElement(reference, "wkt").text = crs.to_wkt()
    authority = crs.to_authority()
    if authority and authority[0] == "EPSG":
        ET.SubElement(reference, "authid").text = ":".join(authority)
    ET.SubElement(element, "provider", encoding="UTF-8").text = provider
    look = _look(layer)
    if look is not None:
        element.append(look)
    return element


def _look(layer: Layer) -> ET.Element | None:
    """Return the style of a layer, None where it is left to QGIS."""
    if layer.kind in ("confidence", "uncertainty"):
        return pipe(ramp_renderer(CONFIDENCE_RAMP if layer.kind == "confidence" else UNCERTAINTY_RAMP, 1))
    if layer.kind == "image":
        return None if layer.colors is None else pipe(image_renderer(layer.colors))
    if layer.classes is None:
        return None
    return vector_renderer(layer.classes) if layer.kind == "polygons" else pipe(label_renderer(layer.classes, 1))
