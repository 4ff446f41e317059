"""Where chunks are kept while a run goes on."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from geoseg.cache import cache_folder
from geoseg.errors import ConfigError
from geoseg.places import Place, S3Place, place_of


def workdir_of(given: str) -> Place:
    """Return the place that a user gives for chunks.

    Raises:
        ConfigError: a whole bucket, which may hold more.
        OutputError: an address that nothing can be written to.
    """
    place = place_of(given)
    if isinstance(place, S3Place) and not place.key:
        raise ConfigError(f"--workdir {given} is a whole bucket: give a name in it, such as {place / 'work'}.")
    return place.absolute()


def own_workdir(out: Place, *, shared: bool) -> Place:
    """Return the place of the chunks of an output: beside it, hidden; always the same, so that a rerun finds it.

    Args:
        out: a file, or something in object storage.
        shared: whether workers on other machines put chunks there; those here take a folder of this machine.
    """
    if not isinstance(out, S3Place) or shared:
        return out.with_name(f".{out.name}.geoseg").absolute()
    return _cached(out)


def batch_workdir(folder: Place, *, shared: bool) -> Place:
    """Return the place of the chunks of a batch; see :func:`own_workdir`."""
    if isinstance(folder, S3Place) and not shared:
        return _cached(folder)
    return folder / ".geoseg" / "work"


def _cached(out: S3Place) -> Path:
    name = re.sub(r"\W+", "_", out.name)[:40]
    return (cache_folder() / "work" / f"{name}-{hashlib.sha256(str(out).encode()).hexdigest()[:16]}").absolute()
