"""The JSON schemas of STAC extensions that come with the tests, and what validates with them, offline."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pystac
from jsonschema import Draft7Validator
from referencing import Registry, Resource

_FOLDER = Path(__file__).parents[1] / "data" / "stac_schemas"
# The one that refers to version 1.1 of the classes would take those of 2.0, whose fields are the same.
_OTHER_VERSIONS = {"classification/v1.1.0": "classification-2.0.0"}


def _read(name: str) -> Any:
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def _registry() -> Registry:
    names = {path.stem.replace("-", "/v", 1): path.stem for path in _FOLDER.glob("*.json")} | _OTHER_VERSIONS
    pairs = [
        (f"https://stac-extensions.github.io/{version}/schema.json", Resource.from_contents(_read(name)))
        for version, name in names.items()
    ]
    return Registry().with_resources(pairs)


def check_extensions(record: dict[str, Any]) -> set[str]:
    """Validate a STAC object with the core's schema and all its extensions' that are here; returns the names of these.

    Raises:
        jsonschema.ValidationError: a field is not as an extension has it.
        pystac.STACValidationError: the object is none.
    """
    kind = pystac.STACObjectType.ITEM if record["type"] == "Feature" else pystac.STACObjectType.COLLECTION
    pystac.validation.validate_dict(record, kind, "1.1.0", [])
    registry, found = _registry(), set()
    for address in record["stac_extensions"]:
        name, version = re.fullmatch(r"https://[^/]+/([^/]+)/v([\d.]+)/schema\.json", address).groups()
        if (_FOLDER / f"{name}-{version}.json").exists():
            Draft7Validator(_read(f"{name}-{version}"), registry=registry).validate(record)
            found.add(name)
    return found
