"""A scene: one raster seen through a chosen grid (CRS, resolution, shape) and chosen bands, read lazily."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from geoseg.errors import SceneError, one_line
from geoseg.geodesy import ground_resolution, projection
from geoseg.grid import Window, coarse_span, coarse_stretches, mirror, taken
from geoseg.nodata import hide_nodata
from geoseg.resampling import EXACT, read_along, running_along
from geoseg.source import (
    RASTER_FAULTS,
    OpenPerThread,
    alpha_band,
    band_names,
    choose_bands,
    gdal_environment,
    has_internal_mask,
    open_raster,
    patiently,
    reading,
    refuse_truncated,
    resolve,
)
from geoseg.warp import Warp, native_grid, open_warped

if TYPE_CHECKING:
    from geoseg.normalisation import Statistics

# A resolution this close to the scene's own is the scene's own: resampling would only blur.
SAME_RESOLUTION = 0.02


@dataclass(frozen=True)
class Pixels:
    """Pixels with their place: ``data`` (C, H, W) in the scene's dtype, ``valid`` (H, W) bool, ``window`` in the scene.

    Where ``valid`` is False, ``data`` is 0; every other value is finite.
    """

    data: NDArray[Any]
    valid: NDArray[np.bool_]
    window: Window


@dataclass(frozen=True)
class Scene(OpenPerThread):
    """One raster as the program sees it.  Small and picklable: files are opened on first use, once per thread.

    Attributes:
        path: what GDAL opens.
        geobox: CRS, affine transform and shape of the grid the scene is seen through.
        bands: band indices (from 1) in the order of the channels.
        band_names: their names.
        dtype: numpy name of the pixel type.
        nodata: value that means "no data", per band, None where there is none.
        alpha: index of the band whose zeros mean "no data", if there is one.
        masked: whether the file carries an internal validity mask.
        warp: None where ``geobox`` is the file's own grid.
        elsewhere: whether the file may refer to files outside of its folder and to servers.
        overview: the file's overview that is read in place of its pixels, by its number from 0.
    """

    path: str
    geobox: GeoBox
    bands: tuple[int, ...]
    band_names: tuple[str, ...]
    dtype: str
    nodata: tuple[float | None, ...]
    alpha: int | None = None
    masked: bool = False
    warp: Warp | None = None
    elsewhere: bool = False
    overview: int | None = None
    _open: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.geobox.shape
        return int(height), int(width)

    @property
    def window(self) -> Window:
        """The whole scene."""
        return Window(0, 0, *self.shape)

    @property
    def resolution(self) -> tuple[float, float]:
        """True ground length in metres of one pixel along x and along y, at the centre."""
        return ground_resolution(self.geobox)

    @property
    def full(self) -> bool:
        """Whether every pixel is known to hold data without being read."""
        declared = self.alpha is not None or self.masked or any(value is not None for value in self.nodata)
        return not declared and self.warp is None and np.dtype(self.dtype).kind != "f"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this scene from another: source file (size and time of change if local), grid, bands, nodata."""
        stat = os.stat(self.path) if os.path.isfile(self.path) else None
        return {
            "path": self.path,
            "size": stat.st_size if stat else None,
            "changed_ns": stat.st_mtime_ns if stat else None,
            "crs": projection(self.geobox).to_wkt(),
            "transform": list(self.geobox.affine)[:6],
            "shape": list(self.shape),
            "bands": list(self.bands),
            "nodata": [None if value is None else repr(value) for value in self.nodata],
        }

    def read(self, window: Window) -> Pixels:
        """Read ``window``; where it reaches beyond the scene, the scene is mirrored (:func:`geoseg.grid.reflected`).

        Raises:
            SceneError: the file cannot be read there.
        """
        inner, rows, cols = mirror(window, self.shape)
        if self.warp is not None and self.warp.along is not None:
            data, valid = read_along(self._unwarped(), self.warp.along, inner)
        else:
            place = RasterioWindow(inner.col, inner.row, inner.width, inner.height)
            data, valid = self._read_inside(place, inner.shape)
        if rows is not None and cols is not None:
            data, valid = taken(data, rows, cols), taken(valid, rows, cols)
        return Pixels(data, valid, window)

    def read_coarse(self, window: Window, size: int) -> Pixels:
        """Read a square window shrunk to ``size`` pixels a side, from an overview where the file has a fitting one.

        Pixels are averaged.  Where the window reaches beyond the scene, what it holds of the scene is mirrored.

        Raises:
            SceneError: the file cannot be read there, or the window holds nothing of the scene.
        """
        step = window.height / size
        spans = [
            coarse_span(start, step, size, length)
            for start, length in zip((window.row, window.col), self.shape, strict=True)
        ]
        if any(stop <= start for start, stop, _ in spans):
            raise SceneError(f"{self.path} has no pixel at {window}: read a window that meets the scene.")
        (top, bottom, rows), (left, right, cols) = spans
        down = coarse_stretches(window.row + top * step, step, bottom - top, self.shape[0])
        across = coarse_stretches(window.col + left * step, step, right - left, self.shape[1])
        read = [
            [
                self._read_inside(RasterioWindow(x, y, x_stop - x, y_stop - y), (height, width))
                for x, x_stop, width in across
            ]
            for y, y_stop, height in down
        ]
        data = np.concatenate([np.concatenate([part for part, _ in line], 2) for line in read], 1)
        valid = np.concatenate([np.concatenate([part for _, part in line], 1) for line in read], 0)
        return Pixels(taken(data, rows, cols), taken(valid, rows, cols), window)

    def _read_inside(self, place: RasterioWindow, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a part of the scene as ``shape`` rows and columns."""
        how: dict[str, Any] = {"window": place}
        if (place.height, place.width) != shape:
            # An average of nodata that the file does not know of would be a measurement.
            how |= {"out_shape": shape, "resampling": Resampling.average if self._knows_nodata else Resampling.nearest}
        with gdal_environment(self.path), reading(self.path, _told(place)):
            data, mask = patiently(self.path, lambda: self._read_stored(how))
        return hide_nodata(data, mask, self.nodata)

    def _read_stored(self, how: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return pixels as the file has them, and the mask that it has of them, if any."""
        try:
            dataset = self._dataset()
            data = dataset.read(list(self.bands), **how)
            how = {name: value for name, value in how.items() if name != "resampling"}
            if self.alpha is not None:
                return data, dataset.read(self.alpha, **how)
            if self.warp is not None and all(value is None for value in self.nodata):
                return data, dataset.read(dataset.count, **how)
            return data, dataset.read_masks(self.bands[0], **how) if self.masked else None
        except RASTER_FAULTS:
            self._open.dataset = None  # what GDAL holds of it may be half an answer
            raise

    @property
    def _knows_nodata(self) -> bool:
        """Whether the open file has the nodata values of the scene."""
        dataset = self._dataset()
        own = (dataset.nodatavals[band - 1] for band in self.bands)
        return all(mine is None or repr(mine) == repr(its) for mine, its in zip(self.nodata, own, strict=True))

    def _dataset(self) -> rasterio.DatasetReader | WarpedVRT:
        dataset = getattr(self._open, "dataset", None)
        if dataset is None:
            if self.warp is None:
                dataset = open_raster(self.path, self.overview, elsewhere=self.elsewhere)
            else:
                how = {"has_alpha": self.alpha is not None, "elsewhere": self.elsewhere}
                dataset = open_warped(self.path, self.geobox, self.warp, self.nodata, **how)
            self._open.dataset = dataset
        return dataset

    def _unwarped(self) -> Scene:
        """Return the raster on its own grid, or the overview that is read in its place."""
        own: Scene | None = getattr(self._open, "unwarped", None)
        if own is None:
            level = None if self.warp is None else self.warp.overview_level
            with gdal_environment(self.path), open_raster(self.path, level, elsewhere=self.elsewhere) as dataset:
                geobox = GeoBox(dataset.shape, dataset.transform, self.geobox.crs)
            own = replace(self, geobox=geobox, warp=None, overview=level, _open=threading.local())
            self._open.unwarped = own
        return own

    def on_grid(self, geobox: GeoBox) -> Scene:
        """Return the same source seen through the grid ``geobox``, read lazily, from an overview where that is coarser.

        Raises:
            SceneError: the grid has no CRS or is nowhere near the scene.
        """
        if geobox == self.geobox:
            return self
        own = open_scene(self.path, bands=self.bands, nodata=_given(self.nodata), elsewhere=self.elsewhere)
        if geobox == own.geobox:
            return own
        try:
            fine, coarse = own.resolution, ground_resolution(geobox)
        except SceneError as error:
            raise SceneError(f"{self.path} cannot be brought to the grid asked for: {one_line(error)}") from error
        ratio = (coarse[0] / fine[0], coarse[1] / fine[1])
        factors: list[int] = []
        if own.warp is None:  # an overview does not carry the control points
            with gdal_environment(self.path), open_raster(self.path, elsewhere=self.elsewhere) as dataset:
                factors = dataset.overviews(1)
        level = max((i for i, factor in enumerate(factors) if factor <= min(ratio) * 1.001), default=None)
        along = running_along(own.geobox, geobox, ratio) if own.warp is None and own.dtype in EXACT else None
        return replace(own, geobox=geobox, warp=Warp(level, ratio, along))

    def with_bands(self, bands: Sequence[int]) -> Scene:
        """Return the same scene with some of its bands, by their index in the file (from 1), in another order.

        Raises:
            SceneError: a band that is not among the scene's.
        """
        if not set(bands) <= set(self.bands):
            raise SceneError(f"{self.path} was opened with the bands {self.bands}, which do not hold all of {bands}.")
        places = [self.bands.index(band) for band in bands]
        return replace(
            self,
            bands=tuple(bands),
            band_names=tuple(self.band_names[i] for i in places),
            nodata=tuple(self.nodata[i] for i in places),
            _open=threading.local(),
        )

    def at_resolution(self, metres: float) -> Scene:
        """Return the scene at ``metres`` of true ground per pixel, in its own CRS and orientation.

        Raises:
            SceneError: ``metres`` is not positive, or so large that no pixel is left.
        """
        if not (math.isfinite(metres) and metres > 0):
            raise SceneError(f"a resolution of {metres} m cannot be read: give metres per pixel above 0.")
        x, y = (metres / own for own in self.resolution)
        if max(abs(x - 1), abs(y - 1)) <= SAME_RESOLUTION:
            return self
        height, width = self.shape
        shape = (math.ceil(height / y - 1e-6), math.ceil(width / x - 1e-6))
        if min(shape) < 1 or height < y / 2 or width < x / 2:
            raise SceneError(
                f"{self.path} covers less than one pixel of {metres} m: its pixels are {self.resolution[0]:.3g} m."
            )
        return self.on_grid(GeoBox(shape, self.geobox.affine * Affine.scale(x, y), self.geobox.crs))

    def statistics(self) -> Statistics:
        """Return per-band statistics of the valid pixels, from one pass over an overview or a lattice of samples.

        Raises:
            SceneError: no valid pixel, or the file cannot be read.
        """
        from geoseg.normalisation import measure

        return measure(self)


def open_scene(
    path: str | os.PathLike[str],
    *,
    bands: Sequence[int | str] | None = None,
    nodata: float | None = None,
    resolution: float | None = None,
    crs: str | int | None = None,
    elsewhere: bool = False,
) -> Scene:
    """Open a raster as a scene, on its own grid unless another resolution or CRS is asked for.

    Args:
        path: a file, an http(s) or s3 URL, or any GDAL name.
        bands: indices (from 1) or names; by default all but alpha.
        nodata: the value that means "no data" in every band, in place of what the file says.
        resolution: true ground metres per pixel.
        crs: another CRS (EPSG code or WKT) to warp to.
        elsewhere: let the file, a VRT perhaps, refer to files outside of its folder and to servers.

    Raises:
        SceneError: unreadable or truncated file, no CRS, complex pixels, unknown bands, or a grid that cannot be made.
    """
    name = resolve(path)
    with gdal_environment(name), open_raster(name, elsewhere=elsewhere) as dataset, reading(name, "its description"):
        scene = replace(_describe(name, dataset, bands, nodata), elsewhere=elsewhere)
        refuse_truncated(dataset)
    scene = scene if crs is None else scene.on_grid(_grid_in(scene, crs))
    return scene if resolution is None else scene.at_resolution(resolution)


def _describe(
    path: str, dataset: rasterio.DatasetReader, bands: Sequence[int | str] | None, nodata: float | None
) -> Scene:
    alpha = alpha_band(dataset)
    names = band_names(dataset)
    chosen = choose_bands(path, names, alpha, bands)
    alpha = None if alpha in chosen else alpha  # asked for as a band, it is one
    dtypes = {dataset.dtypes[i - 1] for i in chosen}
    if any(np.dtype(dtype).kind == "c" for dtype in dtypes if not dtype.startswith("complex_")) or any(
        dtype.startswith("complex") for dtype in dtypes
    ):
        raise SceneError(
            f"{path} has complex pixels ({', '.join(sorted(dtypes))}): convert them to amplitude or decibels first."
        )
    geobox, warp = native_grid(path, dataset)
    values = tuple(nodata if nodata is not None else dataset.nodatavals[i - 1] for i in chosen)
    dtype = np.result_type(*dtypes).name
    values = tuple(value if value is None or _holds(dtype, value) else None for value in values)
    return Scene(
        path=path,
        geobox=geobox,
        bands=chosen,
        band_names=tuple(names[i - 1] for i in chosen),
        dtype=dtype,
        nodata=values,
        alpha=alpha,
        masked=has_internal_mask(dataset) and nodata is None,
        warp=warp,
    )


def _grid_in(scene: Scene, crs: str | int) -> GeoBox:
    """Return a north-up grid in another CRS that holds the whole scene at about its resolution."""
    try:
        target = CRS(f"EPSG:{crs}" if isinstance(crs, int) else crs)
        return scene.geobox.to_crs(target)
    except Exception as error:
        raise SceneError(f"{scene.path} cannot be brought to the CRS {crs!r} ({one_line(error)}).") from error


def _given(values: tuple[float | None, ...]) -> float | None:
    return values[0] if len(set(values)) == 1 else None


def _holds(dtype: str, value: float) -> bool:
    """Whether a pixel of ``dtype`` can have ``value`` (files declare nodata such as -9999 on bytes)."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return True
    return float(value).is_integer() and np.iinfo(kind).min <= value <= np.iinfo(kind).max


def _told(place: RasterioWindow) -> str:
    """Return a place in words."""
    return str(Window(int(place.row_off), int(place.col_off), math.ceil(place.height), math.ceil(place.width)))
