"""Structural similarity of two rasters of values, band by band."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import rasterio
from affine import Affine

from geoseg.engine.values import compare_values
from geoseg.errors import ConfigError, SceneError
from tests.conftest import asymmetric, write_raster
from tests.engine.test_structure import _by_hand, _read

AFFINE = Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000)


@pytest.fixture
def pair(tmp_path):
    """Two images of two bands, the first noisier; a hole of nodata (0) in one of them."""
    reference = asymmetric(2, 40, 50)
    noise = np.random.default_rng(0).integers(-30, 30, reference.shape)
    prediction = np.clip(reference + noise, 1, 255).astype(np.uint8)
    prediction[:, 20:22, 30] = 0
    return (
        write_raster(tmp_path / "prediction.tif", prediction, nodata=0),
        write_raster(tmp_path / "reference.tif", reference, nodata=0),
    )


@pytest.mark.parametrize("data_range", [None, 100.0])
def test_bands_and_means_equal_plain_numpy(data_range, pair, tmp_path):
    files = {"structure_file": tmp_path / "s.tif", "json_file": tmp_path / "s.json"}
    record = compare_values(*pair, data_range=data_range, **files)
    assert json.loads(files["json_file"].read_text()) == record
    assert record["notes"] == []
    prediction, reference = (_read(path).astype(float) for path in pair)
    known = prediction[0] > 0
    planes = np.stack([_by_hand(*each, known, data_range or 255.0) for each in zip(prediction, reference, strict=True)])
    s1, s2 = planes.mean(axis=0)[:2]
    np.testing.assert_allclose(_read(files["structure_file"]), [s1, s2, np.sqrt(2 - s1 - s2)], atol=2e-6)
    found = record["structure"]
    assert found["data_range"] == (data_range or 255)
    for told, parts in ((found, planes.mean(axis=0)), *zip(found["planes"], planes, strict=True)):
        means = [float(np.nanmean(part)) for part in parts]
        assert [told[key] for key in ("s1", "s2", "ssim")] == pytest.approx(means, abs=1e-9)
        assert told["d2"] == pytest.approx(math.sqrt(2 - means[0] - means[1]), abs=1e-9)


def test_blocks_change_nothing(pair, tmp_path):
    found = [compare_values(*pair, structure_file=tmp_path / f"{chunk}.tif", chunk=chunk) for chunk in (1024, 13)]
    np.testing.assert_allclose(_read(tmp_path / "13.tif"), _read(tmp_path / "1024.tif"), atol=1e-6)
    for key in ("s1", "s2", "ssim", "d2"):
        assert found[1]["structure"][key] == pytest.approx(found[0]["structure"][key], abs=1e-9)


def test_a_level_of_many_digits_is_no_structure(tmp_path):
    """Values of 20 000 with a spread of 10, and tiles: nothing is lost."""
    values = 20_000 + asymmetric(1, 40, 40).astype(np.float32) / 20
    paths = [write_raster(tmp_path / f"{i}.tif", values + i) for i in range(2)]
    for chunk in (1024, 9):
        found = compare_values(*paths, data_range=10, chunk=chunk)["structure"]
        assert found["s2"] == pytest.approx(1, abs=1e-9)
        assert found["s1"] == pytest.approx(1 - 1 / (2 * 20_005.0**2), abs=1e-11)


def test_another_grid_is_read_by_nearest_neighbour(pair, tmp_path):
    finer = write_raster(
        tmp_path / "finer.tif", np.kron(_read(pair[0]), np.ones((3, 3), np.uint8)), nodata=0,
        transform=AFFINE * Affine.scale(1 / 3),
    )  # fmt: skip
    found = compare_values(finer, pair[1], structure_file=tmp_path / "s.tif")
    assert found["structure"] == compare_values(*pair)["structure"]
    assert found["notes"] == [f"{finer} lies on another grid and was read by nearest neighbour."]
    with rasterio.open(tmp_path / "s.tif") as file:
        assert file.shape == (40, 50)


def test_the_range_of_a_pixel_type(pair, tmp_path):
    paths = [write_raster(tmp_path / f"w{i}.tif", _read(p).astype(np.int16), nodata=0) for i, p in enumerate(pair)]
    assert compare_values(*paths)["structure"]["data_range"] == 65535


def test_refusals(pair, tmp_path):
    floats = write_raster(tmp_path / "f.tif", np.zeros((2, 40, 50), np.float32))
    with pytest.raises(ConfigError, match=r"f.tif has float32 pixels, whose range is not known: give --data-range"):
        compare_values(pair[0], floats)
    with pytest.raises(ConfigError, match="--data-range -1 is refused"):
        compare_values(*pair, data_range=-1)
    one = write_raster(tmp_path / "one.tif", np.zeros((40, 50), np.uint8))
    with pytest.raises(ConfigError, match=r"one.tif has 1 bands and .*reference.tif 2"):
        compare_values(one, pair[1])
    far = write_raster(tmp_path / "far.tif", _read(pair[0]), transform=AFFINE * Affine.translation(9999, 0))
    with pytest.raises(SceneError, match="have no window of 11 pixels in common"):
        compare_values(far, pair[1], structure_file=tmp_path / "s.tif")
    with pytest.raises(ConfigError, match="two outputs have the same name"):
        compare_values(*pair, structure_file=tmp_path / "s.tif", json_file=tmp_path / "s.tif")
    with pytest.raises(ConfigError, match="--chunk 0 is refused"):
        compare_values(*pair, chunk=0)
    assert not (tmp_path / "s.tif").exists()
