"""Rasters brought to the plane of a map, as pictures of a bounded size."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyproj
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.engine.nearest import OnGrid, Place
from geoseg.errors import SceneError
from geoseg.geodesy import projection
from geoseg.grid import Window
from geoseg.looking.frame import Bounds, Floats, Frame, outline_lonlat, source_grid
from geoseg.outputs.cog import CONFIDENCE_NODATA
from geoseg.scene import Pixels, Scene, open_scene
from geoseg.source import gdal_environment, open_raster, reading

# Rows of a picture that are read at a time.
_STRIP_PX = 512
# Pixels a side of the look from which contrast is measured.
_GLANCE_PX = 512
# Of what is not 8 bit, this part of the values is made black, and as much white.
_CLIPPED = 2.0
_QUALITY = 82


@dataclass(frozen=True)
class ScenePicture:
    """A scene in the colours in which it is shown.

    Attributes:
        scene: the bands that are shown, three or one.
        lonlat: points along its border.
    """

    scene: Scene
    lonlat: Floats

    @classmethod
    def open(cls, path: str) -> ScenePicture:
        """Open a scene: its red, green and blue where it has these, else its first three bands, or its first.

        Raises:
            SceneError: it cannot be used.
        """
        scene = open_scene(path)
        names = [name.lower() for name in scene.band_names]
        if {"red", "green", "blue"} <= set(names):
            places = [names.index(name) for name in ("red", "green", "blue")]
        else:
            places = list(range(3 if len(names) >= 3 else 1))
        scene = scene.with_bands([scene.bands[place] for place in places])
        border = outline_lonlat(path, scene.shape, scene.geobox.affine, projection(scene.geobox))
        return cls(scene, border)

    @cached_property
    def _range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The values that are shown black and white, by band: (C, 1, 1) each."""
        count = len(self.scene.bands)
        if self.scene.dtype == "uint8" and count == 3:
            return np.zeros((3, 1, 1)), np.full((3, 1, 1), 255.0)
        height, width = self.scene.shape
        factor = max(1.0, max(height, width) / _GLANCE_PX)
        shape = (max(1, round(height / factor)), max(1, round(width / factor)))
        small = self.scene.on_grid(self.scene.geobox.zoom_to(shape))
        pixels = small.read(small.window)
        if not pixels.valid.any():
            return np.zeros((count, 1, 1)), np.ones((count, 1, 1))
        values = pixels.data[:, pixels.valid].astype(np.float64)
        low, high = np.percentile(values, [_CLIPPED, 100 - _CLIPPED], axis=1)
        return low[:, None, None], np.maximum(high, low + 1e-9)[:, None, None]

    def reader(self, frame: Frame, grid: GeoBox) -> Callable[[Window], NDArray[np.uint8]]:
        """Return what reads windows of a grid of the plane: (h, w, 4) red, green, blue and opacity.

        It raises SceneError where the file cannot be read.
        """
        own = self.scene.geobox
        centre = own.affine * (own.shape[1] / 2, own.shape[0] / 2)
        source = source_grid(frame, grid, centre[0], projection(own))
        scene = self.scene.on_grid(source.grid)

        def read(window: Window) -> NDArray[np.uint8]:
            return np.moveaxis(source.read(window, lambda part: self._colours(scene.read(part))), 0, -1)

        return read

    def _colours(self, pixels: Pixels) -> NDArray[np.uint8]:
        low, high = self._range
        shown = np.clip((pixels.data - low) / (high - low), 0, 1) * 255
        shown = np.broadcast_to(shown, (3, *shown.shape[1:])) if len(shown) == 1 else shown
        opacity = np.where(pixels.valid, 255, 0)[None]
        return np.concatenate([shown.round(), opacity]).astype(np.uint8)

    def whole(self, frame: Frame, grid: GeoBox) -> NDArray[np.uint8]:
        """Return the picture on a grid of the plane, read in strips: (H, W, 4).

        Raises:
            SceneError: the file cannot be read there.
        """
        height, width = (int(n) for n in grid.shape)
        read = self.reader(frame, grid)
        return np.concatenate(
            [read(Window(row, 0, min(_STRIP_PX, height - row), width)) for row in range(0, height, _STRIP_PX)]
        )


@dataclass(frozen=True)
class Layer:
    """One band of another raster, to be shown pixel by pixel.

    Attributes:
        path: as GDAL opens it.
        place: where it lies.
        lonlat: points along its border.
    """

    path: str
    place: Place
    lonlat: Floats

    @classmethod
    def open(cls, path: str) -> Layer:
        """Open the first band of a raster.

        Raises:
            SceneError: unreadable, or without a CRS.
        """
        with gdal_environment(path), open_raster(path) as dataset:
            if not dataset.crs:
                raise SceneError(f"{path} has no CRS, so it cannot be laid on a map: look at its polygons alone.")
            crs = pyproj.CRS.from_wkt(dataset.crs.to_wkt())
            place = Place((dataset.height, dataset.width), dataset.transform, crs)
        return cls(path, place, outline_lonlat(path, place.shape, place.affine, crs))

    def values(self, frame: Frame, grid: GeoBox, fill: float) -> NDArray[np.generic]:
        """Return the value nearest to each pixel of a grid, from an overview where that is fine enough: (H, W).

        Raises:
            SceneError: the file cannot be read.
        """
        with gdal_environment(self.path), open_raster(self.path) as dataset:
            factors = dataset.overviews(1)
        wanted = _coarseness(self.place, grid)
        level = max((i for i, factor in enumerate(factors) if factor <= wanted * 1.001), default=None)
        with (
            gdal_environment(self.path),
            open_raster(self.path, level) as dataset,
            reading(self.path, "its pixels"),
        ):
            own = Place((dataset.height, dataset.width), dataset.transform, self.place.crs)

            def read(window: Window) -> NDArray[np.generic]:
                part: NDArray[np.generic] = dataset.read(
                    1, window=((window.row, window.row_stop), (window.col, window.col_stop))
                )
                return part

            height, width = (int(n) for n in grid.shape)
            middle = own.affine * (own.shape[1] / 2, own.shape[0] / 2)
            there = source_grid(frame, grid, middle[0], own.crs)
            source = OnGrid(own, there.grid, read, fill)
            strips = (Window(row, 0, min(_STRIP_PX, height - row), width) for row in range(0, height, _STRIP_PX))
            return np.concatenate([there.read(strip, source.read) for strip in strips])

    def hundredths(self, frame: Frame, grid: GeoBox) -> NDArray[np.uint8]:
        """Return a raster of values from 0 to 1 as 1 + hundredths, 0 where there is none: (H, W)."""
        values = self.values(frame, grid, CONFIDENCE_NODATA).astype(np.float64)
        known = np.isfinite(values) & (values >= 0)
        return np.where(known, 1 + np.round(100 * np.clip(np.where(known, values, 0), 0, 1)), 0).astype(np.uint8)


def pixel_of(border: Floats, shape: tuple[int, int], frame: Frame, most_pixels: int) -> tuple[Bounds, float]:
    """Return where a raster lies in the plane, and the pixel with which it is shown: its own, or a larger one.

    Args:
        border: points along it, in longitude and latitude.
        shape: its height and width in pixels.
        frame: the plane.
        most_pixels: how many the picture may have.
    """
    bounds = frame.bounds(border)
    width, height = bounds[2] - bounds[0], bounds[3] - bounds[1]
    own = math.sqrt(width * height / (shape[0] * shape[1]))
    return bounds, max(own, math.sqrt(width * height / most_pixels), max(width, height) / math.sqrt(4 * most_pixels))


def webp(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture (H, W, 4) as a WebP, without opacity where all of it is opaque."""
    from PIL import Image

    opaque = bool((picture[..., 3] == 255).all())
    image = Image.fromarray(picture[..., :3] if opaque else picture)
    memory = io.BytesIO()
    image.save(memory, "WEBP", quality=_QUALITY, method=4)
    return memory.getvalue()


def _coarseness(place: Place, grid: GeoBox) -> float:
    """Return how many pixels of a raster's side make one of a grid's, about."""
    border = outline_lonlat("", place.shape, place.affine, place.crs)
    there = outline_lonlat("", (int(grid.shape[0]), int(grid.shape[1])), grid.affine, projection(grid))
    own = _area(border) / (place.shape[0] * place.shape[1])
    wanted = _area(there) / (int(grid.shape[0]) * int(grid.shape[1]))
    return math.sqrt(max(wanted / own, 1e-12)) if own > 0 else 1.0


def _area(points: Floats) -> float:
    """Return the size of what points go round, in square degrees, over the antimeridian too."""
    across = min(float(np.ptp(points[:, 0])), float(np.ptp(points[:, 0] % 360.0)))
    return across * float(np.ptp(points[:, 1]))
