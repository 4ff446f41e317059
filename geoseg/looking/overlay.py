"""Outputs as a picture of class indices on one grid of the plane."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.classes import LabelClass
from geoseg.looking.shapes import Lattice, on_lattice
from geoseg.looking.web_map import MOST_POINTS, Opened


@dataclass(frozen=True)
class Overlay:
    """Classes on a grid.

    Attributes:
        index: (H, W) which of ``classes`` each pixel shows, counted from 1; 0 is none.
        classes: those of the outputs, background left out.
        counts: polygons of each, None where labels are shown.
    """

    index: NDArray[np.uint8]
    classes: list[LabelClass]
    counts: list[int] | None


def overlay_of(this: Opened, grid: GeoBox) -> Overlay:
    """Return polygons, or where there are none labels, on a grid of the plane."""
    classes: dict[str, LabelClass] = {}
    counts: dict[str, int] = {}
    index = np.zeros((int(grid.shape[0]), int(grid.shape[1])), np.uint8)

    def place(item: LabelClass) -> int:
        classes.setdefault(item.name, item)
        return min(list(classes).index(item.name) + 1, 255)

    for shapes in this.shapes:
        lattice = on_lattice(shapes, this.frame, MOST_POINTS)
        places = np.array([place(item) for item in shapes.classes] or [0])
        of = shapes.class_index
        for number, item in enumerate(shapes.classes):
            counts[item.name] = counts.get(item.name, 0) + int((of == number).sum())
        _burn(index, lattice, places[of], grid)
    if this.shapes:
        return Overlay(index, list(classes.values()), [counts[name] for name in classes])
    for layer, known in this.labels:
        values = layer.values(this.frame, grid, known.nodata)
        for item in known:
            chosen = values == item.id
            if not item.background and chosen.any():
                index[chosen] = place(item)
    return Overlay(index, list(classes.values()), None)


def _burn(index: NDArray[np.uint8], lattice: Lattice, values: NDArray[np.int64], grid: GeoBox) -> None:
    """Write the values of polygons where their pixels are."""
    from rasterio.features import rasterize

    pairs: list[tuple[Any, int]] = []
    xy = lattice.points * lattice.step + np.array(lattice.origin)
    for feature, value in enumerate(values.tolist()):
        first, stop = lattice.features[feature], lattice.features[feature + 1]
        rings = [xy[a:b] for a, b in pairwise(lattice.rings[first : stop + 1].tolist())]
        if len(rings[0]) >= 3:
            pairs.append((_even_odd(rings), int(value)))
    if pairs:
        rasterize(pairs, out=index, transform=grid.affine)


def _even_odd(rings: list[NDArray[np.float64]]) -> Any:
    """Return rings as GDAL burns them: what lies inside an even number of them is outside."""
    return shapely.geometry.mapping(shapely.Polygon(rings[0], [ring for ring in rings[1:] if len(ring) >= 3]))
