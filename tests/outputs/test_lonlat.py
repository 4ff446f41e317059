"""GeoJSON: longitude and latitude as RFC 7946 has them, at the antimeridian and at the poles too."""

import itertools
import json

import antimeridian
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon, box

from geoseg.errors import OutputError
from geoseg.outputs.lonlat import LonLat, decimals_for
from geoseg.outputs.polygons import write_features

MERCATOR_EDGE = 20037508.342789244


def bring(polygons, crs, pixel_m=10.0):
    geometry = np.empty(len(polygons), object)
    geometry[:] = polygons
    return LonLat.open(pyproj.CRS(crs), pixel_m, "map.geojson").bring(geometry)


def ground_area(geometry) -> float:
    """Return geodesic square metres; the ellipsoid's own edges differ from straight ones by little."""
    dense = shapely.orient_polygons(shapely.segmentize(geometry, 0.1))
    return abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(dense)[0])


def test_a_file_follows_rfc_7946(tmp_path, blocks, classes, utm33):
    path = tmp_path / "map.geojson"
    write_features(path, [blocks], classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    raw = path.read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf")
    document = json.loads(raw.decode("utf-8"), parse_constant=pytest.fail)
    assert set(document) == {"type", "features"}
    assert len(raw.decode("utf-8").splitlines()) == 108 + 2
    assert [f["id"] for f in document["features"]] == blocks.id.tolist()
    for feature in document["features"]:
        assert set(feature) == {"type", "id", "properties", "geometry"}
        assert feature["properties"]["id"] == feature["id"]
        shell, *holes = feature["geometry"]["coordinates"]
        assert Polygon(shell).exterior.is_ccw
        assert not any(Polygon(hole).exterior.is_ccw for hole in holes)
        for ring in (shell, *holes):
            assert ring[0] == ring[-1]
            assert all(len(repr(value).partition(".")[2]) <= 7 for point in ring for value in point)


def test_a_sequence_holds_the_same_features(tmp_path, blocks, classes, utm33):
    one, other = tmp_path / "map.geojson", tmp_path / "map.geojsonl"
    for path in (one, other):
        write_features(path, [blocks], classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    lines = other.read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == json.loads(one.read_text("utf-8"))["features"]


def test_clockwise_rings_are_turned(classes):
    shell = box(5e5, 5e6, 5e5 + 90, 5e6 + 90).exterior.coords
    hole = box(5e5 + 30, 5e6 + 30, 5e5 + 60, 5e6 + 60).exterior.coords
    for polygon in (Polygon(shell, [hole]), Polygon(shell[::-1], [hole]), Polygon(shell[::-1], [hole[::-1]])):
        (brought,) = bring([polygon], 32633)
        assert brought.exterior.is_ccw
        assert not brought.interiors[0].is_ccw


@pytest.mark.parametrize(("pixel_m", "decimals"), [(30, 7), (0.05, 7), (0.04, 7), (0.03, 8), (0.003, 9), (1e-9, 9)])
def test_more_decimals_only_for_tiny_pixels(pixel_m, decimals):
    assert decimals_for(pixel_m) == decimals


@given(st.floats(0.0005, 100))
def test_rounding_stays_below_a_fifth_of_a_pixel(pixel_m):
    assert 111_320 * 10.0 ** -decimals_for(pixel_m) / np.sqrt(2) <= pixel_m / 5


@settings(deadline=None)
@given(
    x=st.floats(-1.5e5, 1.5e5),
    y=st.floats(0, 8e6),
    width=st.floats(100, 4e5),
    height=st.floats(100, 4e5),
    pixel_m=st.sampled_from([10.0, 30.0, 250.0]),
)
def test_long_edges_follow_their_true_course(x, y, width, height, pixel_m):
    polygon = box(5e5 + x, y, 5e5 + x + width, y + height)
    brought = bring([polygon], 32633, pixel_m)[0]
    back = pyproj.Transformer.from_crs(4326, 32633, always_xy=True)
    # Walk the written edges, straight in longitude and latitude, and see how far they are from the scene's edges.
    walked = shapely.transform(shapely.segmentize(brought, 0.002), lambda ll: np.column_stack(back.transform(*ll.T)))
    away = shapely.distance(shapely.points(shapely.get_coordinates(walked)), polygon.exterior).max()
    assert away < 0.15 * pixel_m + 0.02


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_neighbours_go_on_sharing_their_borders(seed):
    rng = np.random.default_rng(seed)
    xs = np.cumsum(rng.choice([30.0, 3e3, 9e4], 5)) + rng.uniform(3e5, 5e5)
    ys = np.cumsum(rng.choice([30.0, 3e3, 9e4], 5)) + rng.uniform(5e6, 7e6)
    cells = [box(a, c, b, d) for a, b in itertools.pairwise(xs) for c, d in itertools.pairwise(ys)]
    cells = [cell if rng.random() < 0.5 else cell.reverse() for cell in cells]
    brought = bring(cells, 32633)
    assert shapely.is_valid(brought).all()
    assert shapely.coverage_is_valid(brought)


def test_utm_60_is_cut_at_the_antimeridian(tmp_path, make_features, classes):
    crs = pyproj.CRS(32660)
    shell = box(800_000, 0, 900_000, 100_000).exterior
    holes = [box(820_000, 20_000, 850_000, 30_000).exterior, box(880_000, 2e4, 885_000, 3e4).exterior]
    polygon = Polygon(shell, holes)
    write_features(
        tmp_path / "map.geojson",
        [make_features([polygon])],
        classes=classes,
        crs=crs,
        pixel_m=10,
        has_confidence=True,
    )
    (feature,) = json.loads((tmp_path / "map.geojson").read_text("utf-8"))["features"]
    geometry = shapely.geometry.shape(feature["geometry"])
    assert geometry.geom_type == "MultiPolygon"
    assert geometry.is_valid
    assert geometry.bounds[0] == -180
    assert geometry.bounds[2] == 180
    assert all(part.bounds[2] - part.bounds[0] < 1 and part.exterior.is_ccw for part in geometry.geoms)
    to_lonlat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    dense = shapely.transform(shapely.segmentize(polygon, 500), lambda xy: np.column_stack(to_lonlat.transform(*xy.T)))
    turned = shapely.transform(dense, lambda ll: np.column_stack([ll[:, 0] % 360, ll[:, 1]]))
    assert ground_area(geometry) == pytest.approx(ground_area(turned), rel=1e-5)


@settings(deadline=None)
@given(x=st.floats(8.0e5, 8.6e5), y=st.floats(1e5, 6e6), width=st.floats(1e3, 2e5), turn=st.floats(0, 90))
def test_cuts_agree_with_the_antimeridian_package(x, y, width, turn):
    polygon = shapely.affinity.rotate(box(x, y, x + width, y + width / 2), turn)
    ours = bring([polygon], 32660, 1)[0]
    to_lonlat = pyproj.Transformer.from_crs(32660, 4326, always_xy=True)
    dense = shapely.transform(shapely.segmentize(polygon, 2000), lambda xy: np.column_stack(to_lonlat.transform(*xy.T)))
    theirs = antimeridian.fix_polygon(dense, fix_winding=True, great_circle=False)
    assert ours.is_valid
    assert shapely.area(shapely.symmetric_difference(ours, theirs)) < 2e-6 * theirs.length


@pytest.mark.parametrize(
    ("crs", "polygon", "expected"),
    [
        (4326, box(-180, -90, 180, 90), box(-180, -90, 180, 90)),
        (4326, box(0, -90, 360, 90), box(-180, -90, 180, 90)),
        (4326, box(-180.125, -90.125, 179.875, 90.125), box(-180, -90, 180, 90)),
        (4326, box(200, 10, 210, 20), box(-160, 10, -150, 20)),
        (4326, box(170, 10, 200, 20), shapely.union(box(170, 10, 180, 20), box(-180, 10, -160, 20))),
        (4326, box(359.875, 89.875, 360.125, 90.125), box(-0.125, 89.875, 0.125, 90)),
        (4326, box(-190, 0, 190, 1), box(-180, 0, 180, 1)),
        (4979, box(170, 10, 200, 20), shapely.union(box(170, 10, 180, 20), box(-180, 10, -160, 20))),
    ],
)
def test_geographic_scenes_are_cut_in_their_own_plane(crs, polygon, expected):
    (brought,) = bring([polygon], crs, 27_000)
    assert brought.is_valid
    assert shapely.equals(brought, expected)


def test_the_world_box_stays_that_box():
    (brought,) = bring([box(-180, -90, 180, 90)], 4326, 1000)
    assert shapely.get_num_coordinates(brought) == 5


def test_a_meridian_other_than_greenwich_and_grads():
    (brought,) = bring([box(-1, 50, 1, 51)], 4807, 1000)
    assert brought.bounds == pytest.approx((1.4365, 44.99997, 3.23659, 45.9), abs=1e-3)


def test_the_world_in_web_mercator():
    m = MERCATOR_EDGE
    world, half, edge = bring([box(-m, -m, m, m), box(-m, 0, 0, m), box(m - 1000, 0, m + 1e-4, 1000)], 3857, 1000)
    assert shapely.equals(world, box(-180, -85.0511288, 180, 85.0511288))
    assert shapely.equals(half, box(-180, 0, 0, 85.0511288))
    assert edge.bounds[2] == 180
    assert edge.geom_type == "Polygon"


@pytest.mark.parametrize(("crs", "pole"), [(3413, 90.0), (3031, -90.0)])
def test_polygons_around_and_at_a_pole(crs, pole):
    p = 1e6
    whole = box(-p, -p, p, p)
    quarters = [box(0, 0, p, p), box(-p, 0, 0, p), box(-p, -p, 0, 0), box(0, -p, p, 0)]
    halves = [box(-p, 0, p, p), box(-p, -p, p, 0), box(-p, -p, 0, p), box(0, -p, p, p)]
    bend = Polygon([(0, 0), (p, 0), (p, p), (-p, p), (-p, -p), (0, -p)])
    hole = Polygon(whole.exterior, [box(-5e5, -5e5, 5e5, 5e5).exterior])
    corner_hole = Polygon(whole.exterior, [box(0, 0, 5e5, 5e5).exterior])
    shapes = [whole, *quarters, *halves, bend, hole, corner_hole]
    brought = bring(shapes, crs, 1000)
    assert shapely.is_valid(brought).all()
    wide = brought[0]
    assert wide.bounds[0] == -180
    assert wide.bounds[2] == 180
    assert pole in wide.bounds
    to_lonlat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    rng = np.random.default_rng(0)
    xy = rng.uniform(-1.1e6, 1.1e6, (2000, 2))
    points = shapely.points(np.column_stack(to_lonlat.transform(*xy.T)))
    for shape, image in zip(shapes, brought, strict=True):
        inside = shapely.contains_properly(shape, shapely.points(xy))
        clear = shapely.distance(shapely.boundary(shape), shapely.points(xy)) > 500
        np.testing.assert_array_equal(shapely.contains(image, points)[clear], inside[clear])
    # The quarters meet along four meridians and leave nothing out.
    together = shapely.union_all(brought[1:5])
    assert shapely.symmetric_difference(together, wide).area < 1e-4 * wide.area


def test_an_image_of_the_whole_globe_holds_both_poles():
    disc = shapely.Point(0, 0).buffer(1.27e7, quad_segs=64)
    (brought,) = bring([disc], "+proj=laea +lat_0=10 +lon_0=10 +ellps=WGS84 +type=crs", 10_000)
    assert brought.is_valid
    assert brought.bounds == (-180, -90, 180, 90)
    assert shapely.contains(brought, shapely.points([[10, 10], [-170, 85], [100, -85]])).all()
    assert not shapely.contains(brought, shapely.Point(-170, -10))


def test_rings_that_collapse_are_dropped_and_the_rest_is_valid():
    sliver, speck = box(0.5, 0.5, 0.5 + 1e-9, 0.5 + 1e-9), box(0, 0, 1e-9, 1)
    # A spike that rounding closes: its two sides fall on one line.
    spike = Polygon([(0, 0), (1, 0), (1, 0.5), (2, 0.5), (1, 0.5 + 2e-8), (1, 1), (0, 1)])
    holed, nothing, blunt = bring([Polygon(box(0, 0, 1, 1).exterior, [sliver.exterior]), speck, spike], 4326)
    assert holed.is_valid
    assert len(holed.interiors) == 0
    assert shapely.equals(holed, box(0, 0, 1, 1))
    assert nothing is None
    assert blunt.is_valid
    assert blunt.area == pytest.approx(1)


def test_what_rounding_erases_is_not_written(tmp_path, make_features, classes):
    features = make_features([box(0, 0, 1e-9, 1), box(0, 0, 1, 1)])
    count = write_features(
        tmp_path / "a.geojson", [features], classes=classes, crs=pyproj.CRS(4326), pixel_m=1, has_confidence=True
    )
    assert count == 1
    assert [f["id"] for f in json.loads((tmp_path / "a.geojson").read_text())["features"]] == [2]


def test_points_off_the_map_are_one_sentence():
    with pytest.raises(
        OutputError, match=r"3 points such as .* outside the area of 'WGS 84 / UTM zone 33N'.*GeoPackage"
    ):
        bring([box(0, 0, 1e8, 1e8)], 32633)


def test_a_datum_is_shifted():
    (brought,) = bring([box(400_000, 300_000, 400_100, 300_100)], 27700)
    assert brought.centroid.coords[0] == pytest.approx((-2.0008, 52.598), abs=2e-3)
    unshifted = pyproj.Transformer.from_crs(27700, 4277, always_xy=True).transform(400_050, 300_050)
    assert abs(brought.centroid.x - unshifted[0]) > 1e-3


def test_a_rotated_pole_is_no_plain_geographic_crs():
    crs = "+proj=ob_tran +o_proj=longlat +o_lat_p=40 +o_lon_p=0 +lon_0=10 +a=6371229 +type=crs"
    (brought,) = bring([box(-1, -1, 1, 1)], crs, 1000)
    assert brought.is_valid
    assert brought.centroid.coords[0] == pytest.approx((10, 50), abs=0.2)
