"""GeoJSON by plain Python and by compiled loops: the same bytes, valid, whatever the batches."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapely import Polygon, box

from geoseg.outputs import geojson, lines
from geoseg.outputs.attributes import part
from geoseg.outputs.compiled import surely_valid
from geoseg.outputs.decimals import scaled
from geoseg.outputs.lonlat import LonLat
from geoseg.outputs.outlines import Outlines
from geoseg.outputs.polygons import write_features
from tests.benchmarks.label_maps import label_map

FIXTURES = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def regions(labels: np.ndarray, x: float, y: float, pixel: float) -> list[Polygon]:
    """Return the 4-connected regions of a label map, placed with their upper left corner at x, y."""
    from affine import Affine
    from rasterio.features import shapes

    place = Affine(pixel, 0, x, 0, -pixel, y)
    return [shapely.geometry.shape(found) for found, _ in shapes(labels, transform=place)]


@pytest.fixture
def written(tmp_path, classes, make_features, monkeypatch):
    """Return a function that writes polygons with compiled loops from so many points on, and returns the bytes."""

    def write(polygons, crs, pixel_m, compiled_from, cuts=(), piece_points=1 << 16, suffix=".geojson") -> bytes:
        monkeypatch.setattr(geojson, "COMPILED_FROM", compiled_from)
        monkeypatch.setattr(geojson, "_PIECE_POINTS", piece_points)
        features = make_features(polygons)
        ends = [0, *cuts, len(features)]
        path = tmp_path / f"map{suffix}"
        write_features(
            path,
            [part(features, a, b) for a, b in itertools.pairwise(ends)],
            classes=classes,
            crs=pyproj.CRS(crs),
            pixel_m=pixel_m,
            has_confidence=True,
        )
        return path.read_bytes()

    return write


NEVER, ALWAYS = 1 << 60, 0


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl"])
@settings(max_examples=15, **FIXTURES)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["easy", "noisy", "hard"]),
    place=st.sampled_from(
        [(32631, 450_000, 5_400_000, 0.25), (32660, 833_950, 1e5, 10), (3413, -500, 600, 30), (4326, -1, 1, 0.0005)]
    ),
    piece_points=st.integers(1, 3000),
    data=st.data(),
)
def test_compiled_loops_pieces_and_batches_change_no_byte(suffix, seed, kind, place, piece_points, data, written):
    crs, x, y, pixel = place
    polygons = regions(label_map(kind, 40, seed), x, y, pixel)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(polygons)), max_size=3)))
    plain = written(polygons, crs, pixel if crs != 4326 else 50, NEVER, suffix=suffix)
    fast = written(polygons, crs, pixel if crs != 4326 else 50, ALWAYS, cuts, piece_points, suffix=suffix)
    assert fast == plain


@settings(max_examples=25, **FIXTURES)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["noisy", "hard"]), pixel=st.sampled_from([0.004, 0.3, 10]))
def test_files_are_rfc_7946_and_neighbours_share_their_points(seed, kind, pixel, written):
    polygons = regions(label_map(kind, 30, seed), 500_000, 5_400_000, pixel)
    # Nodes where three regions meet, as the vectoriser has them.
    noded = shapely.segmentize(regions(label_map(kind, 30, seed), 0, 0, 1), 1)
    polygons = shapely.transform(noded, lambda xy: xy * pixel + [500_000, 5_400_000])
    collection = json.loads(written(list(polygons), 32633, pixel, ALWAYS))
    assert list(collection) == ["type", "features"]
    assert [feature["id"] for feature in collection["features"]] == list(range(1, len(polygons) + 1))
    geometry = np.array([shapely.geometry.shape(feature["geometry"]) for feature in collection["features"]])
    assert shapely.is_valid(geometry).all()
    assert shapely.coverage_is_valid(geometry)
    assert all(shape.exterior.is_ccw and not any(h.is_ccw for h in shape.interiors) for shape in geometry)
    for feature in collection["features"]:
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            assert len(ring) >= 4


@settings(max_examples=15, **FIXTURES)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["easy", "noisy", "hard"]))
def test_texts_are_the_rounded_coordinates(seed, kind, written):
    polygons = regions(label_map(kind, 24, seed), 3.0, 50.0, 0.000123)
    text = written(polygons, 4326, 10, ALWAYS).decode()
    inside = [
        feature["geometry"]["coordinates"] for feature in json.loads(text, parse_float=str, parse_int=str)["features"]
    ]
    expected = shapely.orient_polygons(np.array(polygons), exterior_cw=False)
    for found, polygon in zip(inside, expected, strict=True):
        rings = [polygon.exterior, *polygon.interiors]
        assert found == [
            [[format(value, ".7f").rstrip("0").rstrip(".") for value in point] for point in ring.coords]
            for ring in rings
        ]


def test_what_rounding_destroys_is_mended_alike(written):
    sliver, speck = box(0.5, 0.5, 0.5 + 1e-9, 0.5 + 1e-9), box(0, 0, 1e-9, 1)
    spike = Polygon([(0, 0), (1, 0), (1, 0.5), (2, 0.5), (1, 0.5 + 2e-8), (1, 1), (0, 1)])
    # Rounding closes the neck in the middle: two squares are left.
    neck = Polygon([(0, 0), (1, 0), (1, 0.49999999), (2, 0), (2, 1), (1, 0.50000001), (1, 1), (0, 1)])
    polygons = [Polygon(box(0, 0, 1, 1).exterior, [sliver.exterior]), speck, spike, neck, box(-0.0, -0.0, 1, 1)]
    plain, fast = written(polygons, 4326, 1, NEVER), written(polygons, 4326, 1, ALWAYS, [1, 2], 1)
    assert plain == fast
    assert b"-0," not in plain
    features = json.loads(plain)["features"]
    assert [feature["id"] for feature in features] == [1, 3, 4, 5]
    assert all(shapely.geometry.shape(feature["geometry"]).is_valid for feature in features)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=9), st.integers(1, 10**8))
def test_what_is_held_for_surely_valid_is(corners, stretch):
    ring = np.array([*corners, corners[0]]) * stretch
    polygon = Polygon(ring)
    (sure,) = surely_valid(ring.astype(np.int64), np.array([0, len(ring)]), np.array([0, 1]))
    assert sure <= polygon.is_valid
    plain = polygon.is_valid and len(set(corners)) == len(corners)
    assert sure == plain


def test_far_points_and_holes_are_left_to_the_library():
    far = np.array([[0, 0], [1 << 30, 0], [0, 5], [0, 0]])
    rings = np.array([[0, 0], [9, 0], [9, 9], [0, 0], [4, 1], [5, 1], [5, 2], [4, 1]])
    assert surely_valid(far, np.array([0, 4]), np.array([0, 1])).tolist() == [False]
    assert surely_valid(rings, np.array([0, 4, 8]), np.array([0, 2])).tolist() == [False]


def test_the_sign_of_a_sliver_is_exact():
    long = 3_600_000_000
    sliver = np.array([[0, 0], [long, long - 1], [long + 1, long], [0, 0]])
    for ring, turned in ((sliver, sliver[::-1]), (sliver[::-1], sliver)):
        clockwise = Outlines(ring, 7, np.array([0, 4]), np.array([0, 1]), np.zeros(1, int), np.ones(1, int))
        other = Outlines(turned, 7, np.array([0, 4]), np.array([0, 1]), np.zeros(1, int), np.ones(1, int))
        assert clockwise.backwards().tolist() != other.backwards().tolist()
    assert not Outlines(sliver, 7, np.array([0, 4]), np.array([0, 1]), np.zeros(1, int), np.ones(1, int)).backwards()[0]


def test_outlines_go_to_geometries_and_back():
    shapes = np.array([box(0, 0, 1, 1), None, shapely.MultiPolygon([box(2, 0, 3, 1), box(4, 0, 5, 1)]), Polygon()])
    outlines = Outlines.of(shapes, 7)
    assert (outlines.stop - outlines.first).tolist() == [1, 0, 2, 0]
    back = outlines.geometry()
    assert shapely.equals(back[0], shapes[0])
    assert back[1] is back[3] is None
    assert back[2].geom_type == "MultiPolygon"
    assert shapely.equals(back[2], shapes[2])


def test_few_points_need_no_compiler(tmp_path):
    script = (
        "import sys, numpy as np, pyproj, shapely\n"
        "from geoseg.classes import Classes, LabelClass\n"
        "from geoseg.outputs.polygons import write_features\n"
        "from geoseg.vector.features import Features\n"
        "one = np.ones(1)\n"
        "shape = np.array([shapely.box(5e5, 5e6, 5e5 + 9, 5e6 + 9)])\n"
        "write_features(sys.argv[1], [Features(shape, one.astype(int), one.astype(int), one, one, one)],\n"
        "    classes=Classes((LabelClass(1, 'a', '#e60000'),)), crs=pyproj.CRS(32633),\n"
        "    pixel_m=1, has_confidence=True)\n"
        "assert 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.geojson")], check=True)
    assert lines.COMPILED_FROM > 5


@settings(max_examples=20, deadline=None)
@given(st.floats(8.2e5, 8.4e5), st.floats(1e5, 5e6), st.integers(0, 2**32 - 1))
def test_what_is_cut_shares_its_points_with_what_is_not(x, y, seed):
    rng = np.random.default_rng(seed)
    middle = np.column_stack([x + rng.uniform(0, 4e4, 30), np.sort(y + rng.uniform(0, 2e4, 30))])
    west = Polygon([*middle, (x - 1e3, y + 2.1e4), (x - 1e3, y - 1e3)])
    way = LonLat.open(pyproj.CRS(32660), 10, "a")
    lonlat = np.column_stack(way.transformer.transform(*middle.T))
    expected = {tuple(point) for point in scaled(lonlat, 7).tolist()}
    (brought,) = way.bring(np.array([west]))
    found = {tuple(point) for point in scaled(shapely.get_coordinates(brought), 7).tolist()}
    assert expected <= found
