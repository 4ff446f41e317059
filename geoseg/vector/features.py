"""The carrier of polygons: geometries with their place and attributes, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Features:
    """A batch of class polygons, all arrays of one length N, ordered by ``id``.

    Attributes:
        geometry: shapely polygons or multipolygons, object array, in the coordinates that the producer states.
        id: int64, from 1, in the order of each polygon's first pixel (top row, then leftmost column).
        class_id: int64 label values.
        area_m2: float64, geodesic area on the ellipsoid, NaN where there is no place on the ground.
        perimeter_m: float64, geodesic length of all rings, likewise.
        confidence: float64 mean probability of the polygon's class over its pixels, NaN where the method has none.
        extra: further columns by name, float64 (NaN where there is no value) or int64, the same in every batch.
    """

    geometry: NDArray[Any]
    id: NDArray[np.int64]
    class_id: NDArray[np.int64]
    area_m2: NDArray[np.float64]
    perimeter_m: NDArray[np.float64]
    confidence: NDArray[np.float64]
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of polygons."""
        return len(self.geometry)

    def chosen(self, which: slice | NDArray[Any]) -> Features:
        """Return some of the polygons: a slice, a mask or indices."""
        extra = {name: values[which] for name, values in self.extra.items()}
        return Features(**{name: getattr(self, name)[which] for name in _OWN}, extra=extra)

    @staticmethod
    def joined(parts: Sequence[Features]) -> Features:
        """Return the polygons of at least one batch, one batch after the other."""
        extra = {name: np.concatenate([part.extra[name] for part in parts]) for name in parts[0].extra}
        own = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _OWN}
        return Features(**own, extra=extra)


_OWN = ("geometry", "id", "class_id", "area_m2", "perimeter_m", "confidence")
