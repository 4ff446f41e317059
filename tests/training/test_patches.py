"""Patches: pixels and labels lie on one another however they are turned, scaled and warped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import LabelsError
from geoseg.training.config import TrainConfig, check
from geoseg.training.labels import IGNORE
from geoseg.training.patches import Drawing, Judging, Loader, Patch, batches_from, read_patch, turned
from geoseg.training.sampling import Place, Sampler, count
from geoseg.training.site import Site, open_sites
from tests.conftest import write_raster
from tests.training.conftest import NORTH, PIXEL, WEST


def config_of(scene: Path, labels: Path, classes: str = "background,thing", **data: Any) -> TrainConfig:
    return check({"data": {"scenes": [{"image": str(scene), "labels": str(labels)}], "classes": classes, **data}})


def site_of(scene: Path, labels: Path, **data: Any) -> Site:
    return open_sites(config_of(scene, labels, **data))[0][0]


def ground(row: float, col: float) -> tuple[float, float]:
    return WEST + col * PIXEL, NORTH - row * PIXEL


@pytest.fixture(scope="module")
def wedge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A scene that is bright exactly where its label is: a large asymmetric polygon, and the same as a raster."""
    import geopandas
    from rasterio.features import rasterize

    folder = tmp_path_factory.mktemp("wedge")
    pixels = [(20, 30), (40, 170), (110, 150), (90, 90), (160, 60)]
    polygon = shapely.Polygon([ground(*place) for place in pixels])
    own = shapely.Polygon([(col, row) for row, col in pixels])
    from affine import Affine

    mask = rasterize([own], out_shape=(200, 200), transform=Affine.translation(0, 0) * Affine.scale(1.0, 1.0000001))
    scene = write_raster(folder / "wedge.tif", np.stack([mask * 200 + 10] * 2).astype(np.uint8))
    vector = folder / "wedge.gpkg"
    geopandas.GeoDataFrame(geometry=[polygon], crs=32645).to_crs(4326).to_file(vector)
    return scene, vector, write_raster(folder / "wedge_labels.tif", mask.astype(np.uint8))


@given(
    scale=st.floats(0.5, 2),
    angle=st.floats(-45, 45),
    turn=st.integers(0, 7),
    row=st.floats(40, 160),
    col=st.floats(40, 160),
    vector=st.booleans(),
)
def test_pixels_and_labels_stay_together(
    wedge: tuple[Path, Path, Path], scale: float, angle: float, turn: int, row: float, col: float, vector: bool
) -> None:
    site = site_of(wedge[0], wedge[1 if vector else 2])
    patch = read_patch(site, Place(0, (row, col), scale, angle, turn), 48)
    known = patch.labels != IGNORE
    bright = patch.pixels[0] > 110
    differ = known & (bright != (patch.labels == 1))
    # Only along the outline, where a pixel holds both.
    assert differ.sum() <= 0.035 * known.sum() + 4
    assert (patch.labels[~patch.valid] == IGNORE).all()


@given(turn=st.integers(0, 7), row=st.integers(30, 170), col=st.integers(30, 170))
def test_an_exact_patch_is_the_scene_itself(wedge: tuple[Path, Path, Path], turn: int, row: int, col: int) -> None:
    site = site_of(wedge[0], wedge[2])
    patch = read_patch(site, Place(0, (row, col), 1.0, 0.0, turn), 40)
    assert ((patch.labels == 1) == (patch.pixels[0] == 210))[patch.labels != IGNORE].all()


def test_a_scaled_patch_covers_more_ground(wedge: tuple[Path, Path, Path]) -> None:
    site = site_of(*wedge[:2])
    near, far = ((read_patch(site, Place(0, (80, 90), scale), 64).labels == 1).sum() for scale in (0.25, 1.0))
    assert near == 64 * 64
    assert far < near
    whole = read_patch(site, Place(0, (100, 100), 4.0), 50).labels
    polygon_px = shapely.area(site.labels.shapes[0]) / PIXEL**2  # type: ignore[attr-defined]
    assert (whole == 1).sum() * 16 == pytest.approx(polygon_px, rel=0.05)


def test_the_eight_turns_are_eight_and_alike_for_labels() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 9, (5, 5)).astype(np.uint8)
    patch = Patch(np.stack([labels, labels]), labels > 2, labels)
    seen = set()
    for turn in range(8):
        made = turned(patch, turn)
        assert np.array_equal(made.pixels[1], made.labels)
        assert np.array_equal(made.valid, made.labels > 2)
        seen.add(made.labels.tobytes())
    assert len(seen) == 8


def test_nothing_is_known_beyond_the_scene_or_of_what_is_judged(wedge: tuple[Path, Path, Path]) -> None:
    given = config_of(*wedge[:2])
    given.data.scenes[0].validation = (0.5, 1.0)
    sites, judged = open_sites(given)
    patch = read_patch(sites[0], Place(0, (100, 100)), 60)
    assert (patch.labels[:, :30] != IGNORE).all()
    assert (patch.labels[:, 30:] == IGNORE).all()
    corner = read_patch(sites[0], Place(0, (0, 0)), 20)
    assert (corner.labels[:10] == IGNORE).all()
    assert corner.valid.all()
    judging = Judging.of(judged, 32)
    labels = np.concatenate([judging[i].labels.ravel() for i in range(len(judging))])
    assert (labels != IGNORE).sum() == 100 * 200


def test_batches_are_the_same_whoever_reads_them(wedge: tuple[Path, Path, Path]) -> None:
    given = config_of(*wedge[:2])
    site = site_of(*wedge[:2])
    sampler = Sampler([count(site, 2, 32)], [c.name for c in given.data.table()], given.sampling, given.augment, 5)
    drawing = Drawing([site], sampler, 32, 0.25)
    alone, helped = (list(Loader(drawing, batches_from(1, 4, 3, 0, 1), workers=n)) for n in (0, 3))
    assert [batch["numbers"].tolist() for batch in alone] == [[3, 4, 5], [6, 7, 8], [9, 10, 11]]
    for one, other in zip(alone, helped, strict=True):
        assert all(bool((one[name] == other[name]).all()) for name in one)
    shared = [list(numbers) for rank in (0, 1) for numbers in batches_from(0, 2, 3, rank, 2)]
    assert sorted(number for numbers in shared for number in numbers) == list(range(12))


def test_faults_of_readers_reach_the_caller(wedge: tuple[Path, Path, Path], tmp_path: Path) -> None:
    labels = write_raster(tmp_path / "l.tif", np.full((200, 200), 7, np.uint8))
    with pytest.raises(LabelsError, match=r"l\.tif holds the values 7, which are no class"):
        count(site_of(wedge[0], labels), 2, 32)


def test_classes_are_balanced_and_places_follow_the_labels(tmp_path: Path) -> None:
    labels = np.zeros((256, 256), np.uint8)
    labels[:, 200:] = 255
    labels[64:80, 32:48] = 1
    scene = write_raster(tmp_path / "s.tif", np.ones((1, 256, 256), np.uint8))
    site = site_of(scene, write_raster(tmp_path / "l.tif", labels))
    counted = count(site, 2, 32)
    assert counted.pixels.sum(axis=(1, 2)).tolist() == [256 * 200 - 256, 256]
    for balance, share in ((0.0, 256 / (256 * 200)), (0.5, 0.25), (1.0, 0.5)):
        config = check(
            {
                "data": {"scenes": [{"image": "s", "labels": "l"}], "classes": "a,b"},
                "sampling": {"balance": balance},
            }
        )
        sampler = Sampler([counted], [c.name for c in config.data.table()], config.sampling, config.augment, 1)
        places = [sampler.draw(sampler.random(i)) for i in range(4000)]
        inside = np.array([64 <= p.centre[0] < 80 and 32 <= p.centre[1] < 48 for p in places])
        assert inside.mean() == pytest.approx(share, abs=4 * math.sqrt(0.25 / 4000))
        assert all(p.centre[1] < 200 for p in places)
        scales = np.array([p.scale for p in places])
        assert 0.8 <= scales.min() < 0.82
        assert 1.22 < scales.max() <= 1.25
        assert np.bincount([p.turn for p in places], minlength=8).min() > 400


def test_ground_without_data_is_not_drawn(tmp_path: Path) -> None:
    image = np.ones((1, 256, 256), np.uint8)
    image[:, :, :128] = 0
    labels = np.arange(256 * 256, dtype=np.uint32).reshape(256, 256) % 2
    scene = write_raster(tmp_path / "s.tif", image, nodata=0)
    site = site_of(scene, write_raster(tmp_path / "l.tif", labels.astype(np.uint8)))
    counted = count(site, 2, 32)
    assert counted.pixels[:, :, :16].sum() == 0
    assert counted.pixels.sum() == 128 * 256


def test_a_class_without_labels_is_refused(wedge: tuple[Path, Path, Path]) -> None:
    config = config_of(wedge[0], wedge[2], classes="background,thing,fence")
    site = open_sites(config)[0][0]
    with pytest.raises(LabelsError, match="no training label is of class fence"):
        Sampler([count(site, 3, 32)], [c.name for c in config.data.table()], config.sampling, config.augment, 0)
