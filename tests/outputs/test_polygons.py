"""Every vector format: what goes in comes out, whole or not at all."""

import itertools
import json
import os
from dataclasses import replace

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geoseg.classes import Classes
from geoseg.errors import LabelsError, OutputError
from geoseg.outputs import attributes
from geoseg.outputs.attributes import Attributes, grouped
from geoseg.outputs.polygons import check_output, suffixes, write_features
from geoseg.outputs.qgis import layer_name
from geoseg.vector.features import Features

LONLAT = {".geojson", ".geojsonl", ".geojsons", ".ndjson"}
TABLES = (".gpkg", ".fgb", ".parquet")
COLUMNS = ["id", "class_id", "class_name", "area_m2", "perimeter_m", "confidence"]


def part(features: Features, start: int, stop: int) -> Features:
    return features.chosen(slice(start, stop))


@pytest.mark.parametrize("suffix", suffixes())
def test_attributes_geometry_and_crs_come_back(suffix, tmp_path, blocks, classes, utm33, read):
    path = tmp_path / f"map{suffix}"
    batches = iter([part(blocks, 0, 40), part(blocks, 40, 40), part(blocks, 40, 108)])
    count = write_features(path, batches, classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    frame = read(path)
    assert count == len(frame) == 108
    assert [c for c in frame.columns if c != "geometry"] == COLUMNS
    assert frame["id"].tolist() == blocks.id.tolist()
    assert frame["class_id"].tolist() == blocks.class_id.tolist()
    assert frame["class_name"].tolist() == [classes.by_id(value).name for value in blocks.class_id]
    np.testing.assert_array_equal(frame["area_m2"], np.round(blocks.area_m2, 2))
    np.testing.assert_array_equal(frame["perimeter_m"], np.round(blocks.perimeter_m, 2))
    np.testing.assert_array_equal(frame["confidence"], np.round(blocks.confidence, 4))
    if suffix in LONLAT:
        assert frame.crs == pyproj.CRS(4326)
        back = pyproj.Transformer.from_crs(4326, utm33, always_xy=True)
        geometry = shapely.transform(frame.geometry.values, lambda xy: np.column_stack(back.transform(*xy.T)))
        assert shapely.hausdorff_distance(geometry, blocks.geometry).max() < 0.01
        assert shapely.coverage_is_valid(frame.geometry.values)
    else:
        assert pyproj.CRS(frame.crs) == utm33
        assert shapely.equals(frame.geometry.values, blocks.geometry).all()
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "map.qml"])


@pytest.mark.parametrize("suffix", [".geojson", *TABLES])
def test_no_polygons_make_a_valid_file(suffix, tmp_path, classes, utm33, read):
    path = tmp_path / f"none{suffix}"
    assert write_features(path, [], classes=classes, crs=utm33, pixel_m=1, has_confidence=False) == 0
    frame = read(path) if suffix != ".geojson" else json.loads(path.read_text(encoding="utf-8"))
    if suffix == ".geojson":
        assert frame == {"type": "FeatureCollection", "features": []}
    else:
        assert len(frame) == 0
        assert [c for c in frame.columns if c != "geometry"] == COLUMNS
        assert pyproj.CRS(frame.crs) == utm33


def test_no_polygons_make_an_empty_sequence(tmp_path, classes, utm33):
    write_features(tmp_path / "none.geojsonl", [], classes=classes, crs=utm33, pixel_m=1, has_confidence=False)
    assert (tmp_path / "none.geojsonl").read_bytes() == b""


@pytest.mark.parametrize("suffix", [".geojson", *TABLES])
def test_without_confidence_the_column_stays_and_is_null(suffix, tmp_path, blocks, classes, utm33, read):
    path = tmp_path / f"map{suffix}"
    write_features(path, [blocks], classes=classes, crs=utm33, pixel_m=1, has_confidence=False)
    assert read(path)["confidence"].isna().all()
    if suffix == ".geojson":
        assert all(f["properties"]["confidence"] is None for f in json.loads(path.read_text("utf-8"))["features"])


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", *TABLES])
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 108), max_size=4).map(sorted))
def test_bytes_depend_on_the_polygons_alone(suffix, cuts, tmp_path, blocks, classes, utm33, monkeypatch):
    monkeypatch.setattr(attributes, "GROUP_POLYGONS", 25)
    (tmp_path / "again").mkdir(exist_ok=True)
    one, other = tmp_path / f"map{suffix}", tmp_path / "again" / f"map{suffix}"
    ends = [0, *cuts, 108]
    batches = [part(blocks, a, b) for a, b in itertools.pairwise(ends)]
    for path, given_as in ((one, [blocks]), (other, batches)):
        write_features(path, given_as, classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    assert one.read_bytes() == other.read_bytes()
    assert one.with_suffix(".qml").read_bytes() == other.with_suffix(".qml").read_bytes()


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 9), max_size=8), points=st.integers(5, 40), polygons=st.integers(1, 7))
def test_groups_are_cut_by_the_polygons_alone(sizes, points, polygons, make_features, monkeypatch):
    monkeypatch.setattr(attributes, "GROUP_POLYGONS", polygons)
    monkeypatch.setattr(attributes, "GROUP_POINTS", points)
    whole = make_features([shapely.Point(i, 0).buffer(1, quad_segs=1 + i % 3) for i in range(sum(sizes))])
    ends = np.cumsum([0, *sizes])
    pieces = [part(whole, a, b) for a, b in itertools.pairwise(ends)]
    groups = [g.id.tolist() for g in grouped(pieces)]
    assert groups == [g.id.tolist() for g in grouped([whole])]
    assert [number for group in groups for number in group] == whole.id.tolist()
    assert all(0 < len(g) <= polygons for g in groups)
    for group in groups:
        counted = shapely.get_num_coordinates(whole.geometry[np.array(group) - 1])
        assert counted[:-1].sum() < points


@pytest.mark.parametrize(("pixel_m", "area", "length"), [(30, 2, 2), (1, 2, 2), (0.5, 3, 3), (0.1, 4, 3), (0.01, 6, 4)])
def test_sizes_keep_a_hundredth_of_a_pixel(pixel_m, area, length, classes):
    numbers = Attributes(classes, pixel_m, True)
    assert (numbers.area_decimals, numbers.length_decimals) == (area, length)


def test_a_label_of_no_class_is_refused(tmp_path, make_features, classes, utm33):
    odd = make_features([shapely.box(5e5, 5e6, 5e5 + 1, 5e6 + 1)], [3])
    with pytest.raises(LabelsError, match="label value 3 belongs to no class"):
        write_features(tmp_path / "a.geojson", [odd], classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".geojson", *TABLES])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, OSError])
def test_a_fault_of_the_producer_passes_and_leaves_the_old_file(suffix, fault, tmp_path, blocks, classes, utm33):
    path = tmp_path / f"map{suffix}"
    path.write_text("old")

    def broken():
        yield blocks
        raise fault("the producer")

    with pytest.raises(fault, match="the producer") as caught:
        write_features(path, broken(), classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    assert type(caught.value) is fault
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", *TABLES])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(suffix, small_disk, make_features, classes, utm33):
    path = small_disk / f"map{suffix}"
    path.write_text("old")
    grid = [shapely.Point(5e5 + 7.13 * i, 5e6 + 3.7 * i).buffer(3.0) for i in range(4000)]
    with pytest.raises(OutputError, match=r"map\.\w+ could not be written because the disk is full: free some space"):
        write_features(path, [make_features(grid)] * 2, classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    assert path.read_text() == "old"
    assert os.listdir(small_disk) == [path.name]


def test_an_existing_file_and_its_journals_are_replaced_at_the_end(tmp_path, blocks, classes, utm33, read):
    path = tmp_path / "map.gpkg"
    for name in ("map.gpkg", "map.gpkg-wal", "map.gpkg-shm"):
        (tmp_path / name).write_text("old")
    write_features(path, [blocks], classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    assert sorted(os.listdir(tmp_path)) == ["map.gpkg", "map.qml"]
    assert len(read(path)) == 108


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("map.shp", r"map\.shp has the suffix '\.shp': use one of \.geojson, .*\.parquet\.$"),
        ("map", r"map has no suffix: use one of"),
        ("nowhere/map.gpkg", r"the folder .*nowhere of the output map\.gpkg does not exist: create it first\.$"),
        ("there.geojson", r"there\.geojson exists already: choose another name"),
        ("folder.gpkg", r"folder\.gpkg is a folder"),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_work(name, message, tmp_path):
    (tmp_path / "there.geojson").touch()
    (tmp_path / "folder.gpkg").mkdir()
    with pytest.raises(OutputError, match=message):
        check_output(tmp_path / name)


def test_good_places_pass(tmp_path):
    (tmp_path / "there.GeoJSON").touch()
    check_output(tmp_path / "there.GeoJSON", overwrite=True)
    for suffix in suffixes():
        check_output(tmp_path / f"new{suffix}", crs=pyproj.CRS(3413))
    assert os.listdir(tmp_path) == ["there.GeoJSON"]


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("geoseg.outputs.staging.tempfile.mkdtemp", refuse)
    with pytest.raises(OutputError, match="you may not write into"):
        check_output(tmp_path / "map.gpkg")


@pytest.mark.parametrize("crs", ["IAU_2015:49910", 'LOCAL_CS["mine",UNIT["metre",1]]'])
def test_other_worlds_get_tables_but_no_geojson(crs, tmp_path, make_features, classes, read):
    crs = pyproj.CRS(crs)
    check_output(tmp_path / "map.gpkg", crs=crs)
    with pytest.raises(OutputError, match=r"map\.geojson needs longitude and latitude .* write a GeoPackage"):
        check_output(tmp_path / "map.geojson", crs=crs)
    features = make_features([shapely.box(0, 0, 10, 10)])
    for suffix in TABLES:
        path = tmp_path / f"map{suffix}"
        write_features(path, [features], classes=classes, crs=crs, pixel_m=1, has_confidence=True)
        assert shapely.equals(read(path).geometry.values, features.geometry).all()


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("geoseg.outputs.tables.importlib.util.find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"pip install geoseg\[parquet\]"):
        check_output(tmp_path / "map.parquet")


def test_a_custom_crs_is_kept(tmp_path, make_features, classes, read):
    crs = pyproj.CRS("+proj=lcc +lat_1=44.5 +lat_2=46.25 +lat_0=45 +lon_0=5.1 +x_0=123 +y_0=456 +ellps=GRS80 +units=m")
    features = make_features([shapely.box(0, 0, 10, 10)])
    for suffix in TABLES:
        path = tmp_path / f"map{suffix}"
        write_features(path, [features], classes=classes, crs=crs, pixel_m=1, has_confidence=True)
        assert pyproj.CRS(read(path).crs).is_exact_same(crs) or pyproj.CRS(read(path).crs).equals(crs, True)


def test_geopackage_is_1_3_with_an_index(tmp_path, blocks, classes, utm33):
    path = tmp_path / "2024 my-fields.gpkg"
    write_features(path, [blocks], classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    import sqlite3

    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (10300,)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert {"polygons_2024_my_fields", "rtree_polygons_2024_my_fields_geom", "layer_styles"} <= tables
    assert connection.execute("SELECT DISTINCT last_change FROM gpkg_contents").fetchall() == [
        ("2000-01-01T00:00:00.000Z",)
    ]
    connection.close()
    assert pyogrio.read_info(path, layer="polygons_2024_my_fields")["geometry_type"] == "Polygon"


@pytest.mark.parametrize(
    ("stem", "name"),
    [("map", "map"), ("a b", "a_b"), ("9", "polygons_9"), ("gpkg_x", "polygons_gpkg_x"), ("--", "polygons")],
)
def test_layer_names_are_identifiers(stem, name):
    assert layer_name(f"x/{stem}.gpkg") == name


def test_parquet_tells_version_bounds_and_types(tmp_path, blocks, classes, utm33):
    import pyarrow.parquet as pq

    path = tmp_path / "map.parquet"
    write_features(path, [blocks], classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert geo["version"] == "1.1.0"
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["bbox"] == shapely.total_bounds(blocks.geometry).tolist()


def test_many_classes_are_named(tmp_path, make_features, utm33, read):
    classes = Classes.numbered(200)
    boxes = [shapely.box(5e5 + i, 5e6, 5e5 + i + 1, 5e6 + 1) for i in range(200)]
    path = tmp_path / "map.gpkg"
    write_features(path, [make_features(boxes, range(200))], classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
    assert read(path)["class_name"].tolist() == [c.name for c in classes]


def corners(x: float, y: float) -> shapely.MultiPolygon:
    """Three squares of 10 that touch in corners, one with a hole."""
    holed = shapely.box(x + 10, y + 10, x + 20, y + 20).difference(shapely.box(x + 13, y + 14, x + 15, y + 18))
    return shapely.MultiPolygon([shapely.box(x, y, x + 10, y + 10), holed, shapely.box(x + 20, y, x + 30, y + 10)])


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", *TABLES])
@pytest.mark.parametrize("compiled_from", [0, 10**9])
def test_features_of_several_parts_come_back(
    suffix, compiled_from, tmp_path, make_features, classes, utm33, read, monkeypatch
):
    monkeypatch.setattr("geoseg.outputs.geojson.COMPILED_FROM", compiled_from)
    shapes = [shapely.box(500_000 + 40 * i, 5_400_000, 500_010 + 40 * i, 5_400_010) for i in range(3)]
    shapes[1:1] = [corners(500_100, 5_400_100), corners(500_200, 5_400_300)]
    features = make_features(shapes)
    path = tmp_path / f"map{suffix}"
    count = write_features(path, [features], classes=classes, crs=utm33, pixel_m=1, has_confidence=True, multipart=True)
    frame = read(path)
    assert count == len(frame) == 5
    geometry = frame.geometry.values
    assert shapely.get_num_geometries(geometry).tolist() == [1, 3, 3, 1, 1]
    assert shapely.is_valid(geometry).all()
    if suffix in LONLAT:
        back = pyproj.Transformer.from_crs(4326, utm33, always_xy=True)
        geometry = shapely.transform(geometry, lambda xy: np.column_stack(back.transform(*xy.T)))
        assert shapely.hausdorff_distance(geometry, features.geometry).max() < 0.01
        parts = shapely.get_parts(frame.geometry.values)
        assert shapely.is_ccw(shapely.get_exterior_ring(parts)).all()
    else:
        assert shapely.equals(geometry, features.geometry).all()
    if suffix in (".gpkg", ".fgb"):
        assert pyogrio.read_info(path, layer=layer_name(path) if suffix == ".gpkg" else None)["geometry_type"] == (
            "MultiPolygon"
        )


def test_parts_are_cut_at_the_antimeridian_each_by_itself(tmp_path, make_features, classes):
    utm = pyproj.CRS(32601)
    x, y = pyproj.Transformer.from_crs(4326, utm, always_xy=True).transform(180, 10)
    shapes = [corners(x - 15, y), corners(x - 500, y)]
    path = tmp_path / "a.geojson"
    write_features(
        path, [make_features(shapes)], classes=classes, crs=utm, pixel_m=1, has_confidence=True, multipart=True
    )
    one, other = (shapely.geometry.shape(f["geometry"]) for f in json.loads(path.read_text())["features"])
    assert len(one.geoms) > 3
    assert len(other.geoms) == 3
    for geometry, shape in ((one, shapes[0]), (other, shapes[1])):
        assert geometry.is_valid
        longitudes = shapely.get_coordinates(geometry)[:, 0]
        assert np.abs(longitudes).max() <= 180
        metres = pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.orient_polygons(geometry))[0]
        assert metres == pytest.approx(shape.area, rel=2e-3)
    assert one.bounds[0] == -180
    assert one.bounds[2] == 180


EXTRA = (("regularized_iou", "float64"), ("dem_count", "int64"))


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", *TABLES])
def test_further_columns_come_back(suffix, tmp_path, blocks, classes, utm33, read):
    agreement = np.where(np.arange(len(blocks)) % 3 == 0, np.nan, 1 / (2.0 + np.arange(len(blocks))))
    count = np.arange(len(blocks)) * 10**10
    wide = replace(blocks, extra={"regularized_iou": agreement, "dem_count": count})
    path = tmp_path / f"map{suffix}"
    batches = [part(wide, 0, 30), part(wide, 30, 108)]
    write_features(path, batches, classes=classes, crs=utm33, pixel_m=1, has_confidence=True, extra=EXTRA)
    frame = read(path)
    assert [c for c in frame.columns if c != "geometry"] == [*COLUMNS, "regularized_iou", "dem_count"]
    np.testing.assert_array_equal(frame["regularized_iou"].to_numpy(float), agreement)
    np.testing.assert_array_equal(frame["dem_count"], count)
    assert str(frame["dem_count"].dtype).startswith("int")
    if suffix == ".geojson":
        first, second = json.loads(path.read_text(encoding="utf-8"))["features"][:2]
        assert first["properties"]["regularized_iou"] is None
        assert second["properties"]["regularized_iou"] == agreement[1]


@pytest.mark.parametrize("suffix", TABLES)
def test_tables_without_a_crs_or_sizes(suffix, tmp_path, blocks, classes, read):
    nothing = np.full(len(blocks), np.nan)
    placeless = replace(blocks, area_m2=nothing, perimeter_m=nothing)
    path = tmp_path / f"map{suffix}"
    write_features(path, [placeless], classes=classes, crs=None, pixel_m=1, has_confidence=True)
    frame = read(path)
    assert frame.crs is None or "Undefined" in frame.crs.name
    assert frame["area_m2"].isna().all()
    assert frame["perimeter_m"].isna().all()
    assert shapely.equals(frame.geometry.values, blocks.geometry).all()


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl"])
def test_geojson_without_a_crs_is_refused_with_ways_out(suffix, tmp_path, blocks, classes):
    with pytest.raises(OutputError, match=r"longitude and latitude.*GeoPackage"):
        write_features(tmp_path / f"a{suffix}", [blocks], classes=classes, crs=None, pixel_m=1, has_confidence=True)
    with pytest.raises(OutputError, match=r"longitude and latitude.*GeoPackage"):
        check_output(tmp_path / f"a{suffix}", placeless=True)
    assert os.listdir(tmp_path) == []
