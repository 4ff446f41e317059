"""A model as a STAC item for catalogues of models, after the machine learning model extension (mlm) 1.4.0.

A model belongs to no place and no day: the item has no geometry, and its span of time is open.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from geoseg import __version__
from geoseg.bundle import Bundle, Description, NormalisationRecord
from geoseg.outputs.stac import (
    CLASSIFICATION,
    EXTENSIONS,
    MLM,
    VERSION,
    ModelNote,
    slug,
    write_record,
)

_FILE = f"{EXTENSIONS}/file/v2.1.0/schema.json"
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
# Begins a checksum after the multihash format that is 32 bytes of SHA-256.
_SHA256 = "1220"


def write_model_item(path: str | os.PathLike[str], bundle: Bundle, name: str) -> dict[str, Any]:
    """Write the item of a bundle, replacing ``path``; returns it.

    Args:
        path: the file.
        bundle: the model.
        name: what it is called.

    Raises:
        OutputError: it cannot be written.
    """
    target = Path(path)
    record = model_item(bundle, name, target.parent)
    write_record(target, record)
    return record


def model_item(bundle: Bundle, name: str, folder: Path) -> dict[str, Any]:
    """Return the item of a bundle, in which files are named as seen from ``folder``."""
    about = bundle.description
    kind = str(about.settings.get("name") or about.settings.get("network") or about.method)
    note = ModelNote(name, kind, (bundle.path,), tuple(about.bands), about.tile, about.class_table(), bundle.parameters)
    assets = {
        key: {**asset, "file:size": os.path.getsize(bundle.path), "file:checksum": _SHA256 + bundle.digest}
        for key, asset in note.assets(folder).items()
    }
    return {
        "type": "Feature",
        "stac_version": VERSION,
        "stac_extensions": [MLM, CLASSIFICATION, _FILE],
        "id": slug(name, "model"),
        "geometry": None,
        "properties": {
            "title": name,
            "description": _told(about, name, kind),
            "datetime": None,
            "start_datetime": "1900-01-01T00:00:00Z",
            "end_datetime": "9999-12-31T23:59:59Z",
            "license": about.licence if _SPDX.fullmatch(about.licence) else "other",
            **({} if about.resolution is None else {"gsd": about.resolution}),
            **_fields(note, about),
            **_own(about),
        },
        "links": [],
        "assets": assets,
    }


def _fields(note: ModelNote, about: Description) -> dict[str, Any]:
    """Return bands and the fields of the extension."""
    fields = note.fields()
    (tile,) = fields["mlm:input"]
    tile["description"] = "Pixel values, 0 after scaling where there are no data."
    if about.normalisation is not None:
        tile["value_scaling"] = _scaling(about.normalisation)
    if about.method == "refiner":
        side = about.tile
        shape = {"shape": [-1, 1, side, side], "dim_order": ["batch", "channel", "height", "width"]}
        mask = {"name": "mask", "bands": [], "input": {**shape, "data_type": "float32"}}
        fields["mlm:input"].append({**mask, "description": "The mask of one class that is to be refined."})
    if about.method == "onnx":
        fields["mlm:framework"] = "ONNX"
    return fields


def _scaling(record: NormalisationRecord) -> list[dict[str, Any]]:
    """Return what is done to the values of each band, as the extension tells it."""
    return [
        {"type": "z-score", "mean": offset, "stddev": scale}
        for offset, scale in zip(record.offset, record.scale, strict=True)
    ]


def _own(about: Description) -> dict[str, Any]:
    """Return what no extension has a field for."""
    record = {
        "geoseg:version": __version__,
        "geoseg:method": about.method,
        "geoseg:tile": about.tile,
        "geoseg:halo": about.halo,
        "geoseg:tile_exact": about.tile_exact,
        "geoseg:licence": about.licence,
        "geoseg:card": about.card,
    }
    clip = about.normalisation
    if clip is not None and (clip.low is not None or clip.high is not None):
        record["geoseg:scaled_clip"] = [clip.low, clip.high]
    return record


def _told(about: Description, name: str, kind: str) -> str:
    """Return in words what a model is, and under which licence."""
    classes = ", ".join(item.name for item in about.class_table())
    use = f"{about.card['use'].rstrip('.')}. " if "use" in about.card else ""
    scaling = " The scaling of the bands is measured on each scene." if about.normalisation is None else ""
    return f"{name}: {use}{kind}, from {', '.join(about.bands)} to {classes}. Licence: {about.licence}.{scaling}"
