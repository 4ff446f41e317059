"""Class polygons into a file, whatever its format: the suffix decides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyproj

from geoseg.classes import Classes
from geoseg.errors import OutputError
from geoseg.outputs.attributes import Attributes, grouped
from geoseg.outputs.geojson import GeoJSON, GeoJSONSequence, check_lonlat
from geoseg.outputs.qgis import write_vector_style
from geoseg.outputs.staging import check_place, staged, writing
from geoseg.places import S3Place, as_place
from geoseg.vector.features import Features


class Sink(Protocol):
    """A file under construction that takes polygons group by group."""

    def add(self, features: Features) -> int:
        """Write one group and return how many polygons were written."""

    def finish(self) -> None:
        """Complete the file (also one without polygons) and close it."""

    def abandon(self) -> None:
        """Close what is open; the file will be thrown away."""


@dataclass(frozen=True)
class Format:
    """A vector format.

    Attributes:
        sink: what makes its sink.
        lonlat: whether it is in longitude and latitude.
        arrow: whether it takes pyarrow.
        lines: whether its bytes do not depend on how polygons are grouped.
    """

    sink: Callable[[Path, Attributes, Any], Sink]
    lonlat: bool = False
    arrow: bool = False
    lines: bool = False


def _table(name: str) -> Callable[[Path, Attributes, pyproj.CRS | None], Sink]:
    """Return what makes a sink of :mod:`geoseg.outputs.tables`, whose libraries take a while to import."""

    def make(path: Path, attributes: Attributes, crs: pyproj.CRS | None) -> Sink:
        from geoseg.outputs import tables

        sink: Sink = getattr(tables, name)(path, attributes, crs)
        return sink

    return make


_FORMATS: dict[str, Format] = {
    ".geojson": Format(GeoJSON, lonlat=True, lines=True),
    ".geojsonl": Format(GeoJSONSequence, lonlat=True, lines=True),
    ".geojsons": Format(GeoJSONSequence, lonlat=True, lines=True),
    ".ndjson": Format(GeoJSONSequence, lonlat=True, lines=True),
    ".gpkg": Format(_table("GeoPackage")),
    ".fgb": Format(_table("FlatGeobuf")),
    ".parquet": Format(_table("GeoParquet"), arrow=True),
}


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of the known vector formats, with their dots, in lower case."""
    return tuple(_FORMATS)


def is_lonlat(path: str | os.PathLike[str] | S3Place) -> bool:
    """Whether polygons in ``path`` are written as WGS 84 longitude and latitude rather than in the scene's CRS.

    Raises:
        OutputError: the suffix is of no known format.
    """
    return _format(path).lonlat


def check_output(
    path: str | os.PathLike[str] | S3Place,
    overwrite: bool = False,
    crs: pyproj.CRS | None = None,
    placeless: bool = False,
) -> None:
    """Refuse an output that could not be written, before work starts.

    Args:
        path: where the polygons are to go.
        overwrite: whether a file that exists may be replaced.
        crs: the scene's CRS, if known, to tell now that a format cannot hold it.
        placeless: whether the polygons are to have no CRS.

    Raises:
        OutputError: unknown suffix, existing file, missing or unwritable folder, or coordinates without longitude and
            latitude on the Earth for a format that needs them; Parquet without pyarrow.
    """
    chosen = _format(path)
    check_place(path, overwrite)
    if placeless and chosen.lonlat:
        raise OutputError(_no_lonlat(path))
    if crs is not None and chosen.lonlat:
        check_lonlat(crs, str(path))
    if chosen.arrow:
        from geoseg.outputs.tables import check_parquet

        check_parquet(str(path))


def write_features(
    path: str | os.PathLike[str] | S3Place,
    batches: Iterable[Features],
    *,
    classes: Classes,
    crs: pyproj.CRS | None,
    pixel_m: float,
    has_confidence: bool,
    extra: tuple[tuple[str, str], ...] = (),
    multipart: bool = False,
) -> int:
    """Write polygons as they come, with a QGIS style beside the file; an existing file is replaced at the end.

    A group is written while the next is made.  Memory is bounded by two batches or groups of 16 384 polygons, whichever
    are larger.  The bytes depend on the polygons alone: not on their division into batches, nor on time or place.

    Args:
        path: the output; its suffix is one of :func:`suffixes`.
        batches: polygons in coordinates of ``crs``, ordered by id.
        classes: their names and colours.
        crs: the scene's CRS.  GeoJSON is written in WGS 84 longitude and latitude, other formats keep it.  None where
            coordinates are not those of the Earth, which GeoJSON cannot hold.
        pixel_m: ground length of a pixel in metres: numbers are rounded well below it.
        has_confidence: whether the confidences mean anything; if not, they are written as null.
        extra: names and numpy types of the further columns that all batches have.
        multipart: whether there may be multipolygons: a table then holds nothing else.

    Returns:
        How many polygons were written.

    Raises:
        OutputError: unknown suffix, unwritable place, full disk, or a CRS that the format cannot hold.
        LabelsError: a polygon whose label value belongs to no class.
    """
    chosen = _format(path)
    if crs is None and chosen.lonlat:
        raise OutputError(_no_lonlat(path))
    attributes = Attributes(classes, pixel_m, has_confidence, extra, multipart)
    with staged(path) as temporary:
        with writing(path):
            sink = chosen.sink(temporary, attributes, crs)
        try:
            count = _write_groups(path, sink, batches if chosen.lines else grouped(batches))
            with writing(path):
                sink.finish()
                write_vector_style(temporary, classes, beside=path)
        except BaseException:
            sink.abandon()
            raise
    return count


def _write_groups(path: str | os.PathLike[str] | S3Place, sink: Sink, groups: Iterable[Features]) -> int:
    """Write groups in a thread of its own, each while the next is made here; returns the number of polygons."""

    def write(group: Features) -> int:
        # What goes wrong in the producer of the batches is not this file's fault: only the writes are translated.
        with writing(path):
            return sink.add(group)

    count = 0
    with ThreadPoolExecutor(1, "geoseg-writer") as writer:
        under_way: Future[int] | None = None
        for group in groups:
            count += under_way.result() if under_way else 0
            under_way = writer.submit(write, group)
        return count + (under_way.result() if under_way else 0)


def _no_lonlat(path: str | os.PathLike[str] | S3Place) -> str:
    return (
        f"{path} needs longitude and latitude, which pixel coordinates do not have: "
        "write a GeoPackage (.gpkg), FlatGeobuf (.fgb) or GeoParquet (.parquet)."
    )


def _format(path: str | os.PathLike[str] | S3Place) -> Format:
    suffix = as_place(path).suffix.lower()
    if suffix not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise OutputError(f"{path} has {f'the suffix {suffix!r}' if suffix else 'no suffix'}: use one of {known}.")
    return _FORMATS[suffix]
