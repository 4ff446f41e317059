"""Small texts from a path or an http(s) address, with a limit on time and size."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from geoseg import __version__
from geoseg.errors import SceneError, one_line

# Silence after which a server is given up.
_TIMEOUT_S = 60
_MOST_BYTES = 256 << 20


def text_at(place: str) -> str:
    """Return the text (UTF-8) of a file or of what an http(s) address gives.

    Raises:
        SceneError: it cannot be read, is no text, or is too long.
    """
    shown = without_secrets(place)
    try:
        if "://" in place:
            if urlsplit(place).scheme.lower() not in {"http", "https"}:
                raise SceneError(f"{shown} is not read from here: give a path or an http(s) address.")
            with answer_of(place) as response:
                content = response.read(_MOST_BYTES + 1)
        else:
            with Path(place).open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise SceneError(f"{shown} is longer than {_MOST_BYTES >> 20} MiB: divide it.")
        return str(content.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{shown} cannot be read ({one_line(error)}): check it.") from error


@contextmanager
def answer_of(url: str) -> Iterator[Any]:
    """Yield the answer of a server, to be read inside the block.

    Raises:
        OSError: no connection, an error status, a minute of silence, or an answer that is none or breaks off.
    """
    request = urllib.request.Request(url, headers={"User-Agent": f"geoseg/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            yield response
    except http.client.HTTPException as error:
        raise ConnectionError(one_line(error)) from error


def without_secrets(place: str) -> str:
    """Return an address without password and query, which may hold a token, for messages; a path as it is."""
    if "://" not in place:
        return place
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
