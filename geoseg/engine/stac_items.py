"""STAC items read: pages of item collections, and the asset of an item that is the scene."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from geoseg.errors import SceneError, one_line
from geoseg.fetching import text_at, without_secrets
from geoseg.parsing import read_json
from geoseg.source import is_remote

_MOST_PAGES = 10_000
_RASTERS = (".tif", ".tiff", ".jp2", ".vrt", ".img")
_NO_SCENE = {"thumbnail", "overview", "metadata"}
_USUAL = ("visual", "image", "data")


def items_of(place: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the items of a collection of items (or the one item) with where they were read, page after page.

    Raises:
        SceneError: it cannot be read, or is something else.
    """
    seen: set[str] = set()
    page: str | None = place
    while page is not None and page not in seen:
        if len(seen) >= _MOST_PAGES:
            raise SceneError(f"{without_secrets(place)} has more than {_MOST_PAGES} pages: ask for fewer items.")
        seen.add(page)
        record = _read(page)
        features = [record] if record.get("type") == "Feature" else record.get("features")
        if not isinstance(features, list) or not all(map(_is_item, features)):
            raise SceneError(
                f"{without_secrets(page)} is no STAC item collection: give a FeatureCollection of items with assets."
            )
        for item in features:
            yield item, page
        page = _next(record, page)


def _is_item(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("assets"), dict)


def scene_of(item: dict[str, Any], base: str, asset: str | None) -> tuple[str, str | None]:
    """Return what GDAL opens of an item, and where the item itself is, if it says.

    Args:
        item: the item.
        base: where it was read; what it names is relative to this.
        asset: which asset; by default the only raster, or the one that is called visual, image or data.

    Raises:
        SceneError: it has no such asset, or several rasters, or one that may not be read from here.
    """
    name = f"the item {item.get('id')!r}"
    assets = {key: value for key, value in item["assets"].items() if isinstance(value, dict) and value.get("href")}
    rasters = [key for key, value in assets.items() if _is_raster(value)]
    if asset is None:
        usual = [key for key in _USUAL if key in rasters]
        asset = rasters[0] if len(rasters) == 1 else usual[0] if usual else None
        if asset is None:
            told = f"has several rasters ({', '.join(rasters)})" if rasters else "has no raster among its assets"
            raise SceneError(f"{name} {told}: name the asset with --asset.")
    if asset not in assets:
        raise SceneError(f"{name} has no asset {asset!r}: it has {', '.join(assets) or 'none'}.")
    own = next((link.get("href") for link in _links(item) if link.get("rel") == "self"), None)
    return _absolute(str(assets[asset]["href"]), base), str(own) if own and is_remote(str(own)) else None


def _is_raster(asset: dict[str, Any]) -> bool:
    roles = asset.get("roles")
    if isinstance(roles, list) and any(role in roles for role in _NO_SCENE):
        return False
    kind = str(asset.get("type") or "")
    if kind:
        return kind.startswith("image/") and not kind.startswith(("image/png", "image/jpeg"))
    return urlsplit(str(asset["href"])).path.lower().endswith(_RASTERS)


def _absolute(href: str, base: str) -> str:
    if is_remote(base):
        joined = urljoin(base, href)
        if not is_remote(joined) or joined.startswith("/vsi"):
            raise SceneError(f"{without_secrets(base)} names {href!r}: items from elsewhere may name URLs alone.")
        return joined
    if href.startswith("file://"):
        return unquote(urlsplit(href).path)
    return href if is_remote(href) else os.path.normpath(Path(base).absolute().parent / href)


def _next(record: dict[str, Any], page: str) -> str | None:
    for link in _links(record):
        if link.get("rel") == "next" and link.get("href"):
            if str(link.get("method", "GET")).upper() != "GET":
                raise SceneError(
                    f"{without_secrets(page)} goes on with a search that must be posted: save all items as one file."
                )
            return _absolute(str(link["href"]), page)
    return None


def _links(record: dict[str, Any]) -> list[dict[str, Any]]:
    links = record.get("links")
    return [link for link in links if isinstance(link, dict)] if isinstance(links, list) else []


def _read(place: str) -> dict[str, Any]:
    try:
        record = read_json(text_at(place))
    except ValueError as error:
        if isinstance(error, SceneError):
            raise
        raise SceneError(f"{without_secrets(place)} is no JSON ({one_line(error)}): give STAC items.") from error
    if not isinstance(record, dict):
        raise SceneError(f"{without_secrets(place)} is no STAC item collection: give a FeatureCollection of items.")
    return record
