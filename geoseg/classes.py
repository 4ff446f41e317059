"""Classes: what the values of a label raster mean, how they are called and coloured."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from geoseg.errors import LabelsError

MAX_CLASSES = 255

# Colours that stay apart for readers with the common colour-vision deficiencies (after Okabe and Ito, 2008).
_FIRST_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")
_COLOR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class LabelClass:
    """One class.

    Attributes:
        id: its value in label rasters, 0 to 254.
        name: what it is called.
        color: ``#rrggbb``.
        background: whether it is labelled in rasters but not written as polygons unless asked for.
    """

    id: int
    name: str
    color: str
    background: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no output could carry.

        Raises:
            LabelsError: id outside 0 to 254, empty name, or colour not of the form ``#rrggbb``.
        """
        if not 0 <= self.id < MAX_CLASSES:
            raise LabelsError(f"class {self.name!r} has id {self.id}: class ids run from 0 to {MAX_CLASSES - 1}.")
        if not self.name.strip() or not self.name.isprintable():
            raise LabelsError(f"class {self.id} has the name {self.name!r}: give every class a printable name.")
        if not _COLOR.fullmatch(self.color):
            raise LabelsError(f"class {self.name!r} has colour {self.color!r}: write it as #rrggbb, such as #d55e00.")

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        return (int(self.color[1:3], 16), int(self.color[3:5], 16), int(self.color[5:7], 16))


@dataclass(frozen=True)
class Classes(Sequence[LabelClass]):
    """The classes of one model or label raster.

    Attributes:
        items: the classes, in the order of a network's output channels.
        nodata: label value of pixels without an answer.
    """

    items: tuple[LabelClass, ...]
    nodata: int = 255

    def __post_init__(self) -> None:
        """Refuse an empty table and repeated ids or names.

        Raises:
            LabelsError: no class at all, or an id or a name that occurs twice.
        """
        if not self.items:
            raise LabelsError("there are no classes: give at least one.")
        for what, values in (("id", [str(c.id) for c in self.items]), ("name", [c.name for c in self.items])):
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise LabelsError(f"class {what} {twice[0]!r} occurs twice: every class needs its own.")

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.items)

    def __iter__(self) -> Iterator[LabelClass]:
        """Iterate over the classes in channel order."""
        return iter(self.items)

    def __getitem__(self, index: Any) -> Any:
        """Return the class of output channel ``index``."""
        return self.items[index]

    @property
    def ids(self) -> tuple[int, ...]:
        """Label values in channel order."""
        return tuple(c.id for c in self.items)

    def by_id(self, value: int) -> LabelClass:
        """Return the class whose label value is ``value``.

        Raises:
            LabelsError: no class has it.
        """
        for item in self.items:
            if item.id == value:
                return item
        raise LabelsError(f"label value {value} belongs to no class: known values are {_listed(self.ids)}.")

    def find(self, name_or_id: str) -> LabelClass:
        """Return the class called ``name_or_id``, or with that id if none is called so.

        Raises:
            LabelsError: there is none.
        """
        for known in ({c.name: c for c in self.items}, {str(c.id): c for c in self.items}):
            if name_or_id in known:
                return known[name_or_id]
        raise LabelsError(f"there is no class {name_or_id!r}: the classes are {', '.join(c.name for c in self.items)}.")

    def renamed(self, items: Iterable[LabelClass]) -> tuple[Classes, tuple[int, ...]]:
        """Return the table with classes called and coloured as ``items`` say, by id; classes of one name become one.

        Such a class keeps the smallest of its ids and the first of its colours; classes that no item is of stay as
        they are.  Also returned is the new position of every class.

        Raises:
            LabelsError: an item is of no class, or gives a name that another class keeps.
        """
        told = {item.id: item for item in items}
        for value in told:
            self.by_id(value)  # refuses an unknown one
        given = {item.name for item in told.values()}
        for kept in self.items:
            if kept.id not in told and kept.name in given:
                raise LabelsError(f"{kept.name!r} is the name of class {kept.id}, which the names leave out: add it.")
        made: dict[str, LabelClass] = {}
        called = [told.get(item.id, item) for item in self.items]
        for item in sorted(called, key=lambda each: each.id):
            made.setdefault(item.name, item)
        order = list(dict.fromkeys(item.name for item in called))
        places = tuple(order.index(item.name) for item in called)
        return Classes(tuple(made[name] for name in order), self.nodata), places

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return plain records, the form in bundles and in raster tags."""
        return [
            {"id": c.id, "name": c.name, "color": c.color, **({"background": True} if c.background else {})}
            for c in self.items
        ]

    @classmethod
    def from_dicts(cls, records: Iterable[dict[str, Any]]) -> Classes:
        """Return the classes of ``records``, as :meth:`as_dicts` gives them.

        Raises:
            LabelsError: a record lacks an id or a name, or a value is refused.
        """
        items = []
        for position, record in enumerate(records):
            if not isinstance(record, dict) or "id" not in record or "name" not in record:
                raise LabelsError(f"class record {record!r} has no id or no name.")
            color = str(record.get("color") or default_color(position)).lower()
            items.append(LabelClass(int(record["id"]), str(record["name"]), color, bool(record.get("background"))))
        return cls(tuple(items))

    @classmethod
    def numbered(cls, count: int, prefix: str = "segment") -> Classes:
        """Return ``count`` classes without meaning, called ``prefix 1``, ``prefix 2``, …, with ids from 0."""
        return cls(tuple(LabelClass(i, f"{prefix} {i + 1}", default_color(i)) for i in range(count)))

    @classmethod
    def parse(cls, text: str) -> Classes:
        """Read a ``text`` such as ``name[:#rrggbb],name…``; ids count from 0, a class called *background* is one.

        >>> [c.id for c in Classes.parse("background,road:#ff0000")]
        [0, 1]

        Raises:
            LabelsError: a name is missing or repeated, or a colour is malformed.
        """
        items = []
        for position, part in enumerate(text.split(",")):
            name, _, color = (piece.strip() for piece in part.partition(":"))
            background = name.lower() == "background"
            fallback = "#d9d9d9" if background else default_color(position)
            items.append(LabelClass(position, name, (color or fallback).lower(), background))
        return cls(tuple(items))


def default_color(position: int) -> str:
    """Return a colour for the class at ``position``: a colour-blind-safe set first, then hues a golden angle apart."""
    if position < len(_FIRST_COLORS):
        return _FIRST_COLORS[position]
    hue = (0.11 + 0.618034 * position) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45 + 0.15 * (position % 3 - 1), 0.65)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _listed(values: Sequence[int], most: int = 12) -> str:
    text = ", ".join(str(v) for v in values[:most])
    return text + (", …" if len(values) > most else "")
