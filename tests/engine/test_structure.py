"""Structural similarity of two maps: bands and means, whatever the blocks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import shapes

import geoseg
from geoseg.engine.structure import SIZE, Pair, compare_structure
from geoseg.errors import ConfigError
from tests.conftest import write_raster

HALF = SIZE // 2


def _labels(seed: int, shape: tuple[int, int] = (70, 90)) -> np.ndarray:
    """Patches of the classes 0 to 3, of which 2 does not occur."""
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.choice([0, 1, 3], (shape[0] // 9 + 1, shape[1] // 13 + 1)), np.ones((9, 13), int))
    return labels[: shape[0], : shape[1]].astype(np.uint8)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A prediction and its reference, with holes of nodata in both."""
    reference = _labels(0)
    prediction = np.roll(reference, 1, axis=1)
    prediction[20:40, 50:70] = 1
    reference[30:33, 10:12] = 255
    prediction[66:, :4] = 255
    return (
        write_raster(tmp_path / "prediction.tif", prediction, nodata=255),
        write_raster(tmp_path / "reference.tif", reference, nodata=255),
    )


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def _by_hand(x: np.ndarray, y: np.ndarray, known: np.ndarray, data_range: float) -> np.ndarray:
    """S1, S2 and SSIM of each window (3, H, W) of one plane, by the formula; NaN where there is none."""
    places = np.arange(SIZE) - HALF
    w = np.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    w /= w.sum()
    e1, e2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = np.full((3, *x.shape), np.nan)
    for row in range(x.shape[0] - SIZE + 1):
        for col in range(x.shape[1] - SIZE + 1):
            place = slice(row, row + SIZE), slice(col, col + SIZE)
            if not known[place].all():
                continue
            a, b = x[place], y[place]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, ab = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
            s1 = (2 * ma * mb + e1) / (ma**2 + mb**2 + e1)
            s2 = (2 * ab + e2) / (va + vb + e2)
            found[:, row + HALF, col + HALF] = s1, s2, s1 * s2
    return found


def test_bands_and_means_equal_plain_numpy(pair, tmp_path):
    prediction, reference = (_read(path)[0] for path in pair)
    known = (prediction != 255) & (reference != 255)
    planes = np.stack([_by_hand(prediction == c, reference == c, known, 1.0) for c in (0, 1, 3)])
    path = tmp_path / "structure.tif"
    record = geoseg.evaluate(*pair, structure_file=path, objects=False).as_dict()["structure"]
    s1, s2 = planes.mean(axis=0)[:2]
    with rasterio.open(path) as file, rasterio.open(pair[1]) as grid:
        assert (file.transform, file.crs, file.shape) == (grid.transform, grid.crs, grid.shape)
        assert file.descriptions == ("S1", "S2", "D2")
        assert file.dtypes == ("float32",) * 3
        assert all(math.isnan(value) for value in file.nodatavals)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_allclose(file.read(), [s1, s2, np.sqrt(2 - s1 - s2)], atol=2e-6)
    assert path.with_suffix(".qml").exists()
    assert record["windows"] == np.isfinite(s1).sum() > 1000
    assert [each["name"] for each in record["planes"]] == ["background", "class 1", "class 3"]
    for told, parts in ((record, planes.mean(axis=0)), *zip(record["planes"], planes, strict=True)):
        means = [float(np.nanmean(part)) for part in parts]
        assert [told[key] for key in ("s1", "s2", "ssim")] == pytest.approx(means, abs=1e-9)
        assert told["d2"] == pytest.approx(math.sqrt(2 - means[0] - means[1]), abs=1e-9)


@pytest.mark.parametrize("chunk", [7, 16, 33])
def test_blocks_change_nothing(chunk, pair, tmp_path):
    paths = [tmp_path / f"{name}.tif" for name in ("whole", "parts")]
    found = [
        geoseg.evaluate(*pair, structure_file=path, objects=False, chunk=side).as_dict()["structure"]
        for path, side in zip(paths, (2048, chunk), strict=True)
    ]
    np.testing.assert_allclose(_read(paths[1]), _read(paths[0]), atol=1e-6)
    for key in ("s1", "s2", "ssim", "d2"):
        assert found[1][key] == pytest.approx(found[0][key], abs=1e-9)
    assert found[1]["windows"] == found[0]["windows"]


def test_equal_maps_agree_everywhere(pair, tmp_path):
    path = tmp_path / "structure.tif"
    record = geoseg.evaluate(pair[1], pair[1], structure_file=path, objects=False).as_dict()["structure"]
    assert (record["s1"], record["s2"], record["ssim"]) == (1, 1, 1)
    assert record["d2"] == 0
    s1, s2, d2 = _read(path)
    known = np.isfinite(s1)
    assert ((s1 == 1) & (s2 == 1) & (d2 == 0))[known].all()
    assert not known[:HALF].any()
    assert not known[30 - HALF : 33 + HALF, 10 - HALF : 12 + HALF].any()
    assert known[30 - HALF - 1, 10]


def test_class_numbers_do_not_matter(pair, tmp_path):
    found = []
    for name, table in (("near", [0, 1, 2, 3]), ("far", [200, 7, 3, 90])):
        lookup = np.full(256, 255, np.uint8)
        lookup[:4] = table
        renamed = [
            write_raster(tmp_path / f"{name}_{i}.tif", lookup[_read(p)[0]], nodata=255) for i, p in enumerate(pair)
        ]
        record = geoseg.evaluate(*renamed, structure_file=tmp_path / f"{name}.tif", objects=False).as_dict()
        found.append(record["structure"])
    assert found[0]["d2"] == pytest.approx(found[1]["d2"], abs=1e-12)
    assert found[0]["d2"] > 0.1


def test_only_windows_inside_of_the_area(pair, tmp_path):
    area = geopandas.GeoSeries([shapely.box(350_000, 3_059_980, 350_030, 3_060_000)], crs=32645)
    area.to_file(tmp_path / "area.gpkg")
    path = tmp_path / "structure.tif"
    geoseg.evaluate(*pair, aoi=tmp_path / "area.gpkg", structure_file=path, objects=False)
    known = np.isfinite(_read(path)[0])
    assert known[HALF : 40 - HALF, 20 + HALF : 60 - HALF].all()
    assert not known[40 - HALF :].any()
    assert not known[:, 60 - HALF :].any()


def test_a_map_smaller_than_a_window_has_none(tmp_path):
    paths = [write_raster(tmp_path / f"{i}.tif", np.full((10, 40), i, np.uint8) % 2) for i in range(2)]
    path = tmp_path / "structure.tif"
    record = geoseg.evaluate(*paths, structure_file=path, objects=False).as_dict()["structure"]
    assert record["windows"] == 0
    assert record["s1"] is record["d2"] is None
    assert np.isnan(_read(path)).all()


def test_polygons_and_another_grid(pair, tmp_path):
    """What is compared is what the other figures are of: polygons are burnt, other grids read by nearest neighbour."""
    labels = _read(pair[0])[0]
    affine = Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000)
    outlines = [(shapely.geometry.shape(s), int(v)) for s, v in shapes(labels, labels != 255, transform=affine)]
    frame = geopandas.GeoDataFrame({"class_id": [v for _, v in outlines]}, geometry=[s for s, _ in outlines], crs=32645)
    frame.to_file(tmp_path / "prediction.gpkg")
    whole = geoseg.evaluate(*pair, structure_file=tmp_path / "a.tif", objects=False).as_dict()["structure"]
    burnt = geoseg.evaluate(
        tmp_path / "prediction.gpkg", pair[1], structure_file=tmp_path / "b.tif", objects=False, outside="ignore"
    ).as_dict()["structure"]
    assert burnt["d2"] == pytest.approx(whole["d2"], abs=1e-12)
    finer = write_raster(
        tmp_path / "finer.tif", np.kron(_read(pair[0])[0], np.ones((3, 3), np.uint8)), nodata=255,
        transform=affine * Affine.scale(1 / 3),
    )  # fmt: skip
    coarse = geoseg.evaluate(finer, pair[1], structure_file=tmp_path / "c.tif", objects=False).as_dict()["structure"]
    assert coarse["d2"] == pytest.approx(whole["d2"], abs=1e-12)


def test_it_stands_in_all_reports(pair, tmp_path):
    files = {name: tmp_path / f"r.{name}" for name in ("json", "html")}
    found = geoseg.evaluate(
        *pair, structure_file=tmp_path / "s.tif", json_file=files["json"], html_file=files["html"], objects=False
    )
    record = json.loads(files["json"].read_text())["structure"]
    assert record == found.as_dict()["structure"]
    assert "Structural similarity" in files["html"].read_text()
    assert f"{record['d2']:.4f}" in files["html"].read_text()
    assert "structure" not in geoseg.evaluate(*pair, objects=False).as_dict()
    with pytest.raises(ConfigError, match="two outputs have the same name"):
        geoseg.evaluate(*pair, structure_file=tmp_path / "x.tif", errors_file=tmp_path / "x.tif")


def test_memory_is_bounded_by_the_block():
    """No window of a huge pair that is read is larger than a block and its surroundings."""
    seen = []

    def read(window):
        seen.append(window)
        ones = np.ones(window.shape)
        return iter([(ones, ones)]), np.zeros(window.shape, bool)

    found = compare_structure(Pair((5000, 3000), ("a",), 1.0, read))
    assert max(max(window.shape) for window in seen) <= 1024 + SIZE - 1
    assert found.windows == 0
