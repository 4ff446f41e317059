"""Polygons made few and small enough for a page, without losing their borders."""

import base64
import json
import zlib

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

import geoseg
from geoseg.classes import Classes
from geoseg.looking.frame import Frame, frame_of, lonlat
from geoseg.looking.packing import json_for_page, packed, packed_json, varints, zigzag
from geoseg.looking.shapes import attribute_columns, on_lattice, read_shapes
from geoseg.outputs.polygons import write_features
from geoseg.vector.features import Features

SUFFIXES = (".gpkg", ".geojson", ".geojsonl", ".fgb", ".parquet")


def decoded(data: bytes) -> list[int]:
    """Return what a plain reader of varints finds."""
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value = shift = 0
    return values


@given(st.lists(st.integers(min_value=-(2**40), max_value=2**40)))
def test_numbers_come_back_from_their_bytes(values):
    found = decoded(varints(zigzag(np.array(values, np.int64))))
    assert [(n >> 1) ^ -(n & 1) for n in found] == values


def test_text_comes_back_and_cannot_end_its_element():
    value = {"a": "</script><!-- & 森 \u2028"}
    text = json_for_page(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value
    assert json.loads(zlib.decompress(base64.b64decode(packed_json(value)))) == value
    assert zlib.decompress(base64.b64decode(packed(b"\0\1"))) == b"\0\1"


def geometry_of(lattice) -> list[shapely.Geometry]:
    """Return polygons of the plane, made of what a page would get."""
    made = []
    for first, stop in zip(lattice.features[:-1], lattice.features[1:], strict=True):
        rings = [
            lattice.points[lattice.rings[r] : lattice.rings[r + 1]] * lattice.step + np.array(lattice.origin)
            for r in range(first, stop)
        ]
        shape = shapely.Polygon()
        for ring in rings:
            if len(ring) >= 3:
                shape = shapely.symmetric_difference(shape, shapely.Polygon(ring))
        made.append(shape)
    return made


def blocks(side: int, size: float = 10.0) -> np.ndarray:
    """Return side x side neighbouring blocks in UTM 45N, the first with a hole, the last with a part of its own."""
    x, y = 350_000, 3_060_000
    made = [
        shapely.box(x + size * col, y - size * row - size, x + size * col + size, y - size * row)
        for row in range(side)
        for col in range(side)
    ]
    made[0] = made[0].difference(shapely.box(x + 3, y - 7, x + 6, y - 4))
    made[-1] = shapely.MultiPolygon([made[-1], shapely.box(x - 40, y, x - 30, y + 5)])
    return np.array(made, object)


def features(geometry: np.ndarray, area: np.ndarray) -> Features:
    number = np.arange(len(geometry))
    return Features(geometry, number + 1, np.resize([1, 2], len(geometry)), area, area / 2, 1 / (1.0 + number))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_polygons(tmp_path, suffix):
    geometry = blocks(4)
    path = tmp_path / f"map{suffix}"
    classes = Classes.parse("background,roof:#d55e00,road:#112233")
    write_features(
        path,
        [features(geometry, shapely.area(geometry))],
        classes=classes,
        crs=pyproj.CRS(32645),
        pixel_m=0.1,
        has_confidence=True,
        multipart=True,
    )
    shapes = read_shapes(path, 1000)
    lattice = on_lattice(shapes, Frame(0), 10_000)
    into = pyproj.Transformer.from_crs(32645, 3857, always_xy=True)
    expected = shapely.transform(geometry, lambda xy: np.column_stack(into.transform(*xy.T)))
    columns = {column["name"]: column["values"] for column in attribute_columns(shapes)}
    # FlatGeobuf keeps an order of its own.
    assert sorted(columns["id"]) == list(range(1, 17))
    order = np.argsort(columns["id"])
    found = np.array(geometry_of(lattice), object)[order]
    assert (shapely.area(shapely.symmetric_difference(found, expected)) < 0.01 * shapely.area(expected)).all()
    assert [(item.name, item.color) for item in shapes.classes] == [("roof", "#d55e00"), ("road", "#112233")]
    assert shapes.class_index[order].tolist() == [0, 1] * 8
    assert columns["area_m2"][order[1]] == 100.0
    assert columns["confidence"][order[3]] == 0.25
    assert "class_name" not in columns


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".parquet"])
def test_of_too_many_the_largest_are_kept_and_the_rest_is_told(tmp_path, suffix):
    geometry = blocks(6)
    area = np.random.default_rng(3).permutation(36) + 1.0
    path = tmp_path / f"map{suffix}"
    write_features(
        path, [features(geometry, area)], classes=Classes.parse("a,b,c"), crs=pyproj.CRS(32645), pixel_m=1,
        has_confidence=True, multipart=True,
    )  # fmt: skip
    shapes = read_shapes(path, 10)
    assert sorted(shapes.area_m2) == list(range(27, 37))
    assert (shapes.left_out, shapes.left_out_m2) == (26, sum(range(1, 27)))


def test_files_of_other_programs_are_read_in_order_where_areas_are_not_known(tmp_path):
    frame = geopandas.GeoDataFrame({"class": ["x", "y", None, "x"]}, geometry=blocks(2), crs=32645)
    frame.to_file(tmp_path / "map.gpkg")
    shapes = read_shapes(tmp_path / "map.gpkg", 3)
    assert (len(shapes), shapes.left_out) == (3, 1)
    assert np.isnan(shapes.left_out_m2)
    assert [shapes.classes[i].name for i in shapes.class_index] == ["x", "y", "map"]
    assert np.isnan(shapes.confidence).all()


def test_neighbours_share_their_borders_on_any_lattice(tmp_path, run):
    path = tmp_path / "all.gpkg"
    geoseg.vectorize(run.labels, path, keep_background=True)
    shapes = read_shapes(path, 100)
    for step_factor in (1, 64):
        lattice = on_lattice(shapes, Frame(0), 10_000 // step_factor)
        parts = geometry_of(lattice)
        union = shapely.union_all(parts)
        assert union.area == pytest.approx(sum(part.area for part in parts), rel=1e-9)
        assert shapely.get_num_interior_rings(union) == 0


def test_points_are_bounded_and_those_of_straight_lines_are_dropped(tmp_path):
    x, y = 350_000.0, 3_060_000.0
    angles = np.linspace(0, 2 * np.pi, 4001)[:-1]
    circle = shapely.Polygon(np.column_stack([x + 500 * np.cos(angles), y + 500 * np.sin(angles)]))
    square = shapely.segmentize(shapely.box(x + 600, y, x + 700, y + 100), 1.0)
    frame = geopandas.GeoDataFrame({"class": ["a", "b"]}, geometry=[circle, square], crs=32645).to_crs(3857)
    square_there = shapely.segmentize(shapely.box(*frame.geometry[1].bounds), 1.0)
    frame.geometry = [frame.geometry[0], square_there]
    frame.to_file(tmp_path / "map.gpkg")
    shapes = read_shapes(tmp_path / "map.gpkg", 10)
    fine = on_lattice(shapes, Frame(0), 100_000)
    counts = np.diff(fine.rings)
    assert counts[1] == 4
    assert counts[0] > 3000
    coarse = on_lattice(shapes, Frame(0), 1500)
    assert len(coarse.points) <= 1500
    assert geometry_of(coarse)[0].area == pytest.approx(geometry_of(fine)[0].area, rel=1e-3)
    assert np.diff(on_lattice(shapes, Frame(0), 20).features).tolist() == [1, 1]


def test_what_is_smaller_than_a_step_stays_as_a_point(tmp_path):
    far = [shapely.box(0, 0, 1e-7, 1e-7), shapely.box(100, 40, 110, 50)]
    geopandas.GeoDataFrame({"class": ["a", "b"]}, geometry=far, crs=4326).to_file(tmp_path / "map.gpkg")
    lattice = on_lattice(read_shapes(tmp_path / "map.gpkg", 10), Frame(0), 100)
    assert np.diff(lattice.rings).tolist() == [1, 4]


def test_the_plane_runs_on_across_the_antimeridian():
    points = [np.array([[179.9, 10.0], [180.1, 10.0]]), np.array([[-179.95, 9.0], [179.95, 9.0]])]
    assert frame_of(points) == Frame(180)
    left, _, right, _ = Frame(180).bounds(np.concatenate(points))
    metres = np.radians(0.1) * 6_378_137
    assert (left, right) == pytest.approx((-metres, metres))
    assert frame_of([np.array([[-10.0, 0], [10, 0]])]) == Frame(0)
    assert frame_of([np.array([[-180.0, 0], [0, 0], [180, 0], [90, 0], [-90, 0]])]) == Frame(0)
    utm = lonlat("", np.array([[650_000.0, 5_700_000.0], [840_000.0, 5_700_000.0]]), pyproj.CRS(32660))
    assert frame_of([utm]) == Frame(180)
