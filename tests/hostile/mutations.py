"""Inputs changed at random: bytes of any file, and values of what is structured."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

_NUMBERS = (0, 1, 2, 255, 256, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x3B9ACA00)
STRINGS = (
    *(
        "",
        " ",
        "../../x",
        "../" * 9 + "x",
        "a/b",
        "~/x",
        ".",
        "..",
        "-rf",
        "=cmd()",
        "<script>alert(1)</script>",
        "%s%n",
    ),
    *(
        "a\x00b",
        "a\nb",
        "\x1b[2J",
        "é" * 300,
        "x" * 100_000,
        "\u202e",
        "\ud800",
        "NaN",
        "1e999",
        "[[[",
        "'; DROP TABLE a",
    ),
    *("http://127.0.0.1:9/x", "/vsicurl/http://127.0.0.1:9/x.tif", "file:///etc/passwd", "/dev/zero", "/dev/stdin"),
    *("WMS:http://127.0.0.1:9/", "vrt:///etc/passwd", "<VRTDataset/>", "GTI:/x", "PG:host=127.0.0.1 port=9"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 254, 255, 256, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, math.nan),
    *(math.inf, -math.inf, [], {}, [[]], [None], {"a": None}, [1] * 10_000, ["x"], {"type": "x"}),
)


def of_bytes(content: bytes, chance: random.Random) -> bytes:
    """Return ``content`` with a few changes; most are near its start, where formats keep what matters."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        reach = len(data) if chance.random() < 0.3 else min(len(data), chance.choice((16, 128, 1024)))
        at = chance.randrange(max(1, reach))
        what = chance.randrange(7)
        if what == 0 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            data[at : at + 4] = chance.choice(_NUMBERS).to_bytes(4, chance.choice(("little", "big")))
        elif what == 2:
            data[at : at + 2] = chance.randbytes(2)
        elif what == 3:
            del data[at : at + chance.choice((1, 4, 100))]
        elif what == 4:
            data[at:at] = chance.randbytes(chance.choice((1, 4, 100)))
        elif what == 5 and chance.random() < 0.3:
            del data[chance.randrange(len(data) + 1) :]
        else:
            start = chance.randrange(max(1, reach))
            data[at : at + 8] = data[start : start + 8]
    return bytes(data)


def of_value(value: Any, chance: random.Random) -> Any:
    """Return a structure of lists, mappings and values with one to three of its parts replaced."""
    holder = [copy.deepcopy(value)]
    for _ in range(chance.choice((1, 1, 2, 3))):
        inner, key = chance.choice(list(_places(holder)))
        what = chance.randrange(6)
        if what == 0 and isinstance(inner, dict):
            del inner[key]
        elif what == 1 and isinstance(inner, dict):
            inner[chance.choice(STRINGS)] = inner[key]
        elif what == 2 and isinstance(inner, list) and inner is not holder:
            inner[:] = inner * chance.choice((0, 2, 1000))
        elif what in (3, 4):
            inner[key] = chance.choice(STRINGS)
        else:
            inner[key] = copy.deepcopy(chance.choice(VALUES))
    return holder[0]


def _places(value: Any) -> Any:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def of_json(text: bytes, chance: random.Random) -> bytes:
    """Return a JSON text with other values, or other bytes, or nested without end."""
    what = chance.random()
    if what < 0.15:
        return of_bytes(text, chance)
    if what < 0.2:
        return b'{"type":"FeatureCollection","features":' * (what > 0.17) + b"[" * chance.choice((500, 200_000))
    return json.dumps(of_value(json.loads(text), chance)).encode()


def of_text(text: bytes, chance: random.Random) -> bytes:
    """Return a text (YAML, XML, CSV) with words and numbers replaced, or other bytes."""
    if chance.random() < 0.2:
        return of_bytes(text, chance)
    for _ in range(chance.choice((1, 1, 2, 5))):
        words = list(re.finditer(rb"[\w./+-]+", text))
        word = chance.choice(words) if words else None
        told = chance.choice((*STRINGS, *map(repr, VALUES))).encode(errors="surrogatepass")
        if word is not None:
            text = text[: word.start()] + told + text[word.end() :]
    return text


def of_yaml(text: bytes, chance: random.Random) -> bytes:
    """Return settings with other values, or made to expand or nest without end."""
    import yaml

    bomb = "a: &a [x]\n" + "".join(
        f"b{i}: &b{i} [{','.join(['*a' if not i else f'*b{i - 1}'] * 9)}]\n" for i in range(25)
    )
    what = chance.random()
    if what < 0.1:
        return chance.choice(
            (bomb, "a: " + "[" * 100_000, "&a [*a]", "data: &d\n  scenes: *d", "!!python/name:os.system", "? [a]\n: b")
        ).encode()
    if what < 0.5:
        return of_text(text, chance)
    made = of_value(yaml.safe_load(text), chance)
    return json.dumps(made).encode()


def of_bundle(content: bytes, chance: random.Random) -> bytes:
    """Return a bundle with another description, other tensors in its header, or other bytes."""
    if chance.random() < 0.3:
        return of_bytes(content, chance)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if chance.random() < 0.75:
        described = of_json(header["__metadata__"]["geoseg"].encode(), chance)
        header["__metadata__"]["geoseg"] = described.decode(errors="replace")
    else:
        header = of_value(header, chance)
    made = json.dumps(header).encode()
    return len(made).to_bytes(8, "little") + made + content[8 + length :]


class _Call:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.canary, "w")


def of_checkpoint(content: bytes, chance: random.Random, canary: str) -> bytes:
    """Return a torch file that makes the file ``canary`` when it is unpickled, or one with other bytes."""
    what = chance.random()
    if what < 0.15:
        return pickle.dumps({"state_dict": _Call(canary)}, protocol=chance.randrange(2, 5))
    with zipfile.ZipFile(BytesIO(content)) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    if what < 0.5:
        return of_bytes(content, chance)
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED if what > 0.95 else zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            if name.endswith("data.pkl"):
                data = pickle.dumps(_Call(canary)) if what < 0.6 else of_bytes(data, chance)
            archive.writestr(name, data)
    return made.getvalue()


def of_tiff(content: bytes, chance: random.Random) -> bytes:
    """Return a little-endian TIFF with other values in its tags, a loop of directories, or other bytes."""
    if chance.random() < 0.4:
        return of_bytes(content, chance)
    data = bytearray(content)
    at = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[at : at + 2], "little")
    for _ in range(chance.choice((1, 1, 2, 3))):
        entry = at + 2 + 12 * chance.randrange(count)
        what = chance.randrange(5)
        if what == 0:  # next directory
            data[at + 2 + 12 * count : at + 6 + 12 * count] = chance.choice((at, 8, 0, 7)).to_bytes(4, "little")
        elif what == 1:  # width and height
            for tag in range(2):
                data[at + 2 + 12 * tag + 2 : at + 4 + 12 * tag + 2] = (4).to_bytes(2, "little")
                data[at + 10 + 12 * tag : at + 14 + 12 * tag] = chance.choice(_NUMBERS).to_bytes(4, "little")
        elif what == 2:
            data[entry + 4 : entry + 8] = chance.choice(_NUMBERS).to_bytes(4, "little")
        elif what == 3:
            data[entry + 2 : entry + 4] = chance.randrange(20).to_bytes(2, "little")
        else:
            data[entry + 8 : entry + 12] = chance.choice(_NUMBERS).to_bytes(4, "little")
    return bytes(data)
