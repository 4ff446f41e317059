"""Class polygons as whole numbers on a fine lattice of the plane, few enough for a page.

What happens to a point depends on its place alone, so neighbours go on sharing their borders: outlines may lose detail
that a map does not show, but no gap opens between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from geoseg.classes import MAX_CLASSES, Classes, LabelClass, default_color
from geoseg.errors import LabelsError
from geoseg.looking.frame import Floats, Frame, lonlat
from geoseg.looking.styles import style_classes
from geoseg.looking.tables import AREA, read_table

Ints = NDArray[np.int64]

# A side of the plane has at first so many steps of the lattice.
_FINEST = 1 << 20
_MOST_COLUMNS = 24
_MOST_TEXT = 200


@dataclass(frozen=True)
class Shapes:
    """The polygons of a file.

    Attributes:
        path: the file.
        points: (P, 2) longitude and latitude, or plain coordinates where the file has no CRS; rings are closed.
        rings: (R + 1,) where rings begin in ``points``.
        features: (N + 1,) where features begin in ``rings``.
        crs: of the file.
        classes: those of the polygons.
        class_index: (N,) which of these each is of.
        area_m2: (N,), NaN where it is not known.
        confidence: (N,), NaN where there is none.
        columns: (N,) values of the attributes, by name.
        left_out: how many polygons of the file are not among them.
        left_out_m2: their area, NaN where it is not known.
        left_out_columns: names of attributes that are not among them.
    """

    path: Path
    points: Floats
    rings: Ints
    features: Ints
    crs: pyproj.CRS | None
    classes: list[LabelClass]
    class_index: Ints
    area_m2: Floats
    confidence: Floats
    columns: dict[str, NDArray[Any]]
    left_out: int
    left_out_m2: float
    left_out_columns: list[str]

    def __len__(self) -> int:
        """Return the number of polygons."""
        return len(self.class_index)


@dataclass(frozen=True)
class Lattice:
    """Polygons on a lattice of the plane.

    Attributes:
        points: (P, 2) whole steps from the origin, rings not closed.
        rings: (R + 1,) where rings begin.
        features: (N + 1,) where features begin in ``rings``.
        origin: place of the lattice's zero in the plane.
        step: metres of the plane.
    """

    points: Ints
    rings: Ints
    features: Ints
    origin: tuple[float, float]
    step: float


def read_shapes(path: Path, most: int, known: Classes | None = None) -> Shapes:
    """Read the polygons of a file, the largest where there are more than ``most``.

    Args:
        path: the file.
        most: how many.
        known: classes of a label raster beside it, for colours where the file has no style.

    Raises:
        SceneError: it cannot be read, or its CRS has no longitude and latitude.
    """
    table = read_table(path, most)
    shapes = shapely.force_2d(shapely.from_wkb(table.wkb, on_invalid="ignore"))
    kinds = shapely.get_type_id(shapes)
    chosen = np.flatnonzero(np.isin(kinds, [3, 6]) & ~shapely.is_empty(shapes))
    parts, owner = shapely.get_parts(shapes[chosen], return_index=True)
    points, rings, features = np.empty((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64)
    if len(parts):
        _, points, (rings, polygons) = shapely.to_ragged_array(parts)
        counts = np.bincount(owner, np.diff(polygons), minlength=len(chosen)).astype(np.int64)
        features = np.concatenate([[0], np.cumsum(counts)])
    columns = {name: values[chosen] for name, values in table.columns.items()}
    classes, index = _classes_of(path, columns, known, len(chosen))
    shown = [name for name in columns if name != "class_name"]
    return Shapes(
        path=path,
        points=points if table.crs is None or not len(points) else lonlat(str(path), points, table.crs),
        rings=rings.astype(np.int64),
        features=features,
        crs=table.crs,
        classes=classes,
        class_index=index,
        area_m2=_numbers(columns, AREA, len(chosen)),
        confidence=_numbers(columns, "confidence", len(chosen)),
        columns={name: columns[name] for name in shown[:_MOST_COLUMNS]},
        left_out=table.left_out,
        left_out_m2=table.left_out_m2,
        left_out_columns=shown[_MOST_COLUMNS:],
    )


def _numbers(columns: dict[str, NDArray[Any]], name: str, count: int) -> Floats:
    values = columns.get(name)
    if values is None or values.dtype.kind not in "fiu":
        return np.full(count, np.nan)
    return values.astype(np.float64)


def _classes_of(
    path: Path, columns: dict[str, NDArray[Any]], known: Classes | None, count: int
) -> tuple[list[LabelClass], Ints]:
    """Return the classes that features are of, and which of them each is of."""
    ids = _numbers(columns, "class_id", count)
    names = columns.get("class_name", columns.get("class"))
    texts = ["" if names is None or n is None or n != n else str(n) for n in (ids if names is None else names)]
    numbers = [int(i) if np.isfinite(i) and 0 <= i < MAX_CLASSES else -1 for i in ids]
    style = style_classes(path)
    told = {item.name: item for item in (known or ())}
    found: dict[tuple[int, str], LabelClass] = {}
    order: dict[tuple[int, str], int] = {}
    for key in sorted(set(zip(numbers, texts, strict=True))):
        number, name = key
        own = style.get(number)
        name = name.strip() or (own.name if own else f"class {number}" if number >= 0 else path.stem)
        like = own or told.get(name)
        value = number if number >= 0 else len(found) % MAX_CLASSES
        order[key] = len(found)
        try:
            found[key] = LabelClass(value, name, like.color if like else default_color(value))
        except LabelsError:  # a name that is not printable
            found[key] = LabelClass(value, repr(name), like.color if like else default_color(value))
    index = np.array([order[key] for key in zip(numbers, texts, strict=True)], np.int64)
    return list(found.values()), index


def on_lattice(shapes: Shapes, frame: Frame, most_points: int) -> Lattice:
    """Return polygons on a lattice as fine as ``most_points`` allow, without points that an outline does not need.

    What is smaller than a step becomes a point; at worst, every polygon does.
    """
    if not len(shapes):
        zero = np.zeros(1, np.int64)
        return Lattice(np.zeros((0, 2), np.int64), zero, zero, (0.0, 0.0), 1.0)
    placed = frame.placed(shapes.points)
    origin = (float(placed[:, 0].min()), float(placed[:, 1].min()))
    side = max(float(np.ptp(placed[:, 0])), float(np.ptp(placed[:, 1])), 1e-6)
    step = 2.0 ** math.ceil(math.log2(side / _FINEST))
    while True:
        points, rings, features = _snapped((placed - origin) / step, shapes.rings, shapes.features)
        if len(points) <= max(most_points, len(shapes)):
            return Lattice(points, rings, features, origin, step)
        step *= 2


def _snapped(scaled: Floats, rings: Ints, features: Ints) -> tuple[Ints, Ints, Ints]:
    """Return points on whole numbers, rings open, without repeated points and those on a straight line."""
    points = np.rint(scaled).astype(np.int64)
    # The last point of a closed ring is its first.
    keep = np.ones(len(points), bool)
    keep[rings[1:] - 1] = False
    points, rings = _reduced(points, rings, keep)
    before, _ = _neighbours(rings)
    keep = (points != points[before]).any(axis=1)
    keep[rings[:-1]] |= ~np.logical_or.reduceat(keep, rings[:-1])  # a ring that is one point stays as it
    points, rings = _reduced(points, rings, keep)
    before, after = _neighbours(rings)
    back, on = points - points[before], points[after] - points
    straight = (back[:, 0] * on[:, 1] == back[:, 1] * on[:, 0]) & ((back * on).sum(axis=1) > 0)
    points, rings = _reduced(points, rings, ~straight)
    # A ring of a point or a line is nothing, unless the feature has no other.
    whole = np.diff(rings) >= 3
    first = features[:-1]
    whole[first] |= ~np.logical_or.reduceat(whole, first)
    sizes = np.diff(rings)
    points = points[np.repeat(whole, sizes)]
    counts = np.add.reduceat(whole.astype(np.int64), first)
    return points, _offsets(sizes[whole]), _offsets(counts)


def _neighbours(rings: Ints) -> tuple[Ints, Ints]:
    """Return the indices of the points before and after each point of its ring."""
    count = int(rings[-1])
    before, after = np.arange(count) - 1, np.arange(count) + 1
    before[rings[:-1]] = rings[1:] - 1
    after[rings[1:] - 1] = rings[:-1]
    return before, after


def _reduced(points: Ints, rings: Ints, keep: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Return the points to keep; every ring must keep one."""
    counts = np.add.reduceat(keep.astype(np.int64), rings[:-1])
    return points[keep], _offsets(counts)


def _offsets(counts: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)])


def attribute_columns(shapes: Shapes) -> list[dict[str, Any]]:
    """Return the attributes of polygons as JSON has them: names and values, None where there is none."""
    return [
        {"name": name, "values": [_plain(value) for value in values.tolist()]}
        for name, values in shapes.columns.items()
    ]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    text = str(value)
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"
