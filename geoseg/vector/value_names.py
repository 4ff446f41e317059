"""Tables that say what the values of a class raster mean: CSV or JSON files that a user wrote."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from geoseg.classes import Classes, LabelClass, default_color
from geoseg.errors import LabelsError, one_line
from geoseg.parsing import read_json


def read_value_names(path: str | os.PathLike[str], nodata: int | None = None) -> Classes:
    """Read names, and colours where there are any, of label values.

    A ``.json`` file is an object ``{value: name}`` or ``{value: {"name": name, "color": "#rrggbb"}}``; any other is CSV
    with ``value,name[,color]`` on each line, a first line of titles and empty lines aside.  A class called *background*
    is one.

    Args:
        path: the file, in UTF-8.
        nodata: the value that the raster declares as nodata, if any.

    Raises:
        LabelsError: the file cannot be read, or a line or value makes no class.
    """
    items = _items(Path(path), merging=False)
    fits = nodata is not None and nodata >= 0
    return Classes(items, int(nodata) if fits and nodata is not None else Classes.nodata)


def read_value_items(path: str | os.PathLike[str]) -> tuple[LabelClass, ...]:
    """Read what :func:`read_value_names` reads, where several values may have one name: they are to be merged.

    Raises:
        LabelsError: the file cannot be read, a line or value makes no class, or a value stands there twice.
    """
    return _items(Path(path), merging=True)


def _items(path: Path, *, merging: bool) -> tuple[LabelClass, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelsError(f"the value names {path} cannot be read ({one_line(error)}): give CSV or JSON.") from error
    records = _json_records(path, text) if path.suffix.lower() == ".json" else _csv_records(path, text)
    items: list[LabelClass] = []
    seen: dict[object, str] = {}
    for where, value, name, color in records:
        item = _item(path, where, value, name, color, len(items))
        for key in (item.id,) if merging else (item.id, item.name):
            if key in seen:
                raise LabelsError(f"{path}, {where}: {key!r} stands at {seen[key]} already: give each class one entry.")
            seen[key] = where
        items.append(item)
    if not items:
        raise LabelsError(f"{path} names no values: write value,name on each line.")
    return tuple(items)


def _item(path: Path, where: str, value: str, name: object, color: object, position: int) -> LabelClass:
    try:
        number = int(value)
    except ValueError as error:
        raise LabelsError(f"{path}, {where}: the value {value!r} is not a whole number.") from error
    if not isinstance(name, str):
        raise LabelsError(f"{path}, {where}: value {number} has the name {name!r}, which is no text.")
    if color is not None and not isinstance(color, str):
        raise LabelsError(f"{path}, {where}: value {number} has the colour {color!r}: write it as #rrggbb.")
    is_background = name.strip().lower() == "background"
    chosen = (color or "").strip().lower() or ("#d9d9d9" if is_background else default_color(position))
    try:
        return LabelClass(number, name.strip(), chosen, is_background)
    except LabelsError as error:
        raise LabelsError(f"{path}, {where}: {error}") from error


def _csv_records(path: Path, text: str) -> list[tuple[str, str, object, object]]:
    records: list[tuple[str, str, object, object]] = []
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            where = f"line {reader.line_num}"
            if not any(cells) or (not records and cells[0].lower() == "value"):
                continue
            if not 2 <= len(cells) <= 3:
                raise LabelsError(
                    f"{path}, {where}: value {cells[0]!r} has {len(cells)} columns: write value,name[,#rrggbb]."
                )
            records.append((where, cells[0], cells[1], cells[2] if len(cells) == 3 else None))
    except csv.Error as error:
        raise LabelsError(f"{path}, line {reader.line_num}: this is not CSV ({one_line(error)}).") from error
    return records


def _json_records(path: Path, text: str) -> list[tuple[str, str, object, object]]:
    try:
        # Pairs rather than a dict, in which the last of two equal keys would win without a word.
        pairs: Any = read_json(text, _Pairs)
    except ValueError as error:
        raise LabelsError(f"{path} is not JSON ({one_line(error)}): write {{value: name}}.") from error
    if not isinstance(pairs, _Pairs):
        raise LabelsError(f'{path} holds no JSON object: write {{"1": "road"}}.')
    records: list[tuple[str, str, object, object]] = []
    for value, meaning in pairs:
        name, color = meaning, None
        if isinstance(meaning, _Pairs):
            inner = dict(meaning)
            strange = sorted(set(inner) - {"name", "color"})
            if strange or "name" not in inner:
                fault = f"the key {strange[0]!r}" if strange else "no name"
                raise LabelsError(f"{path}, value {value}: there is {fault}: write name and color.")
            name, color = inner["name"], inner.get("color")
        records.append((f"value {value}", value, name, color))
    return records


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object in their order."""
