"""How much ground each class of a run covers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import rasterio

from geoseg.engine.plan import Plan
from geoseg.engine.store import ChunkStore
from geoseg.geodesy import projection
from geoseg.source import placeless
from geoseg.vector.clean import CELL, PixelAreas


def class_areas(plan: Plan, store: ChunkStore) -> dict[str, float]:
    """Return the ground area in m² of each class, from the labels in the finished chunks, by name; 0 for those absent.

    These are the labels as the model gave them, before polygons are merged, smoothed or dropped.
    """
    source = plan.source
    areas = PixelAreas.of(source.shape, source.geobox.affine, projection(source.geobox), source.resolution)
    totals = np.zeros(256)
    for number in sorted(store.done()):
        window = plan.chunks.window(number)
        with placeless(), rasterio.open(store.path(number)) as file:
            labels = file.read(1)
        for row, rows in _cells(window.row, window.row_stop):
            for col, cols in _cells(window.col, window.col_stop):
                counts = np.bincount(labels[rows, cols].ravel(), minlength=256)
                totals += counts[:256] * (areas.parts[row, col] * areas.unit_m2)
    return {item.name: float(totals[item.id]) for item in plan.classes}


def _cells(start: int, stop: int) -> Iterator[tuple[int, slice]]:
    """Yield the number of each cell that a chunk has a part in, and that part as counted from the chunk's edge."""
    for cell in range(start // CELL, -(-stop // CELL)):
        yield cell, slice(max(cell * CELL, start) - start, min((cell + 1) * CELL, stop) - start)
