"""Label rasters in, measured polygons out."""

import numpy as np
import pytest
import rasterio
import rasterio.features
import rasterio.shutil
import shapely
import shapely.affinity
from affine import Affine
from rasterio.features import rasterize
from scipy import ndimage

from geoseg.classes import Classes
from geoseg.errors import ConfigError, GeosegWarning, LabelsError, SceneError
from geoseg.vector.labels import open_labels
from geoseg.vector.vectorize import Shaping, distinct_values, extra_columns, vectorize_raster
from geoseg.vector.zonal_spool import Statistic

CLASSES = Classes.parse("background,road,roof")
UTM = Affine(0.5, 0, 336_000, 0, -0.5, 3_061_000)


def blobs(shape=(90, 70), seed=0):
    fields = np.random.default_rng(seed).random((3, *shape))
    for _ in range(3):
        fields = sum(np.roll(fields, shift, axis) for axis in (1, 2) for shift in (-1, 0, 1))
    return fields.argmax(axis=0).astype(np.uint8)


def write(path, array, *, transform=UTM, crs="EPSG:32645", nodata=None, mask=None, scale=None):
    array = np.atleast_3d(array.T).T
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=array.dtype,
        count=len(array),
        height=array.shape[1],
        width=array.shape[2],
        crs=crs,
        transform=transform,
        nodata=nodata,
    ) as dataset:
        dataset.write(array)
        if mask is not None:
            dataset.write_mask(mask)
        if scale is not None:
            dataset.scales = (scale,) * len(array)
    return path


def run(path, tmp_path, *, classes=CLASSES, **options):
    (tmp_path / "work").mkdir(exist_ok=True)
    return list(vectorize_raster(path, classes=classes, workdir=tmp_path / "work", **options))


def column(batches, name):
    return np.concatenate([getattr(batch, name) for batch in batches])


def everything(batches):
    names = ("id", "class_id", "area_m2", "perimeter_m", "confidence")
    numbers = (np.nan_to_num(column(batches, name), nan=-1).tolist() for name in names)
    further = {name: np.nan_to_num(further_column(batches, name), nan=-1e9).tolist() for name in batches[0].extra}
    return (shapely.to_wkb(column(batches, "geometry")).tolist(), *numbers, further)


def further_column(batches, name):
    return np.concatenate([batch.extra[name] for batch in batches])


def test_polygons_cover_the_labels_on_their_grid(tmp_path):
    labels = blobs()
    batches = run(write(tmp_path / "a.tif", labels), tmp_path)
    shapes = zip(column(batches, "geometry"), column(batches, "class_id").tolist(), strict=True)
    assert (rasterio.features.rasterize(shapes, labels.shape, fill=99, transform=UTM, dtype="uint8") == labels).all()
    geometry = column(batches, "geometry")
    assert shapely.is_valid(geometry).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(geometry)).all()
    assert shapely.area(geometry).sum() == labels.size / 4
    assert column(batches, "id").tolist() == list(range(1, len(geometry) + 1))
    assert not any((tmp_path / "work").iterdir())


def test_ids_follow_the_first_pixels(tmp_path):
    batches = run(write(tmp_path / "a.tif", blobs()), tmp_path, block=13)
    tops = [
        max((y, -x) for x, y in polygon.exterior.coords if y == polygon.bounds[3])
        for polygon in column(batches, "geometry")
    ]
    assert tops == sorted(tops, reverse=True)


SHAPINGS = {
    "plain": Shaping(),
    "merged": Shaping(min_area_m2=3.0),
    "dropped": Shaping(min_area_m2=3.0, small="drop", fill_holes_m2=2.0),
    "simplified": Shaping(min_area_m2=1.0, simplify_m=0.6),
    "smoothed": Shaping(smooth=True, simplify_m=0.2),
    "corners": Shaping(connectivity=8),
    "regular": Shaping(min_area_m2=1.0, regularize=frozenset({1, 2})),
    "regular corners": Shaping(connectivity=8, simplify_m=0.4, regularize=frozenset({2})),
}


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("block", [7, 32, 89])
def test_blocks_make_no_difference(tmp_path, block, shaping):
    path = write(tmp_path / "a.tif", blobs())
    sure = write(tmp_path / "b.tif", np.random.default_rng(1).integers(0, 1001, (90, 70)).astype(np.uint16))
    options = {
        "confidence": (sure, 1),
        "shaping": SHAPINGS[shaping],
        "statistics": [Statistic("sure", str(sure)), Statistic("far", str(heights(tmp_path)), 2)],
    }
    parts = everything(run(path, tmp_path, block=block, workers=2, **options))
    assert parts == everything(run(path, tmp_path, **options))


def test_no_region_is_lost_because_its_outline_became_simpler(tmp_path):
    path = write(tmp_path / "a.tif", blobs())
    merged = run(path, tmp_path, shaping=Shaping(min_area_m2=3.0))
    simple = run(path, tmp_path, shaping=Shaping(min_area_m2=3.0, simplify_m=1.5))
    assert (column(simple, "area_m2") < 3.0).any()
    assert column(simple, "class_id").tolist() == column(merged, "class_id").tolist()


def test_a_small_region_without_neighbours_goes(tmp_path):
    labels = np.full((12, 12), 255, np.uint8)
    labels[2, 2], labels[5:, 5:] = 1, 2
    path = write(tmp_path / "a.tif", labels)
    assert column(run(path, tmp_path, shaping=Shaping(min_area_m2=1.0)), "class_id").tolist() == [2]


def heights(tmp_path):
    """Write a raster of 1.1 m pixels, turned, that covers a part of the labels only, in its second band."""
    rows, cols = np.indices((50, 40))
    values = np.stack([rows * 0, 0.1 * rows - 0.3 * cols]).astype(np.float32)
    values[1, 10:14, 20:22] = -9999
    place = Affine.translation(336_008, 3_060_998) * Affine.rotation(12) * Affine.scale(1.1, -1.1)
    return write(tmp_path / "heights.tif", values, transform=place, nodata=-9999)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("block", [2048, 9])
def test_statistics_are_those_of_the_pixels_of_each_feature(tmp_path, connectivity, block):
    labels = blobs(seed=3)
    values = np.random.default_rng(2).normal(50, 20, labels.shape).astype(np.float32)
    values[30:40, 20:60] = np.nan
    beside = write(tmp_path / "values.tif", np.stack([values * 0, values]))
    batches = run(
        write(tmp_path / "a.tif", labels),
        tmp_path,
        block=block,
        shaping=Shaping(connectivity=connectivity),
        drop=[1],
        statistics=[Statistic("v", str(beside), 2)],
    )
    structure = np.ones((3, 3)) if connectivity == 8 else None
    expected = {}
    for value in (0, 2):
        regions, count = ndimage.label(labels == value, structure)
        for number in range(1, count + 1):
            inside = regions == number
            expected[int(np.flatnonzero(inside)[0])] = values[inside & np.isfinite(values)].astype(float)
    wanted = [expected[first] for first in sorted(expected)]
    assert len(wanted) == len(column(batches, "id")) > 10
    assert further_column(batches, "v_count").tolist() == [len(found) for found in wanted]
    known = np.array([len(found) > 0 for found in wanted])
    for name, figure in (("mean", np.mean), ("min", np.min), ("max", np.max), ("std", np.std)):
        found = further_column(batches, f"v_{name}")
        assert np.isnan(found[~known]).all()
        np.testing.assert_allclose(found[known], [figure(some) for some in wanted if len(some)], atol=1e-9)


def test_statistics_speak_of_regions_as_they_are_after_cleaning(tmp_path):
    labels = np.full((20, 20), 1, np.uint8)
    labels[5, 5] = 2
    labels[10:, :] = 2
    values = np.zeros((20, 20), np.float32)
    values[5, 5] = 400
    beside = write(tmp_path / "values.tif", values)
    options = {"statistics": [Statistic("v", str(beside))], "block": 6}
    batches = run(write(tmp_path / "a.tif", labels), tmp_path, shaping=Shaping(min_area_m2=1.0), **options)
    assert further_column(batches, "v_mean").tolist() == [2.0, 0.0]
    dropped = run(tmp_path / "a.tif", tmp_path, shaping=Shaping(min_area_m2=1.0, small="drop"), **options)
    assert further_column(dropped, "v_count").tolist() == [199, 200]


def test_statistics_go_through_the_disk_where_memory_is_short(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", blobs())
    options = {"statistics": [Statistic("far", str(heights(tmp_path)), 2)], "block": 20}
    expected = everything(run(path, tmp_path, **options))
    monkeypatch.setattr("geoseg.vector.zonal_spool.ZonalSpool.__init__.__defaults__", (0,))
    monkeypatch.setattr("geoseg.vector.zonal_spool._BAND_PIXELS", 700)
    assert everything(run(path, tmp_path, workers=2, **options)) == expected
    assert not any((tmp_path / "work").iterdir())


def houses(shape=(160, 140), seed=0):
    """Return labels: 2 for houses that stand close, 1 for a road under some of them, 0 elsewhere."""
    rng = np.random.default_rng(seed)
    shapes = [(shapely.box(0, 70, shape[1], 78), 1)]
    for x, y in ((x, y) for y in range(15, 150, 26) for x in range(15, 130, 26)):
        house = shapely.box(0, 0, *rng.uniform(14, 24, 2))
        house = shapely.affinity.rotate(house, rng.uniform(0, 90), origin="center")
        shapes.append((shapely.affinity.translate(house, x - 10 + rng.uniform(-3, 3), y - 10), 2))
    return rasterize(shapes, shape, dtype="uint8")


REGULAR = Shaping(regularize=frozenset({2}))


@pytest.mark.parametrize("batch", [1, 3, 5000])
@pytest.mark.parametrize("block", [31, 2048])
def test_regularised_outlines_do_not_depend_on_batches_or_blocks(tmp_path, monkeypatch, batch, block):
    path = write(tmp_path / "a.tif", houses())
    options = {"shaping": REGULAR}
    expected = everything(run(path, tmp_path, **options))
    monkeypatch.setattr("geoseg.vector.spool.PolygonSpool.ordered.__defaults__", (batch, 2**25))
    monkeypatch.setattr("geoseg.vector.regularize.REACH_PX", 8.0)
    few = everything(run(path, tmp_path, block=block, **options))
    assert few == expected


def test_regularised_outlines_are_measured_and_the_others_left(tmp_path):
    path = write(tmp_path / "a.tif", houses())
    plain = run(path, tmp_path)
    batches = run(path, tmp_path, shaping=REGULAR)
    assert extra_columns(REGULAR) == (("regularized_iou", "float64"),)
    agreement = further_column(batches, "regularized_iou")
    chosen = column(batches, "class_id") == 2
    assert np.isnan(agreement[~chosen]).all()
    raw, geometry = column(plain, "geometry"), column(batches, "geometry")
    assert shapely.equals_identical(raw[~chosen], geometry[~chosen]).all()
    assert shapely.is_valid(geometry).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(geometry)).all()
    ious = shapely.area(shapely.intersection(raw, geometry)) / shapely.area(shapely.union(raw, geometry))
    np.testing.assert_allclose(agreement[chosen], ious[chosen], atol=1e-4)
    assert agreement[chosen].mean() > 0.9
    assert (agreement[chosen] < 1).mean() > 0.5
    np.testing.assert_allclose(column(batches, "area_m2"), shapely.area(geometry) * 1.000136, rtol=2e-6)
    np.testing.assert_allclose(column(batches, "perimeter_m"), shapely.length(geometry) * 1.000068, rtol=2e-6)
    houses_alone = geometry[chosen]
    one, other = np.triu_indices(len(houses_alone), 1)
    assert shapely.area(shapely.intersection(houses_alone[one], houses_alone[other])).max() < 1e-6


@pytest.mark.parametrize(
    "transform",
    [
        Affine.translation(336_000, 3_061_000) * Affine.rotation(30) * Affine.scale(0.5, -0.5),
        Affine.translation(336_000, 3_061_000) * Affine.rotation(30) * Affine.scale(0.3, -0.8),
        Affine(0.5, 0.2, 336_000, 0, 0.5, 3_061_000),
    ],
    ids=["rotated", "rotated_oblong", "sheared"],
)
def test_angles_are_right_on_the_ground_however_the_grid_lies(tmp_path, transform):
    place = transform * (80, 60)
    house = shapely.box(place[0] - 14, place[1] - 9, place[0] + 14, place[1] + 9)
    house = shapely.affinity.rotate(house, 25)
    labels = rasterize([(house, 2)], (140, 180), transform=transform, dtype="uint8")
    (batch,) = run(write(tmp_path / "a.tif", labels, transform=transform), tmp_path, shaping=REGULAR, drop=[0])
    (found,) = batch.geometry
    walls = np.diff(shapely.get_coordinates(found), axis=0)
    heading = np.degrees(np.arctan2(walls[:, 1], walls[:, 0]))
    turns = (np.roll(heading, -1) - heading + 45) % 90 - 45
    assert len(walls) == 4
    np.testing.assert_allclose(turns, 0, atol=0.1)
    assert found.intersection(house).area / found.union(house).area > 0.93


def test_pixels_too_oblong_to_be_regularised_are_refused_at_once(tmp_path):
    path = write(tmp_path / "a.tif", blobs(), transform=Affine(5, 0, 336_000, 0, -1, 3_061_000))
    with pytest.raises(ConfigError, match="oblong"):
        vectorize_raster(path, classes=CLASSES, workdir=tmp_path, shaping=REGULAR)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_without_a_crs_polygons_come_in_the_coordinates_of_the_raster(tmp_path):
    labels = blobs()
    for transform in (Affine.identity(), Affine(0.5, 0, 10, 0, -0.5, 70)):
        own = None if transform == Affine.identity() else transform
        path = write(tmp_path / "a.tif", labels, crs=None, transform=own)
        batches = run(path, tmp_path, pixel_coordinates=True, block=20)
        shapes = zip(column(batches, "geometry"), column(batches, "class_id").tolist(), strict=True)
        assert (rasterize(shapes, labels.shape, fill=99, transform=transform, dtype="uint8") == labels).all()
        assert np.isnan(column(batches, "area_m2")).all()
        assert np.isnan(column(batches, "perimeter_m")).all()
        smooth = run(path, tmp_path, pixel_coordinates=True, shaping=Shaping(smooth=True))
        assert shapely.coverage_is_valid(column(smooth, "geometry"))


def test_without_a_crs_nothing_is_known_in_metres(tmp_path):
    path = write(tmp_path / "a.tif", blobs(), crs=None)
    for shaping in (Shaping(min_area_m2=1), Shaping(fill_holes_m2=1), Shaping(simplify_m=1.0), REGULAR):
        with pytest.raises(ConfigError, match=r"no CRS.*--min-area"):
            run(path, tmp_path, pixel_coordinates=True, shaping=shaping)
    with pytest.raises(ConfigError, match=r"has a CRS.*--pixel-coordinates"):
        run(write(tmp_path / "b.tif", blobs()), tmp_path, pixel_coordinates=True)


def test_confidence_is_the_mean_over_the_pixels(tmp_path):
    path = write(tmp_path / "a.tif", np.array([[0, 0, 1], [0, 2, 1]], np.uint8))
    sure = np.array([[0.5, 0.7, 0.9], [0.6, 1.0, 0.8]], np.float32)
    expected = [0.6, 0.85, 1.0]
    for name, array, scale in (
        ("float", sure, None),
        ("thousandths", np.rint(sure * 1000).astype(np.uint16), None),
        ("scaled", np.rint(sure * 1000).astype(np.uint16), 0.001),
        ("bytes", np.rint(sure * 250).astype(np.uint8), 0.004),
    ):
        beside = write(tmp_path / f"{name}.tif", np.stack([array * 0, array]), scale=scale)
        batches = run(path, tmp_path, confidence=(beside, 2))
        assert column(batches, "confidence").tolist() == expected, name
    assert np.isnan(column(run(path, tmp_path), "confidence")).all()


def test_a_missing_confidence_counts_as_none(tmp_path):
    path = write(tmp_path / "a.tif", np.array([[0, 0, 1]], np.uint8))
    beside = write(tmp_path / "b.tif", np.array([[0.5, np.nan, -9999]], np.float32), nodata=-9999)
    assert column(run(path, tmp_path, confidence=(beside, 1)), "confidence").tolist() == [0.25, 0.0]


def test_confidence_on_another_grid_or_of_another_kind_is_refused(tmp_path):
    path = write(tmp_path / "a.tif", blobs())
    for name, array, transform, message in (
        ("shape", np.zeros((90, 71), np.uint16), UTM, "grid"),
        ("place", np.zeros((90, 70), np.uint16), UTM * Affine.translation(1, 0), "grid"),
        ("values", np.full((90, 70), 2.0, np.float32), UTM, "no confidence"),
    ):
        beside = write(tmp_path / f"{name}.tif", array, transform=transform)
        with pytest.raises(LabelsError, match=message):
            run(path, tmp_path, confidence=(beside, 1))
    with pytest.raises(LabelsError, match="no band 3"):
        run(path, tmp_path, confidence=(write(tmp_path / "b.tif", np.zeros((90, 70), np.uint16)), 3))


def test_small_and_dropped_polygons_are_left_out_and_the_rest_renumbered(tmp_path):
    path = write(tmp_path / "a.tif", blobs())
    every = run(path, tmp_path)
    kept = run(path, tmp_path, shaping=Shaping(min_area_m2=5.0, small="drop"), drop=[0])
    chosen = (column(every, "area_m2") >= 5.0) & (column(every, "class_id") != 0)
    assert 0 < chosen.sum() < len(chosen)
    assert column(kept, "id").tolist() == list(range(1, chosen.sum() + 1))
    for name in ("class_id", "area_m2", "perimeter_m"):
        assert column(kept, name) == pytest.approx(column(every, name)[chosen], rel=1e-6)


@pytest.mark.parametrize(
    "transform",
    [
        UTM,
        Affine(0.5, 0, 336_000, 0, 0.5, 3_061_000),
        Affine.translation(336_000, 3_061_000) * Affine.rotation(30) * Affine.scale(0.5, -0.5),
    ],
    ids=["north_up", "south_up", "rotated"],
)
def test_sizes_do_not_depend_on_how_the_grid_lies(tmp_path, transform):
    labels = blobs((30, 30))
    batches = run(write(tmp_path / "a.tif", labels, transform=transform), tmp_path)
    geometry = column(batches, "geometry")
    assert shapely.is_ccw(shapely.get_exterior_ring(geometry)).all()
    # UTM's scale here is 0.99993: areas on the ground are larger than in the grid.
    np.testing.assert_allclose(column(batches, "area_m2"), shapely.area(geometry) * 1.000136, rtol=2e-6)
    np.testing.assert_allclose(column(batches, "perimeter_m"), shapely.length(geometry) * 1.000068, rtol=2e-6)


def test_neighbours_share_their_corners_bit_by_bit(tmp_path):
    transform = Affine.translation(0.1, 0.7) * Affine.rotation(17) * Affine.scale(0.3, -0.3)
    labels = (np.indices((40, 40)).sum(axis=0) % 2).astype(np.uint8)
    geometry = column(run(write(tmp_path / "a.tif", labels, transform=transform), tmp_path, block=7), "geometry")
    assert len(np.unique(shapely.get_coordinates(geometry), axis=0)) == 41 * 41


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.int64])
def test_integers_of_any_kind_are_labels(tmp_path, dtype):
    labels = blobs((20, 20))
    batches = run(write(tmp_path / "a.tif", labels.astype(dtype)), tmp_path)
    assert everything(batches) == everything(run(write(tmp_path / "b.tif", labels), tmp_path))


def test_nodata_comes_from_the_file_its_mask_and_the_classes(tmp_path):
    labels = np.array([[1, 1, 9], [255, 2, 2]], np.int16)
    path = write(tmp_path / "a.tif", labels, nodata=9)
    assert column(run(path, tmp_path), "class_id").tolist() == [1, 2]
    plain = write(tmp_path / "b.tif", np.array([[1, 1, 0], [0, 2, 2]], np.uint8), nodata=0)
    assert column(run(plain, tmp_path), "class_id").tolist() == [1, 2]
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        masked = write(tmp_path / "c.tif", np.array([[1, 1, 77]], np.uint8), mask=np.array([[255, 255, 0]], np.uint8))
    assert column(run(masked, tmp_path), "class_id").tolist() == [1]


def test_a_raster_of_nodata_alone_has_no_polygons(tmp_path):
    assert run(write(tmp_path / "a.tif", np.full((5, 5), 255, np.uint8)), tmp_path) == []


@pytest.mark.parametrize(("value", "dtype"), [(3, np.uint8), (254, np.uint8), (300, np.int16), (-1, np.int16)])
def test_a_value_outside_the_classes_is_named(tmp_path, value, dtype):
    labels = blobs().astype(dtype)
    labels[50, 60] = value
    path = write(tmp_path / "a.tif", labels)
    with pytest.raises(LabelsError, match=rf"label value {value} in rows .*known values are 0, 1, 2"):
        run(path, tmp_path)
    assert not any((tmp_path / "work").iterdir())


def test_bad_rasters_are_refused_at_once(tmp_path):
    def start(path, **options):
        return vectorize_raster(path, classes=CLASSES, workdir=tmp_path, **options)

    with pytest.raises(SceneError, match="does not exist"):
        start(tmp_path / "none.tif")
    with pytest.raises(LabelsError, match="float32"):
        start(write(tmp_path / "float.tif", blobs().astype(np.float32)))
    with pytest.raises(LabelsError, match="complex64"):
        start(write(tmp_path / "complex.tif", blobs().astype(np.complex64)))
    with pytest.raises(SceneError, match="no CRS"):
        start(write(tmp_path / "nowhere.tif", blobs(), crs=None))
    with pytest.raises(LabelsError, match="no band 2"):
        start(write(tmp_path / "one.tif", blobs()), band=2)


def test_progress_counts_blocks(tmp_path):
    seen = []
    path = write(tmp_path / "a.tif", blobs())
    run(path, tmp_path, block=40, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_stopping_early_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("geoseg.vector.spool._MEMORY_BYTES", 0)
    monkeypatch.setattr("geoseg.vector.spool.PolygonSpool.__init__.__defaults__", (0,))
    batches = vectorize_raster(write(tmp_path / "a.tif", blobs()), classes=CLASSES, workdir=tmp_path / "work")
    next(batches)
    assert any((tmp_path / "work").iterdir())
    batches.close()
    assert not any((tmp_path / "work").iterdir())


def test_batches_are_numbered_on(tmp_path, monkeypatch):
    monkeypatch.setattr("geoseg.vector.spool.PolygonSpool.ordered.__defaults__", (10, 2**25), raising=True)
    batches = run(write(tmp_path / "a.tif", blobs()), tmp_path)
    assert len(batches) > 2
    assert max(map(len, batches)) == 10
    assert column(batches, "id").tolist() == list(range(1, sum(map(len, batches)) + 1))


def test_a_vrt_and_a_path_as_text_will_do(tmp_path):
    path = write(tmp_path / "a.tif", blobs())
    vrt = tmp_path / "a.vrt"
    with rasterio.open(path) as dataset:
        rasterio.shutil.copy(dataset, vrt, driver="VRT")
    assert everything(run(str(vrt), tmp_path)) == everything(run(path, tmp_path))


def test_distinct_values(tmp_path):
    labels = np.array([[3, 3, 200], [7, 0, 0]], np.int32)
    seen = []
    path = write(tmp_path / "a.tif", labels, nodata=0)
    assert distinct_values(path, block=1, progress=lambda *counts: seen.append(counts)) == [3, 7, 200]
    assert seen[-1] == (6, 6)
    assert distinct_values(write(tmp_path / "b.tif", labels)) == [0, 3, 7, 200]


def test_an_undeclared_255_is_nodata_beside_several_labels_but_not_beside_one(tmp_path):
    path = write(tmp_path / "a.tif", np.array([[0, 1, 255]], np.uint8))
    with pytest.warns(GeosegWarning, match="255 are taken for nodata"):
        assert distinct_values(path) == [0, 1]
    with pytest.raises(LabelsError, match="255"):
        distinct_values(write(tmp_path / "b.tif", np.array([[0, 255]], np.uint8)))
    assert distinct_values(write(tmp_path / "c.tif", np.array([[0, 255]], np.uint8), nodata=255)) == [0]


def test_distinct_values_are_refused_where_they_make_no_classes(tmp_path):
    with pytest.raises(LabelsError, match="too many"):
        distinct_values(write(tmp_path / "a.tif", np.arange(400, dtype=np.uint16).reshape(20, 20)))
    with pytest.raises(LabelsError, match="-4"):
        distinct_values(write(tmp_path / "b.tif", np.array([[-4, 3]], np.int16)))
    with pytest.raises(LabelsError, match="no labels"):
        distinct_values(write(tmp_path / "c.tif", np.array([[0, 0]], np.uint8), nodata=0))


def test_open_labels_describes_the_raster(tmp_path):
    raster = open_labels(write(tmp_path / "a.tif", blobs(), nodata=7))
    assert (raster.shape, raster.affine, raster.nodata, raster.confidence) == ((90, 70), UTM, 7, None)
    assert raster.crs.to_epsg() == 32645
