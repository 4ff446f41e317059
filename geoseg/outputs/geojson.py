"""GeoJSON after RFC 7946, streamed: one feature a line, with or without the collection around them."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, TextIO

import pyproj
import shapely
from numpy.typing import NDArray

from geoseg.outputs.attributes import Attributes
from geoseg.outputs.lonlat import LonLat
from geoseg.vector.features import Features


def check_lonlat(crs: pyproj.CRS, path: str | os.PathLike[str]) -> None:
    """Refuse a CRS whose coordinates have no WGS 84 longitude and latitude.

    Raises:
        OutputError: another planet, or a system that is not tied to the Earth.
    """
    LonLat.open(crs, 1.0, os.fspath(path))


class GeoJSON:
    """A FeatureCollection under construction."""

    _head = '{"type":"FeatureCollection","features":[\n'
    _between = ",\n"
    _tail = "\n]}\n"

    def __init__(self, path: Path, attributes: Attributes, crs: pyproj.CRS) -> None:
        """Open ``path`` for polygons that come in ``crs``.

        Raises:
            OutputError: ``crs`` has no longitude and latitude on the Earth.
            OSError: the file cannot be opened.
        """
        self._attributes = attributes
        self._lonlat = LonLat.open(crs, attributes.pixel_m, path.name)
        self._file: TextIO = open(path, "w", encoding="utf-8", newline="\n")  # noqa: SIM115 - closed by finish
        self._empty = True
        self._file.write(self._head)

    def add(self, features: Features) -> int:
        """Write one group and return how many polygons were written: those that rounding leaves anything of.

        Raises:
            OutputError: a point has no longitude and latitude.
            LabelsError: a label value that belongs to no class.
            OSError: the disk is full.
        """
        geometry = self._lonlat.bring(features.geometry)
        lines = _lines(geometry, features, self._attributes)
        if lines:
            self._file.write(("" if self._empty else self._between) + self._between.join(lines))
            self._empty = False
        return len(lines)

    def finish(self) -> None:
        """Close the collection and the file."""
        self._file.write(self._tail)
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(OSError):  # a full disk, and what it does not take was going to be thrown away
            self._file.close()


class GeoJSONSequence(GeoJSON):
    """Newline-delimited GeoJSON under construction: one feature a line and nothing else."""

    _head = ""
    _between = "\n"
    _tail = "\n"

    def finish(self) -> None:
        """End the last line and close the file."""
        if not self._empty:
            self._file.write(self._tail)
        self._file.close()


def _lines(geometry: NDArray[Any], features: Features, attributes: Attributes) -> list[str]:
    """Return each polygon as one line of JSON."""
    kept = shapely.is_geometry(geometry)
    columns = {name: values[kept] for name, values in attributes.columns(features).items()}
    names = {name: json.dumps(name, ensure_ascii=False) for name in set(columns["class_name"])}
    confidence = [repr(value) if value == value else "null" for value in columns["confidence"].tolist()]
    rows = zip(
        shapely.to_geojson(geometry[kept]),
        columns["id"].tolist(),
        columns["class_id"].tolist(),
        columns["class_name"],
        columns["area_m2"].tolist(),
        columns["perimeter_m"].tolist(),
        confidence,
        strict=True,
    )
    return [
        f'{{"type":"Feature","id":{number},"properties":{{"id":{number},"class_id":{class_id},'
        f'"class_name":{names[name]},"area_m2":{area!r},"perimeter_m":{perimeter!r},"confidence":{probability}}},'
        f'"geometry":{shape}}}'
        for shape, number, class_id, name, area, perimeter, probability in rows
    ]
