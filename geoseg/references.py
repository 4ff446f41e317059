"""What else a raster makes GDAL open: the parts of a VRT, and descriptions of servers.

A raster is a stranger's file.  A VRT may name any file or address, and some formats are but the address of a server; so
what an untrusted one may refer to is decided here, before GDAL sees it.
"""

from __future__ import annotations

import os
import xml.parsers.expat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from geoseg.errors import SceneError, one_line

FLAG = "--allow-vrt-elsewhere"
# What such a driver opens is read through a network, or lists files that lie anywhere.
FETCHING = frozenset(
    {
        *("WMS", "WCS", "WMTS", "HTTP", "OGCAPI", "PLMOSAIC", "DAAS", "EEDA", "EEDAI", "NGW", "PostGISRaster"),
        *("STACTA", "STACIT", "GTI", "MRF", "KMLSUPEROVERLAY", "DERIVED"),
    }
)
# A VRT of a million parts has some 500 bytes for each; more is no mosaic that GDAL would open in time.
_MOST_BYTES = 512 << 20
# VRTs of VRTs: gdalbuildvrt over mosaics of mosaics makes two or three.
_MOST_NESTED = 8
# Elements inside each other: GDAL's own VRTs have fewer than ten.
_MOST_DEEP = 64
# A description says what it is within so many bytes.
_HEAD = 1024
# The names under which GDAL looks for a file (as an element or as an attribute, in any case).
_NAMES_A_FILE = ("filename", "dataset", "datasource")
_NAMES_NONE = {"vrtdataset", "gdalwarpoptions", "relativetovrt"}
# What runs code, reads any file as if it were pixels, or names files in ways of its own.
_REFUSED = {
    "pixelfunctioncode": "has a pixel function in Python",
    "pixelfunctionlanguage": "has a pixel function in another language",
    "openoptions": "has options for opening its parts",
    "root_path": "moves the folder of its parts",
}
_REFUSED_KINDS = {
    "vrtrawrasterband": "reads other files as raw bytes",
    "vrtprocesseddataset": "has processing steps, which may read other files",
}
# What stands at the start of descriptions of servers and of lists of files.
_SERVERS = (
    *(b"<gdal_wms", b"<wcs_gdal", b"<gdal_wmts", b"<wms_tile_service", b"<tilepattern", b"<gdaltileindex"),
    *(b"<mrf_meta", b"<kml", b"capabilities", b"<ogcapi", b"<twms"),
)
_VECTOR_SERVERS = (b"<ogr", b"<ogcapi", b"capabilities")
_SIDECARS = (".ovr", ".msk", ".aux.xml")


def refuse_elsewhere(path: str) -> None:
    """Refuse a local raster that makes GDAL open what is neither in its folder nor below.

    Raises:
        SceneError: it does, or is a VRT that cannot be checked.
    """
    stat = os.stat(path)
    _checked(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)


def parts(path: str) -> tuple[str, ...]:
    """Return the files that a local VRT consists of, itself not included; none for another raster.

    VRTs among them are followed.

    Raises:
        SceneError: one is outside of the folder of the VRT, or the VRT cannot be checked.
    """
    stat = os.stat(path)
    return _checked(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)


def refuse_vector_elsewhere(path: str) -> None:
    """Refuse a local vector file that describes a database, a server, or layers of other files.

    Raises:
        SceneError: it does.
    """
    if not os.path.isfile(path):
        return
    head = _head(path).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<") and any(word in head for word in _VECTOR_SERVERS):
        raise SceneError(f"{path} describes layers that lie elsewhere: give the file that holds them.")


def is_vrt(path: str) -> bool:
    """Whether GDAL would take a local file for a VRT."""
    return b"<vrtdataset" in _head(path).lower()


@lru_cache(maxsize=64)
def _checked(path: str, _size: int, _changed_ns: int) -> tuple[str, ...]:
    """Check once what many threads and commands open many times."""
    found: dict[str, None] = {}
    for suffix in _SIDECARS:
        _check_sidecar(path, suffix)
    _refuse_server(path, path)
    if is_vrt(path):
        _walk(path, os.path.dirname(path), found, 1)
    return tuple(found)


def _walk(path: str, root: str, found: dict[str, None], depth: int) -> None:
    """Add the parts of a VRT, all below ``root``, to ``found``."""
    if depth > _MOST_NESTED:
        raise SceneError(f"{path} is a VRT of VRTs more than {_MOST_NESTED} deep: make one VRT of the rasters.")
    for text, relative in _Reader(path).references():
        # A name with a colon or a bracket may be a connection, a subdataset, or a VRT written out.
        if not text or "<" in text or "://" in text or text.startswith("/vsi") or _connection(text):
            raise _elsewhere(path, f"refers to {_shown(text)}, which is no file of its folder")
        base = os.path.dirname(path)
        part = _real(os.path.join(base, text) if relative or not os.path.isabs(text) else text)
        if os.path.commonpath([root, part]) != root:
            raise _elsewhere(path, f"refers to {_shown(text)}, which is outside of its folder")
        if part in found or not os.path.isfile(part):
            continue
        found[part] = None
        _refuse_server(part, path)
        for suffix in _SIDECARS:
            _check_sidecar(part, suffix)
        if is_vrt(part):
            _walk(part, root, found, depth + 1)


def _connection(text: str) -> bool:
    head, colon, _ = text.partition(":")
    return bool(colon) and len(head) > 1 and "/" not in head


def _real(path: str) -> str:
    """Return a path without links and dots; folders, which the parts of a mosaic share, are looked up once."""
    if os.path.islink(path) or os.path.basename(path) in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(_real_folder(os.path.dirname(path)), os.path.basename(path))


@lru_cache(maxsize=1024)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def _refuse_server(path: str, named: str) -> None:
    """Refuse a file that is the description of something else, in the form of XML or JSON."""
    head = _head(path).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    listed = path.lower().endswith((".gti.gpkg", ".gti.fgb", ".gti.parquet", ".kmz", ".mrf"))
    xml = head.startswith(b"<") and any(word in head for word in _SERVERS)
    stac = head.startswith(b"{") and named != path
    if listed or xml or stac:
        raise _elsewhere(path, "describes rasters that lie elsewhere or on a server")


def _check_sidecar(path: str, suffix: str) -> None:
    """Refuse overviews, masks and metadata beside a raster that lead elsewhere."""
    beside = path + suffix
    if not os.path.isfile(beside):
        return
    if suffix != ".aux.xml":
        if _head(beside).lstrip().startswith((b"<", b"{")):
            raise _elsewhere(beside, "describes overviews or masks that lie elsewhere")
        return
    for text, _ in _Reader(beside).references(("OVERVIEW_FILE", "X_DATASET", "Y_DATASET")):
        raise _elsewhere(beside, f"refers to {_shown(text)}")


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise SceneError(f"{path} cannot be read ({error.strerror or error}): check its permissions.") from error


def _elsewhere(path: str, told: str) -> SceneError:
    return SceneError(
        f"{path} {told}: where you trust it pass {FLAG} (to predict, refine, cluster, batch or info; "
        "data.allow_vrt_elsewhere in a training), else convert it with gdal_translate, or put it beside its parts."
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:99] + "…")


@dataclass
class _Reader:
    """The names of files in an XML file, found without building its tree."""

    path: str
    _names: list[tuple[str, bool]] = field(default_factory=list)
    _open: list[tuple[str, bool]] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _keys: tuple[str, ...] = ()

    def references(self, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, bool]]:
        """Yield each name of a file and whether it is relative; of metadata, only what stands under ``keys``.

        Raises:
            SceneError: the file is no XML, has entities, is too long or too deep, or holds what is refused.
        """
        size = os.path.getsize(self.path)
        if size > _MOST_BYTES:
            raise SceneError(f"{self.path} is longer than {_MOST_BYTES >> 20} MiB: make a smaller VRT.")
        self._keys = keys
        parser = xml.parsers.expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._add
        parser.StartDoctypeDeclHandler = self._doctype
        try:
            with open(self.path, "rb") as file:
                parser.ParseFile(file)
        except (xml.parsers.expat.ExpatError, ValueError, LookupError) as error:
            if isinstance(error, SceneError):
                raise
            raise SceneError(f"{self.path} is no sound XML ({one_line(error)}): make it again.") from error
        except OSError as error:
            raise SceneError(f"{self.path} cannot be read ({error.strerror or error}).") from error
        yield from self._names

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        lower = name.lower()
        given = {key.lower(): value for key, value in attributes.items()}
        if len(self._open) >= _MOST_DEEP:
            raise SceneError(f"{self.path} has elements more than {_MOST_DEEP} deep: make it again.")
        for key in (lower, *given) if not self._keys else ():
            if key in _REFUSED:
                raise _elsewhere(self.path, _REFUSED[key])
        kind = given.get("subclass", "").lower()
        if kind in _REFUSED_KINDS:
            raise _elsewhere(self.path, _REFUSED_KINDS[kind])
        if not self._keys:
            self._names += [(value.strip(), False) for key, value in given.items() if _is_name(key)]
        wanted = given.get("key", "").upper()
        leads = wanted in (self._keys or ("OVERVIEW_FILE", "X_DATASET", "Y_DATASET"))
        relative = given.get("relativetovrt", "0").strip() not in ("", "0")
        self._open.append(("" if not leads and (self._keys or not _is_name(lower)) else lower, relative))
        self._text.clear()

    def _add(self, text: str) -> None:
        if self._open and self._open[-1][0]:
            self._text.append(text)

    def _end(self, _name: str) -> None:
        name, relative = self._open.pop()
        if name:
            self._names.append(("".join(self._text).strip(), relative))
        self._text.clear()

    def _doctype(self, *_: object) -> None:
        raise SceneError(f"{self.path} declares a document type, which no raster's XML needs: take it out.")


def _is_name(name: str) -> bool:
    return name.endswith(_NAMES_A_FILE) and name not in _NAMES_NONE


def local_file(path: str) -> Path | None:
    """Return the file that GDAL opens for ``path`` (``vrt://file?…`` too), None where it is none of this machine."""
    text = path.removeprefix("vrt://")
    if text != path:
        text = text.partition("?")[0]
    return Path(text) if os.path.isfile(text) else None
