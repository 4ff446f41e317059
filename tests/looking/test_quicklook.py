"""The picture: its size, what lies where, and its legend."""

import shutil

import numpy as np
import pytest
from affine import Affine
from PIL import Image

import geoseg
from geoseg.classes import Classes, LabelClass
from geoseg.errors import ConfigError, OutputError
from geoseg.outputs.cog import write_label_cog
from tests.conftest import write_raster
from tests.looking.conftest import BLUE, GREY, RED


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def near(picture: np.ndarray, color, tolerance: int = 25) -> np.ndarray:
    return np.abs(picture - np.array(color)).max(axis=-1) <= tolerance


def mixed(below, color):
    return [round((a + b) / 2) for a, b in zip(below, color, strict=True)]


@pytest.fixture
def upright(make_run):
    return make_run(transform=Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000))


def test_classes_lie_on_the_scene_beside_it(upright, tmp_path):
    looked = geoseg.preview(upright.polygons, tmp_path / "p.png", scene=upright.scene, side=600)
    picture = pixels(looked.file)
    height, width, _ = picture.shape
    assert width == 2 * 24 + 12 + 2 * 600
    assert height < 600
    red, blue = near(picture, RED), near(picture, BLUE)
    green, yellow = near(picture, mixed(RED, (0, 200, 0))), near(picture, mixed(BLUE, (255, 220, 0)))
    assert red.sum() > 10_000
    # The right half shows the same at the same place, half covered; outlines are not.
    shifted = np.roll(green, -612, axis=1)
    assert (shifted & red).sum() / red.sum() > 0.9
    assert (np.roll(yellow, -612, axis=1) & blue).sum() / blue.sum() > 0.88
    assert near(picture, (0, 200, 0), 3).sum() > 150  # a swatch, and outlines
    assert near(picture, GREY, 3).sum() > 100_000


def test_labels_are_shown_where_there_are_no_polygons_and_confidence_where_there_are_none(upright, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("labels.tif", "confidence.tif"):
        shutil.copy(upright.folder / name, alone)
    labels = pixels(geoseg.preview(alone / "labels.tif", side=400).file)
    assert labels.shape[1] == 448
    assert near(labels, mixed((230, 233, 236), (0, 200, 0))).sum() > 5_000
    sure = pixels(geoseg.preview(alone / "confidence.tif", side=400).file)
    assert near(sure, (37, 52, 148)).sum() > 50
    assert (near(sure, (230, 233, 236), 1).sum()) > 1000  # no data at the top


def test_the_picture_is_bounded_and_the_same_every_time(upright, tmp_path):
    first = geoseg.preview(upright.polygons, tmp_path / "a.png", scene=upright.scene, side=200).file
    second = geoseg.preview(upright.polygons, tmp_path / "b.png", scene=upright.scene, side=200).file
    assert first.read_bytes() == second.read_bytes()
    assert max(pixels(first).shape) <= 2 * 200 + 60


def test_a_legend_of_many_classes_ends_with_how_many_more(tmp_path):
    values = np.arange(200, dtype=np.uint8).repeat(4).reshape(20, 40)
    classes = Classes(tuple(LabelClass(i, f"a class called {i}", f"#{i:02x}60{255 - i:02x}") for i in range(200)))
    write_raster(tmp_path / "v.tif", values, nodata=255)
    write_label_cog(tmp_path / "v.tif", tmp_path / "labels.tif", classes)
    picture = pixels(geoseg.preview(tmp_path / "labels.tif", side=300).file)
    assert picture.shape[0] < 150 + 8 * 26 + 110


def test_an_empty_result_says_so(upright, tmp_path):
    geoseg.vectorize(upright.labels, tmp_path / "none.gpkg", min_area=10_000, small="drop")
    picture = pixels(geoseg.preview(tmp_path / "none.gpkg", scene=upright.scene, side=300).file)
    assert near(picture, RED).sum() > 2 * 1000


def test_where_the_picture_goes_is_checked(upright, tmp_path):
    with pytest.raises(ConfigError, match=r"let its name end in \.png"):
        geoseg.preview(upright.polygons, tmp_path / "p.jpg")
    (tmp_path / "p.png").touch()
    with pytest.raises(OutputError, match="exists already"):
        geoseg.preview(upright.polygons, tmp_path / "p.png")
