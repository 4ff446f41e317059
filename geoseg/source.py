"""Opening rasters with GDAL: what may be read, and how faults are told."""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio._path import _parse_path, _vsi_path
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.env import ensure_env_with_credentials
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError

from geoseg.errors import SceneError, one_line
from geoseg.references import FETCHING, FLAG, local_file, refuse_elsewhere

# GDAL's block cache is 5 % of the memory by default, so it would grow with the machine; this serves a row of tiles.
# GDAL itself takes small numbers for megabytes, rasterio all numbers for bytes.
# No file makes GDAL run Python.
_GDAL = {"GDAL_CACHEMAX": 128 << 20, "GDAL_NUM_THREADS": "1", "GDAL_VRT_ENABLE_PYTHON": "NO"}
# For remote reads: no listing of the folder, merged range requests, patience with a busy server but not for ever: one
# that gives less than a kilobyte a second for half a minute has stalled.
_GDAL_REMOTE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_CONNECTTIMEOUT": "30",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
}
# GDAL tries again where a server is busy, not where a connection breaks: so seconds to wait before each further try.
_PAUSES_S = (0.5, 1.0, 2.0)
# After so long no further try is begun: GDAL has had its own patience by then.
_PATIENCE_S = 5.0
_BUSY = re.compile(r"HTTP response code: (?:429|5\d\d)|CURL error|HTTP error code ?: (?:429|5\d\d)", re.I)
_MOST_BLOCKS_CHECKED = 100_000

# What rasterio raises where GDAL fails.
RASTER_FAULTS = (RasterioError, CPLE_BaseError)

T = TypeVar("T")


class OpenPerThread:
    """What opens its file once in each thread, in an attribute ``_open``, which stays behind when it is pickled."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind."""
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore all else, with no file open yet."""
        self.__dict__.update(state, _open=threading.local())


def resolve(path: str | os.PathLike[str]) -> str:
    """Return ``path`` as GDAL opens it from any working folder: absolute if local, unchanged if a URL or ``/vsi…``."""
    text = os.fspath(path)
    if is_remote(text) or text.startswith("/vsi"):
        return text
    if "://" in text or _is_subdataset(text):
        return text
    return str(Path(text).expanduser().absolute())


def is_remote(path: str) -> bool:
    """Whether reading ``path`` goes through a network."""
    scheme = urllib.parse.urlsplit(path).scheme.lower()
    return scheme in {"http", "https", "s3", "gs", "az"} or path.startswith(
        ("/vsicurl/", "/vsis3/", "/vsigs/", "/vsiaz/", "/vsiadls/", "/vsioss/", "/vsiswift/")
    )


def _is_subdataset(text: str) -> bool:
    """Whether ``text`` looks like ``DRIVER:"file":part``, GDAL's name for a part of a container."""
    head, colon, rest = text.partition(":")
    return bool(colon) and len(head) > 1 and head.isupper() and bool(rest)


_PLACELESS = threading.RLock()


def gdal_environment(path: str) -> rasterio.Env:
    """Return the GDAL settings under which ``path`` is read; those for remote reads yield to the user's own."""
    remote = _GDAL_REMOTE if is_remote(path) else {}
    if path.startswith(("s3://", "/vsis3/")):
        from geoseg.object_storage import gdal_settings

        remote = {**remote, **gdal_settings()}
    return rasterio.Env(**_GDAL, **{name: value for name, value in remote.items() if name not in os.environ})


@contextmanager
def placeless() -> Iterator[None]:
    """Let rasters without a place on the Earth be opened and burnt inside the block without a warning.

    Python's filters of warnings belong to the process, so threads that set them aside at a time undo each other: one
    thread is inside at a time.
    """
    with _PLACELESS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def open_raster(path: str, overview: int | None = None, *, elsewhere: bool = False) -> rasterio.DatasetReader:
    """Open ``path`` for reading.

    Args:
        path: a file, a URL, or another GDAL name.
        overview: the overview to open in place of the raster, by its number from 0.
        elsewhere: whether the file may refer to files outside of its folder and to servers.

    Raises:
        SceneError: missing, unreadable, not a raster, a container of several rasters, or one that refers elsewhere.
    """
    if not is_remote(path) and not path.startswith("/vsi") and "://" not in path and not _is_subdataset(path):
        if not os.path.exists(path):
            raise SceneError(f"{path} does not exist: check the path.")
        if not os.access(path, os.R_OK):
            raise SceneError(f"{path} cannot be read: check its permissions.")
    drivers = None if elsewhere else _trusted(path)
    options = {} if overview is None else {"OVERVIEW_LEVEL": overview}
    try:
        with placeless(), gdal_environment(path):
            dataset = patiently(path, lambda: _open(path, drivers, **options), _is_unanswered)
    except (RasterioIOError, UnicodeError) as error:
        if is_remote(path) and _is_unanswered(error):
            raise SceneError(
                f"{path} cannot be read because its server does not answer ({one_line(error)}): try again later."
            ) from error
        hint = f", or trust it with {FLAG}" if _may_refer(path) and not elsewhere else ""
        raise SceneError(
            f"{path} is not a raster that GDAL can open ({one_line(error)}): "
            f"give a GeoTIFF or another georeferenced raster{hint}."
        ) from error
    if not elsewhere and (dataset.tags(ns="OVERVIEWS") or dataset.tags(ns="GEOLOCATION").get("X_DATASET")):
        dataset.close()
        raise SceneError(f"{path} keeps overviews or coordinates in another file: where you trust it pass {FLAG}.")
    if dataset.count == 0:
        parts = dataset.subdatasets
        dataset.close()
        listed = "; ".join(parts[:3]) + (" …" if len(parts) > 3 else "")
        raise SceneError(f"{path} holds no raster bands of its own: name one of its parts ({listed or 'it has none'}).")
    return dataset


def patiently(path: str, read: Callable[[], T], passes: Callable[[BaseException], bool] | None = None) -> T:
    """Return what ``read`` gives; where ``path`` is read through a network, try again after faults.

    Args:
        path: as GDAL opens it.
        read: what is tried.
        passes: whether a fault may pass; any may by default.
    """
    started = time.monotonic()
    for pause in _PAUSES_S if is_remote(path) else ():
        try:
            return read()
        except RASTER_FAULTS as error:
            if (passes and not passes(error)) or time.monotonic() - started > _PATIENCE_S:
                raise
            _forget(path)
            time.sleep(pause)
    return read()


def _forget(path: str) -> None:
    """Make GDAL forget what it knows of ``path``: it takes a file whose server did not answer for one that is not."""
    # GDAL drops what it knows when it closes a file of this name, also one that it could not open.
    with (
        rasterio.Env(CPL_VSIL_CURL_NON_CACHED=_vsi_path(_parse_path(path))),
        suppress(*RASTER_FAULTS, UnicodeError),
        placeless(),
    ):
        _open(path, ["GTiff"]).close()


def _is_unanswered(error: BaseException) -> bool:
    """Whether GDAL failed for what its server or the network did."""
    return bool(_BUSY.search(str(error)))


@ensure_env_with_credentials
def _open(path: str, drivers: list[str] | None, **options: Any) -> rasterio.DatasetReader:
    """Open ``path`` as ``rasterio.open`` does, which takes one driver only."""
    return rasterio.DatasetReader(_parse_path(path), driver=drivers, **options)


def _trusted(path: str) -> list[str]:
    """Return the drivers that may open ``path``, having looked at what it refers to.

    Raises:
        SceneError: it refers elsewhere.
    """
    file = local_file(path)
    if file is not None:
        refuse_elsewhere(str(file))
    # A VRT that is no plain file is not looked into, and a server could show another one the next time.
    return list(_drivers(vrt=file is not None))


@lru_cache(maxsize=2)
def _drivers(*, vrt: bool) -> tuple[str, ...]:
    with rasterio.Env() as env:
        return tuple(name for name in env.drivers() if name not in FETCHING and (vrt or name != "VRT"))


def _may_refer(path: str) -> bool:
    return path.lower().endswith((".vrt", ".xml", ".json", ".mrf", ".kmz", ".kml")) or _is_subdataset(path)


@contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Turn GDAL's errors inside the block into one sentence about ``path`` and ``what`` was read.

    Raises:
        SceneError: GDAL failed to read.
    """
    try:
        yield
    except RASTER_FAULTS as error:
        cause = one_line(error.__cause__ or error)
        way = "its server may have failed, so try again later, or the" if is_remote(path) else "the"
        raise SceneError(
            f"{path} cannot be read at {what} ({cause}): {way} file may be truncated or damaged."
        ) from error


def refuse_truncated(dataset: rasterio.DatasetReader) -> None:
    """Refuse a local GeoTIFF whose blocks reach beyond the end of the file, before hours of work run into it.

    Raises:
        SceneError: a block lies outside the file.
    """
    path = dataset.name
    if dataset.driver != "GTiff" or not os.path.isfile(path):
        return
    size = os.path.getsize(path)
    rows, cols = ((-(-n // b)) for n, b in zip(dataset.shape, dataset.block_shapes[0], strict=True))
    step = max(1, rows * cols // _MOST_BLOCKS_CHECKED)
    for number in range(rows * cols - 1, -1, -step):
        row, col = divmod(number, cols)
        offset = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1)
        length = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1)
        end = 0 if offset is None or length is None else int(offset) + int(length)
        if end > size:
            raise SceneError(
                f"{path} is truncated: it has {size} bytes, but one of its blocks ends at byte {end}: "
                "copy or download it again."
            )


def alpha_band(dataset: rasterio.DatasetReader) -> int | None:
    """Return the index (from 1) of the alpha band, if there is one.

    GDAL calls the fourth of four 8-bit bands alpha unless told otherwise, near infrared too; so one that bears another
    name is not believed to be alpha.
    """
    for index, meaning, text in zip(dataset.indexes, dataset.colorinterp, dataset.descriptions, strict=True):
        if meaning is ColorInterp.alpha and (not text or text.lower() in {"alpha", "mask", "opacity"}):
            return int(index)
    return None


def has_internal_mask(dataset: rasterio.DatasetReader) -> bool:
    """Whether the file carries a validity mask of its own, apart from alpha and nodata values."""
    flags = dataset.mask_flag_enums[0]
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def band_names(dataset: rasterio.DatasetReader) -> tuple[str, ...]:
    """Return a name for every band: its description, else its colour meaning, else ``band N``."""
    names: list[str] = []
    for index, text, meaning in zip(dataset.indexes, dataset.descriptions, dataset.colorinterp, strict=True):
        name = text or (
            meaning.name if meaning.name not in {"undefined", "gray", "grey", "palette"} else f"band {index}"
        )
        names.append(name if name not in names else f"band {index}")
    return tuple(names)


def choose_bands(
    path: str, names: Sequence[str], alpha: int | None, wanted: Sequence[int | str] | None
) -> tuple[int, ...]:
    """Return band indices (from 1) for indices or names in ``wanted``; by default every band but alpha.

    Raises:
        SceneError: a band that the raster does not have.
    """
    if wanted is None:
        return tuple(i for i in range(1, len(names) + 1) if i != alpha)
    if not wanted:
        raise SceneError(f"no band of {path} was chosen: give at least one of 1 to {len(names)}.")
    lower = [name.lower() for name in names]
    chosen = []
    for item in wanted:
        text = str(item).strip()
        if text.isdigit() and 1 <= int(text) <= len(names):
            chosen.append(int(text))
        elif text.lower() in lower:
            chosen.append(lower.index(text.lower()) + 1)
        else:
            listed = ", ".join(f"{i} ({name})" for i, name in enumerate(names, 1))
            raise SceneError(f"{path} has no band {text!r}: its bands are {listed}.")
    return tuple(chosen)
