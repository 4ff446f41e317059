"""A frame of square pixels on the ground for grids whose pixels are oblong or skewed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray

from geoseg.errors import ConfigError, SceneError
from geoseg.geodesy import ellipsoid, geodetic_transformer

# Pixels more oblong or skewed than this show nothing that could be called a right angle.
MOST_OBLONG = 4.0
# Pixels this near to squares are squares: whole numbers then stay whole.
_SQUARE = 0.01


@dataclass(frozen=True)
class GroundFrame:
    """Pixel coordinates made right-angled: x = col + shear · row and y = row, each in units of a square pixel.

    Attributes:
        to_frame: (2, 2) upper triangular: from (column, row) to x and y, both in units of ``pixel_m``; y depends on the
            row alone.
        pixel_m: ground length of that unit in metres, the root of a pixel's area.
    """

    to_frame: NDArray[np.float64]
    pixel_m: float

    @classmethod
    def of(cls, shape: tuple[int, int], affine: Affine, crs: pyproj.CRS) -> GroundFrame:
        """Measure one pixel on the ellipsoid, at the centre of the raster.

        Args:
            shape: the raster's height and width in pixels.
            affine: from pixel corners (column, row) to ``crs``.
            crs: the raster's CRS.

        Raises:
            SceneError: the centre lies outside the area of ``crs``.
            ConfigError: pixels are too oblong or skewed.
        """
        transformer, geod = geodetic_transformer(crs), ellipsoid(crs)
        row, col = shape[0] / 2, shape[1] / 2
        steps = []
        for d_col, d_row in ((0.5, 0.0), (0.0, 0.5)):
            ends = [affine * (col + sign * d_col, row + sign * d_row) for sign in (-1, 1)]
            lon, lat = transformer.transform([x for x, _ in ends], [y for _, y in ends])
            if not all(map(math.isfinite, (*lon, *lat))):
                raise SceneError(f"the centre of the raster lies outside the area where {crs.name!r} is defined.")
            azimuth, _, length = geod.inv(lon[0], lat[0], lon[1], lat[1])
            steps.append((length * math.sin(math.radians(azimuth)), length * math.cos(math.radians(azimuth))))
        (east_col, north_col), (east_row, north_row) = steps
        width = math.hypot(east_col, north_col)
        area = abs(east_col * north_row - north_col * east_row)
        pixel_m = math.sqrt(area)
        along = (east_col * east_row + north_col * north_row) / width
        matrix = np.array([[width, along], [0.0, area / width]]) / pixel_m if area > 0 else np.full((2, 2), np.nan)
        if not area > 0 or np.linalg.cond(matrix) > MOST_OBLONG:
            raise ConfigError(
                f"pixels of {width:.3g} × {math.hypot(east_row, north_row):.3g} m are too oblong or skewed for right "
                "angles: leave --regularize out, or warp the raster to square pixels first."
            )
        if np.abs(matrix - np.eye(2)).max() < _SQUARE:
            matrix = np.eye(2)
        return cls(matrix, pixel_m)

    def into(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points (P, 2) given as column and row in the frame."""
        return _times(self.to_frame, points)

    def back(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points (P, 2) of the frame as column and row."""
        return _times(np.linalg.inv(self.to_frame).astype(np.float64), points)

    def y_of(self, row: float) -> float:
        """Return y of a row."""
        return float(row * self.to_frame[1, 1])


def _times(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an upper triangular matrix times each point, point by point: equal points give equal results."""
    x, y = points.T
    return np.column_stack([matrix[0, 0] * x + matrix[0, 1] * y, matrix[1, 1] * y])
