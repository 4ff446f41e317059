"""How statistics are asked for, and that sums survive the disk."""

import numpy as np
import pytest

from geoseg.errors import ConfigError
from geoseg.vector.zonal import ZonalSums
from geoseg.vector.zonal_spool import Statistic, refuse_same_columns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dem.tif", ("dem", "dem.tif", 1)),
        ("/data/dem 30m.v2.tif:3", ("dem_30m_v2", "/data/dem 30m.v2.tif", 3)),
        ("height=/data/a=b.tif:2", ("height", "/data/a=b.tif", 2)),
        ("https://host:8080/a.tif?x=1", ("a", "https://host:8080/a.tif?x=1", 1)),
        ("h=C:/data/a.tif", ("h", "C:/data/a.tif", 1)),
        ("Höhe=a.tif", ("Höhe", "a.tif", 1)),
    ],
)
def test_what_is_asked_for(text, expected):
    statistic = Statistic.parse(text)
    name, path, band = expected
    assert (statistic.path, statistic.band) == (path, band)
    assert statistic.name.startswith(name)
    assert [column for column, _ in statistic.columns] == [
        f"{statistic.name}_{suffix}" for suffix in ("mean", "min", "max", "std", "count")
    ]


@pytest.mark.parametrize("text", ["", "-.tif", "///"])
def test_what_names_no_raster_is_refused(text):
    with pytest.raises(ConfigError, match="names no raster"):
        Statistic.parse(text)


def test_columns_that_differ_in_case_alone_are_the_same():
    with pytest.raises(ConfigError, match="DEM_mean"):
        refuse_same_columns([Statistic("dem", "a.tif"), Statistic("DEM", "b.tif")], [])
    with pytest.raises(ConfigError, match="x_count"):
        refuse_same_columns([Statistic("x", "a.tif")], ["id", "X_COUNT"])
    refuse_same_columns([Statistic("dem", "a.tif"), Statistic("dsm", "b.tif")], ["id"])


def test_sums_come_back_from_plain_arrays():
    rng = np.random.default_rng(0)
    regions, values = rng.integers(-1, 9, (20, 30)), rng.normal(size=(20, 30)) * 10.0 ** rng.integers(-20, 20, (20, 30))
    sums = ZonalSums.of_block(regions, values)
    again = ZonalSums.of_arrays(sums.arrays())
    one, other = sums.statistics(), again.statistics()
    for name in ("regions", "count", "mean", "std", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert len(sums.arrays()) == ZonalSums.ARRAYS
