"""Labels of a scene on any grid: polygons burnt anew for each patch, or a raster read there."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from geoseg.classes import Classes
from geoseg.errors import LabelsError
from geoseg.geodesy import pixel_size, projection
from geoseg.scene import Scene
from geoseg.source import OpenPerThread, gdal_environment, open_raster, reading
from geoseg.training.config import VECTOR, DataConfig
from geoseg.training.polygons import borders, burn, footprint, read_polygons

IGNORE = 255
# From this many pixels of a label raster per pixel on, the commonest of them is taken instead of the nearest.
_COARSER = 1.5


class Labels(ABC):
    """What is known of a scene's classes."""

    @abstractmethod
    def burn(self, affine: Affine, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Return positions in the class table, (H, W) uint8, 255 where nothing is known.

        ``affine`` leads from corners of pixels to the scene's CRS; it may turn and flip.

        Raises:
            LabelsError: a value of a raster that is no class.
        """


@dataclass(frozen=True)
class NoLabels(Labels):
    """Of a scene that nothing is known of pixel by pixel."""

    def burn(self, affine: Affine, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Return 255 everywhere."""
        return np.full(shape, IGNORE, np.uint8)


@dataclass(frozen=True)
class AnyClass(Labels):
    """Of a scene without labels whose pixels all count: everything is of the first class."""

    def burn(self, affine: Affine, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Return 0 everywhere."""
        return np.zeros(shape, np.uint8)


@dataclass(frozen=True)
class VectorLabels(Labels):
    """Polygons with a class each; what no polygon covers is background, or not known where no class is background."""

    shapes: NDArray[np.object_]
    values: NDArray[np.uint8]
    fill: int
    all_touched: bool
    tree: shapely.STRtree

    def burn(self, affine: Affine, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the classes of the polygons there, later ones on top."""
        near = np.sort(self.tree.query(outline(affine, shape)))
        return burn(self.shapes[near], self.values[near], affine, shape, fill=self.fill, all_touched=self.all_touched)


@dataclass(frozen=True)
class RasterLabels(OpenPerThread, Labels):
    """A raster of class ids; ``places`` (256,) says which class each value is, -1 for none."""

    path: str
    scene: Scene
    places: NDArray[np.int16]
    ids: tuple[int, ...]
    nodata: float | None
    pixel: float
    _open: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    def burn(self, affine: Affine, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the classes of the nearest pixels, or of the commonest where the grid is coarser."""
        raw = self._read(affine, shape)
        known = np.ones(raw.shape[1:], bool) if self.nodata is None else raw[0] != self.nodata
        known &= raw[1] > 0
        values = raw[0]
        in_range = (values >= 0) & (values <= 255) & (values == np.trunc(values))
        place = self.places[np.where(in_range, values, 0).astype(np.uint8)]
        strange = known & (~in_range | (place < 0))
        if strange.any():
            found = ", ".join(str(v) for v in np.unique(values[strange])[:5].tolist())
            raise LabelsError(
                f"{self.path} holds the values {found}, which are no class: the ids are "
                f"{', '.join(map(str, self.ids))}; add classes, or name these values in data.ignore."
            )
        return np.where(known, place, IGNORE).astype(np.uint8)

    def _read(self, affine: Affine, shape: tuple[int, int]) -> NDArray[Any]:
        """Return values and validity, (2, H, W)."""
        coarser = pixel_size(affine)[0] / self.pixel
        with gdal_environment(self.path), reading(self.path, "labels"):
            source = getattr(self._open, "dataset", None)
            if source is None:
                source = self._open.dataset = open_raster(self.path)
            with WarpedVRT(
                source,
                crs=rasterio.crs.CRS.from_wkt(projection(self.scene.geobox).to_wkt()),
                transform=affine,
                height=shape[0],
                width=shape[1],
                resampling=Resampling.mode if coarser > _COARSER else Resampling.nearest,
                add_alpha=source.nodata is None,
            ) as warped:
                values = warped.read(1)
                known = warped.read(warped.count) if source.nodata is None else warped.read_masks(1)
        return np.stack([values, known.astype(values.dtype)])


def open_labels(path: str, scene: Scene, data: DataConfig) -> Labels:
    """Open the labels of a scene: a vector file by its suffix or, failing that, a raster.

    Raises:
        LabelsError: unreadable, elsewhere than the scene, without CRS, or with values that are no class.
        SceneError: a raster that cannot be opened.
    """
    if path.lower().split("?")[0].endswith(VECTOR):
        return _vector(path, scene, data)
    return _raster(path, scene, data)


def _vector(path: str, scene: Scene, data: DataConfig) -> VectorLabels:
    classes = data.table()
    shapes, told = read_polygons(path, scene, field=data.class_field, repair=data.repair)
    values = _alone(classes, len(shapes)) if told is None else _classes_of(path, told, classes, data)
    # What is not known comes after what is, so that it hides a class that lies below.
    order = np.argsort(values == IGNORE, kind="stable")
    shapes, values = shapes[order], values[order]
    if data.border_m:
        between = borders(shapes, data.border_m, scene)
        names = [item.name for item in classes]
        value = IGNORE if data.border_class is None else names.index(data.border_class)
        shapes = np.concatenate([shapes, between])
        values = np.concatenate([values, np.full(len(between), value, np.uint8)])
    background = next((i for i, item in enumerate(classes) if item.background), IGNORE)
    return VectorLabels(shapes, values, background, data.all_touched, shapely.STRtree(shapes))


def _alone(classes: Classes, count: int) -> NDArray[np.uint8]:
    """Return the one class that polygons without an attribute can be of."""
    places = [i for i, item in enumerate(classes) if not item.background]
    if len(places) != 1:
        raise LabelsError(
            f"the polygons could be any of {', '.join(classes[i].name for i in places)}: name the attribute that says "
            "the class as data.class_field."
        )
    return np.full(count, places[0], np.uint8)


def _classes_of(path: str, told: NDArray[np.object_], classes: Classes, data: DataConfig) -> NDArray[np.uint8]:
    known = {str(item.id): i for i, item in enumerate(classes)} | {item.name: i for i, item in enumerate(classes)}
    known |= {str(value): IGNORE for value in (*data.ignore, IGNORE)}
    texts = [_text(value) for value in told]
    strange = sorted({text for text in texts if text is not None and text not in known})
    if strange:
        raise LabelsError(
            f"{path} has the values {', '.join(strange[:5])} in {data.class_field!r}, which are no class: the classes "
            f"are {', '.join(item.name for item in classes)}; add classes, or name these values in data.ignore."
        )
    return np.array([IGNORE if text is None else known[text] for text in texts], np.uint8)


def _text(value: Any) -> str | None:
    """Return an attribute as it stands in a configuration; None where it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


def _raster(path: str, scene: Scene, data: DataConfig) -> RasterLabels:
    if data.border_m:
        raise LabelsError(f"{path} is a raster, in which single objects cannot be told: data.border_m needs polygons.")
    classes = data.table()
    with gdal_environment(path), open_raster(path) as dataset:
        if dataset.crs is None:
            raise LabelsError(f"{path} has no CRS: assign one, so that it can be laid over the scene.")
        wkt = projection(scene.geobox).to_wkt()
        bounds = transform_bounds(dataset.crs, wkt, *dataset.bounds)
        width = max(1.0, float(dataset.width))
        pixel = (bounds[2] - bounds[0]) / width
        nodata = dataset.nodata
    if not shapely.intersects(shapely.box(*bounds), footprint(scene)):
        raise LabelsError(
            f"{path} does not meet the scene {scene.path}: give labels of the same place, and check the CRS of both."
        )
    places = np.full(256, -1, np.int16)
    for i, item in enumerate(classes):
        places[item.id] = i
    for value in (*data.ignore, IGNORE):
        if str(value).isdigit() and int(value) < 256:
            places[int(value)] = IGNORE
    return RasterLabels(path, scene, places, classes.ids, nodata, pixel)


def outline(affine: Affine, shape: tuple[int, int]) -> shapely.Polygon:
    """Return the outline of a grid of ``shape`` (height, width)."""
    height, width = shape
    return shapely.Polygon([affine * xy for xy in ((0, 0), (width, 0), (width, height), (0, height))])
