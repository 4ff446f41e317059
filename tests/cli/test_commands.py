"""The commands as a user types them: help, what is imported, what is printed, and one chain from model to map."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

import geoseg
from geoseg.errors import GeosegError
from geoseg_cli.main import _module, main

COMMANDS = (
    "predict",
    "batch",
    "cluster",
    "vectorize",
    "init",
    "import",
    "info",
    "networks",
    "evaluate",
    "train",
    "adapt",
    "losses",
    "methods",
    "refine",
    "name",
    "coarse-stats",
    "coarse-check",
    "export",
    "demo",
    "qgis-plugin",
    "completion",
    "view",
    "preview",
)
VECTORS = (".geojson", ".geojsonl", ".gpkg", ".fgb", ".parquet")
HEAVY = {"torch", "rasterio", "geopandas", "dask", "distributed", "timm", "segmentation_models_pytorch", "shapely"}


@dataclass(frozen=True)
class Said:
    """What a command printed, by line."""

    out: list[str]
    err: list[str]


Run = Callable[..., Said]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command which must succeed."""

    def go(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert stop.value.code == 0, said.err
        return Said(said.out.splitlines(), said.err.splitlines())

    return go


def _read(path: Path) -> geopandas.GeoDataFrame:
    """Read polygons of any format, in the order of their ids."""
    if path.suffix == ".parquet":
        frame = geopandas.read_parquet(path)
    else:
        frame = geopandas.read_file(path, **({"layer": path.stem} if path.suffix == ".gpkg" else {}))
    return frame.sort_values("id").reset_index(drop=True)


def _labels(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


# Help and imports


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself_with_an_example(run: Run, command: str, flag: str) -> None:
    text = run(command, flag).out
    assert text[0].startswith(f"Usage: geoseg {command}")
    example = text.index("  Example:")
    assert text[example + 1].startswith(f"    geoseg {command}")


def test_the_program_lists_its_commands(run: Run) -> None:
    text = run("--help").out
    for command in COMMANDS:
        assert any(line.split()[:1] == [command] for line in text)
    assert "  Example:" in text
    assert run("--version").out == [f"geoseg, version {geoseg.__version__}"]


def _modules_after(code: str) -> set[str]:
    """Return the names of the packages that are loaded after ``code`` ran in a fresh process."""
    code += "\nimport sys, json; print('\\n' + json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def _after_commands(*commands: list[str]) -> set[str]:
    """Return the names of the packages that are loaded after these commands ran one by one in a fresh process."""
    code = "from geoseg_cli.main import main\n"
    return _modules_after(code + "\n".join(f"try: main({each!r})\nexcept SystemExit: pass" for each in commands))


def test_help_and_version_load_nothing_heavy() -> None:
    assert not _after_commands(["--help"], ["--version"], []) & (HEAVY | {"numpy"})


def test_the_help_of_the_commands_loads_nothing_heavy() -> None:
    # One process for all of them: only where one is at fault is it looked for.
    if _after_commands(*([command, "--help"] for command in COMMANDS)) & HEAVY:
        assert [command for command in COMMANDS if _after_commands([command, "--help"]) & HEAVY] == []


def test_a_warning_of_ours_is_one_line_and_those_of_others_say_where() -> None:
    code = (
        "import sys, warnings\nfrom geoseg.errors import GeosegWarning\nfrom geoseg_cli.main import main\n"
        "sys.argv = ['geoseg', '--version']\ntry: main()\nexcept SystemExit: pass\n"
        "warnings.warn('the map is old.', GeosegWarning)\nwarnings.warn('of another kind', UserWarning)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.splitlines()
    assert told[0] == "Warning: the map is old."
    assert told[1].endswith("UserWarning: of another kind")


def test_the_list_of_networks_loads_no_torch() -> None:
    assert not _after_commands(["networks"]) & (HEAVY - {"shapely"})


def test_import_geoseg_loads_nothing_heavy() -> None:
    assert not _modules_after("import geoseg") & (HEAVY | {"numpy"})


def test_every_public_name_is_there() -> None:
    assert sorted(geoseg.__all__) == list(geoseg.__all__)
    for name in geoseg.__all__:
        assert getattr(geoseg, name) is not None
    assert dir(geoseg) == sorted(geoseg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'segmentize'"):
        _ = geoseg.segmentize
    for name in ("cluster", "predict", "vectorize"):  # the names of the command line are those of Python
        assert name in COMMANDS
        assert callable(getattr(geoseg, name))


def test_every_command_has_its_module() -> None:
    for command in COMMANDS:
        assert importlib.import_module(f"geoseg_cli.{_module(command)}").command.name == command


# info and networks


def test_info_of_a_scene(run: Run, town: Path) -> None:
    record = json.loads("\n".join(run("info", town, "--json").out))
    with rasterio.open(town) as file:
        assert record["transform"] == list(file.transform)[:6]
        assert record["crs"] == f"EPSG:{file.crs.to_epsg()}"
        assert record["bounds"] == pytest.approx(list(file.bounds))
    assert record["scene"] == str(town)
    assert record["size"] == "600 × 440 pixels"
    assert record["bands"] == ["1 red", "2 green", "3 blue"]
    assert record["type"] == "uint8"
    assert record["no data"] == ["value 0.0"]
    text = run("info", town).out
    assert [line.split("  ")[0].strip() for line in text] == list(record)
    assert any("600 × 440 pixels" in line for line in text)


def test_info_of_a_scene_with_control_points_says_that_it_is_warped(run: Run, data: Path) -> None:
    record = json.loads("\n".join(run("info", data / "io_scenes" / "cog_gcps.tif", "--json").out))
    assert record["crs"] == "EPSG:4326"
    assert "control points" in record["grid"]


def test_info_of_a_network(run: Run, plain: Path) -> None:
    record = json.loads("\n".join(run("info", plain, "--json").out))
    assert record["method"] == "network"
    assert record["settings"]["name"] == "plainconv"
    assert record["bands"] == ["red", "green", "blue"]
    assert record["classes"][0].startswith("0 background #")
    assert record["classes"][0].endswith("(background)")
    assert record["classes"][1].startswith("1 roof #")
    assert record["tiles exact"] == "yes"
    assert len(record["sha256"]) == 64
    assert any(line.startswith("classes") and "roof" in line for line in run("info", plain).out)


def test_methods_are_listed_with_commands_that_exist(run: Run) -> None:
    from geoseg.segmenters.methods import methods

    listed = "\n".join(run("methods").out)
    for method in methods():
        assert method.name in listed
        assert method.source in "\n".join(run("methods", method.name).out)
        assert method.command.split()[1] in COMMANDS
    assert [record["name"] for record in json.loads("\n".join(run("methods", "--json").out))] == [
        method.name for method in methods()
    ]


def test_networks_lists_all(run: Run) -> None:
    lines = run("networks").out
    assert [line.split()[0] for line in lines] == ["name", *geoseg.networks.every_name()]
    assert {"plainconv", "unet"} <= set(geoseg.networks.every_name())


# The chain: init, info, predict, vectorize


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, town: Path) -> Path:
    """A folder with a model made by ``init``, and its polygons and labels of the town."""
    folder = tmp_path_factory.mktemp("made")
    for arguments in (
        ["init", "model.safetensors", "--network", "plainconv", "--classes", "background,roof:#d55e00,road,tree,water",
         "--tile", "128"],
        ["predict", str(town), "town.gpkg", "-m", "model.safetensors", "--labels", "labels.tif", "--confidence",
         "confidence.tif", "-q"],
    ):  # fmt: skip
        with contextlib.chdir(folder), pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    return folder


def test_init_makes_what_info_shows(run: Run, made: Path) -> None:
    record = json.loads("\n".join(run("info", made / "model.safetensors", "--json").out))
    assert record["classes"][1] == "1 roof #d55e00"
    assert record["training"] == "none"
    assert record["tile"].startswith("128 px")


def test_init_takes_numbers_names_and_settings(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    arguments = ("--classes", "a,b", "--bands", 2, "--halo", 5, "--resolution", 0.5, "--set", "width=4", "--tile", 64)
    assert run("init", path, "--network", "plainconv", *arguments).out == [str(path)]
    record = json.loads("\n".join(run("info", path, "--json").out))
    assert record["bands"] == ["band 1", "band 2"]
    assert record["tile"] == "64 px, halo 5, stride 1"
    assert record["resolution"] == "0.5 m"
    first = path.read_bytes()
    run("init", path, "--network", "plainconv", *arguments, "--overwrite")
    assert path.read_bytes() == first  # the same seed gives the same weights
    run("init", path, "--network", "plainconv", *arguments, "--overwrite", "--seed", 1)
    assert path.read_bytes() != first


def test_a_run_leaves_only_its_outputs_and_their_styles(made: Path) -> None:
    outputs = {"model.safetensors", "town.gpkg", "town.qlr", "labels.tif", "confidence.tif"}
    beside = {p.name for p in made.iterdir()} - outputs
    assert beside >= {"town.qml"}
    assert all(name.endswith((".qml", ".aux.xml")) and not name.startswith(".") for name in beside)


@pytest.mark.parametrize("suffix", VECTORS)
def test_every_format_holds_the_same_polygons(run: Run, tmp_path: Path, town: Path, made: Path, suffix: str) -> None:
    out = tmp_path / f"town{suffix}"
    said = run("predict", town, out, "-m", made / "model.safetensors")
    assert said.out == [str(out)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([out.name, "town.qml"])
    frame, expected = _read(out), _read(made / "town.gpkg")
    assert len(frame) > 40
    assert list(frame.columns) == list(expected.columns)
    for column in ("id", "class_id", "class_name", "area_m2", "confidence"):
        np.testing.assert_array_equal(frame[column], expected[column])
    if suffix in {".geojson", ".geojsonl"}:
        assert frame.crs.to_epsg() == 4326
        places = shapely.centroid(frame.geometry.to_crs(expected.crs).to_numpy())
        assert shapely.distance(places, shapely.centroid(expected.geometry.to_numpy())).max() < 0.05
    else:
        assert frame.crs == expected.crs
        assert (frame.geometry.to_numpy() == expected.geometry.to_numpy()).all()


def test_a_label_raster_alone(run: Run, tmp_path: Path, town: Path, made: Path) -> None:
    out = tmp_path / "only.tif"
    assert run("predict", town, out, "-m", made / "model.safetensors", "-q").out == [str(out)]
    assert out.read_bytes() == (made / "labels.tif").read_bytes()
    with rasterio.open(out) as file, rasterio.open(town) as source:
        assert (file.transform, file.crs, file.shape) == (source.transform, source.crs, source.shape)
        assert file.nodata == 255
        assert ((file.read(1) == 255) == (source.read() == 0).all(0)).all()


def test_vectorize_of_the_labels_gives_the_polygons_of_predict(run: Run, tmp_path: Path, made: Path) -> None:
    out = tmp_path / "town.gpkg"
    said = run("vectorize", made / "labels.tif", out)
    assert said.out == [str(out)]
    frame, expected = _read(out), _read(made / "town.gpkg")
    assert said.err[-1] == f"{len(expected)} polygons."
    assert (frame.geometry.to_numpy() == expected.geometry.to_numpy()).all()
    for column in ("id", "class_id", "class_name", "area_m2", "perimeter_m"):
        np.testing.assert_array_equal(frame[column], expected[column])
    assert frame["confidence"].isna().all()
    assert not expected["confidence"].isna().any()
    assert "background" not in set(frame["class_name"])


def test_polygons_are_chosen_by_class_and_area(run: Run, tmp_path: Path, made: Path) -> None:
    whole = _read(made / "town.gpkg")
    counts = whole["class_name"].value_counts()
    out = tmp_path / "some.gpkg"
    dropped = counts.index[-1]
    number = whole.loc[whole["class_name"] == dropped, "class_id"].iloc[0]
    area = whole["area_m2"].quantile(0.75)
    for choice in (dropped, number):
        run("vectorize", made / "labels.tif", out, "--drop", choice, "--min-area", area, "--overwrite", "-q")
        some = _read(out)
        expected = whole[(whole["class_name"] != dropped) & (whole["area_m2"] >= area)]
        assert 0 < len(some) == len(expected) < len(whole)
        np.testing.assert_array_equal(some["area_m2"], expected["area_m2"])
    run("vectorize", made / "labels.tif", out, "--keep-background", "--overwrite", "-q")
    assert set(_read(out)["class_name"]) == {*whole["class_name"], "background"}


@pytest.mark.parametrize(
    "options",
    [
        ("--min-area", 0.03, "--simplify", 0.1, "--fill-holes", 0.1, "--keep-background"),
        ("--min-area", 0.03, "--small", "drop", "--smooth", "--connectivity", 8),
        ("--regularize",),
        ("--regularize-class", "water", "--simplify", 0.1, "--connectivity", 8),
    ],
    ids=["simplified", "smooth", "regular", "one_regular"],
)
def test_predict_shapes_polygons_as_vectorize_does(
    run: Run, tmp_path: Path, town: Path, made: Path, options: tuple[object, ...]
) -> None:
    one, other = tmp_path / "one.geojson", tmp_path / "other.geojson"
    said = run("predict", town, one, "-m", made / "model.safetensors", "-q", *options).err
    confidence = ("--confidence", made / "confidence.tif")
    assert any("regularised (mean IoU" in line for line in said) == ("--regul" in str(options[0]))
    told = run("vectorize", made / "labels.tif", other, "-q", *confidence, *options).err
    assert one.read_bytes() == other.read_bytes()
    assert [line for line in told if "regularised" in line] == [line for line in said if "regularised" in line]
    assert len(_read(one)) > 10


def test_what_cannot_be_done_to_polygons_is_refused_before_work(tmp_path: Path, town: Path, made: Path) -> None:
    for changes, message in (
        ({"regularize_class": ["barn"]}, "no class 'barn'"),
        ({"regularize_class": ["roof"], "drop": ["roof"]}, "not written"),
        ({"simplify": -1.0}, "--simplify -1.0"),
        ({"connectivity": 6}, "--connectivity 6"),
        ({"small": "keep"}, "--small 'keep'"),
    ):
        with pytest.raises(GeosegError, match=message):
            geoseg.predict(town, tmp_path / "out.gpkg", made / "model.safetensors", **changes)
    assert list(tmp_path.iterdir()) == []


# cluster


@pytest.mark.slow
def test_a_saved_clustering_gives_the_same_labels_again(run: Run, tmp_path: Path, town: Path) -> None:
    first, again, model = tmp_path / "first.tif", tmp_path / "again.tif", tmp_path / "segments.safetensors"
    said = run("cluster", town, first, "--segments", 4, "--save-model", model)
    assert said.out == [str(first), str(model)]
    labels = _labels(first)
    assert 2 <= len(np.unique(labels[labels != 255])) <= 4
    run("predict", town, again, "-m", model, "-q")
    np.testing.assert_array_equal(_labels(again), labels)
    record = json.loads("\n".join(run("info", model, "--json").out))
    assert record["method"] == "feature-clustering"
    assert len(record["classes"]) <= 4
    (tmp_path / "names.csv").write_text("0,ground\n1,ground\n")
    for source, out in ((again, tmp_path / "named.tif"), (model, tmp_path / "named.safetensors")):
        said = run("name", source, tmp_path / "names.csv", out)
        assert said.out == [str(out)]
        assert "0 ground" in said.err[0]
    assert not (_labels(tmp_path / "named.tif") == 1).any()


# What is printed


def test_progress_is_plain_lines_where_there_is_no_terminal(run: Run, tmp_path: Path, town: Path, made: Path) -> None:
    said = run("predict", town, tmp_path / "a.gpkg", "-m", made / "model.safetensors", "--labels", tmp_path / "a.tif")
    assert "segmenting: 1/1" in said.err
    assert re.search(r"tiles \(\d+\.\d\d times the scene's pixels\) computed in", "\n".join(said.err))
    assert "writing labels: 1/1" in said.err
    assert not any("\x1b" in line or "\r" in line for line in said.err)
    assert said.out == [str(tmp_path / name) for name in ("a.gpkg", "a.tif", "a.qlr")]
    assert all(Path(line).exists() for line in said.out)


def test_quiet_shows_no_progress(run: Run, tmp_path: Path, town: Path, made: Path) -> None:
    said = run("predict", town, tmp_path / "a.gpkg", "-m", made / "model.safetensors", "-q")
    assert len(said.err) == 1
    assert "polygons" in said.err[0]
    assert "/1" not in said.err[0]
    assert said.out == [str(tmp_path / "a.gpkg")]


@pytest.mark.slow
def test_the_demo_makes_all_its_files(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "buildings.gpkg").write_text("of another day, to be replaced")
    said = run("demo", folder)
    names = sorted(p.name for p in folder.iterdir() if p.suffix not in {".xml", ".qml"})
    assert names == sorted(Path(line).name for line in said.out)
    assert {"buildings.gpkg", "buildings.qlr", "labels.tif", "confidence.tif", "preview.png", "map.html"} <= set(names)
    assert set(_read(folder / "buildings.gpkg")["class_name"]) == {"building"}
    assert len(_read(folder / "buildings.gpkg")) > 100
