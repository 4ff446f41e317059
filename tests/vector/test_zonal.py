"""Zonal statistics equal plain numpy's, and do not depend on how the regions were cut into blocks."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import rasterio
import scipy.ndimage
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from odc.geo.geobox import GeoBox

from geoseg.errors import SceneError
from geoseg.grid import Window
from geoseg.vector.zonal import ZonalBand, ZonalStatistics, ZonalSums

SHAPE = (9, 13)
REGIONS = arrays(np.int64, SHAPE, elements=st.integers(-1, 5))
VALUES = st.one_of(
    arrays(np.uint8, SHAPE),
    arrays(np.int32, SHAPE),
    arrays(np.float32, SHAPE, elements=st.floats(-1e6, 1e6, width=32)),
    arrays(np.float64, SHAPE, elements=st.floats(-1e30, 1e30) | st.sampled_from([math.nan, math.inf, 1e-30, 0.1, 1e9])),
)
CUTS = st.tuples(*(st.lists(st.integers(1, size - 1), max_size=3).map(sorted) for size in SHAPE))


def plain(regions, values, valid) -> ZonalStatistics:
    """Work out the statistics region by region, by fractions."""
    numbers = np.unique(regions[regions >= 0])
    rows = []
    for number in numbers:
        inside = (regions == number) & valid & np.isfinite(values.astype(float))
        found = [Fraction(v) if abs(v) >= 2.0**-460 else Fraction(0) for v in values[inside].astype(float).tolist()]
        if not found:
            rows.append((0, *[math.nan] * 4))
            continue
        mean = sum(found) / len(found)
        std = math.sqrt(sum((v - mean) ** 2 for v in found) / len(found))
        rows.append((len(found), float(mean), std, float(min(found)), float(max(found))))
    count, *others = np.array(rows).reshape(-1, 5).T
    return ZonalStatistics(numbers, count.astype(int), *others)


def assert_same(one: ZonalStatistics, other: ZonalStatistics) -> None:
    for name in ZonalStatistics.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@settings(deadline=None)
@given(regions=REGIONS, values=VALUES, valid=arrays(bool, SHAPE))
def test_statistics_are_the_exact_ones(regions, values, valid):
    assert_same(ZonalSums.of_block(regions, values, valid).statistics(), plain(regions, values, valid))


@settings(deadline=None, max_examples=50)
@given(regions=REGIONS, values=arrays(np.float32, SHAPE, elements=st.floats(-500, 500, width=32)))
def test_statistics_are_numpys(regions, values):
    found = ZonalSums.of_block(regions, values).statistics()
    for nth, number in enumerate(found.regions):
        inside = values[regions == number].astype(float)
        assert found.count[nth] == inside.size
        assert found.mean[nth] == pytest.approx(inside.mean(), abs=1e-9)
        assert found.std[nth] == pytest.approx(inside.std(), abs=1e-9)
        assert (found.minimum[nth], found.maximum[nth]) == (inside.min(), inside.max())


@settings(deadline=None)
@given(regions=REGIONS, values=VALUES, valid=arrays(bool, SHAPE), cuts=CUTS, data=st.data())
def test_blocks_in_any_order_give_the_same(regions, values, valid, cuts, data):
    rows, cols = ([0, *cut, size] for cut, size in zip(cuts, SHAPE, strict=True))
    blocks = [np.s_[a:b, c:d] for a, b in itertools.pairwise(rows) for c, d in itertools.pairwise(cols)]
    blocks = data.draw(st.permutations(blocks))
    parts = [ZonalSums.of_block(regions[b], values[b], valid[b]) for b in blocks]
    halfway = len(parts) // 2
    together = ZonalSums.joined([ZonalSums.joined(parts[:halfway]), *parts[halfway:]])
    assert_same(together.statistics(), plain(regions, values, valid))


@settings(deadline=None, max_examples=50)
@given(regions=REGIONS, values=VALUES, target=arrays(np.int64, 6, elements=st.integers(0, 3)))
def test_regions_that_turn_out_to_be_one_are_merged(regions, values, target):
    sums = ZonalSums.of_block(regions, values)
    merged = np.where(regions >= 0, target[regions], -1)
    everywhere = np.ones(SHAPE, bool)
    assert_same(sums.renumbered(target[sums.regions]).statistics(), plain(merged, values, everywhere))


@settings(deadline=None, max_examples=50)
@given(regions=REGIONS, values=VALUES, chosen=st.lists(st.integers(0, 6)))
def test_complete_regions_are_taken_out(regions, values, chosen):
    sums = ZonalSums.of_block(regions, values)
    done, rest = sums.split(np.array(chosen, np.int64))
    assert set(done.regions) == set(chosen) & set(sums.regions)
    everywhere = np.ones(SHAPE, bool)
    assert_same(done.statistics(), plain(np.where(np.isin(regions, chosen), regions, -1), values, everywhere))
    assert_same(ZonalSums.joined([rest, done]).statistics(), sums.statistics())


def test_large_sums_lose_nothing():
    values = np.full((3, 1000), 1e16)
    values[0, ::2] = 1.0
    values[1] = -1e16
    values[2, ::2] = 0.0
    sums = ZonalSums.of_block(np.zeros((3, 1000), int), values)
    assert sums.statistics().mean[0] == 500 / 3000


def test_many_pixels_at_once(monkeypatch):
    monkeypatch.setattr("geoseg.vector.zonal._MOST_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    regions, values = rng.integers(0, 4, SHAPE), rng.normal(size=SHAPE)
    assert_same(ZonalSums.of_block(regions, values).statistics(), plain(regions, values, np.ones(SHAPE, bool)))


def test_nothing_at_all():
    none = ZonalSums.joined([ZonalSums.of_block(np.full((2, 2), -1), np.ones((2, 2))), ZonalSums.joined([])])
    assert len(none) == len(none.statistics().mean) == 0
    assert len(ZonalSums.joined([none]).renumbered(np.zeros(0, int))) == 0


@pytest.fixture
def heights(tmp_path):
    """A raster in lon/lat of about 30 m, rising with longitude and latitude, with a hole."""
    path = tmp_path / "heights.tif"
    step = 0.0003
    rows, cols = np.mgrid[0:60, 0:80]
    data = (1000 * (15 + (cols + 0.5) * step) + 2000 * (48.8 - (rows + 0.5) * step)).astype(np.float32)
    data[20:25, 30:36] = -9999
    with rasterio.open(
        path, "w", driver="GTiff", width=80, height=60, count=2, dtype="float32", crs="EPSG:4326", nodata=-9999,
        transform=Affine(step, 0, 15, 0, -step, 48.8),
    ) as file:  # fmt: skip
        file.write(np.zeros_like(data), 1)
        file.write(data, 2)
    return path


def test_a_band_is_brought_to_the_grid_of_the_labels(heights):
    import pyproj

    x, y = pyproj.Transformer.from_crs(4326, 32633, always_xy=True).transform(15.006, 48.795)
    affine = Affine(7, 0, x, 0, -7, y)
    geobox = GeoBox((50, 64), affine, "EPSG:32633")
    regions = (np.arange(50)[:, None] // 10) * 8 + np.arange(64) // 8
    band = ZonalBand.open(heights, 2, geobox)
    parts = []
    for row, col in itertools.product((0, 20, 40), (0, 30, 60)):
        window = Window(row, col, min(20, 50 - row), min(30, 64 - col))
        parts.append(band.sums(regions[row : row + window.height, col : col + window.width], window))
    found = ZonalSums.joined(parts).statistics()
    whole = band.sums(regions, Window(0, 0, 50, 64)).statistics()
    assert_same(found, whole)
    back = pyproj.Transformer.from_crs(32633, 4326, always_xy=True)
    rows, cols = np.mgrid[0:50, 0:64]
    lon, lat = back.transform(*(affine * (cols + 0.5, rows + 0.5)))
    expected = 1000 * lon + 2000 * lat
    # Next to the hole, values come from fewer neighbours.
    clear = scipy.ndimage.binary_erosion(band.scene.read(Window(0, 0, 50, 64)).valid, iterations=8, border_value=1)
    compared = [nth for nth, number in enumerate(found.regions) if clear[regions == number].all()]
    assert 10 < len(compared) < 40
    assert found.count.sum() < 50 * 64
    for nth in compared:
        inside = expected[regions == found.regions[nth]]
        assert found.count[nth] == inside.size
        assert found.mean[nth] == pytest.approx(inside.mean(), abs=0.02)
        assert found.std[nth] == pytest.approx(inside.std(), abs=0.02)
    # No height is below those of the ground: the nodata value of -9999 went into none of them.
    assert np.nanmin(found.minimum) > expected.min() - 1


def test_bands_that_are_not_there_are_refused(heights):
    geobox = GeoBox((5, 6), Affine(10, 0, 5e5, 0, -10, 54e5), "EPSG:32633")
    with pytest.raises(SceneError, match="band"):
        ZonalBand.open(heights, 3, geobox)
