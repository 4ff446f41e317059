"""Label rasters, and the confidence beside them, read block by block and checked against their classes."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from geoseg.classes import MAX_CLASSES, Classes
from geoseg.errors import ConfigError, GeosegWarning, LabelsError, SceneError
from geoseg.geodesy import geodetic_transformer
from geoseg.grid import ChunkGrid, Window
from geoseg.source import gdal_environment, has_internal_mask, open_raster, reading, refuse_truncated, resolve
from geoseg.vector.polygons import NOTHING, LabelBlock

# Two rasters are on one grid if their corners are this near, in pixels.
_SAME_PLACE_PX = 1e-3


@dataclass(frozen=True)
class LabelRaster:
    """A band of labels, with its place.

    Attributes:
        path: what GDAL opens.
        band: index of the band, from 1.
        shape: height and width in pixels.
        affine: from pixel corners (column, row) to ``crs``.
        crs: its CRS, None where pixel coordinates will do.
        nodata: the file's value for "no data", None if it has none.
        masked: whether the file carries a validity mask of its own.
        confidence: path and band of the confidence on the same grid, None if there is none.
    """

    path: str
    band: int
    shape: tuple[int, int]
    affine: Affine
    crs: pyproj.CRS | None
    nodata: int | None
    masked: bool
    confidence: tuple[str, int] | None

    def distinct(self, size: int, progress: Callable[[int, int], None] | None = None) -> list[int]:
        """Return the labels that occur, ascending.

        Raises:
            SceneError: the file cannot be read.
            LabelsError: more than 255 of them, or one outside 0 to 254.
        """
        found: set[int] = set()
        grid = ChunkGrid(self.shape, size)
        with _Reader(self) as reader:
            for done, window in enumerate(grid, 1):
                raw, valid = reader.labels(window)
                if self.nodata is not None:
                    valid &= raw != self.nodata
                found.update(np.unique(raw[valid]).tolist())
                if len(found) > MAX_CLASSES:
                    raise LabelsError(
                        f"{self.path} has too many distinct values in band {self.band} (over {MAX_CLASSES}): "
                        "it does not look like a label raster; give a class table, or another --band."
                    )
                if progress is not None:
                    progress(done, len(grid))
        if NOTHING in found and self.nodata is None and len(found) > 2:
            found.remove(NOTHING)
            warnings.warn(
                f"{self.path} declares no nodata value; its pixels of value {NOTHING} are taken for nodata.",
                GeosegWarning,
                stacklevel=3,
            )
        outside = sorted(value for value in found if not 0 <= value < MAX_CLASSES)
        if outside:
            raise LabelsError(
                f"{self.path} has label value {outside[0]}, but labels run from 0 to {MAX_CLASSES - 1}: declare it as "
                f"nodata (rio edit-info --nodata {outside[0]} FILE) or give the class another value."
            )
        return sorted(found)


def open_labels(
    path: str | os.PathLike[str],
    band: int = 1,
    confidence: tuple[str | os.PathLike[str], int] | None = None,
    *,
    pixel_coordinates: bool = False,
) -> LabelRaster:
    """Open a label raster, and check it as far as that goes without reading it.

    Args:
        path: what GDAL opens.
        band: index of the band, from 1.
        confidence: path and band of the confidence.
        pixel_coordinates: whether it is meant to have no CRS.

    Raises:
        ConfigError: it has a CRS although it is meant to have none.
        SceneError: unreadable or truncated file, no CRS, or one that is tied to no body.
        LabelsError: no such band, labels that are not integers, or a confidence on another grid.
    """
    name = resolve(path)
    with gdal_environment(name), open_raster(name) as dataset:
        refuse_truncated(dataset)
        _refuse_band(dataset, band)
        dtype = dataset.dtypes[band - 1]
        if dtype.startswith("complex") or np.dtype(dtype).kind not in "iu":
            raise LabelsError(
                f"{name} has {dtype} values in band {band}, but labels are integers: "
                "convert them (gdal_translate -ot Byte) or give another --band."
            )
        if not dataset.crs and not pixel_coordinates:
            raise SceneError(
                f"{name} has no CRS: assign one first, for example with `rio edit-info --crs EPSG:… FILE`, or pass "
                "--pixel-coordinates to get polygons without one."
            )
        if dataset.crs and pixel_coordinates:
            raise ConfigError(f"{name} has a CRS, which places its polygons: leave out --pixel-coordinates.")
        if abs(dataset.transform.determinant) == 0:
            raise SceneError(f"{name} has a transform that maps every pixel to one place: georeference it first.")
        nodata = dataset.nodatavals[band - 1]
        raster = LabelRaster(
            path=name,
            band=band,
            shape=(int(dataset.height), int(dataset.width)),
            affine=dataset.transform,
            crs=pyproj.CRS.from_wkt(dataset.crs.to_wkt()) if dataset.crs else None,
            nodata=int(nodata) if nodata is not None and float(nodata).is_integer() else None,
            masked=has_internal_mask(dataset),
            confidence=None if confidence is None else (resolve(confidence[0]), confidence[1]),
        )
    if raster.crs is not None:
        geodetic_transformer(raster.crs)
    _refuse_confidence(raster)
    return raster


class RasterBlocks:
    """A label raster as the source of :func:`geoseg.vector.polygons.polygonize`: squares of uint8 class ids.

    Threads may share it: they wait for each other where they read.

    Args:
        raster: what is read.
        size: side of the squares in pixels.
        classes: what the labels mean; every label must be among them.
    """

    def __init__(self, raster: LabelRaster, size: int, classes: Classes) -> None:
        self._raster = raster
        self._grid = ChunkGrid(raster.shape, size)
        self._classes = classes
        self._known = np.zeros(256, bool)
        self._known[[*classes.ids, NOTHING]] = True
        self._ignored = {classes.nodata} | ({raster.nodata} if raster.nodata is not None else set())
        self._reader = _Reader(raster)
        self._lock = threading.Lock()

    def __enter__(self) -> RasterBlocks:
        """Open the files.

        Raises:
            SceneError: one cannot be opened.
        """
        self._reader.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files."""
        self._reader.__exit__(*error)

    @property
    def cuts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where blocks begin, and the raster's end: rows and columns."""
        (height, width), size = self._grid.shape, self._grid.size
        return (*range(0, height, size), height), (*range(0, width, size), width)

    def read(self, window: Window) -> LabelBlock:
        """Return one block as class ids, :data:`NOTHING` where nothing is known.

        Raises:
            SceneError: a file cannot be read.
            LabelsError: a value belongs to no class, or a confidence is not a probability.
        """
        with self._lock:
            raw, valid = self._reader.labels(window)
        for value in self._ignored:
            valid &= raw != value
        labels, strange = _as_bytes(raw, valid)
        if strange is None and not self._known[labels].all():
            strange = int(labels[~self._known[labels]][0])
        if strange is not None:
            ids = self._classes.ids
            listed = ", ".join(str(c) for c in ids[:12]) + (", …" if len(ids) > 12 else "")
            raise LabelsError(
                f"{self._raster.path} has label value {strange} in {window}, which belongs to no class: "
                f"known values are {listed}, and nodata is {sorted(self._ignored)}."
            )
        with self._lock:
            return LabelBlock(window, labels, self._reader.confidence(window, valid))


class _Reader:
    """The open files of a label raster."""

    def __init__(self, raster: LabelRaster) -> None:
        self._raster = raster
        self._stack = ExitStack()

    def __enter__(self) -> _Reader:
        with ExitStack() as stack:
            self._labels = stack.enter_context(open_raster(self._raster.path))
            if self._raster.confidence is not None:
                self._confidence = stack.enter_context(open_raster(self._raster.confidence[0]))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def labels(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the values of a window as they are, and where the file's own mask says that they hold."""
        raster, place = self._raster, RasterioWindow(window.col, window.row, window.width, window.height)
        with gdal_environment(raster.path), reading(raster.path, str(window)):
            values = self._labels.read(raster.band, window=place)
            if not raster.masked:
                return values, np.ones(values.shape, bool)
            return values, self._labels.read_masks(raster.band, window=place) > 0

    def confidence(self, window: Window, valid: NDArray[np.bool_]) -> NDArray[np.uint16] | None:
        """Return the confidence in 1/1000, 0 where there is no label or no confidence."""
        if self._raster.confidence is None:
            return None
        path, band = self._raster.confidence
        place = RasterioWindow(window.col, window.row, window.width, window.height)
        with gdal_environment(path), reading(path, str(window)):
            raw = self._confidence.read(band, window=place)
        nodata = self._confidence.nodatavals[band - 1]
        known = valid if nodata is None else valid & (raw != nodata)
        scale, offset = self._confidence.scales[band - 1], self._confidence.offsets[band - 1]
        if raw.dtype.kind in "iu" and (scale, offset) == (1.0, 0.0):
            thousandths = np.where(known, raw, 0)  # as a run writes them
        else:
            known = known & np.isfinite(raw)
            thousandths = np.rint((np.where(known, raw, 0) * scale + offset) * 1000)
            thousandths[~known] = 0
        if ((thousandths < 0) | (thousandths > 1000)).any():
            raise LabelsError(
                f"{path} has values outside 0 to 1 in {window} and is no confidence: give floats from 0 to 1, integers "
                "with a scale, or integers in 1/1000."
            )
        return thousandths.astype(np.uint16)


def _as_bytes(raw: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], int | None]:
    """Return labels as uint8 with :data:`NOTHING` where invalid, and a valid value that is no class id, if any."""
    outside = valid & ((raw < 0) | (raw >= MAX_CLASSES))
    labels = np.where(valid & ~outside, raw, NOTHING).astype(np.uint8)
    return labels, int(raw[outside][0]) if outside.any() else None


def _refuse_band(dataset: rasterio.DatasetReader, band: int) -> None:
    if not 1 <= band <= dataset.count:
        raise LabelsError(f"{dataset.name} has no band {band}: its bands are 1 to {dataset.count}.")


def _refuse_confidence(raster: LabelRaster) -> None:
    """Refuse a confidence that does not lie on the grid of its labels."""
    if raster.confidence is None:
        return
    path, band = raster.confidence
    height, width = raster.shape
    with gdal_environment(path), open_raster(path) as dataset:
        refuse_truncated(dataset)
        _refuse_band(dataset, band)
        to_labels = ~raster.affine * dataset.transform
        corners = [(0, 0), (width, 0), (0, height)]
        shifts = [abs(a - b) for corner in corners for a, b in zip(to_labels * corner, corner, strict=True)]
        if dataset.shape != raster.shape or max(shifts) > _SAME_PLACE_PX:
            raise LabelsError(
                f"{path} is not on the grid of {raster.path} (shape {dataset.shape} against {raster.shape}): "
                "give the confidence that was written with these labels."
            )
