"""Making polygons of strangers valid, which takes no more than a file of its size may ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.errors import SceneError

# Mending makes a vertex of each crossing: the time and memory for a million edges that cross nothing cross this often.
_MOST_CROSSINGS = 1_000_000
# An edge of a polygon that was drawn has a few others whose boxes meet its own.
_MOST_EACH = 50
_AT_ONCE = 256


def refuse_tangled(path: str, shapes: NDArray[Any]) -> None:
    """Refuse invalid polygons that are not finite, or meet themselves so often that mending would not end.

    Args:
        path: of the file, for the message.
        shapes: geometries of any kind.

    Raises:
        SceneError: there is such a polygon.
    """
    for number in np.flatnonzero(~shapely.is_valid(shapes) & ~shapely.is_missing(shapes)):
        if not np.isfinite(shapely.get_coordinates(shapes[number])).all():
            raise SceneError(
                f"{path} has a polygon (feature {number + 1}) with coordinates that are no finite numbers, or lie "
                "where the other CRS is not defined: mend it or leave it out."
            )
        # One of few vertices can be mended however it crosses itself.
        if shapely.get_num_coordinates(shapes[number]) ** 2 > _MOST_CROSSINGS and _tangled(shapes[number]):
            raise SceneError(
                f"{path} has a polygon (feature {number + 1}) whose outline runs over itself again and again: "
                "mend it or leave it out."
            )


def _tangled(shape: Any) -> bool:
    xy, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(shape)), return_index=True)
    edges = np.stack([xy[:-1], xy[1:]], axis=1)[ring[:-1] == ring[1:]]
    lines = shapely.linestrings(edges[np.isfinite(edges).all(axis=(1, 2))])
    tree, most, met = shapely.STRtree(lines), max(_MOST_CROSSINGS, _MOST_EACH * len(lines)), 0
    for start in range(0, len(lines), _AT_ONCE):
        met += tree.query(lines[start : start + _AT_ONCE]).shape[1]
        if met > most:
            return True
    return False
