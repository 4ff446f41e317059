"""Which class of a prediction is which class of its reference."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from geoseg.classes import MAX_CLASSES, Classes, LabelClass, default_color
from geoseg.errors import LabelsError

BACKGROUND = "background"
_BACKGROUND_COLOR = "#d9d9d9"


@dataclass(frozen=True)
class Entry:
    """A class as one file tells it: ``key`` is what stands in the file (a number or a name)."""

    key: Hashable
    id: int | None = None
    name: str | None = None
    color: str | None = None
    background: bool = False

    @property
    def told(self) -> str:
        """How messages call it."""
        return repr(self.name) if self.name is not None else str(self.id)


@dataclass(frozen=True)
class Table:
    """The classes of one file.

    Attributes:
        path: the file, for messages.
        entries: its classes; none where a vector file tells none, so that they follow from the other file.
        fills: whether pixels outside of its polygons are background.
        empty: whether it holds nothing at all, so that it needs no classes.
    """

    path: str
    entries: tuple[Entry, ...]
    fills: bool = False
    empty: bool = False

    @property
    def named(self) -> bool:
        """Whether every class has a name."""
        return all(entry.name is not None for entry in self.entries)

    @property
    def numbered(self) -> bool:
        """Whether every class has a number."""
        return all(entry.id is not None for entry in self.entries)


@dataclass(frozen=True)
class Matched:
    """The classes of both files together.

    Attributes:
        classes: all of them; their order gives the class indices.
        reference: class index of each key of the reference, None for classes to ignore.
        prediction: class index of each key of the prediction.
        background: class index of the background, None if there is none.
    """

    classes: Classes
    reference: dict[Hashable, int | None]
    prediction: dict[Hashable, int | None]
    background: int | None


def entries_of(classes: Classes) -> tuple[Entry, ...]:
    """Return the entries of a class table, keyed by id."""
    return tuple(Entry(c.id, c.id, c.name, c.color, c.background) for c in classes)


def match(reference: Table, prediction: Table, *, classes: Classes | None, ignore: Sequence[str]) -> Matched:
    """Bring the classes of two files together: by name where both have names, else by number.

    Args:
        reference: the reference's classes.
        prediction: the prediction's.
        classes: a table that both must keep to, by name or number; None if the files decide.
        ignore: names or numbers of reference classes that are left out.

    Raises:
        LabelsError: a class of one file is not in the table of the other, or nothing tells which is which.
    """
    reference, dropped = _without(reference, ignore)
    base: list[Entry]
    if classes is not None:
        table = Table("the class table", entries_of(classes))
        reference, prediction = _led(reference, table), _led(prediction, table)
        base = list(table.entries)
        by_name = [_fits_by_name(side, table) for side in (reference, prediction)]
    else:
        reference, prediction = _led(reference, prediction), _led(prediction, reference)
        reference, prediction = _binary(reference, prediction), _binary(prediction, reference)
        by_name = [reference.named and prediction.named] * 2
        _refuse_unlike(reference, prediction, by_name[0])
        _refuse_strangers(reference, prediction, by_name[0])
        _refuse_strangers(prediction, reference, by_name[0])
        base = _union(reference, prediction, by_name[0])
    base = _with_background(base, reference.fills or prediction.fills)
    places: list[dict[Hashable, int | None]] = [
        {entry.key: _place(entry, base, named, side.path) for entry in side.entries}
        for side, named in zip((reference, prediction), by_name, strict=True)
    ]
    places[0].update(dict.fromkeys(dropped))
    background = next((i for i, entry in enumerate(base) if _is_background(entry)), None)
    return Matched(_finished(base, background), places[0], places[1], background)


def _without(table: Table, ignore: Sequence[str]) -> tuple[Table, list[Hashable]]:
    """Return the table without the classes to ignore, and their keys."""
    dropped = [entry.key for entry in table.entries if entry.name in ignore or str(entry.id) in ignore]
    if table.entries and len(dropped) == len(table.entries):
        raise LabelsError(f"--ignore leaves no class of {table.path} ({_listed(table)}): ignore fewer.")
    return replace(table, entries=tuple(e for e in table.entries if e.key not in dropped)), dropped


def _led(table: Table, other: Table) -> Table:
    """Return the table of a file that tells none: the one class of the other that is no background."""
    if table.entries or table.empty:
        return table
    things = [entry for entry in other.entries if not _is_background(entry)]
    if len(things) != 1:
        raise LabelsError(
            f"{table.path} does not tell the class of its polygons: name the attribute with --class-field, "
            "or give one class for all with --class."
        )
    return replace(table, entries=(replace(things[0], key=None),))


def _binary(table: Table, other: Table) -> Table:
    """Give names to a mask of 0 and one other number, where the other file has names and a single class."""
    things = [entry for entry in other.entries if not _is_background(entry)]
    numbers = {entry.id for entry in table.entries}
    if table.named or not other.named or other.numbered or len(things) != 1 or len(numbers - {0}) > 1:
        return table
    named = (replace(e, name=things[0].name if e.id else BACKGROUND, background=not e.id) for e in table.entries)
    return replace(table, entries=tuple(named))


def _is_background(entry: Entry) -> bool:
    if entry.name is not None:
        return entry.background or entry.name.strip().lower() == BACKGROUND
    return entry.background or entry.id == 0


def _fits_by_name(table: Table, other: Table) -> bool:
    """Whether a file's classes are told by names that another table knows; else their numbers decide."""
    known = {_plain(entry.name) for entry in other.entries}
    return table.named and (not table.numbered or all(_plain(entry.name) in known for entry in table.entries))


def _refuse_unlike(reference: Table, prediction: Table, by_name: bool) -> None:
    """Refuse tables of names against numbers, and tables of names that have no class in common."""
    if not by_name and not (reference.numbered and prediction.numbered):
        raise LabelsError(
            f"the classes of {prediction.path} ({_listed(prediction)}) and of {reference.path} "
            f"({_listed(reference)}) cannot be brought together, as one has names and the other numbers: "
            "say with --classes name,name,… what the numbers 0, 1, … mean."
        )
    things = [
        {_plain(entry.name) for entry in table.entries if not _is_background(entry)}
        for table in (reference, prediction)
    ]
    if by_name and things[0] and things[1] and not things[0] & things[1]:
        raise LabelsError(
            f"no class of {prediction.path} ({_listed(prediction)}) is called like one of {reference.path} "
            f"({_listed(reference)}): give both one table with --classes name,name,… (ids from 0)."
        )


def _refuse_strangers(table: Table, other: Table, by_name: bool) -> None:
    """Refuse numbers without a name that a table with names does not know; names of its own a file may have."""
    if by_name or table.named or not other.named or other.empty:
        return
    known = {entry.id for entry in other.entries}
    if other.fills:
        known.add(0)
    strange = sorted(entry.id for entry in table.entries if entry.id is not None and entry.id not in known)
    if strange:
        raise LabelsError(
            f"{table.path} has the class value {strange[0]}, which is not in the class table of {other.path} "
            f"({_listed(other)}): give the table with --classes, or leave the value out of the reference with --ignore."
        )


def _union(reference: Table, prediction: Table, by_name: bool) -> list[Entry]:
    base: list[Entry] = []
    for entry in (*reference.entries, *prediction.entries):
        index = _find(entry, base, by_name)
        if index is None:
            base.append(entry)
            continue
        known = base[index]
        base[index] = replace(
            known,
            id=entry.id if known.id is None else known.id,
            name=known.name or entry.name,
            color=known.color or entry.color,
            background=known.background or entry.background,
        )
    return sorted(base, key=lambda entry: MAX_CLASSES if entry.id is None else entry.id)


def _with_background(base: list[Entry], fills: bool) -> list[Entry]:
    """Return the classes with a background in front, where polygons leave pixels that must be of some class."""
    if not fills or any(_is_background(entry) for entry in base):
        return base
    return [Entry(None, None, BACKGROUND, _BACKGROUND_COLOR, True), *base]


def _find(entry: Entry, base: Sequence[Entry], by_name: bool) -> int | None:
    for index, known in enumerate(base):
        if by_name and _plain(known.name) == _plain(entry.name):
            return index
        if not by_name and known.id == entry.id:
            return index
    return None


def _place(entry: Entry, base: Sequence[Entry], by_name: bool, path: str) -> int:
    index = _find(entry, base, by_name)
    if index is None:
        known = ", ".join(str(e.id) if not by_name else e.told for e in base)
        raise LabelsError(f"{path} has the class {entry.told}, which is not in the class table ({known}).")
    return index


def _plain(name: str | None) -> str:
    return (name or "").strip().casefold()


def _finished(base: list[Entry], background: int | None) -> Classes:
    """Return the table with ids, names and colours of their own."""
    taken: set[int] = set()
    items: list[LabelClass] = []
    for index, entry in enumerate(base):
        others = {e.id for e in base[index:] if e.id is not None} | taken
        own = entry.id if entry.id is not None and entry.id not in taken else _free(others)
        taken.add(own)
        name = entry.name if entry.name is not None else (BACKGROUND if index == background else f"class {own}")
        color = entry.color or (_BACKGROUND_COLOR if index == background else default_color(index))
        items.append(LabelClass(own, name, color, index == background))
    return Classes(tuple(items))


def _free(taken: set[int]) -> int:
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _listed(table: Table) -> str:
    shown = [entry.told for entry in table.entries[:8]]
    return ", ".join(shown) + (", …" if len(table.entries) > 8 else "") or "none"
