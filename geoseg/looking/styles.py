"""Names and colours of classes, read back from the styles that outputs carry."""

from __future__ import annotations

import sqlite3
import urllib.parse
import xml.etree.ElementTree as ET
from pathlib import Path

from geoseg.classes import LabelClass
from geoseg.errors import LabelsError

# A style of 255 classes has 200 kB.
_MOST_BYTES = 8 << 20


def style_classes(path: Path) -> dict[int, LabelClass]:
    """Return the classes that the style of a vector file names, by class id; none where there is no style.

    A GeoPackage's own style comes before the ``.qml`` beside the file, as in QGIS.  What is no style of classes, or is
    damaged, is passed over: colours are then those that geoseg gives by default.
    """
    texts = [_stored(path)] if path.suffix.lower() == ".gpkg" else []
    beside = path.with_suffix(".qml")
    if beside.is_file() and beside.stat().st_size <= _MOST_BYTES:
        texts.append(beside.read_text("utf-8", errors="replace"))
    for text in texts:
        found = _classes_of(text)
        if found:
            return found
    return {}


def _stored(path: Path) -> str:
    """Return the style inside a GeoPackage, "" if there is none."""
    try:
        connection = sqlite3.connect(f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro", uri=True)
        try:
            row = connection.execute(
                "SELECT styleQML FROM layer_styles WHERE length(styleQML) <= ? ORDER BY useAsDefault DESC, id LIMIT 1",
                (_MOST_BYTES,),
            ).fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return ""
    return str(row[0]) if row and row[0] else ""


def _classes_of(text: str) -> dict[int, LabelClass]:
    try:
        root = ET.fromstring(text.encode("utf-8"))
    except ET.ParseError:
        return {}
    renderer = root.find("renderer-v2")
    if renderer is None or renderer.get("attr") != "class_id":
        return {}
    colors = {}
    for symbol in renderer.iterfind("symbols/symbol"):
        values = {option.get("name"): option.get("value") for option in symbol.iter("Option")}
        colors[symbol.get("name")] = _hex(values.get("color") or "")
    found = {}
    for category in renderer.iterfind("categories/category"):
        value, name = category.get("value") or "", category.get("label") or ""
        color = colors.get(category.get("symbol"))
        if value.isdigit() and color:
            try:
                found[int(value)] = LabelClass(int(value), name, color, name.strip().lower() == "background")
            except LabelsError:
                continue
    return found


def _hex(text: str) -> str | None:
    """Return ``r,g,b,a`` (QGIS 3.40 adds more behind) as ``#rrggbb``."""
    parts = text.split(",")[:3]
    if len(parts) < 3 or not all(part.strip().isdigit() and int(part) < 256 for part in parts):
        return None
    return "#" + "".join(f"{int(part):02x}" for part in parts)
