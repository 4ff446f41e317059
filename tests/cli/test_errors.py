"""Bad input on the command line: one sentence that names what is wrong, an exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import torch
from affine import Affine
from safetensors.numpy import save_file

from geoseg_cli.main import main
from tests.conftest import asymmetric, write_raster

Fails = Callable[..., str]
MARS = pyproj.CRS("IAU_2015:49910").to_wkt()  # an equirectangular map of Mars, in metres


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A sound scene of 60 × 80 pixels, three bands."""
    return write_raster(tmp_path / "scene.tif", asymmetric(3, 60, 80))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Return a function that runs a command which must fail, and gives the one line it says."""

    def run(*arguments: object, code: int = 1) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("Error: ")
        assert "unexpectedly" not in lines[0]
        assert said.out == ""
        assert stop.value.code == code
        return lines[0]

    return run


@pytest.fixture
def usage(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Return a function that runs a command which must be refused by its parser, and gives all that it says."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert stop.value.code == 2
        assert said.out == ""
        assert said.err.startswith("Usage: geoseg")
        assert "Traceback" not in said.err
        assert said.err.splitlines()[-1].startswith("Error: ")
        return said.err

    return run


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> object:
    """After every test: nothing under the name of an output, nothing hidden beside it."""
    yield
    left = [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "out."))]
    assert left == []


def _area(path: Path, coordinates: list[list[float]], crs: str | None = None) -> Path:
    """Write a GeoJSON file with one polygon."""
    shape = {"type": "Polygon", "coordinates": [coordinates]}
    features = [{"type": "Feature", "properties": {}, "geometry": shape}]
    record: dict[str, object] = {"type": "FeatureCollection", "features": features}
    if crs:
        record["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(record))
    return path


# The scene


def test_a_missing_scene_is_named(tmp_path: Path, plain: Path, fails: Fails) -> None:
    for arguments in (
        ("predict", tmp_path / "no.tif", tmp_path / "out.gpkg", "-m", plain),
        ("cluster", tmp_path / "no.tif", tmp_path / "out.gpkg"),
        ("vectorize", tmp_path / "no.tif", tmp_path / "out.gpkg"),
        ("info", tmp_path / "no.tif"),
    ):
        assert f"{tmp_path / 'no.tif'} does not exist" in fails(*arguments)


@pytest.mark.parametrize(
    "content", [b"", b"not a raster\n", b"II*\0rubbish of a header"], ids=["empty", "text", "tiff"]
)
def test_a_file_that_is_no_raster_is_refused(tmp_path: Path, plain: Path, fails: Fails, content: bytes) -> None:
    path = tmp_path / "notes.tif"
    path.write_bytes(content)
    assert "notes.tif is not a raster" in fails("predict", path, tmp_path / "out.gpkg", "-m", plain, "-q")
    assert "notes.tif is not a raster" in fails("vectorize", path, tmp_path / "out.gpkg", "-q")
    assert "notes.tif is not a raster" in fails("info", path)


def test_a_folder_as_scene_is_refused(tmp_path: Path, plain: Path, fails: Fails) -> None:
    (tmp_path / "scenes").mkdir()
    assert "scenes is not a raster" in fails("predict", tmp_path / "scenes", tmp_path / "out.gpkg", "-m", plain, "-q")


def test_a_scene_without_a_crs_is_refused_with_a_way_out(tmp_path: Path, plain: Path, fails: Fails) -> None:
    path = write_raster(tmp_path / "bare.tif", asymmetric(3, 30, 30), crs=None)
    for command in (("predict", path, tmp_path / "out.gpkg", "-m", plain), ("cluster", path, tmp_path / "out.gpkg")):
        said = fails(*command, "-q")
        assert "bare.tif has no CRS" in said
        assert "rio edit-info --crs" in said
    labels = write_raster(tmp_path / "labels.tif", asymmetric(1, 30, 30), crs=None)
    assert "labels.tif has no CRS" in fails("vectorize", labels, tmp_path / "out.gpkg", "-q")


@pytest.mark.parametrize("bands", [1, 4])
def test_another_number_of_bands_points_to_the_option(tmp_path: Path, plain: Path, fails: Fails, bands: int) -> None:
    path = write_raster(tmp_path / "many.tif", asymmetric(bands, 30, 30), photometric="minisblack")
    said = fails("predict", path, tmp_path / "out.gpkg", "-m", plain, "-q")
    assert f"many.tif has {bands} band" in said
    assert ("--bands 1,2,3" if bands > 3 else "--bands") in said


def test_bands_that_are_not_there_are_listed(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    said = fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, "--bands", "1,2,nir", "-q")
    assert "no band 'nir'" in said
    assert "3 (blue)" in said
    assert "takes 3" in fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, "--bands", "1,2", "-q")
    assert "no band of" in fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, "--bands", ",", "-q")


def test_complex_pixels_are_refused(tmp_path: Path, plain: Path, fails: Fails, raster: Callable[..., Path]) -> None:
    path = raster(np.ones((3, 20, 20), "complex64"), name="sar.tif")
    assert "sar.tif has complex pixels" in fails("predict", path, tmp_path / "out.gpkg", "-m", plain, "-q")


def test_a_truncated_geotiff_is_refused_before_work(tmp_path: Path, plain: Path, fails: Fails) -> None:
    whole = write_raster(tmp_path / "whole.tif", asymmetric(3, 300, 300), tiled=True, blockxsize=64, blockysize=64)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole.read_bytes()[:-5000])
    for command in (("predict", cut, tmp_path / "out.gpkg", "-m", plain), ("cluster", cut, tmp_path / "out.gpkg")):
        assert "cut.tif is truncated" in fails(*command, "-q")
    mask = write_raster(tmp_path / "mask.tif", np.ones((300, 300), "uint8"))
    cut.write_bytes(mask.read_bytes()[:-5000])
    assert "cut.tif is truncated" in fails("vectorize", cut, tmp_path / "out.gpkg", "-q")


def test_a_scene_without_a_valid_pixel_is_refused(
    tmp_path: Path, scene: Path, plain: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_raster(tmp_path / "empty.tif", np.zeros((3, 40, 40), "uint8"), nodata=0)
    for command in (("predict", path, tmp_path / "out.gpkg", "-m", plain), ("cluster", path, tmp_path / "out.gpkg")):
        said = fails(*command, "-q")
        assert "empty.tif has no valid pixel" in said
        assert "--nodata" in said
    with pytest.raises(SystemExit):  # with progress, the error is still the last line and the only one of its kind
        main(["predict", str(path), str(tmp_path / "out.gpkg"), "-m", str(plain)])
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("Error: ")
    assert not any(line.startswith("Error: ") for line in told[:-1])


def test_an_area_of_nodata_alone_leaves_nothing(tmp_path: Path, plain: Path, fails: Fails) -> None:
    array = asymmetric(3, 60, 80)
    array[:, :, :40] = 0
    path = write_raster(tmp_path / "half.tif", array, nodata=0)
    ring = [[350_001, 3_059_999], [350_010, 3_059_999], [350_010, 3_059_980], [350_001, 3_059_999]]
    aoi = _area(tmp_path / "aoi.geojson", ring, "EPSG:32645")
    said = fails("predict", path, tmp_path / "out.gpkg", "-m", plain, "--aoi", aoi, "-q")
    assert "half.tif has no valid pixel inside the area of interest" in said


# The area of interest


def test_an_area_outside_the_scene_is_refused(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    aoi = _area(tmp_path / "far.geojson", [[10.0, 50.0], [11.0, 50.0], [11.0, 51.0], [10.0, 50.0]])
    said = fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, "--aoi", aoi, "-q")
    assert "far.geojson does not meet the scene" in said
    assert "scene.tif" in said


def test_an_area_that_cannot_be_used_is_refused(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    point = tmp_path / "point.geojson"
    point.write_text('{"type": "Point", "coordinates": [85.5, 27.6]}')
    text = tmp_path / "text.geojson"
    text.write_text("not a vector file")
    empty = tmp_path / "empty.geojson"
    empty.write_text('{"type": "FeatureCollection", "features": []}')
    for path, cause in (
        (tmp_path / "no.gpkg", "no.gpkg does not exist"),
        (point, "point.geojson holds no polygon"),
        (text, "text.geojson cannot be read as a vector file"),
        (empty, "empty.geojson holds no polygon"),
        (scene, "scene.tif cannot be read as a vector file"),
    ):
        assert cause in fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, "--aoi", path, "-q")


# The model


def _predict(fails: Fails, scene: Path, model: object) -> str:
    return fails("predict", scene, scene.with_name("out.gpkg"), "-m", model, "-q")


def test_a_missing_bundle_is_named(tmp_path: Path, scene: Path, fails: Fails) -> None:
    assert "no.safetensors does not exist" in _predict(fails, scene, tmp_path / "no.safetensors")
    assert "no.safetensors does not exist" in fails("info", tmp_path / "no.safetensors")


def test_a_name_that_does_not_ship_is_told_with_those_that_do(scene: Path, fails: Fails) -> None:
    said = _predict(fails, scene, "roads")
    assert "'roads'" in said
    assert "buildings" in said
    assert "geoseg init" in said


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.mark), 0o777)


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "model"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
def test_a_pickle_is_never_opened(tmp_path: Path, scene: Path, fails: Fails, name: str, kind: str) -> None:
    mark = tmp_path / "exploded"
    model = tmp_path / name
    if kind == "pickle":
        model.write_bytes(pickle.dumps(_Bomb(mark)))
    else:
        torch.save(_Bomb(mark), model, _use_new_zipfile_serialization=kind == "torch")
    said = _predict(fails, scene, model)
    assert f"{name} is a pickle" in said
    assert "not opened" in said
    if name.endswith(".safetensors"):
        assert "is a pickle" in fails("info", model)
    assert not mark.exists()


def test_a_corrupt_or_foreign_bundle_is_refused(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    sound = plain.read_bytes()
    model = tmp_path / "model.safetensors"
    length = struct.unpack("<Q", sound[:8])[0]
    for content, cause in (
        (b"", "not a safetensors file"),
        (b"\0" * 100, "not a safetensors file"),
        (os.urandom(8)[:7] + b"\x7f" + os.urandom(500), "model.safetensors is"),
        (sound[:-10], "damaged"),
        (sound + b"more", "damaged"),
        (sound[: length // 2], "cut short"),
        (sound.replace(b"geoseg", b"geoSEG", 1), "not a bundle"),
    ):
        model.write_bytes(content)
        said = _predict(fails, scene, model)
        assert "model.safetensors" in said
        assert cause in said or "pickle" in said
    save_file({"weight": np.ones(3, np.float32)}, model)
    assert "no geoseg description" in _predict(fails, scene, model)
    save_file({"weight": np.ones(3, np.float32)}, model, metadata={"geoseg": '{"format": 99}'})
    assert "format 99" in _predict(fails, scene, model)
    save_file({"weight": np.ones(3, np.float32)}, model, metadata={"geoseg": "not json"})
    assert "damaged" in _predict(fails, scene, model)


def test_weights_of_another_network_are_refused(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    from safetensors import safe_open

    with safe_open(plain, "numpy") as file:
        metadata = file.metadata()
    model = tmp_path / "model.safetensors"
    save_file({"weight": np.ones(3, np.float32)}, model, metadata=metadata)
    assert "model.safetensors" in _predict(fails, scene, model)


def test_a_scene_given_as_model_is_refused(scene: Path, fails: Fails) -> None:
    assert "scene.tif is not a safetensors file" in _predict(fails, scene, scene)


# The outputs


def test_an_output_that_exists_is_kept(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    for name, more in (
        ("old.gpkg", ()),
        ("old.geojson", ()),
        ("old.tif", ()),
        ("new.gpkg", ("--labels", folder / "old.tif")),
        ("new.gpkg", ("--confidence", folder / "old.tif")),
    ):
        for old in ("old.gpkg", "old.geojson", "old.tif"):
            (folder / old).write_text("precious")
        said = fails("predict", scene, folder / name, "-m", plain, "-q", *more)
        assert "exists" in said
        assert "overwrite" in said
        assert sorted(p.name for p in folder.iterdir()) == ["old.geojson", "old.gpkg", "old.tif"]
        assert {p.read_text() for p in folder.iterdir()} == {"precious"}
    labels = write_raster(tmp_path / "labels.tif", np.ones((20, 20), "uint8"))
    assert "old.gpkg exists" in fails("vectorize", labels, folder / "old.gpkg", "-q")
    assert "old.gpkg exists" in fails("init", folder / "old.gpkg", "--network", "plainconv", "--classes", "a,b")
    (folder / "old.safetensors").write_text("precious")
    new = folder / "new.gpkg"
    assert "old.safetensors exists" in fails("cluster", scene, new, "--save-model", folder / "old.safetensors", "-q")
    assert {p.read_text() for p in folder.iterdir()} == {"precious"}


@pytest.mark.parametrize("place", ["missing/out.gpkg", "scene.tif/out.gpkg"])
def test_an_output_in_no_folder_is_refused(tmp_path: Path, scene: Path, plain: Path, fails: Fails, place: str) -> None:
    folder = str((tmp_path / place).parent)
    sound = tmp_path / "sound.gpkg"
    for arguments in (
        ("predict", scene, tmp_path / place, "-m", plain),
        ("predict", scene, sound, "-m", plain, "--labels", (tmp_path / place).with_suffix(".tif")),
        ("predict", scene, sound, "-m", plain, "--confidence", (tmp_path / place).with_suffix(".tif")),
        ("cluster", scene, tmp_path / place),
        ("cluster", scene, sound, "--save-model", (tmp_path / place).with_suffix(".safetensors")),
        ("vectorize", scene, tmp_path / place),
    ):
        assert folder in fails(*arguments, "-q")
        assert not sound.exists()
    assert folder in fails("init", tmp_path / place, "--network", "plainconv", "--classes", "a,b")


def test_an_output_that_is_a_folder_is_refused(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    (tmp_path / "maps.gpkg").mkdir()
    assert "maps.gpkg is a folder" in fails("predict", scene, tmp_path / "maps.gpkg", "-m", plain, "--overwrite", "-q")


def test_a_work_folder_below_a_file_is_refused(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    said = fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, "--workdir", scene / "work", "-q")
    assert "--workdir" in said


@pytest.mark.parametrize("name", ["out.shp", "out.kml", "out", "out.gpkg.zip"])
def test_an_unknown_suffix_lists_the_known(tmp_path: Path, scene: Path, plain: Path, fails: Fails, name: str) -> None:
    labels = write_raster(tmp_path / "labels.tif", np.ones((20, 20), "uint8"))
    for arguments in (("predict", scene, tmp_path / name, "-m", plain), ("vectorize", labels, tmp_path / name)):
        said = fails(*arguments, "-q")
        assert name in said
        assert all(known in said for known in (".geojson", ".geojsonl", ".gpkg", ".fgb", ".parquet"))


def test_rasters_must_be_named_tif(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    for option in ("--labels", "--confidence"):
        said = fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, option, tmp_path / "l.png", "-q", code=2)
        assert "l.png" in said
        assert ".tif" in said


def test_two_outputs_of_one_name_are_refused(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    both = ("--labels", tmp_path / "a.tif", "--confidence", tmp_path / "a.tif")
    assert "share the path" in fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, *both, "-q", code=2)
    arguments = ("predict", scene, tmp_path / "out.tif", "-m", plain, "--labels", tmp_path / "a.tif", "-q")
    assert "--labels" in fails(*arguments, code=2)


def test_the_scene_is_never_overwritten_by_its_own_output(
    tmp_path: Path, scene: Path, plain: Path, fails: Fails
) -> None:
    before = scene.read_bytes()
    (tmp_path / "link.tif").symlink_to(scene)
    for arguments in (
        (scene, scene, "-m", plain),
        (scene, tmp_path / "link.tif", "-m", plain),
        (scene, tmp_path / "out.gpkg", "-m", plain, "--labels", scene),
        (scene, tmp_path / "out.gpkg", "-m", plain, "--confidence", scene),
    ):
        assert "is the scene itself" in fails("predict", *arguments, "--overwrite", "-q")
    assert "is the scene itself" in fails("cluster", scene, scene, "--overwrite", "-q")
    arguments = ("cluster", scene, tmp_path / "out.gpkg", "--save-model", tmp_path / "link.tif", "--overwrite", "-q")
    assert "is the scene itself" in fails(*arguments)
    assert scene.read_bytes() == before


def test_a_scene_of_mars_is_written_where_its_crs_can_be_kept(
    tmp_path: Path, plain: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_raster(
        tmp_path / "mars.tif", asymmetric(3, 40, 50), crs=MARS, transform=Affine(10, 0, 1000, 0, -10, 5000)
    )
    for suffix in (".geojson", ".geojsonl"):
        said = fails("predict", path, tmp_path / f"out{suffix}", "-m", plain, "-q")
        assert f"out{suffix}" in said
        assert "GeoPackage (.gpkg)" in said
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(path), str(tmp_path / "mars.gpkg"), "-m", str(plain), "-q", "--keep-background"])
    assert stop.value.code == 0, capsys.readouterr().err
    capsys.readouterr()
    frame = geopandas.read_file(tmp_path / "mars.gpkg", layer="mars")
    assert "Mars" in frame.crs.name
    assert frame.crs.ellipsoid.semi_major_metre == pytest.approx(3_396_190)
    assert frame.area.sum() == pytest.approx(40 * 50 * 100)
    mask = write_raster(
        tmp_path / "mask.tif", np.ones((40, 50), "uint8"), crs=MARS, transform=Affine(10, 0, 1000, 0, -10, 5000)
    )
    assert "GeoPackage" in fails("vectorize", mask, tmp_path / "out.geojson", "-q")


# The options


def test_a_tile_off_the_stride_is_refused_with_one_that_fits(
    tmp_path: Path, scene: Path, make_bundle: Callable[..., Path], fails: Fails
) -> None:
    model = make_bundle("unet", encoder="resnet18", tile=128, halo=32)
    for option, value, fitting in (("--tile", 100, 128), ("--tile", 161, 192), ("--halo", 33, 64)):
        said = fails("predict", scene, tmp_path / "out.gpkg", "-m", model, option, value, "-q", code=2)
        assert f"{option} {value}" in said
        assert "32" in said
        assert str(fitting) in said


def test_a_halo_that_leaves_no_core_is_refused(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    said = fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, "--halo", 64, "-q", code=2)
    assert "64" in said
    assert "128" in said


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--chunk", "0"),
        ("--chunk", "-5"),
        ("--chunk", "big"),
        ("--halo", "-3"),
        ("--halo", "wide"),
        ("--tile", "0"),
        ("--resolution", "0"),
        ("--nodata", "none"),
        ("--min-area", "-1"),
        ("--blend", "smooth"),
        ("--precision", "int8"),
        ("--workers", "-1"),
        ("--batch", "many"),
        ("--output-grid", "mine"),
    ],
)
def test_nonsense_in_an_option_is_wrong_usage(
    tmp_path: Path, scene: Path, plain: Path, usage: Fails, option: str, value: str
) -> None:
    said = usage("predict", scene, tmp_path / "out.gpkg", "-m", plain, option, value)
    assert option in said
    assert value in said


def test_wrong_usage_says_how_it_goes(tmp_path: Path, scene: Path, usage: Fails) -> None:
    assert "OUT" in usage("predict", scene)
    assert "--colour" in usage("predict", scene, tmp_path / "out.gpkg", "--colour")
    assert "transmogrify" in usage("transmogrify")
    assert "--network" in usage("init", tmp_path / "m.safetensors", "--classes", "a,b")


@pytest.mark.parametrize("command", ["predict", "vectorize"])
def test_an_unknown_class_to_drop_is_told_with_the_known(
    tmp_path: Path, scene: Path, plain: Path, fails: Fails, command: str
) -> None:
    arguments: tuple[object, ...] = (scene, tmp_path / "out.gpkg", "-m", plain)
    if command == "vectorize":
        labels = write_raster(tmp_path / "labels.tif", asymmetric(1, 20, 20) % 2 + 1)
        arguments = (labels, tmp_path / "out.gpkg")
    said = fails(command, *arguments, "--drop", "rooof", "-q")
    assert "'rooof'" in said
    assert ("roof" if command == "predict" else "class 1") in said.replace("rooof", "")


def test_a_device_that_is_not_there_is_told(tmp_path: Path, scene: Path, plain: Path, fails: Fails) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    said = fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, "--device", "cuda", "-q", code=2)
    assert "cuda" in said
    assert "cpu" in said
    assert "abacus" in fails("predict", scene, tmp_path / "out.gpkg", "-m", plain, "--device", "abacus", "-q", code=2)


@pytest.mark.parametrize("scheduler", ["tcp://127.0.0.1:1", "127.0.0.1:1", "nowhere", "gone.json"])
def test_a_scheduler_that_cannot_be_reached_is_named(
    tmp_path: Path, scene: Path, plain: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    monkeypatch.setattr("geoseg.engine.cluster._REACH_TIMEOUT", 1)
    work = tmp_path / "work"
    said = fails(
        "predict", scene, tmp_path / "out.gpkg", "-m", plain, "--scheduler", scheduler, "--workdir", work, "-q"
    )
    assert scheduler in said


def test_an_unknown_method_or_network_is_told_with_the_known(tmp_path: Path, scene: Path, fails: Fails) -> None:
    said = fails("cluster", scene, tmp_path / "out.gpkg", "--method", "feature-clusterin", "-q", code=2)
    assert "feature-clustering" in said.replace("'feature-clusterin'", "")
    said = fails("init", tmp_path / "out.safetensors", "--network", "unett", "--classes", "a,b", code=2)
    assert "unet" in said.replace("unett", "")
    assert not (tmp_path / "out.safetensors").exists()


def test_debug_shows_the_traceback(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no.tif"
    for arguments in (("--debug", "info", missing), ("info", missing, "--debug")):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr().err
        assert stop.value.code == 1
        assert said.startswith("Traceback")
        assert said.splitlines()[-1] == f"Error: {missing} does not exist: check the path."


def test_a_fault_of_the_program_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(path: str, **_: object) -> None:
        raise KeyError(path)

    monkeypatch.setattr("geoseg.scene.open_scene", broken)
    with pytest.raises(SystemExit) as stop:
        main(["info", "a.tif"])
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert len(said.splitlines()) == 1
    assert "KeyError" in said
    assert "--debug" in said
