"""The frame in which pixels are square: distances in it are those on the ground."""

import numpy as np
import pyproj
import pytest
from affine import Affine

from geoseg.errors import ConfigError
from geoseg.vector.ground_frame import GroundFrame

GRIDS = {
    "square": ("EPSG:32645", Affine(0.5, 0, 336_000, 0, -0.5, 3_061_000)),
    "rotated": ("EPSG:32645", Affine.translation(336_000, 3_061_000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)),
    "oblong": ("EPSG:32645", Affine.translation(336_000, 3_061_000) * Affine.rotation(20) * Affine.scale(0.9, -0.4)),
    "sheared": ("EPSG:32645", Affine(0.5, 0.2, 336_000, 0, -0.5, 3_061_000)),
    "degrees": ("EPSG:4326", Affine(1e-5, 0, 15, 0, -1e-5, 60)),
    "turned degrees": ("EPSG:4326", Affine.translation(15, 60) * Affine.rotation(30) * Affine.scale(1e-5, -1e-5)),
    "mercator": ("EPSG:3857", Affine(2, 0, 1_000_000, 0, 2, 8_000_000)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_distances_are_those_on_the_ground(name):
    code, affine = GRIDS[name]
    crs = pyproj.CRS(code)
    frame = GroundFrame.of((200, 300), affine, crs)
    points = np.array([[150.0, 100.0], [170.0, 103.0], [140.0, 130.0], [150.5, 80.0]])
    lon, lat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(*(affine * points.T))
    x, y = frame.into(points).T * frame.pixel_m
    for other in (1, 2, 3):
        length = crs.get_geod().inv(lon[0], lat[0], lon[other], lat[other])[2]
        assert np.hypot(x[other] - x[0], y[other] - y[0]) == pytest.approx(length, rel=1e-3)
    np.testing.assert_allclose(frame.back(frame.into(points)), points, atol=1e-9)
    assert [frame.y_of(row) for row in (100, 103)] == pytest.approx(frame.into(points)[:2, 1])


def test_square_pixels_keep_their_whole_numbers():
    for name in ("square", "rotated", "mercator"):
        code, affine = GRIDS[name]
        frame = GroundFrame.of((50, 50), affine, pyproj.CRS(code))
        np.testing.assert_array_equal(frame.into(np.array([[3.0, 7.0]])), [[3.0, 7.0]])


@pytest.mark.parametrize("affine", [Affine(5, 0, 336_000, 0, -1, 3e6), Affine(1, 4, 336_000, 0, -1, 3e6)])
def test_pixels_beyond_reason_are_refused(affine):
    with pytest.raises(ConfigError, match=r"too oblong or skewed .* warp"):
        GroundFrame.of((50, 50), affine, pyproj.CRS(32645))
