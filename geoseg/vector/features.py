"""The carrier of polygons: geometries with their place and attributes, in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Features:
    """A batch of class polygons, all arrays of one length N, ordered by ``id``.

    Attributes:
        geometry: shapely polygons, object array, in the coordinates that the producer states.
        id: int64, from 1, in the order of each polygon's first pixel (top row, then leftmost column).
        class_id: int64 label values.
        area_m2: float64, geodesic area on the ellipsoid.
        perimeter_m: float64, geodesic length of all rings.
        confidence: float64 mean probability of the polygon's class over its pixels, NaN where the method has none.
    """

    geometry: NDArray[Any]
    id: NDArray[np.int64]
    class_id: NDArray[np.int64]
    area_m2: NDArray[np.float64]
    perimeter_m: NDArray[np.float64]
    confidence: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of polygons."""
        return len(self.geometry)
