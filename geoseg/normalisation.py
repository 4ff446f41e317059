"""How pixel values become network input: statistics of a scene, and the scaling made from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import SceneError
from geoseg.grid import Window
from geoseg.nodata import hide_nodata
from geoseg.source import gdal_environment, open_raster, patiently, reading

if TYPE_CHECKING:
    from geoseg.scene import Scene

_OVERVIEW_SIDE = 1024
_SAMPLES_PER_SIDE = 8
_SAMPLE_SIDE = 128


@dataclass(frozen=True)
class Statistics:
    """Per-band figures of the valid pixels of a scene: mean, standard deviation, 2nd and 98th percentile."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    p2: tuple[float, ...]
    p98: tuple[float, ...]


@dataclass(frozen=True)
class Normalisation:
    """``(value - offset) / scale`` per band, clipped to ``low`` … ``high`` where these are given.

    Invalid pixels become 0, the mean of a standardised band.
    """

    offset: tuple[float, ...]
    scale: tuple[float, ...]
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, statistics: Statistics, kind: Literal["standard", "percentile"] = "standard") -> Normalisation:
        """Return mean 0 and deviation 1 (``standard``), or 2nd to 98th percentile on 0 to 1 (``percentile``)."""
        if kind == "standard":
            return cls(statistics.mean, tuple(s if s > 1e-6 else 1.0 for s in statistics.std), -10.0, 10.0)
        spans = tuple(b - a for a, b in zip(statistics.p2, statistics.p98, strict=True))
        return cls(statistics.p2, tuple(s if s > 1e-6 else 1.0 for s in spans), 0.0, 1.0)

    def as_dict(self) -> dict[str, Any]:
        """Return a plain record, the form in bundles."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def measure(scene: Scene) -> Statistics:
    """Return the statistics of ``scene`` from one deterministic pass over at most a few million of its pixels.

    The sample is the coarsest overview with sides of 1024 pixels or more where the file has one, else a lattice of
    8 × 8 windows of 128 pixels; a small scene is read whole.

    Raises:
        SceneError: no valid pixel, or the file cannot be read.
    """
    data, valid = _sample(scene)
    values = data[:, valid].astype(np.float64)
    if values.shape[1] == 0:
        values = _first_valid(scene).astype(np.float64)
    p2, p98 = np.percentile(values, [2, 98], axis=1)
    return Statistics(
        *(tuple(float(v) for v in figure) for figure in (values.mean(axis=1), values.std(axis=1), p2, p98))
    )


def refuse_empty(scene: Scene) -> None:
    """Refuse a scene of which no pixel is valid; a few windows are read where that is soon clear, else all of it.

    Raises:
        SceneError: it is such a scene, or the file cannot be read.
    """
    seen = any(scene.read(window).valid.any() for window in _sample_windows(scene)) or _sample(scene)[1].any()
    if not seen:
        _first_valid(scene)


def _sample(scene: Scene) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    height, width = scene.shape
    if scene.warp is None and height * width > _OVERVIEW_SIDE**2:
        with gdal_environment(scene.path), open_raster(scene.path, elsewhere=scene.elsewhere) as dataset:
            factors = [f for f in dataset.overviews(1) if min(height, width) >= _OVERVIEW_SIDE * f]
            factors = factors or ([dataset.overviews(1)[0]] if dataset.overviews(1) else [])
        if factors:
            return _overview(scene, factor=factors[-1])
    if height * width <= _OVERVIEW_SIDE**2:
        pixels = scene.read(scene.window)
        return pixels.data, pixels.valid
    parts = [scene.read(window) for window in _sample_windows(scene)]
    flat = np.concatenate([part.data.reshape(len(scene.bands), -1) for part in parts], axis=1)
    return flat[:, None, :], np.concatenate([part.valid.reshape(-1) for part in parts])[None, :]


def _overview(scene: Scene, factor: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    height, width = scene.shape
    shape = (-(-height // factor), -(-width // factor))

    def read() -> tuple[NDArray[Any], NDArray[Any] | None]:
        with open_raster(scene.path, elsewhere=scene.elsewhere) as dataset:
            data = dataset.read(list(scene.bands), out_shape=(len(scene.bands), *shape))
            if scene.alpha is not None:
                return data, dataset.read(scene.alpha, out_shape=shape)
            return data, dataset.read_masks(scene.bands[0], out_shape=shape) if scene.masked else None

    with gdal_environment(scene.path), reading(scene.path, "an overview"):
        return hide_nodata(*patiently(scene.path, read), scene.nodata)


def _sample_windows(scene: Scene) -> Iterator[Window]:
    height, width = scene.shape
    for row in _lattice(height):
        for col in _lattice(width):
            yield Window(row, col, min(_SAMPLE_SIDE, height), min(_SAMPLE_SIDE, width))


def _lattice(size: int) -> list[int]:
    side = min(_SAMPLE_SIDE, size)
    return sorted({round(i * (size - side) / (_SAMPLES_PER_SIDE - 1)) for i in range(_SAMPLES_PER_SIDE)})


def _first_valid(scene: Scene) -> NDArray[Any]:
    """Return the valid values of the first stretch of the scene that has any: (C, N).

    Raises:
        SceneError: there is none.
    """
    height, width = scene.shape
    for row in range(0, height, 2048):
        for col in range(0, width, 2048):
            pixels = scene.read(Window(row, col, min(2048, height - row), min(2048, width - col)))
            if pixels.valid.any():
                return pixels.data[:, pixels.valid]
    raise SceneError(
        f"{scene.path} has no valid pixel: all of it is nodata, transparent or masked; "
        "if its nodata value is wrong, give another with --nodata."
    )
