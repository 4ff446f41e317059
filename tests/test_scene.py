"""Scenes: every kind of raster is read right, through its own grid or another, or refused in one sentence."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from geoseg.errors import SceneError
from geoseg.geodesy import ground_resolution
from geoseg.grid import Window
from geoseg.normalisation import refuse_empty
from geoseg.scene import open_scene
from tests.conftest import asymmetric, write_raster

Make = Callable[..., Path]

REFUSED = {"sar_vv.tif": "complex"}
IO_SCENES = sorted(p.name for p in (Path(__file__).parent / "data/io_scenes").glob("*.tif"))


@pytest.mark.parametrize("name", [n for n in IO_SCENES if n not in REFUSED and n != "cog_gcps.tif"])
def test_real_scenes_come_through_unharmed(data: Path, name: str) -> None:
    path = data / "io_scenes" / name
    scene = open_scene(path)
    with rasterio.open(path) as file:
        assert tuple(scene.geobox.affine)[:6] == tuple(file.transform)[:6]
        assert pyproj.CRS(scene.geobox.crs.proj) == pyproj.CRS(file.crs.to_wkt())
        assert scene.shape == file.shape
        assert scene.bands == file.indexes
        pixels = scene.read(scene.window)
        np.testing.assert_array_equal(pixels.valid, file.dataset_mask() > 0)
        np.testing.assert_array_equal(pixels.data[:, pixels.valid], file.read()[:, pixels.valid])
        assert pixels.data.dtype == file.dtypes[0]


@pytest.mark.parametrize(("name", "told"), REFUSED.items())
def test_real_scenes_that_cannot_be_used_are_refused(data: Path, name: str, told: str) -> None:
    with pytest.raises(SceneError, match=told) as caught:
        open_scene(data / "io_scenes" / name)
    assert name in str(caught.value)


def test_a_jpeg_called_tif_finds_its_side_file(data: Path) -> None:
    scene = open_scene(data / "io_scenes/jpeg_named_tif/OAM-386690-220241-19.tif")
    assert scene.geobox.crs.epsg == 4326
    assert scene.resolution == pytest.approx((0.132, 0.132), rel=0.01)


def test_ground_control_points_are_warped_to_where_they_say(data: Path) -> None:
    path = data / "io_scenes/cog_gcps.tif"
    scene = open_scene(path)
    whole = scene.read(scene.window)
    with rasterio.open(path) as file:
        points, values = file.gcps[0], file.read(1).astype(float)
    pairs = []
    for point in points:
        col, row = (int(v) for v in ~scene.geobox.affine * (point.x, point.y))
        r, c = int(point.row), int(point.col)
        if 5 < r < 830 and 5 < c < 1270 and 5 < row < scene.shape[0] - 5 and 5 < col < scene.shape[1] - 5:
            one, other = values[r - 5 : r + 6, c - 5 : c + 6], whole.data[0, row - 5 : row + 6, col - 5 : col + 6]
            pairs.append((one.mean(), other.astype(float).mean()))
    assert len(pairs) > 100
    assert np.corrcoef(np.array(pairs).T)[0, 1] > 0.99


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)  # fmt: skip
def test_pixel_types(raster: Make, dtype: str) -> None:
    image = asymmetric(2, 20, 30, dtype) if dtype != "int8" else (asymmetric(2, 20, 30, "int16") - 100).astype("int8")
    pixels = open_scene(raster(image)).read(Window(3, 4, 10, 12))
    np.testing.assert_array_equal(pixels.data, image[:, 3:13, 4:16])
    assert pixels.data.dtype == dtype
    assert pixels.valid.all()


def test_bands_are_chosen_by_index_and_name(raster: Make) -> None:
    image = asymmetric(4, 8, 9)
    path = raster(image, descriptions=["Blue", "Green", "Red", "NIR"])
    scene = open_scene(path, bands=["nir", 3, "green"])
    assert scene.bands == (4, 3, 2)
    assert scene.band_names == ("NIR", "Red", "Green")
    np.testing.assert_array_equal(scene.read(scene.window).data, image[[3, 2, 1]])
    with pytest.raises(SceneError, match=r"no band 'swir'.*4 \(NIR\)"):
        open_scene(path, bands=["swir"])
    with pytest.raises(SceneError, match="no band '5'"):
        open_scene(path, bands=[5])


def test_nodata_from_value_alpha_mask_nan_and_user(raster: Make, tmp_path: Path) -> None:
    image = asymmetric(3, 40, 50)
    hole = np.zeros((40, 50), bool)
    hole[5:9, 10:20] = True

    valued = image.copy()
    valued[:, hole] = 0
    valued[1, 20, 20] = 0  # black in one band is a measurement
    by_value = open_scene(raster(valued, "v.tif", nodata=0))
    by_user = open_scene(raster(valued, "u.tif"), nodata=0)

    alpha = np.concatenate([image, np.where(hole, 0, 255).astype("uint8")[None]])
    rgba = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    by_alpha = open_scene(raster(alpha, "a.tif", colorinterp=rgba))
    assert by_alpha.bands == (1, 2, 3)

    masked = raster(image, "m.tif")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as file:
        file.write_mask(~hole)
    by_mask = open_scene(masked)

    floats = image.astype("float32")
    floats[2, hole] = np.nan
    by_nan = open_scene(raster(floats, "f.tif"))

    for scene in (by_value, by_user, by_alpha, by_mask, by_nan):
        pixels = scene.read(scene.window)
        np.testing.assert_array_equal(pixels.valid, ~hole, err_msg=scene.path)
        assert (pixels.data[:, hole] == 0).all()
        assert np.isfinite(pixels.data).all()


def test_near_infrared_is_not_taken_for_alpha(raster: Make) -> None:
    image = asymmetric(4, 20, 30)
    image[3, 4, 4] = 0
    unnamed = open_scene(raster(image, "rgba.tif"))
    assert (unnamed.bands, unnamed.alpha) == ((1, 2, 3), 4)  # what GDAL says of four 8-bit bands
    assert not unnamed.read(Window(4, 4, 1, 1)).valid.any()
    named = open_scene(raster(image, "nir.tif", descriptions=["red", "green", "blue", "nir"]))
    asked = open_scene(raster(image, "asked.tif"), bands=[1, 2, 3, 4])
    for scene in (named, asked):
        assert (scene.bands, scene.alpha) == ((1, 2, 3, 4), None)
        assert scene.read(Window(4, 4, 1, 1)).valid.all()


def test_a_sentinel_in_one_float_band_spoils_the_pixel(raster: Make) -> None:
    image = asymmetric(2, 10, 10, "float32")
    image[1, 4, 4] = -9999
    valid = open_scene(raster(image, nodata=-9999)).read(Window(0, 0, 10, 10)).valid
    assert not valid[4, 4]
    assert valid.sum() == 99


@settings(max_examples=40)
@given(st.integers(-60, 60), st.integers(-60, 60), st.integers(1, 80), st.integers(1, 80))
def test_windows_beyond_the_edge_are_mirrored(
    tmp_path_factory: pytest.TempPathFactory, row: int, col: int, height: int, width: int
) -> None:
    image = asymmetric(2, 23, 31)
    path = tmp_path_factory.getbasetemp() / "mirror.tif"
    if not path.exists():
        write_raster(path, image)
    pixels = open_scene(path).read(Window(row, col, height, width))
    padded = np.pad(image, ((0, 0), (200, 200), (200, 200)), mode="reflect")
    np.testing.assert_array_equal(pixels.data, padded[:, 200 + row : 200 + row + height, 200 + col : 200 + col + width])


# What each grid is, and the true ground length of its pixels along x and y.
_LAT = 27.63
_GRIDS = {
    "web mercator": ("EPSG:3857", Affine(2, 0, 9_520_000, 0, -2, 3_202_900)),
    "degrees": ("EPSG:4326", Affine(2e-5, 0, 85.52, 0, -2e-5, _LAT)),
    "south-up degrees": ("EPSG:4326", Affine(2e-5, 0, 85.52, 0, 2e-5, _LAT)),
    "rotated UTM": ("EPSG:32645", Affine.translation(350_000, 3_060_000) * Affine.rotation(30) * Affine.scale(1.5, -2)),
}  # fmt: skip


@pytest.mark.parametrize("name", _GRIDS)
def test_ground_resolution_is_in_true_metres(raster: Make, name: str) -> None:
    crs, transform = _GRIDS[name]
    scene = open_scene(raster(asymmetric(1, 40, 60), crs=crs, transform=transform))
    lonlat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    centre = [lonlat.transform(*(transform * (30 + dx, 20 + dy))) for dx, dy in ((0, 0), (1, 0), (0, 1))]
    geod = pyproj.Geod(ellps="WGS84")
    expected = [geod.inv(*centre[0], *centre[i])[2] for i in (1, 2)]
    assert scene.resolution == pytest.approx(expected, rel=1e-5)
    if name == "web mercator":
        assert scene.resolution[0] == pytest.approx(2 * math.cos(math.radians(27.62)), rel=0.005)


@pytest.mark.parametrize("name", _GRIDS)
@pytest.mark.parametrize("factor", [0.6, 2.7])
def test_another_resolution_is_read_the_same_through_any_window(raster: Make, name: str, factor: float) -> None:
    crs, transform = _GRIDS[name]
    image = asymmetric(3, 150, 170)
    image[:, 40:60, 50:90] = 0
    own = open_scene(raster(image, crs=crs, transform=transform, nodata=0))
    scene = own.at_resolution(own.resolution[0] * factor)
    assert scene.resolution == pytest.approx((own.resolution[0] * factor,) * 2, rel=1e-3)
    assert scene.shape == tuple(
        math.ceil(n * r / (own.resolution[0] * factor) - 1e-6)
        for n, r in zip((150, 170), own.resolution[::-1], strict=True)
    )
    whole = scene.read(scene.window)
    height, width = scene.shape
    assert not whole.valid.all()
    assert whole.valid.mean() > 0.8
    rng = np.random.default_rng(0)
    for _ in range(12):
        row, col = rng.integers(0, height - 5), rng.integers(0, width - 5)
        window = Window(
            int(row), int(col), int(rng.integers(1, height - row + 1)), int(rng.integers(1, width - col + 1))
        )
        part = scene.read(window)
        np.testing.assert_array_equal(part.data, whole.data[:, *window.within(scene.window)])
        np.testing.assert_array_equal(part.valid, whole.valid[window.within(scene.window)])


def test_a_coarser_grid_keeps_the_mean_and_the_place(sample: Path) -> None:
    own = open_scene(sample)
    coarse = own.at_resolution(1.0)
    assert coarse.warp is not None
    assert coarse.warp.overview_level is not None  # 1 m from 0.13 m: an overview is enough
    fine, seen = own.read(own.window).data.astype(float), coarse.read(coarse.window)
    assert seen.data[:, seen.valid].mean(1) == pytest.approx(fine.mean((1, 2)), rel=0.01)
    ratio = [a / b for a, b in zip(coarse.resolution, own.resolution, strict=True)]
    best = []
    for row, col in ((40, 50), (120, 200), (200, 90)):  # the place: correlation is best without a shift

        def at(dr: int, dc: int, row: int = row, col: int = col) -> float:
            rows = ((np.arange(row, row + 40) + 0.5) * ratio[1] + dr * ratio[1]).astype(int)
            cols = ((np.arange(col, col + 40) + 0.5) * ratio[0] + dc * ratio[0]).astype(int)
            patch = fine[0][rows[:, None], cols]
            return float(np.corrcoef(patch.ravel(), seen.data[0, row : row + 40, col : col + 40].ravel())[0, 1])

        shifts = {(dr, dc): at(dr, dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)}
        best.append(max(shifts, key=shifts.__getitem__))
    assert best == [(0, 0)] * 3


def test_another_crs_is_a_grid_over_the_same_source(sample: Path) -> None:
    scene = open_scene(sample, crs=32645, resolution=0.5)
    assert scene.geobox.crs.epsg == 32645
    assert scene.resolution == pytest.approx((0.5, 0.5), rel=0.01)
    pixels = scene.read(scene.window)
    assert 0.9 < pixels.valid.mean() <= 1
    assert ground_resolution(scene.geobox) == scene.resolution


def test_a_resolution_nearly_the_own_is_the_own(sample: Path) -> None:
    scene = open_scene(sample)
    assert scene.at_resolution(scene.resolution[0] * 1.01) is scene


@pytest.mark.parametrize("metres", [0.0, -1.0, math.nan, math.inf])
def test_a_resolution_that_is_none_is_refused(sample: Path, metres: float) -> None:
    with pytest.raises(SceneError):
        open_scene(sample).at_resolution(metres)


def test_a_scene_smaller_than_a_pixel_is_refused(raster: Make) -> None:
    with pytest.raises(SceneError, match="less than one pixel"):
        open_scene(raster(asymmetric(1, 10, 10))).at_resolution(500)


def test_a_pickled_scene_reads_the_same(town: Path) -> None:
    scene = open_scene(town)
    scene.read(Window(0, 0, 5, 5))
    again = pickle.loads(pickle.dumps(scene))  # noqa: S301 - our own object
    assert again == scene
    np.testing.assert_array_equal(again.read(scene.window).data, scene.read(scene.window).data)


def test_statistics_are_those_of_the_valid_pixels(town: Path, sample: Path) -> None:
    scene = open_scene(town)
    pixels = scene.read(scene.window)
    values = pixels.data[:, pixels.valid].astype(float)
    figures = scene.statistics()
    assert figures.mean == pytest.approx(values.mean(1))
    assert figures.std == pytest.approx(values.std(1))
    assert figures.p2 == pytest.approx(np.percentile(values, 2, axis=1))
    whole = open_scene(sample)  # 4 million pixels: from an overview
    values = whole.read(whole.window).data.reshape(3, -1).astype(float)
    assert whole.statistics().mean == pytest.approx(values.mean(1), rel=0.02)
    assert whole.statistics().std == pytest.approx(values.std(1), rel=0.1)


def test_statistics_of_a_large_scene_without_overviews_come_from_a_lattice(raster: Make) -> None:
    image = asymmetric(1, 1500, 1400)
    assert open_scene(raster(image, tiled=True)).statistics().mean == pytest.approx((image.mean(),), rel=0.05)


def test_a_lone_valid_pixel_is_found_and_none_is_told(raster: Make) -> None:
    image = np.zeros((1, 2200, 2100), "uint8")
    with pytest.raises(SceneError, match=r"no valid pixel.*--nodata"):
        open_scene(raster(image, nodata=0)).statistics()
    with pytest.raises(SceneError, match=r"no valid pixel.*--nodata"):
        refuse_empty(open_scene(raster(image, "none.tif", nodata=0)))
    image[0, 2190, 2050] = 9
    lone = open_scene(raster(image, "one.tif", nodata=0))
    assert lone.statistics().mean == (9.0,)
    refuse_empty(lone)


def _no_crs(make: Make, folder: Path) -> Path:
    return make(asymmetric(1, 9, 9), crs=None)


def _truncated(make: Make, folder: Path) -> Path:
    path = make(asymmetric(3, 400, 400), tiled=True, blockxsize=128, blockysize=128)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def _text(make: Make, folder: Path) -> Path:
    path = folder / "notes.tif"
    path.write_text("not a raster")
    return path


def _container(make: Make, folder: Path) -> Path:
    from rasterio.shutil import copy

    path = folder / "two.gpkg"
    with rasterio.open(make(asymmetric(3, 64, 64))) as source:
        copy(source, path, driver="GPKG", RASTER_TABLE="one")
        copy(source, path, driver="GPKG", RASTER_TABLE="two", APPEND_SUBDATASET="YES")
    return path


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda make, folder: folder / "missing.tif", "does not exist"),
        (_text, "not a raster"),
        (lambda make, folder: folder, "not a raster"),
        (_no_crs, "no CRS"),
        (_truncated, "truncated"),
        (_container, "name one of its parts"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    raster: Make, tmp_path: Path, make: Callable[[Make, Path], Path], told: str
) -> None:
    path = make(raster, tmp_path)
    with pytest.raises(SceneError, match=told) as caught:
        open_scene(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scene_outside_its_crs_is_refused(raster: Make) -> None:
    scene = open_scene(raster(asymmetric(1, 9, 9), crs="EPSG:4326", transform=Affine(1, 0, 0, 0, -1, 500)))
    with pytest.raises(SceneError, match="outside the area"):
        _ = scene.resolution


def test_decoded_blocks_are_kept(raster: Make) -> None:
    path = raster(asymmetric(3, 128, 256), tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    scene = open_scene(path)
    first = [scene.read(Window(0, col, 128, 128)) for col in (0, 128)]
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(bytes(size))
    again = [scene.read(Window(0, col, 128, 128)) for col in (0, 128)]
    assert all(np.array_equal(one.data, other.data) for one, other in zip(first, again, strict=True))
