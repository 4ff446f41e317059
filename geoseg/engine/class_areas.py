"""How much ground each class of a run covers."""

from __future__ import annotations

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
        rows = np.arange(window.row, window.row_stop) // CELL
        cols = np.arange(window.col, window.col_stop) // CELL
        for row in range(rows[0], rows[-1] + 1):
            for col in range(cols[0], cols[-1] + 1):
                counts = np.bincount(labels[np.ix_(rows == row, cols == col)].ravel(), minlength=256)
                totals += counts[:256] * (areas.parts[row, col] * areas.unit_m2)
    return {item.name: float(totals[item.id]) for item in plan.classes}
