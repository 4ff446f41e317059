"""GeoJSON after RFC 7946, streamed: one feature a line, with or without the collection around them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from geoseg.outputs.attributes import Attributes, part
from geoseg.outputs.lines import COMPILED_FROM, lines_of
from geoseg.outputs.lonlat import LonLat
from geoseg.outputs.multipart import multipart_outlines
from geoseg.vector.features import Features

# So many points at a time go through the processor's caches rather than through fresh memory.
_PIECE_POINTS = 1 << 16


def check_lonlat(crs: pyproj.CRS, path: str | os.PathLike[str]) -> None:
    """Refuse a CRS whose coordinates have no WGS 84 longitude and latitude.

    Raises:
        OutputError: another planet, or a system that is not tied to the Earth.
    """
    LonLat.open(crs, 1.0, os.fspath(path))


class GeoJSON:
    """A FeatureCollection under construction."""

    _head = b'{"type":"FeatureCollection","features":[\n'
    _between = b",\n"
    _tail = b"\n]}\n"

    def __init__(self, path: Path, attributes: Attributes, crs: pyproj.CRS) -> None:
        """Open ``path`` for polygons that come in ``crs``.

        Raises:
            OutputError: ``crs`` has no longitude and latitude on the Earth.
            OSError: the file cannot be opened.
        """
        self._attributes = attributes
        self._lonlat = LonLat.open(crs, attributes.pixel_m, path.name)
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by finish
        self._empty, self._points = True, 0
        self._file.write(self._head)

    def add(self, features: Features) -> int:
        """Write one group and return how many polygons were written: those that rounding leaves anything of.

        Raises:
            OutputError: a point has no longitude and latitude.
            LabelsError: a label value that belongs to no class.
            OSError: the disk is full.
        """
        points = shapely.get_num_coordinates(features.geometry)
        self._points += int(points.sum())
        compiled = self._points >= COMPILED_FROM
        return sum(self._add(part, compiled) for part in _pieces(features, points))

    def _add(self, features: Features, compiled: bool) -> int:
        outlines = multipart_outlines(features.geometry, partial(self._lonlat.outlines, compiled=compiled))
        kept = outlines.stop > outlines.first
        heads = _heads(features, self._attributes, kept)
        if heads:
            if not self._empty:
                self._file.write(self._between)
            self._file.write(lines_of(heads, outlines.only(kept), self._between, compiled))
            self._empty = False
        return len(heads)

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

    _head = b""
    _between = b"\n"
    _tail = b"\n"

    def finish(self) -> None:
        """End the last line and close the file."""
        if not self._empty:
            self._file.write(self._tail)
        self._file.close()


def _pieces(features: Features, points: NDArray[np.int64]) -> Iterator[Features]:
    """Yield the polygons in pieces of about :data:`_PIECE_POINTS` points."""
    piece = (np.cumsum(points) - points) // _PIECE_POINTS
    starts = np.flatnonzero(np.diff(piece, prepend=-1))
    for start, stop in itertools.pairwise([*starts.tolist(), len(features)]):
        yield part(features, start, stop)


def _heads(features: Features, attributes: Attributes, kept: NDArray[np.bool_]) -> list[bytes]:
    """Return what stands before the geometry of each polygon that is ``kept`` (N,)."""
    columns = {name: values[kept] for name, values in attributes.columns(features).items()}
    names = {name: json.dumps(name, ensure_ascii=False) for name in set(columns["class_name"])}
    rows = zip(
        columns["id"].tolist(),
        columns["class_id"].tolist(),
        columns["class_name"],
        *(_texts(columns[name]) for name in ("area_m2", "perimeter_m", "confidence")),
        _further(columns, [name for name, _ in attributes.extra]),
        strict=True,
    )
    return [
        (
            f'{{"type":"Feature","id":{number},"properties":{{"id":{number},"class_id":{class_id},'
            f'"class_name":{names[name]},"area_m2":{area},"perimeter_m":{perimeter},'
            f'"confidence":{probability}{further}}},"geometry":'
        ).encode()
        for number, class_id, name, area, perimeter, probability, further in rows
    ]


def _texts(values: NDArray[Any]) -> list[str]:
    """Return numbers as JSON has them: null for what is not finite."""
    texts = list(map(repr, values.tolist()))
    for missing in np.flatnonzero(~np.isfinite(values)).tolist():
        texts[missing] = "null"
    return texts


def _further(columns: dict[str, NDArray[Any]], names: list[str]) -> Iterable[str]:
    """Return the further properties of each polygon, with a comma before each."""
    if not names:
        return itertools.repeat("", len(columns["id"]))
    named = [[f",{json.dumps(name)}:{text}" for text in _texts(columns[name])] for name in names]
    return map("".join, zip(*named, strict=True))
