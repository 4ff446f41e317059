"""Numbers and text made small for a page: a byte or two a number, deflated, as base64."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def zigzag(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return integers as others that are small where the first are near 0, whatever their sign."""
    return ((values << 1) ^ (values >> 63)).astype(np.uint64)


def varints(values: NDArray[np.uint64]) -> bytes:
    """Return integers in groups of seven bits, the lowest first; the eighth bit says that more follow."""
    sizes = np.ones(len(values), np.int64)
    for length in range(1, 10):
        sizes += values >= np.uint64(1) << np.uint64(7 * length)
    starts = np.cumsum(sizes) - sizes
    out = np.zeros(int(sizes.sum()), np.uint8)
    for place in range(int(sizes.max(initial=0))):
        chosen = sizes > place
        group = (values[chosen] >> np.uint64(7 * place)) & np.uint64(0x7F)
        more = np.where(sizes[chosen] > place + 1, 0x80, 0).astype(np.uint8)
        out[starts[chosen] + place] = group.astype(np.uint8) | more
    return out.tobytes()


def packed(data: bytes) -> str:
    """Return bytes deflated, as base64."""
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def packed_json(value: Any) -> str:
    """Return a value as JSON, deflated, as base64."""
    return packed(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8"))


def json_for_page(value: Any) -> str:
    """Return a value as JSON that can stand inside an element of HTML: nothing in it ends the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
