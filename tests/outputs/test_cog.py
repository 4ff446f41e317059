"""Label and confidence COGs: pixels, place and meaning come through unharmed."""

import json
import os

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine

from geoseg.classes import Classes
from geoseg.errors import LabelsError, OutputError
from geoseg.outputs.cog import CONFIDENCE_NODATA, read_classes, write_confidence_cog, write_label_cog
from geoseg.outputs.pam import pam_path, read_category_names, write_category_names

rio_cogeo = pytest.importorskip("rio_cogeo", reason="rio-cogeo checks the layout of COGs")

HEIGHT, WIDTH = 700, 1100
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_400_000)
TRANSFORMS = {
    "north-up": NORTH_UP,
    "south-up": Affine(10, 0, 500_000, 0, 10, 5_400_000),
    "mirrored": Affine(-10, 0, 500_000, 0, -10, 5_400_000),
    "rotated": Affine.translation(500_000, 5_400_000) * Affine.rotation(30) * Affine.scale(10, -7),
}
LCC = "+proj=lcc +lat_1=44.5 +lat_2=46.25 +lat_0=45 +lon_0=5.1 +x_0=123 +y_0=456 +ellps=GRS80 +units=m"
ROTATED_POLE = "+proj=ob_tran +o_proj=longlat +o_lat_p=40 +o_lon_p=0 +lon_0=10 +a=6371229 +type=crs"
CRSS = {"utm": "EPSG:32633", "degrees": "EPSG:4326", "custom": LCC, "mars": "IAU_2015:49910", "derived": ROTATED_POLE}


def labels() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    result = np.choose((x // 97 + y // 61) % 3, [0, 1, 7]).astype(np.uint8)
    result[:50] = 255
    return result


def write(path, bands, crs="EPSG:32633", transform=NORTH_UP, nodata=255):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=WIDTH,
        height=HEIGHT,
        count=len(bands),
        dtype=bands[0].dtype.name,
        nodata=nodata,
        crs=rasterio.crs.CRS.from_wkt(pyproj.CRS(crs).to_wkt()),
        transform=transform,
        tiled=True,
    ) as dataset:
        for index, band in enumerate(bands, 1):
            dataset.write(band, index)
    return path


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source.tif", [labels()])


@pytest.mark.parametrize(
    ("crs", "transform"), [*(("utm", t) for t in TRANSFORMS), *((c, "north-up") for c in CRSS), ("degrees", "rotated")]
)
def test_pixels_and_place_come_through(crs, transform, tmp_path, classes):
    affine = TRANSFORMS[transform]
    if crs in {"degrees", "derived"}:
        affine = Affine(affine.a / 1e5, affine.b / 1e5, 10, affine.d / 1e5, affine.e / 1e5, 50)
    source = write(tmp_path / "source.tif", [labels()], CRSS[crs], affine)
    write_label_cog(source, tmp_path / "labels.tif", classes)
    with rasterio.open(source) as before, rasterio.open(tmp_path / "labels.tif") as after:
        assert after.crs == before.crs
        assert after.transform == affine
        np.testing.assert_array_equal(after.read(1), labels())
        assert after.dtypes == ("uint8",)
        assert after.count == 1


def test_a_label_raster_tells_what_it_holds(source, tmp_path, classes):
    path = tmp_path / "labels.tif"
    write_label_cog(source, path, classes)
    valid, errors, warnings = rio_cogeo.cog_validate(path, strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as dataset:
        assert dataset.nodata == 255
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.overviews(1) == [2, 4]
        assert dataset.compression.value == "DEFLATE"
        assert {c.id: dataset.colormap(1)[c.id][:3] for c in classes} == {c.id: c.rgb for c in classes}
        assert json.loads(dataset.tags()["CLASSES"]) == classes.as_dicts()
        # Overviews hold labels that occur, not means of them.
        assert set(np.unique(dataset.read(1, out_shape=(HEIGHT // 2, WIDTH // 2)))) == {0, 1, 7, 255}
    assert read_category_names(path) == [classes[0].name, classes[1].name, "", "", "", "", "", classes[2].name]
    assert read_classes(path) == classes
    assert sorted(os.listdir(tmp_path)) == ["labels.qml", "labels.tif", "labels.tif.aux.xml", "source.tif"]


def test_gdal_itself_reads_the_category_names(source, tmp_path, classes):
    path = tmp_path / "labels.tif"
    write_label_cog(source, path, classes)
    rasterio.shutil.copy(path, tmp_path / "seen.vrt", driver="VRT")
    seen = (tmp_path / "seen.vrt").read_text("utf-8")
    assert "<Category>a&lt;b &amp; \"c\" 'd'</Category>" in seen
    assert "<Category>Wäldchen 森 🌲</Category>" in seen


def test_one_band_of_several_and_wide_labels(tmp_path, classes):
    wide = labels().astype(np.uint16)
    source = write(tmp_path / "source.tif", [wide * 0, wide])
    write_label_cog(source, tmp_path / "labels.tif", classes, band=2)
    with rasterio.open(tmp_path / "labels.tif") as dataset:
        assert dataset.dtypes == ("uint8",)
        np.testing.assert_array_equal(dataset.read(1), labels())


def test_another_nodata_value(tmp_path, classes):
    classes = Classes(classes.items, nodata=60_000)
    wide = np.where(labels() == 255, 60_000, labels()).astype(np.uint16)
    write_label_cog(write(tmp_path / "s.tif", [wide], nodata=60_000), tmp_path / "labels.tif", classes)
    with rasterio.open(tmp_path / "labels.tif") as dataset:
        assert dataset.nodata == 60_000
        np.testing.assert_array_equal(dataset.read(1), wide)
    assert read_classes(tmp_path / "labels.tif") == classes


def test_confidence_is_a_share_with_a_nodata_value(tmp_path):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    stored = ((7 * x + 3 * y) % 1001).astype(np.uint16)
    stored[:50] = 65535
    write_confidence_cog(write(tmp_path / "s.tif", [stored], nodata=65535), tmp_path / "sure.tif")
    assert rio_cogeo.cog_validate(tmp_path / "sure.tif", strict=True) == (True, [], [])
    with rasterio.open(tmp_path / "sure.tif") as dataset:
        assert dataset.dtypes == ("float32",)
        assert dataset.nodata == CONFIDENCE_NODATA
        expected = np.where(stored == 65535, CONFIDENCE_NODATA, stored * 0.001).astype(np.float32)
        np.testing.assert_array_equal(dataset.read(1), expected)
        assert (dataset.crs.to_epsg(), dataset.transform) == (32633, NORTH_UP)
        small = dataset.read(1, out_shape=(HEIGHT // 2, WIDTH // 2), masked=True)
        assert small.mask[:25].all()
        assert not small.mask[25:].any()
        assert small.min() >= 0
        assert small.max() <= 1


@pytest.mark.parametrize("kind", ["labels", "confidence"])
def test_bytes_are_the_same_in_every_run(kind, tmp_path, source, classes):
    seen = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        if kind == "labels":
            write_label_cog(source, folder / "map.tif", classes)
        else:
            write_confidence_cog(source, folder / "map.tif")
        seen.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert seen[0] == seen[1]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, small_disk, classes):
    noise = np.random.default_rng(0).integers(0, 8, (HEIGHT, WIDTH)).astype(np.uint16)
    source = write(tmp_path / "s.tif", [np.tile(noise, (1, 1))], nodata=65535)
    path = small_disk / "sure.tif"
    path.write_text("old")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(500_000))
    with pytest.raises(
        OutputError, match=r"sure\.tif could not be written .*disk is (probably )?full.*free some space"
    ):
        write_confidence_cog(source, path)
    assert path.read_text() == "old"
    assert sorted(os.listdir(small_disk)) == ["filler", "sure.tif"]


def test_an_unreadable_source_leaves_nothing(tmp_path, classes):
    with pytest.raises(OutputError, match="could not be written"):
        write_label_cog(tmp_path / "missing.tif", tmp_path / "labels.tif", classes)
    assert os.listdir(tmp_path) == []


def test_notes_about_a_replaced_file_go_with_it(source, tmp_path, classes):
    path = tmp_path / "map.tif"
    pam_path(path).write_text("<PAMDataset><PAMRasterBand band='1'><Metadata/></PAMRasterBand></PAMDataset>")
    write_confidence_cog(source, path)
    assert not pam_path(path).exists()


def test_category_names_join_what_a_pam_file_says(source, classes):
    pam_path(source).write_text(
        '<PAMDataset><PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MEAN">1.5</MDI></Metadata>'
        "<CategoryNames><Category>old</Category></CategoryNames></PAMRasterBand></PAMDataset>"
    )
    write_category_names(source, classes)
    with rasterio.open(source) as dataset:
        assert dataset.tags(1)["STATISTICS_MEAN"] == "1.5"
    assert read_category_names(source)[1] == classes[1].name


def test_classes_come_from_names_and_colours_when_there_is_no_tag(source, classes):
    assert read_classes(source) is None
    with rasterio.open(source, "r+") as dataset:
        dataset.write_colormap(1, {c.id: (*c.rgb, 255) for c in classes})
    assert read_classes(source) is None
    write_category_names(source, classes)
    assert read_classes(source) == classes


def test_a_damaged_classes_tag_is_refused(source):
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(CLASSES="[{")
    with pytest.raises(LabelsError, match="damaged CLASSES tag"):
        read_classes(source)


def test_a_single_pixel(tmp_path, classes):
    with rasterio.open(
        tmp_path / "s.tif", "w", driver="GTiff", width=1, height=1, count=1, dtype="uint8", nodata=255,
        crs="EPSG:32633", transform=NORTH_UP,
    ) as dataset:  # fmt: skip
        dataset.write(np.full((1, 1), 7, np.uint8), 1)
    write_label_cog(tmp_path / "s.tif", tmp_path / "labels.tif", classes)
    with rasterio.open(tmp_path / "labels.tif") as dataset:
        assert dataset.read(1).tolist() == [[7]]
        assert dataset.transform == NORTH_UP


@pytest.mark.slow
def test_memory_does_not_grow_with_the_raster(tmp_path, classes):
    import subprocess
    import sys

    code = (
        "import sys, resource; from geoseg.outputs.cog import write_label_cog; from geoseg.classes import Classes\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_label_cog(sys.argv[1], sys.argv[2], Classes.numbered(3))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)"
    )
    size = 16_384
    path = tmp_path / "big.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=1, dtype="uint8", nodata=255, crs="EPSG:32633",
        transform=NORTH_UP, tiled=True, blockxsize=512, blockysize=512, compress="deflate", sparse_ok=True,
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((512, size), np.uint8), 1, window=rasterio.windows.Window(0, 0, size, 512))
    done = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "cog.tif"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 200 * 1024, "kilobytes more than before, for a raster of 268 MB"
