"""Pixels of a site on any grid are those that a scene on that grid would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from geoseg.errors import SceneError
from geoseg.training.config import check
from geoseg.training.site import open_sites
from tests.conftest import asymmetric, write_raster


@pytest.mark.parametrize("scale", [0.7, 1.0, 2.3])
@pytest.mark.parametrize("nodata", [None, 0])
def test_pixels_are_those_of_a_scene_on_that_grid(tmp_path: Path, scale: float, nodata: int | None) -> None:
    array = asymmetric(3, 300, 280)
    if nodata is not None:
        array[:, 100:140, 90:150] = 0
    image = write_raster(tmp_path / "s.tif", array, nodata=nodata)
    labels = write_raster(tmp_path / "l.tif", np.zeros((300, 280), np.uint8))
    config = check({"data": {"scenes": [{"image": str(image), "labels": str(labels)}], "classes": "a,b"}})
    site = open_sites(config)[0][0]
    to_site = Affine.translation(130, 120) * Affine.rotation(11) * Affine.scale(scale) * Affine.translation(-40, -40)
    seen = site.pixels_on(to_site, (80, 80), scale)
    grid = GeoBox((80, 80), site.scene.geobox.affine * to_site, site.scene.geobox.crs)
    expected = site.native.on_grid(grid).read(site.native.on_grid(grid).window)
    both = seen.valid & expected.valid
    assert (seen.valid == expected.valid).mean() > 0.99
    difference = np.abs(seen.data.astype(int) - expected.data)[:, both]
    assert difference.mean() < 0.6
    assert 0.2 < seen.valid.mean() <= 1
    assert (seen.data[:, ~seen.valid] == 0).all()


def test_scenes_with_other_bands_are_refused(tmp_path: Path) -> None:
    labels = write_raster(tmp_path / "l.tif", np.zeros((50, 50), np.uint8))
    images = [write_raster(tmp_path / f"{bands}.tif", asymmetric(bands, 50, 50)) for bands in (3, 5)]
    scenes = [{"image": str(image), "labels": str(labels)} for image in images]
    config = check({"data": {"scenes": scenes, "classes": "a,b"}})
    with pytest.raises(SceneError, match=r"5\.tif has 5 bands where .*3\.tif has 3"):
        open_sites(config)
