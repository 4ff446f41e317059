"""Areas and lengths on the ellipsoid, against geodesics and closed formulas."""

import math

import numpy as np
import pyproj
import pytest
import shapely
from shapely import Polygon, box

from geoseg.errors import SceneError
from geoseg.vector.measures import measure

GLOBE_M2 = 510_065_621_724_088  # WGS 84
GLOBE_M = 40_007_862.917  # a meridian, all round
MERCATOR = 20_037_508.342789244


def geodesic(polygon, crs, step):
    """Area and perimeter by geodesics between points ``step`` apart."""
    transformer = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    placed = shapely.transform(polygon.segmentize(step), lambda xy: np.stack(transformer.transform(*xy.T), axis=1))
    geod = crs.get_geod()
    area, _ = geod.geometry_area_perimeter(shapely.orient_polygons(placed))
    return abs(area), sum(geod.line_length(*ring.xy) for ring in (placed.exterior, *placed.interiors))


def one(polygon, crs):
    area, perimeter = measure(np.array([polygon], object), pyproj.CRS(crs))
    return area[0], perimeter[0]


CASES = {
    "utm": (32645, box(336000, 3051000, 346000, 3061000), 50),
    "utm_with_a_hole": (32645, box(0, 0, 9000, 9000).difference(box(100, 100, 7000, 2000)), 50),
    "utm_60n_across_the_antimeridian": (32660, box(800_000, 100_000, 900_000, 200_000), 200),
    "high_latitude": (32633, box(400_000, 9_200_000, 410_000, 9_210_000), 50),
    "web_mercator": (3857, box(9_519_926, 3_202_940, 9_524_926, 3_206_940), 50),
    "oblique_edges": (3857, Polygon([(0, 7e6), (1e6, 7e6), (1e6, 8e6)]), 100),
    "one_degree": (4326, box(10, 45, 11, 46), 0.001),
    "degrees_beyond_180": (4326, box(179.5, -60, 180.5, -59), 0.001),
    "degrees_of_another_origin": (4326, box(350, -60, 359, -59), 0.001),
    "tiny_in_degrees": (4326, Polygon([(10, 45), (10.001, 45), (10.0005, 45.001)]), 0.0001),
    "at_the_north_pole": (3413, box(0, 0, 2500, 2500), 10),
    "round_the_north_pole": (3413, box(-1e6, -1e6, 1e6, 1e6).difference(box(-1e5, -1e5, 1e5, 1e5)), 1000),
    "round_the_south_pole": (3031, box(-1e6, -1e6, 1e6, 1.2e6), 1000),
    "feet": (2263, box(900_000, 200_000, 1_000_000, 300_000), 200),
    "equal_area": (5070, box(-1e6, 3e5, 1e6, 2e6), 500),
}


@pytest.mark.parametrize("name", CASES)
def test_against_geodesics(name):
    code, polygon, step = CASES[name]
    crs = pyproj.CRS(code)
    area, perimeter = one(polygon, crs)
    expected_area, expected_perimeter = geodesic(polygon, crs, step)
    assert area == pytest.approx(expected_area, rel=1e-7)
    assert perimeter == pytest.approx(expected_perimeter, rel=1e-7)


def test_equal_area_projections_agree_with_the_plane():
    assert one(box(-2e6, 3e5, 2e6, 3.1e6), 5070)[0] == pytest.approx(4e6 * 2.8e6, rel=1e-8)
    # Round the pole and beyond the equator.
    assert one(box(-8.9e6, -8.9e6, 8.9e6, 8.9e6), 6931)[0] == pytest.approx(17.8e6**2, rel=1e-8)


def test_a_cell_of_one_degree():
    """Between parallels the area has a closed form."""
    geod = pyproj.Geod(ellps="WGS84")
    e = math.sqrt(geod.es)

    def band(degrees):
        sine = math.sin(math.radians(degrees))
        return geod.b**2 / 2 * (sine / (1 - (e * sine) ** 2) + math.atanh(e * sine) / e)

    assert one(box(84, 27, 85, 28), 4326)[0] == pytest.approx(math.radians(1) * (band(28) - band(27)), rel=1e-7)
    assert one(box(84, 27, 85, 28), 4326)[1] == pytest.approx(
        2 * geod.inv(84, 27, 84, 28)[2]
        + sum(
            math.radians(1) * geod.a * math.cos(lat) / math.sqrt(1 - geod.es * math.sin(lat) ** 2)
            for lat in (math.radians(27), math.radians(28))
        ),
        rel=1e-7,
    )


@pytest.mark.parametrize("polygon", [box(-180, -90, 180, 90), box(0, -90, 360, 90), box(-0.25, -90.25, 359.75, 90.25)])
def test_the_whole_globe_in_degrees(polygon):
    area, perimeter = one(polygon, 4326)
    assert area == pytest.approx(GLOBE_M2, rel=1e-7)
    assert perimeter == pytest.approx(GLOBE_M, rel=1e-7)


def test_the_whole_globe_in_projections():
    half = MERCATOR / 2
    assert one(box(-MERCATOR, -half, MERCATOR, half), 4087)[0] == pytest.approx(GLOBE_M2, rel=1e-7)
    # Web Mercator ends at 85.05 degrees.
    transformer = pyproj.Transformer.from_crs(3857, 4326, always_xy=True)
    top = transformer.transform(0, MERCATOR)[1]
    expected = one(box(-180, -top, 180, top), 4326)[0]
    assert one(box(-MERCATOR, -MERCATOR, MERCATOR, MERCATOR), 3857)[0] == pytest.approx(expected, rel=1e-7)


def test_the_cells_of_a_global_grid_add_up():
    lon, lat = np.meshgrid(np.arange(-180, 180, 10.0), np.arange(-90, 90, 10.0))
    area, _ = measure(shapely.box(lon, lat, lon + 10, lat + 10).ravel(), pyproj.CRS(4326))
    assert area.sum() == pytest.approx(GLOBE_M2, rel=1e-7)


def test_a_web_mercator_pixel_at_27_6_degrees_shrinks_by_the_cosine_squared():
    y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(85.5, 27.6)[1]
    area, perimeter = one(box(9_519_926, y, 9_519_927, y + 1), 3857)
    assert area == pytest.approx(0.886**2, rel=5e-3)
    assert perimeter == pytest.approx(4 * 0.886, rel=3e-3)


def test_a_small_pixel_keeps_its_digits():
    """0.3 m in UTM: the scale factor of the projection gives both, and perimeter and area agree."""
    area, perimeter = one(box(336000, 3051000, 336000.3, 3051000.3), 32645)
    factors = pyproj.Proj(32645).get_factors(*pyproj.Proj(32645)(336000, 3051000, inverse=True))
    assert area == pytest.approx(0.09 / factors.areal_scale, rel=1e-7)
    assert perimeter == pytest.approx(1.2 / factors.meridional_scale, rel=1e-7)


def test_orientation_and_company_do_not_matter():
    crs = pyproj.CRS(32645)
    polygons = shapely.box(np.arange(5) * 2000.0, 3e6, np.arange(5) * 2000.0 + 1500, 3e6 + 7000)
    holed = shapely.difference(
        polygons, shapely.box(np.arange(5) * 2000.0 + 100, 3e6 + 100, np.arange(5) * 2000.0 + 900, 3e6 + 200)
    )
    area, perimeter = measure(holed, crs)
    assert [one(polygon, crs) for polygon in holed] == list(zip(area, perimeter, strict=True))
    turned = measure(shapely.reverse(holed), crs)
    np.testing.assert_allclose(turned[0], area, rtol=1e-12)
    np.testing.assert_allclose(turned[1], perimeter, rtol=1e-12)


def test_long_runs_are_cut_without_a_trace(monkeypatch):
    crs = pyproj.CRS(3857)
    polygons = np.array([polygon for code, polygon, _ in CASES.values() if code == 3857] * 3, object)
    whole = measure(polygons, crs)
    monkeypatch.setattr("geoseg.vector.measures._POINTS", 7)
    np.testing.assert_allclose(measure(polygons, crs), whole, rtol=1e-11)


def test_other_bodies():
    moon = pyproj.CRS("IAU_2015:30100")
    radius = moon.get_geod().a
    area, perimeter = one(box(-180, -90, 180, 90), moon)
    assert area == pytest.approx(4 * math.pi * radius**2, rel=1e-6)
    assert perimeter == pytest.approx(2 * math.pi * radius, rel=1e-6)


def test_grads():
    assert one(box(2, 50, 3, 51), 4807)[0] == pytest.approx(
        one(box(1.8, 45, 2.7, 45.9), 4326)[0],
        rel=1e-3,  # another ellipsoid
    )


def test_beyond_the_projection_there_is_no_area():
    full_disk = pyproj.CRS("+proj=geos +h=35785831 +ellps=WGS84")
    area, perimeter = measure(np.array([box(-1.2e7, -1e6, -1e7, 1e6), box(0, 0, 10, 10)], object), full_disk)
    assert np.isnan(area).tolist() == np.isnan(perimeter).tolist() == [True, False]
    assert area[1] == pytest.approx(100, rel=1e-2)


def test_no_polygons():
    assert [len(values) for values in measure(np.empty(0, object), pyproj.CRS(32645))] == [0, 0]


def test_a_crs_without_a_body_is_refused():
    local = pyproj.CRS('LOCAL_CS["site",UNIT["metre",1]]')
    with pytest.raises(SceneError, match="not tied"):
        measure(np.array([box(0, 0, 1, 1)], object), local)
