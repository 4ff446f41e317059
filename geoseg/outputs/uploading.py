"""Outputs in object storage: made here, then put there, the output itself last."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from geoseg.errors import OutputError
from geoseg.object_storage import delete, exists, probe, put_file
from geoseg.places import S3Place

# What GDAL keeps beside a raster: it describes the object that is being replaced.
_NOTES = ".aux.xml"
_RASTERS = {".tif", ".tiff"}


def check_object(place: S3Place, overwrite: bool) -> None:
    """Refuse an object that could not be put, before work starts.

    Raises:
        OutputError: it exists and ``overwrite`` is False, it names a bucket or a folder, or nothing can be put there.
    """
    if not place.key:
        raise OutputError(f"{place} is a bucket: give the output a name in it.")
    if not overwrite and exists(place):
        raise OutputError(f"{place} exists already: choose another name or pass --overwrite.")
    _check_folder(place.parent)


@lru_cache(maxsize=1024)
def _check_folder(folder: S3Place) -> None:
    """Find out, once for each folder, that something can be put there."""
    exists(folder / ".geoseg-probe")  # tells a bucket that is not there
    probe(folder / ".geoseg-probe")


def upload(folder: Path, place: S3Place) -> None:
    """Put the files of ``folder`` beside ``place``, and last the one of its name.

    Raises:
        OutputError: it exists already and was to be new, or storage does not take it.
    """
    if place.new and exists(place):
        raise OutputError(f"{place} exists already: choose another name or pass --overwrite.")
    found = sorted(os.listdir(folder))
    for name in found:
        if name != place.name:
            put_file(place.with_name(name), folder / name)
    put_file(place, folder / place.name, new=place.new)
    notes = place.with_name(place.name + _NOTES)
    if place.suffix.lower() in _RASTERS and notes.name not in found and not place.new and exists(notes):
        delete(place.parent, [notes.name])
