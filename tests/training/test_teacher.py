"""What a teacher says of a scene: squares that fit together whoever asks for them, in whatever order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.training.config import check
from geoseg.training.labels import IGNORE
from geoseg.training.site import open_sites
from geoseg.training.teacher import TaughtLabels
from tests.conftest import write_raster

SHAPE = (700, 1100)


class Chequered:
    """Stands in for a teacher: it says of a pixel what its place in the scene is, and counts the squares."""

    def __init__(self) -> None:
        self.asked = []

    def window(self, number, site, window):
        self.asked.append((window.row, window.col))
        rows, cols = np.indices(window.shape)
        return said(rows + window.row, cols + window.col)


def said(rows, cols):
    return ((rows // 7 + cols // 5) % 3).astype(np.uint8)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    image = write_raster(folder / "image.tif", np.ones(SHAPE, np.uint8), transform=Affine(0.5, 0, 0, 0, -0.5, 0))
    labels = write_raster(folder / "labels.tif", np.zeros(SHAPE, np.uint8), transform=Affine(0.5, 0, 0, 0, -0.5, 0))
    given = {"scenes": [{"image": str(image), "labels": str(labels)}], "classes": "a,b,c"}
    return open_sites(check({"data": given, "network": {"name": "plainconv"}}))[0][0]


@settings(deadline=None, max_examples=40)
@given(
    centre=st.tuples(st.floats(-40, SHAPE[1] + 40), st.floats(-40, SHAPE[0] + 40)),
    angle=st.floats(-180, 180),
    scale=st.floats(0.4, 2.5),
)
def test_any_grid_gets_what_is_said_of_the_nearest_pixels(site, centre, angle, scale):
    labels = TaughtLabels(Chequered(), 0, site)
    to_site = (
        Affine.translation(*centre) * Affine.rotation(angle) * Affine.scale(scale) * Affine.translation(-24.3, -16.6)
    )
    found = labels.burn(site.scene.geobox.affine * to_site, (33, 48))
    rows, cols = np.indices((33, 48)) + 0.5
    x, y = to_site * (cols, rows)
    inside = (x >= 0) & (x < SHAPE[1]) & (y >= 0) & (y < SHAPE[0])
    expected = np.where(inside, said(np.floor(y), np.floor(x)), IGNORE)
    # Pixels whose centres lie on an edge may be rounded to either side.
    clear = (np.abs(x - np.rint(x)) > 1e-6) & (np.abs(y - np.rint(y)) > 1e-6)
    assert np.array_equal(found[clear], expected[clear])


def test_a_square_is_labelled_once_and_when_it_is_looked_at(site):
    teacher = Chequered()
    labels = TaughtLabels(teacher, 0, site)
    here = site.scene.geobox.affine * Affine.translation(600, 100)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: labels.burn(here, (64, 64)), range(8)))
    assert teacher.asked == [(-128, 384)]
    assert all(np.array_equal(each, found[0]) for each in found)
    whole = labels.burn(site.scene.geobox.affine, SHAPE)
    assert sorted(teacher.asked) == [(row, col) for row in (-128, 384) for col in (-128, 384, 896)]
    assert np.array_equal(whole, said(*np.indices(SHAPE)))


def test_outside_of_the_scene_nothing_is_said_and_nothing_asked(site):
    teacher = Chequered()
    far = site.scene.geobox.affine * Affine.translation(-500, 0)
    assert (TaughtLabels(teacher, 0, site).burn(far, (32, 32)) == IGNORE).all()
    assert not teacher.asked
