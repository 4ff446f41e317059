"""The whole comparison: rasters and polygons on either side, any grid, any block."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import rasterize
from scipy.ndimage import label

import geoseg
from geoseg.classes import Classes
from geoseg.errors import ConfigError, LabelsError, OutputError, SceneError
from geoseg.outputs.cog import write_label_cog
from tests.conftest import write_raster

AFFINE = Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000)


def _labels(seed: int, shape: tuple[int, int] = (90, 130)) -> np.ndarray:
    """Patches of the classes 0 to 2, with a hole of nodata (255)."""
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 3, (shape[0] // 9 + 1, shape[1] // 9 + 1)), np.ones((9, 9), int))
    labels = labels[: shape[0], : shape[1]].astype(np.uint8)
    labels[10 + seed : 22, 30:47] = 255
    return labels


def _worse(labels: np.ndarray, seed: int) -> np.ndarray:
    """Labels with one pixel in fifty changed and some patches of another class."""
    rng = np.random.default_rng(seed)
    changed = rng.random(labels.shape) < 0.02
    changed[20:40, 50:95] = True
    return np.where(changed & (labels != 255), rng.integers(0, 3, labels.shape), labels).astype(np.uint8)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A prediction and its reference on one grid."""
    reference = _labels(0)
    prediction = _worse(reference, 5)
    return (
        write_raster(tmp_path / "prediction.tif", prediction, nodata=255),
        write_raster(tmp_path / "reference.tif", reference, nodata=255),
    )


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def _confidence(tmp_path: Path) -> Path:
    values = np.random.default_rng(2).random((90, 130)).astype(np.float32)
    values[:5] = -1
    return write_raster(tmp_path / "confidence.tif", values, nodata=-1)


def test_pixels_equal_plain_numpy(pair):
    prediction, reference = (_read(path) for path in pair)
    found = geoseg.evaluate(*pair)
    both = (prediction != 255) & (reference != 255)
    expected = [[int((both & (reference == i) & (prediction == j)).sum()) for j in range(3)] for i in range(3)]
    assert found.scores.matrix.tolist() == expected
    assert found.pixels == {
        "all": 90 * 130,
        "evaluated": int(both.sum()),
        "outside_area": 0,
        "reference_ignored": int((reference == 255).sum()),
        "prediction_ignored": int(((reference != 255) & (prediction == 255)).sum()),
    }
    assert found.pixels["prediction_ignored"] == 0 < found.pixels["reference_ignored"]


@pytest.mark.parametrize("kind", ["rasters", "another grid", "polygons"])
def test_no_figure_depends_on_the_blocks(kind, pair, tmp_path):
    prediction, reference = pair
    if kind == "another grid":
        turned = Affine.translation(350_000.3, 3_059_999.9) * Affine.rotation(-2) * Affine.scale(0.49, -0.51)
        prediction = write_raster(tmp_path / "turned.tif", _worse(_labels(0), 3), transform=turned, nodata=255)
    if kind == "polygons":
        geoseg.vectorize(prediction, tmp_path / "prediction.geojson", keep_background=True)
        prediction = tmp_path / "prediction.geojson"
    more = {"erode": 2, "boundary": "1.3m", "confidence": _confidence(tmp_path)}
    whole = geoseg.evaluate(
        prediction, reference, **more, html_file=tmp_path / "0.html", errors_file=tmp_path / "0.tif"
    )
    assert whole.as_dict()["objects"]["found"] > 2
    for chunk in (17, 64):
        html, errors = tmp_path / f"{chunk}.html", tmp_path / f"{chunk}.tif"
        parts = geoseg.evaluate(prediction, reference, **more, html_file=html, errors_file=errors, chunk=chunk)
        assert parts.as_dict() == whole.as_dict()
        assert html.read_text() == (tmp_path / "0.html").read_text()
        assert np.array_equal(_read(errors), _read(tmp_path / "0.tif"))


def test_the_error_raster_says_where(pair, tmp_path):
    prediction, reference = (_read(path) for path in pair)
    geoseg.evaluate(*pair, errors_file=tmp_path / "errors.tif")
    expected = np.where((prediction == 255) | (reference == 255), 2, (prediction != reference).astype(int))
    assert np.array_equal(_read(tmp_path / "errors.tif"), expected)
    with rasterio.open(tmp_path / "errors.tif") as file, rasterio.open(pair[1]) as grid:
        assert (file.transform, file.crs) == (grid.transform, grid.crs)
        assert [c["name"] for c in json.loads(file.tags()["CLASSES"])] == ["right", "wrong", "ignored"]


def test_eroded_scores_leave_out_what_is_near_a_boundary(tmp_path):
    reference = np.zeros((40, 40), np.uint8)
    reference[:, 20:] = 1
    prediction = np.zeros((40, 40), np.uint8)
    prediction[:, 22:] = 1  # two columns wrong, at the boundary
    paths = [write_raster(tmp_path / f"{i}.tif", a) for i, a in enumerate((prediction, reference))]
    found = geoseg.evaluate(*paths, erode=1, chunk=7)
    assert found.eroded.matrix.tolist() == [[40 * 19, 0], [40, 40 * 18]]
    assert geoseg.evaluate(*paths, erode=2, chunk=7).eroded.overall_accuracy == 1
    # Boundary pixels within 3: columns 17-19 and 20-22 of the reference, 19-21 and 22-24 of the prediction.
    assert found.boundaries.overlap.iou == pytest.approx([1 / 5, 1 / 5])
    # A pixel of 0.5 m of the projection is a little more on the ground.
    metres = geoseg.evaluate(*paths, boundary="1.51m").boundaries.overlap
    assert metres.both.tolist() == found.boundaries.overlap.both.tolist()


def test_objects_of_rasters_are_their_regions(pair):
    prediction, reference = (_read(path) for path in pair)
    counts = geoseg.evaluate(*pair).objects.counts
    for index in (1, 2):
        both = [label(a == index) for a in (reference, prediction)]
        found = 0
        for i in range(1, both[0][1] + 1):
            mine = both[0][0] == i
            for j in np.unique(both[1][0][mine]):
                theirs = both[1][0] == j
                found += bool(j and (mine & theirs).sum() >= 0.5 * (mine | theirs).sum())
        assert counts.found[index] == found
    assert counts.found[0] == counts.missed[0] == 0  # 0 is the background


def test_confidence_is_judged_where_there_is_some(pair, tmp_path):
    prediction, reference = (_read(path) for path in pair)
    path = _confidence(tmp_path)
    values = _read(path)
    found = geoseg.evaluate(*pair, confidence=path).calibration
    known = (prediction != 255) & (reference != 255) & (values >= 0)
    assert found.pixels.sum() == known.sum()
    last = known & (values >= 0.9)
    assert found.accuracy[9] == pytest.approx((prediction == reference)[last].mean())
    thousandths = np.where(values >= 0, np.rint(values * 1000), 65535).astype(np.uint16)
    stored = write_raster(tmp_path / "stored.tif", thousandths, nodata=65535)
    again = geoseg.evaluate(*pair, confidence=stored).calibration
    assert again.expected_error == pytest.approx(found.expected_error, abs=2e-3)


@pytest.fixture(scope="module")
def footprints(data: Path, tmp_path_factory) -> tuple[Path, Path, np.ndarray]:
    """Real footprints, and a mask of them at 0.5 m that GDAL burnt."""
    folder = tmp_path_factory.mktemp("banepa")
    frame = geopandas.read_file(data / "banepa" / "banepa_dev_buildings.geojson").to_crs(32645)
    west, south, east, north = frame.total_bounds
    shape = (int((north - south) / 0.5) + 1, int((east - west) / 0.5) + 1)
    affine = Affine(0.5, 0, west, 0, -0.5, north)
    mask = rasterize([(g, 1) for g in frame.geometry], shape, transform=affine, dtype="uint8")
    return (
        data / "banepa" / "banepa_dev_buildings.geojson",
        write_raster(folder / "mask.tif", mask, transform=affine),
        mask,
    )


def test_footprints_against_their_own_mask(footprints):
    vector, raster, mask = footprints
    found = geoseg.evaluate(raster, vector, one_class="building", objects=False)
    assert [c.name for c in found.classes] == ["background", "building"]
    assert found.scores.matrix.sum() == mask.size
    # Edges are cut before they are warped here and not there: a few pixels.
    assert found.scores.matrix[0, 1] + found.scores.matrix[1, 0] <= 5
    assert found.scores.matrix[1, 1] == pytest.approx(mask.sum(), abs=5)


def test_footprints_against_a_shifted_mask(footprints, tmp_path):
    vector, raster, mask = footprints
    shifted = np.zeros_like(mask)
    shifted[3:, 4:] = mask[:-3, :-4]
    with rasterio.open(raster) as file:
        path = write_raster(tmp_path / "shifted.tif", shifted, transform=file.transform)
    found = geoseg.evaluate(path, vector, one_class="building", objects=False)
    iou = (mask & shifted).sum() / (mask | shifted).sum()
    assert found.scores.iou[1] == pytest.approx(iou, abs=1e-4)
    assert found.boundaries.overlap.iou[1] < 0.6 * iou


def test_footprints_against_themselves(footprints, tmp_path):
    vector, _, _ = footprints
    frame = geopandas.read_file(vector)
    found = geoseg.evaluate(vector, vector, one_class="building", resolution=0.5)
    assert found.scores.mean_iou == 1
    assert found.objects.counts.pooled().f1.tolist() == [1]
    assert found.objects.counts.found[1] > 0.98 * len(frame)
    moved = frame.to_crs(32645)
    moved["geometry"] = moved.translate(0.5, 0)
    moved[: len(moved) // 2].to_file(tmp_path / "half.gpkg")
    half = geoseg.evaluate(tmp_path / "half.gpkg", vector, one_class="building", resolution=0.5)
    assert 0.3 < half.objects.counts.recall[1] < 0.55
    assert half.objects.counts.precision[1] > 0.85


def test_a_polygon_file_of_geoseg_equals_the_raster_it_came_from(pair, tmp_path):
    classes = Classes.parse("background,roof,road")
    for path in pair:
        write_label_cog(path, path.with_suffix(".cog.tif"), classes)
    cogs = [path.with_suffix(".cog.tif") for path in pair]
    geoseg.vectorize(cogs[0], tmp_path / "p.gpkg", keep_background=True)
    as_raster = geoseg.evaluate(*cogs)
    as_vector = geoseg.evaluate(tmp_path / "p.gpkg", cogs[1], outside="ignore")
    assert as_vector.as_dict()["classes"] == as_raster.as_dict()["classes"]
    assert as_vector.pixels == as_raster.pixels


def test_outside_of_polygons_is_background_or_left_out(tmp_path):
    reference = write_raster(tmp_path / "r.tif", np.array([[0, 0, 1, 1]], np.uint8))
    frame = geopandas.GeoDataFrame({"class": ["x"]}, geometry=[shapely.box(350_000.8, 3_059_999, 350_009, 3_060_009)])
    frame.set_crs(32645).to_file(tmp_path / "p.geojson")
    background = geoseg.evaluate(tmp_path / "p.geojson", reference)
    assert background.scores.matrix.tolist() == [[2, 0], [0, 2]]
    ignored = geoseg.evaluate(tmp_path / "p.geojson", reference, outside="ignore")
    assert ignored.scores.matrix.tolist() == [[0, 0], [0, 2]]
    assert ignored.pixels["prediction_ignored"] == 2
    touched = geoseg.evaluate(tmp_path / "p.geojson", reference, all_touched=True)
    assert touched.scores.matrix.tolist() == [[1, 1], [0, 2]]


def test_a_prediction_without_polygons_found_nothing(pair, tmp_path):
    path = tmp_path / "p.geojson"
    path.write_text('{"type": "FeatureCollection", "features": []}')
    found = geoseg.evaluate(path, pair[1])
    assert found.scores.recall.tolist() == [1, 0, 0]
    assert found.objects.counts.recall[1:].tolist() == [0, 0]
    with pytest.raises(LabelsError, match=r"p.geojson holds no polygon: a reference must not be empty"):
        geoseg.evaluate(pair[0], path)


def test_an_area_of_interest_leaves_out_the_rest(pair, tmp_path):
    area = geopandas.GeoSeries([shapely.box(350_000, 3_059_980, 350_030, 3_060_000)], crs=32645)
    area.to_crs(4326).to_file(tmp_path / "area.geojson")
    found = geoseg.evaluate(*pair, aoi=tmp_path / "area.geojson")
    assert found.pixels["outside_area"] == pytest.approx(90 * 130 - 40 * 60, abs=2)
    prediction, reference = (_read(path)[:40, :60] for path in pair)
    right = ((prediction == reference) & (reference != 255)).sum()
    assert np.trace(found.scores.matrix) == pytest.approx(right, abs=2)


def test_empty_and_unknown_attributes_are_left_out(tmp_path):
    places = [shapely.box(350_000 + i, 3_059_998, 350_001 + i, 3_060_000) for i in range(4)]
    frame = geopandas.GeoDataFrame({"kind": [1.0, None, 255.0, 2.0]}, geometry=places, crs=32645)
    frame.to_file(tmp_path / "r.gpkg")
    prediction = write_raster(tmp_path / "p.tif", np.array([[1, 1, 1, 1, 1, 1, 2, 2]], np.uint8))
    found = geoseg.evaluate(prediction, tmp_path / "r.gpkg", class_field="kind", outside="ignore")
    assert found.pixels["reference_ignored"] == 4
    assert np.trace(found.scores.matrix) == 4
    fewer = geoseg.evaluate(prediction, tmp_path / "r.gpkg", class_field="kind", outside="ignore", ignore=["2"])
    assert fewer.pixels["evaluated"] == 2


def test_a_missing_side_of_the_grid_is_read_by_nearest_neighbour(pair, tmp_path):
    half = write_raster(tmp_path / "half.tif", np.kron(_read(pair[0])[:45, :65], np.ones((2, 2), np.uint8)),
                        transform=AFFINE * Affine.scale(0.5), nodata=255)  # fmt: skip
    prediction, reference = _read(pair[0])[:45, :65], _read(pair[1])[:45, :65]
    found = geoseg.evaluate(half, pair[1], objects=False)
    both = (prediction != 255) & (reference != 255)
    assert found.pixels["evaluated"] == both.sum()
    assert np.trace(found.scores.matrix) == (both & (prediction == reference)).sum()
    finer = geoseg.evaluate(half, pair[1], grid="prediction", objects=False)
    assert finer.grid["shape"] == [90, 130]
    assert finer.scores.matrix.tolist() == (4 * found.scores.matrix).tolist()


def _bad(tmp_path: Path, name: str) -> Path:
    far = Affine(0.5, 0, 360_000, 0, -0.5, 3_060_000)
    labels = _labels(0)
    if name == "far":
        return write_raster(tmp_path / "far.tif", labels, transform=far, nodata=255)
    if name == "nowhere":
        return write_raster(tmp_path / "nowhere.tif", labels, crs=None, nodata=255)
    if name == "empty":
        write_raster(tmp_path / "plain.tif", np.full_like(labels, 255), nodata=255)
        write_label_cog(tmp_path / "plain.tif", tmp_path / "empty.tif", Classes.parse("a,b,c"))
        return tmp_path / "empty.tif"
    if name == "nothing":
        return write_raster(tmp_path / "nothing.tif", np.full_like(labels, 255), nodata=255)
    if name == "floats":
        return write_raster(tmp_path / "floats.tif", labels.astype(np.float32))
    shapes = {
        "lines": shapely.LineString([(350_001, 3_059_990), (350_009, 3_059_980)]),
        "far polygons": shapely.box(360_000, 3_059_000, 360_010, 3_059_010),
        "polygons": shapely.box(350_000, 3_059_980, 350_010, 3_059_990),
    }
    frame = geopandas.GeoDataFrame({"height": [1.5], "class": ["one"]}, geometry=[shapes[name]], crs=32645)
    frame.to_file(tmp_path / "bad.gpkg")
    return tmp_path / "bad.gpkg"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("far", SceneError, r"prediction.tif and .*far.tif have no labelled pixel in common"),
        ("nowhere", SceneError, "nowhere.tif has no CRS: assign one first"),
        ("empty", LabelsError, r"empty.tif has no label where it is to be compared"),
        ("nothing", LabelsError, r"nothing.tif has no labels: every pixel"),
        ("floats", LabelsError, "floats.tif has float32 values in band 1, but labels are integers"),
        ("lines", SceneError, "bad.gpkg holds no polygon"),
        ("far polygons", SceneError, r"bad.gpkg does not overlap .*prediction.tif"),
        ("polygons", LabelsError, "one has names and the other numbers"),
    ],
)
def test_a_bad_reference_is_refused(name, error, message, pair, tmp_path):
    with pytest.raises(error, match=message):
        geoseg.evaluate(pair[0], _bad(tmp_path, name), errors_file=tmp_path / "errors.tif")
    assert not (tmp_path / "errors.tif").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"erode": 1e9}, "--erode 1e\\+09 is refused"),
        ({"boundary": "far"}, "--boundary 'far' is no distance"),
        ({"boundary": "0.1m"}, "--boundary 0.1m is 0.2 to 0.2 pixels here"),
        ({"class_field": "kind"}, "--class-field kind is of no use"),
        ({"resolution": 0.0}, "--resolution 0.0 is refused"),
    ],
)
def test_options_without_sense_are_refused(options, message, pair):
    with pytest.raises(ConfigError, match=message):
        geoseg.evaluate(*pair, **options)


def test_values_outside_a_table_are_refused(pair, tmp_path):
    tagged = tmp_path / "tagged.tif"
    write_label_cog(pair[1], tagged, Classes.parse("background,roof"))
    with pytest.raises(LabelsError, match=r"tagged.tif has label value 2 .* belongs to no class"):
        geoseg.evaluate(pair[0], tagged, ignore=["2"], classes=Classes.parse("background,roof,road"))


def test_confidences_that_are_none_are_refused(pair, tmp_path):
    wrong = write_raster(tmp_path / "c.tif", np.full((90, 130), 7.0, np.float32))
    with pytest.raises(LabelsError, match=r"c\.tif has the value 7 and is no confidence"):
        geoseg.evaluate(*pair, confidence=wrong)


def test_outputs_are_not_replaced_unasked(pair, tmp_path):
    (tmp_path / "r.json").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        geoseg.evaluate(*pair, json_file=tmp_path / "r.json")
    geoseg.evaluate(*pair, json_file=tmp_path / "r.json", overwrite=True)
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["pixels"]["all"] == 90 * 130
