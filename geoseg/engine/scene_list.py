"""Where the scenes of a batch come from, and what their outputs are called."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from geoseg.engine.stac_items import items_of, scene_of
from geoseg.errors import SceneError, one_line
from geoseg.fetching import text_at, without_secrets
from geoseg.source import is_remote, resolve

_LISTS = (".txt", ".csv")
_STAC = (".json", ".geojson")
_RASTERS = (".tif", ".tiff", ".jp2", ".img", ".vrt")
# Columns of a CSV list that may hold the path, and what its outputs are called.
_PATHS = ("scene", "path", "href", "url", "file")
_NAME = "name"
_LONGEST_BYTES = 120


@dataclass(frozen=True)
class Entry:
    """A scene of a batch.

    Attributes:
        source: what GDAL opens; empty where ``fault`` says why there is nothing to open.
        name: of its outputs, a plain file name that no other scene of the batch has.
        identity: what tells it from others, the same in every run.
        fault: why it cannot be used.
        properties: of the STAC item it comes from.
        item: where this item is.
    """

    source: str
    name: str
    identity: str
    fault: str | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    item: str | None = None

    @property
    def shown(self) -> str:
        """The source without what may be secret."""
        return without_secrets(self.source) if is_remote(self.source) and "://" in self.source else self.source


def list_scenes(
    given: Sequence[str | os.PathLike[str]],
    *,
    asset: str | None = None,
    known: Mapping[str, str] | None = None,
    reserved: Sequence[str] = (),
) -> list[Entry]:
    """Return the scenes that are meant, in order, each once.

    Args:
        given: rasters (paths, URLs), globs, folders (of their VRTs, else of their rasters), lists (.txt with one path a
            line, .csv with a column ``scene`` and perhaps ``name``; paths are relative to the list), and STAC item
            collections or items (.json, .geojson, or the URL of a search).
        asset: the asset of STAC items; by default the only raster, or the one that is called visual, image or data.
        known: names given before, by identity; they stay.
        reserved: names that no scene may have.

    Raises:
        SceneError: what is given does not exist or cannot be read, or there is no scene in it.
    """
    found: dict[str, Entry] = {}
    for text in (os.fspath(each) for each in given):
        try:
            entries = list(_entries(text, asset))
        except SceneError:
            raise
        except (ValueError, OSError, csv.Error) as error:
            # An address that is none, or a name with signs that no file has.
            raise SceneError(f"{text} names what cannot be read ({one_line(error)}): correct it.") from error
        if not entries:
            raise SceneError(f"{text} names no scene: give rasters, a glob, a folder, a list, or STAC items.")
        for entry in entries:
            found.setdefault(entry.identity, entry)
    if not found:
        raise SceneError("no scene was given: name at least one.")
    return _named(list(found.values()), known or {}, reserved)


def _entries(text: str, asset: str | None) -> Iterator[Entry]:
    if is_remote(text) or "://" in text:
        path = urlsplit(text).path.lower()
        if path.endswith(_STAC) or path.rstrip("/").endswith(("/items", "/search")):
            yield from _stac(text, asset)
        elif path.endswith(_LISTS):
            yield from _listed(text)
        else:
            yield _raster(text)
    elif os.path.isdir(text):
        yield from map(_raster, _folder(Path(text)))
    elif not os.path.exists(text) and glob.has_magic(text):
        yield from map(_raster, _matching(text))
    elif text.lower().endswith(_LISTS):
        yield from _listed(text)
    elif text.lower().endswith(_STAC):
        yield from _stac(text, asset)
    else:
        yield _raster(text)


def _raster(text: str, name: str | None = None) -> Entry:
    source = resolve(text)
    identity = os.path.realpath(source) if os.path.exists(source) else _unsecret(source)
    last = unquote(urlsplit(source).path) if "://" in source else source
    return Entry(source, name or Path(last).stem, identity)


def _unsecret(source: str) -> str:
    """Return what stands for an address in files: of a query, which may hold a token, only a digest."""
    shown = without_secrets(source)
    return source if shown == source else f"{shown}#{hashlib.sha256(source.encode()).hexdigest()[:16]}"


def _matching(pattern: str) -> list[str]:
    found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not found:
        raise SceneError(f"no file matches {pattern}: check the pattern.")
    return found


def _folder(folder: Path) -> list[str]:
    """Return the rasters of a folder; where it has VRTs these alone, for the others are what they are made of."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in _RASTERS)
    mosaics = [path for path in files if path.suffix.lower() == ".vrt"]
    return [str(path) for path in mosaics or files]


def _listed(place: str) -> Iterator[Entry]:
    """Yield the scenes of a list."""
    text = text_at(place)
    if not urlsplit(place).path.lower().endswith(".csv"):
        for line in text.splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield _raster(_beside(place, line.strip()))
        return
    rows = csv.DictReader(io.StringIO(text))
    columns = {name.strip().lower(): name for name in rows.fieldnames or () if name}
    wanted = next((columns[name] for name in _PATHS if name in columns), None)
    if wanted is None:
        raise SceneError(f"{place} has no column called {', '.join(_PATHS[:-1])} or {_PATHS[-1]}: give it a heading.")
    for row in rows:
        path = (row[wanted] or "").strip()
        if path:
            yield _raster(_beside(place, path), (row[columns[_NAME]] or "").strip() if _NAME in columns else None)


def _beside(place: str, text: str) -> str:
    """Return a path of a list, relative to the list; one from elsewhere names nothing on this machine.

    Raises:
        SceneError: it does.
    """
    if is_remote(place):
        if not is_remote(text) or text.startswith("/vsi"):
            raise SceneError(f"{without_secrets(place)} names {text!r}: a list from elsewhere may name URLs alone.")
        return text
    if is_remote(text) or "://" in text or text.startswith("/vsi"):
        return text
    return str(Path(place).absolute().parent / Path(text).expanduser())


def _stac(place: str, asset: str | None) -> Iterator[Entry]:
    for item, base in items_of(place):
        number = str(item.get("id") or "item")
        identity = f"stac:{item.get('collection') or ''}/{number}#{asset or ''}"
        properties = item.get("properties") if isinstance(item.get("properties"), dict) else {}
        entry = Entry("", number, identity, properties=properties or {})
        try:
            source, own = scene_of(item, base, asset)
            yield replace(entry, source=source, item=own)
        except SceneError as error:
            yield replace(entry, fault=str(error))


def _named(entries: list[Entry], known: Mapping[str, str], reserved: Sequence[str]) -> list[Entry]:
    """Give each scene the name it had, else its own; one that is taken gets letters that depend on the scene alone."""
    taken = {name.casefold() for name in (*known.values(), *reserved)}
    named = []
    for entry in entries:
        name = known.get(entry.identity)
        if name is None:
            name = plain_name(entry.name)
            if name.casefold() in taken:
                name = f"{name}-{hashlib.sha256(entry.identity.encode()).hexdigest()[:8]}"
            taken.add(name.casefold())
        named.append(replace(entry, name=name))
    return named


def plain_name(text: str) -> str:
    """Return a name that is one part of a path, has no blanks, is not hidden, and is short enough for any system."""
    name = re.sub(r"[^\w.-]+", "_", text).strip("._-") or "scene"
    content = name.encode()
    if len(content) <= _LONGEST_BYTES:
        return name
    short = content[: _LONGEST_BYTES - 9].decode(errors="ignore")
    return f"{short}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"
