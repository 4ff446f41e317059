"""``geoseg vectorize`` from end to end: any class raster, any format, every option; and what is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

from geoseg_cli.main import main

MARS = pyproj.CRS("IAU_2015:49910").to_wkt()
UTM = Affine(0.5, 0, 336_000, 0, -0.5, 3_061_000)
Run = Callable[..., str]


def blobs(shape: tuple[int, int] = (90, 120), classes: int = 4, seed: int = 0) -> NDArray[np.uint8]:
    """Return labels in blobs of a few pixels."""
    fields = np.random.default_rng(seed).random((classes, *shape))
    for _ in range(3):
        fields = sum(np.roll(fields, shift, axis) for axis in (1, 2) for shift in (-1, 0, 1))
    return fields.argmax(axis=0).astype(np.uint8)


def write(path: Path, array: NDArray[Any], *, transform: Affine | None = UTM, **options: Any) -> Path:
    """Write a raster."""
    options = {"crs": "EPSG:32645", **options}
    colors = options.pop("colors", None)
    array = array[None] if array.ndim == 2 else array
    count, height, width = array.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            dtype=array.dtype,
            count=count,
            height=height,
            width=width,
            transform=transform,
            **options,
        ) as file:
            file.write(array)
            if colors is not None:
                file.write_colormap(1, colors)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs ``geoseg vectorize`` and gives what it says on stderr."""

    def go(*arguments: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["vectorize", "-q", *map(str, arguments)])
        said = capsys.readouterr()
        assert (stop.value.code or 0) == code, said.err
        if code == 1:
            assert said.out == ""
            assert len(said.err.splitlines()) == 1, said.err
            assert said.err.startswith("Error: ")
        return said.err

    return go


def read(path: Path) -> geopandas.GeoDataFrame:
    """Read any format, ordered by id."""
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    frame = pyogrio.read_dataframe(path, layer=pyogrio.list_layers(path)[0, 0])
    return frame.sort_values("id", ignore_index=True)


# Which polygons


def test_classes_come_from_a_table_and_are_chosen_by_name_or_value(tmp_path: Path, run: Run) -> None:
    labels = blobs()
    path = write(tmp_path / "a.tif", labels)
    table = tmp_path / "names.csv"
    table.write_text("value,name,color\n0,background\n1,road,#101010\n2,roof,#D55E00\n3,water\n", encoding="utf-8")
    out = tmp_path / "a.gpkg"

    def names(*options: object) -> set[str]:
        run(path, out, "--overwrite", "--names", table, *options)
        return set(read(out)["class_name"])

    assert names() == {"road", "roof", "water"}
    assert names("--only", "roof", "--only", "1") == {"roof", "road"}
    assert names("--only", "background") == {"background"}
    assert names("--only", "roof", "--only", "road", "--drop", "road") == {"roof"}
    assert names("--drop", "water", "--keep-background") == {"background", "road", "roof"}
    assert "#d55e00" in out.with_suffix(".qml").read_text() or "213,94,0" in out.with_suffix(".qml").read_text()
    said = run(path, out, "--overwrite", "--names", table, "--only", "barn", code=1)
    assert "no class 'barn'" in said
    said = run(path, out, "--overwrite", "--names", table, "--only", "roof", "--drop", "roof", code=2)
    assert "nothing would be written" in said


def test_a_color_table_without_names_gives_its_colours(tmp_path: Path, run: Run) -> None:
    colors = {0: (1, 2, 3, 255), 1: (10, 20, 30, 255), 2: (200, 0, 100, 255), 3: (0, 255, 0, 255)}
    path = write(tmp_path / "a.tif", blobs(), colors=colors)
    run(path, tmp_path / "a.geojson")
    assert set(read(tmp_path / "a.geojson")["class_name"]) == {f"class {value}" for value in range(4)}
    assert "200,0,100" in (tmp_path / "a.qml").read_text()


def test_a_band_and_a_confidence(tmp_path: Path, run: Run) -> None:
    labels = blobs()
    path = write(tmp_path / "a.tif", np.stack([np.zeros_like(labels), labels]))
    sure = write(tmp_path / "sure.tif", np.where(labels == 2, 0.75, 0.5).astype(np.float32))
    run(path, tmp_path / "a.fgb", "--band", 2, "--confidence", sure, "--workers", 2)
    frame = read(tmp_path / "a.fgb")
    assert set(frame["class_id"]) == {0, 1, 2, 3}
    assert (frame["confidence"] == np.where(frame["class_id"] == 2, 0.75, 0.5)).all()
    assert "no band 3" in run(path, tmp_path / "b.fgb", "--band", 3, code=1)
    other = write(tmp_path / "other.tif", np.zeros((5, 5), np.float32))
    assert "not on the grid" in run(path, tmp_path / "b.fgb", "--confidence", other, code=1)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".fgb", ".parquet"])
def test_statistics_of_any_raster_in_every_format(tmp_path: Path, run: Run, suffix: str) -> None:
    labels = blobs()
    path = write(tmp_path / "a.tif", labels)
    dem = write(tmp_path / "dem 1.tif", np.stack([labels.astype(np.float32), 100.0 + labels]).astype(np.float32))
    out = tmp_path / f"a{suffix}"
    run(path, out, "--statistics", dem, "--statistics", f"second={dem}:2")
    frame = read(out)
    for name in ("mean", "min", "max"):
        assert (frame[f"dem_1_{name}"] == frame["class_id"]).all()
        assert (frame[f"second_{name}"] == frame["class_id"] + 100).all()
    assert (frame["dem_1_std"] == 0).all()
    assert frame["dem_1_count"].sum() == labels.size


def test_statistics_that_cannot_be_told_apart_or_found_are_refused(tmp_path: Path, run: Run) -> None:
    path = write(tmp_path / "a.tif", blobs())
    dem = write(tmp_path / "dem.tif", np.zeros((2, 90, 120), np.float32))
    out = tmp_path / "out.gpkg"
    said = run(path, out, "--statistics", dem, "--statistics", f"{dem}:2", code=2)
    assert "second column 'dem_mean'" in said
    assert "NAME=" in said
    assert "no band '5'" in run(path, out, "--statistics", f"{dem}:5", code=1)
    assert "no.tif does not exist" in run(path, out, "--statistics", tmp_path / "no.tif", code=1)


@pytest.mark.parametrize(
    "options",
    [
        ("--min-area", 4, "--simplify", 0.8),
        ("--connectivity", 8, "--smooth"),
        ("--regularize-class", "class 2", "--simplify", 0.5, "--fill-holes", 3),
    ],
    ids=["simplified", "smooth_corners", "regular"],
)
def test_workers_make_no_difference(tmp_path: Path, run: Run, options: tuple[object, ...]) -> None:
    path = write(tmp_path / "a.tif", blobs())
    dem = write(tmp_path / "dem.tif", np.random.default_rng(0).random((90, 120)).astype(np.float32))
    for workers in (1, 3):
        run(path, tmp_path / f"{workers}.geojson", "--workers", workers, "--statistics", dem, *options)
    assert (tmp_path / "1.geojson").read_bytes() == (tmp_path / "3.geojson").read_bytes()


# How they are shaped


def test_small_regions_are_merged_or_dropped(tmp_path: Path, run: Run) -> None:
    labels = blobs()
    path = write(tmp_path / "a.tif", labels)
    out = tmp_path / "a.gpkg"
    run(path, out)
    whole = read(out)
    run(path, out, "--overwrite", "--min-area", 10)
    merged = read(out)
    run(path, out, "--overwrite", "--min-area", 10, "--small", "drop")
    dropped = read(out)
    assert merged.area.sum() == whole.area.sum() == labels.size / 4
    assert merged["area_m2"].min() >= 10
    expected = whole[whole["area_m2"] >= 10]
    assert 0 < len(dropped) == len(expected) < len(whole)
    np.testing.assert_allclose(dropped["area_m2"], expected["area_m2"])


def test_features_of_corners(tmp_path: Path, run: Run) -> None:
    path = write(tmp_path / "a.tif", (np.indices((6, 7)).sum(axis=0) % 2).astype(np.uint8))
    for suffix in (".gpkg", ".fgb", ".parquet", ".geojson"):
        run(path, tmp_path / f"a{suffix}", "--connectivity", 8)
        frame = read(tmp_path / f"a{suffix}")
        assert shapely.get_num_geometries(frame.geometry.values).tolist() == [21, 21]
        assert frame.geometry.is_valid.all()


def test_regularised_outlines_are_reported(tmp_path: Path, run: Run) -> None:
    houses = [
        shapely.affinity.rotate(shapely.box(x, y, x + 17, y + 12), 10 * nth)
        for nth, (x, y) in enumerate((x, y) for x in (10, 50, 90) for y in (12, 50))
    ]
    labels = rasterize([(house, 1) for house in houses], (90, 120), dtype="uint8")
    path = write(tmp_path / "a.tif", labels)
    (tmp_path / "names.json").write_text('{"0": "background", "1": "roof"}')
    out = tmp_path / "a.geojson"
    said = run(path, out, "--regularize", "--names", tmp_path / "names.json")
    frame = read(out)
    assert len(frame) == 6
    assert f"6 outlines were regularised (mean IoU with the raw ones {frame['regularized_iou'].mean():.3f})" in said
    assert (shapely.get_num_coordinates(frame.geometry.values) == 5).all()
    run(path, out, "--overwrite", "--regularize", "--keep-background", "--names", tmp_path / "names.json")
    both = read(out)
    assert both.loc[both["class_name"] == "background", "regularized_iou"].isna().all()
    said = run(path, out, "--overwrite", "--regularize-class", "background", "--names", tmp_path / "names.json", code=2)
    assert "background" in said


def test_pixels_too_oblong_for_right_angles_are_refused(tmp_path: Path, run: Run) -> None:
    path = write(tmp_path / "a.tif", blobs(), transform=Affine(5, 0, 336_000, 0, -1, 3_061_000))
    assert "too oblong" in run(path, tmp_path / "out.gpkg", "--regularize", code=2)


# Neighbours


@pytest.mark.parametrize(
    "options",
    [(), ("--simplify", 1.2), ("--smooth", "--simplify", 0.3), ("--min-area", 5), ("--min-area", 5, "--simplify", 2)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_polygons_are_a_coverage_in_the_crs_of_the_raster(
    tmp_path: Path, run: Run, options: tuple[object, ...], seed: int
) -> None:
    labels = blobs(classes=5, seed=seed)
    run(write(tmp_path / "a.tif", labels), tmp_path / "a.gpkg", *options)
    geometry = read(tmp_path / "a.gpkg").geometry.values
    assert shapely.is_valid(geometry).all()
    assert shapely.coverage_is_valid(geometry)
    union = shapely.coverage_union_all(geometry)
    assert shapely.area(geometry).sum() == pytest.approx(union.area, rel=1e-12)
    assert union.geom_type == "Polygon"
    assert shapely.get_num_interior_rings(union) == 0
    if "--simplify" not in options:  # which may cut the corners of the raster
        assert union.area == labels.size / 4


@pytest.mark.parametrize("options", [(), ("--simplify", 1.2), ("--smooth", "--simplify", 0.3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_neighbours_share_their_corners_in_longitude_and_latitude(
    tmp_path: Path, run: Run, options: tuple[object, ...], seed: int
) -> None:
    labels = blobs(classes=5, seed=seed)
    path = write(tmp_path / "a.tif", labels)
    run(path, tmp_path / "a.geojson", *options)
    run(path, tmp_path / "a.gpkg", *options)
    record = json.loads((tmp_path / "a.geojson").read_text())
    lonlat = np.array([shapely.geometry.shape(item["geometry"]) for item in record["features"]], object)
    ground = read(tmp_path / "a.gpkg").geometry.values
    assert len(lonlat) == len(ground)
    assert shapely.coverage_is_valid(lonlat)
    union = shapely.coverage_union_all(lonlat)
    assert shapely.area(lonlat).sum() == pytest.approx(union.area, rel=1e-12)
    assert union.geom_type == "Polygon"
    assert shapely.get_num_interior_rings(union) == 0
    # One corner on the ground is one corner in the file, bit by bit, however many polygons have it.
    places: dict[tuple[float, float], set[tuple[float, float]]] = {}
    for one, other in zip(shapely.normalize(ground), lonlat, strict=True):
        back = pyproj.Transformer.from_crs(4326, 32645, always_xy=True)
        corners = {tuple(corner) for corner in shapely.get_coordinates(other).tolist()}
        tree = shapely.STRtree(shapely.points(shapely.get_coordinates(one)))
        for corner in corners:
            x, y = back.transform(*corner)
            nearest = shapely.get_coordinates(one)[tree.nearest(shapely.Point(x, y))]
            if np.hypot(*(nearest - (x, y))) < 0.05:
                places.setdefault(tuple(nearest.tolist()), set()).add(corner)
    assert len(places) > 200
    assert all(len(corners) == 1 for corners in places.values())


# What is refused


def test_a_raster_without_a_crs_needs_a_word(tmp_path: Path, run: Run) -> None:
    labels = blobs()
    path = write(tmp_path / "a.tif", labels, crs=None, transform=None)
    said = run(path, tmp_path / "out.gpkg", code=1)
    assert "a.tif has no CRS" in said
    assert "--pixel-coordinates" in said
    for suffix in (".gpkg", ".fgb", ".parquet"):
        out = tmp_path / f"a{suffix}"
        run(path, out, "--pixel-coordinates")
        frame = read(out)
        assert frame.crs is None or "Undefined" in frame.crs.name
        shapes = zip(frame.geometry, frame["class_id"].tolist(), strict=True)
        assert (rasterize(shapes, labels.shape, fill=9, dtype="uint8") == labels).all()
        assert frame["area_m2"].isna().all()
        assert frame["perimeter_m"].isna().all()
    said = run(path, tmp_path / "out.geojson", "--pixel-coordinates", code=1)
    assert "out.geojson needs longitude and latitude" in said
    assert ".gpkg" in said
    for option in (("--min-area", 3), ("--simplify", 1), ("--regularize",), ("--statistics", path)):
        said = run(path, tmp_path / "out.gpkg", "--pixel-coordinates", *option, code=2)
        assert option[0] in said
    placed = write(tmp_path / "b.tif", labels)
    assert "has a CRS" in run(placed, tmp_path / "out.gpkg", "--pixel-coordinates", code=2)


def test_rasters_that_are_no_labels_are_refused(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.gpkg"
    said = run(write(tmp_path / "float.tif", blobs().astype(np.float32)), out, code=1)
    assert "float32 values" in said
    many = np.arange(90 * 120, dtype=np.uint16).reshape(90, 120)
    assert "too many distinct values" in run(write(tmp_path / "many.tif", many), out, code=1)
    table = tmp_path / "names.csv"
    table.write_text("0,a\n1,b\n2,c\n")
    path = write(tmp_path / "a.tif", blobs())
    said = run(path, out, "--names", table, code=1)
    assert "label value 3" in said
    assert "known values are 0, 1, 2" in said
    table.write_text("0,a\n1,b\nroof,c\n")
    said = run(path, out, "--names", table, code=1)
    assert "names.csv, line 3: the value 'roof'" in said


def test_mars_goes_to_a_geopackage_but_not_to_geojson(tmp_path: Path, run: Run) -> None:
    path = write(tmp_path / "mars.tif", blobs(), crs=MARS, transform=Affine(10, 0, 1000, 0, -10, 5000))
    assert "GeoPackage (.gpkg)" in run(path, tmp_path / "out.geojson", code=1)
    run(path, tmp_path / "mars.gpkg", "--simplify", 5, "--min-area", 500, "--regularize-class", "class 1")
    frame = read(tmp_path / "mars.gpkg")
    assert "Mars" in frame.crs.name
    assert frame["regularized_iou"].notna().any()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> object:
    """After every test: nothing under the name of an output that was refused, nothing hidden."""
    yield
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "out."))] == []
