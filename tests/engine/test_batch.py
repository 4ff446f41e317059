"""Many scenes on one set of workers: what is written, what fails, what is done again, and what is told."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio

import geoseg
from geoseg.engine import cluster
from geoseg.engine.batch import BatchReport
from geoseg.engine.cluster import KeepPlugin
from geoseg.errors import ConfigError, OutputError, RunError
from geoseg.segmenters.interface import Segmenter
from tests.conftest import write_raster

SIDE = 200


def write_scenes(folder: Path, sample: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    """Write scenes of 200 × 200 pixels, each another part of the sample; those that are ``broken`` each in its way."""
    folder.mkdir()
    with rasterio.open(sample) as source:
        for number in range(count):
            row, col = divmod(number, 10)
            place = rasterio.windows.Window(col * SIDE, row * SIDE, SIDE, SIDE)
            path = folder / f"s{number:02d}.tif"
            transform = source.window_transform(place)
            array = source.read(window=place)
            kind = broken.index(number) % 3 if number in broken else None
            if kind == 0:
                path.write_bytes(b"no raster")
            elif kind == 1:
                write_raster(path, array[:2], transform=transform, crs=source.crs)
            elif kind == 2:
                write_raster(path, np.zeros_like(array), transform=transform, crs=source.crs, nodata=0)
            else:
                write_raster(path, array, transform=transform, crs=source.crs)
    return folder


def by_status(report: BatchReport) -> dict[str, list[str]]:
    """Return the names of scenes by status."""
    found: dict[str, list[str]] = {}
    for scene in report.scenes:
        found.setdefault(scene["status"], []).append(scene["name"])
    return found


def changes(folder: Path) -> dict[str, int]:
    """Return when each file was changed."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """Six scenes, the third of which is no raster."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "in", sample, 6, (2,))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, scenes: Path, plain: Path) -> tuple[Path, BatchReport]:
    """The output folder of these, and the report."""
    folder = tmp_path_factory.mktemp("made") / "out"
    return folder, geoseg.batch(scenes, folder, plain, layers=("labels", "confidence"), chunk=100)


def test_a_scene_that_fails_is_told_and_the_others_are_done(made: tuple[Path, BatchReport]) -> None:
    folder, report = made
    assert by_status(report) == {"done": ["s00", "s01", "s03", "s04", "s05"], "failed": ["s02"]}
    failed = report.scenes[2]
    assert "s02.tif is not a raster" in failed["error"]
    assert "same command again" in failed["way_out"]
    assert not (folder / "s02").exists()
    for scene in report.of("done"):
        assert scene["chunks"] == 4
        assert scene["pixels"] == SIDE * SIDE
        assert scene["pixels_per_worker_second"] > 0
        assert all((folder / name).is_file() for name in scene["outputs"])
    assert not list((folder / ".geoseg" / "work").iterdir())


def test_the_files_are_those_of_predict(
    made: tuple[Path, BatchReport], scenes: Path, plain: Path, tmp_path: Path
) -> None:
    folder, _ = made
    names = {"labels": str(tmp_path / "s01_labels.tif"), "confidence": str(tmp_path / "s01_confidence.tif")}
    geoseg.predict(scenes / "s01.tif", tmp_path / "s01.gpkg", plain, chunk=100, **names)
    alone = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    together = {path.name: path.read_bytes() for path in (folder / "s01").iterdir() if path.name != "s01.json"}
    assert together == alone


def test_the_report_says_what_was_found(made: tuple[Path, BatchReport]) -> None:
    folder, report = made
    assert report.files == tuple(
        str(folder / name) for name in ("report.json", "report.csv", "report.html", "collection.json")
    )
    record = json.loads((folder / "report.json").read_text())
    assert record["totals"] == {"scenes": 6, "done": 5, "failed": 1, "pixels": 5 * SIDE * SIDE}
    assert [scene["name"] for scene in record["scenes"]] == [f"s{number:02d}" for number in range(6)]
    with rasterio.open(folder / "s04" / "s04_labels.tif") as file:
        labels = file.read(1)
    areas = record["scenes"][4]["areas_m2"]
    ids = {"background": 0, "roof": 1, "road": 2, "tree": 3, "water": 4}
    total = sum(areas.values())
    for name, value in ids.items():
        assert areas[name] == pytest.approx(total * (labels == value).mean(), rel=1e-3, abs=0.01)
    rows = list(csv.DictReader((folder / "report.csv").open(newline="")))
    assert [row["status"] for row in rows] == ["done", "done", "failed", "done", "done", "done"]
    assert float(rows[4]["background m2"]) == areas["background"]
    assert rows[2]["error"] == record["scenes"][2]["error"]
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "s02.tif is not a raster" in page
    assert "<script" not in page
    assert "src=" not in page


def test_the_collection_is_valid_and_whole(made: tuple[Path, BatchReport]) -> None:
    folder, report = made
    collection = pystac.Collection.from_file(str(folder / "collection.json"))
    items = list(collection.get_items())
    assert [item.id for item in items] == [scene["name"] for scene in report.of("done")]
    for thing in (collection, *items):
        # The schemas of extensions are not to be had offline.
        kind = pystac.STACObjectType.COLLECTION if thing is collection else pystac.STACObjectType.ITEM
        record = json.loads(Path(thing.get_self_href()).read_text())
        pystac.validation.validate_dict(record, kind, "1.1.0", [])
    for item in items:
        assert set(item.assets) == {"polygons", "labels", "confidence", "model"}
        assert all(Path(asset.get_absolute_href()).is_file() for asset in item.assets.values())
        west, south, east, north = item.bbox
        assert 85 < west < east < 86
        assert 27 < south < north < 28
    assert Path(collection.assets["model"].get_absolute_href()).is_file()


def test_a_rerun_touches_only_what_is_missing(
    made: tuple[Path, BatchReport], scenes: Path, plain: Path, tmp_path: Path, sample: Path
) -> None:
    folder, _ = made
    before = changes(folder)
    again = geoseg.batch(scenes, folder, plain, layers=("labels", "confidence"), chunk=100)
    assert by_status(again) == {"kept": ["s00", "s01", "s03", "s04", "s05"], "failed": ["s02"]}
    after = changes(folder)
    reports = {"report.json", "report.csv", "report.html", "collection.json"}
    touched = {name for name, time in after.items() if before.get(name) != time}
    assert touched <= reports | {".geoseg/holder", ".geoseg/lock", ".geoseg/scenes/s02.json"}
    with pytest.raises(OutputError, match=r"5 scenes made with another model or other options.*--overwrite"):
        geoseg.batch(scenes, folder, plain, layers=("labels", "confidence"), chunk=100, blend="hann")
    assert changes(folder)["s00/s00.gpkg"] == before["s00/s00.gpkg"]


def test_what_was_lost_or_changed_is_done_again(tmp_path: Path, scenes: Path, plain: Path) -> None:
    paths = [tmp_path / f"s{number}.tif" for number in range(3)]
    for path, number in zip(paths, (0, 1, 3), strict=True):
        path.write_bytes((scenes / f"s{number:02d}.tif").read_bytes())
    folder = tmp_path / "out"
    geoseg.batch(paths, folder, plain, suffix="geojson")
    (folder / "s0" / "s0.geojson").unlink()
    paths[1].write_bytes((scenes / "s04.tif").read_bytes())
    report = geoseg.batch(paths, folder, plain, suffix="geojson")
    assert by_status(report) == {"done": ["s0", "s1"], "kept": ["s2"]}
    assert by_status(geoseg.batch(paths, folder, plain, suffix="geojson")) == {"kept": ["s0", "s1", "s2"]}
    assert by_status(geoseg.batch(paths[:1], folder, plain, suffix="geojson", overwrite=True)) == {"done": ["s0"]}


def test_a_chunk_that_came_too_late_is_in_nobodys_way(tmp_path: Path, scenes: Path, plain: Path) -> None:
    late = tmp_path / ".geoseg" / "work" / "s00" / "r00000" / "c00000.tif"
    late.parent.mkdir(parents=True)
    late.write_bytes(b"")
    report = geoseg.batch([scenes / "s00.tif"], tmp_path, plain, suffix=".tif")
    assert by_status(report) == {"done": ["s00"]}
    assert report.scenes[0]["chunks_found_done"] == 0


def test_files_of_somebody_else_are_not_replaced(tmp_path: Path, scenes: Path, plain: Path) -> None:
    (tmp_path / "s00").mkdir()
    precious = tmp_path / "s00" / "s00.gpkg"
    precious.write_text("precious")
    for _ in range(2):
        report = geoseg.batch([scenes / "s00.tif"], tmp_path, plain)
        assert by_status(report) == {"failed": ["s00"]}
        assert "exists already" in report.scenes[0]["error"]
        assert precious.read_text() == "precious"


def test_a_report_of_somebody_else_is_not_replaced(tmp_path: Path, scenes: Path, plain: Path) -> None:
    (tmp_path / "collection.json").write_text("precious")
    with pytest.raises(OutputError, match=r"collection\.json is of no batch"):
        geoseg.batch(scenes, tmp_path, plain)
    assert [path.name for path in tmp_path.iterdir()] == ["collection.json"]


def test_one_batch_at_a_time(tmp_path: Path, scenes: Path, plain: Path) -> None:
    (tmp_path / ".geoseg").mkdir()
    with open(tmp_path / ".geoseg" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (tmp_path / ".geoseg" / "holder").write_text("process 1 on elsewhere")
        with pytest.raises(RunError, match=r"in use by process 1 on elsewhere.*another output folder"):
            geoseg.batch(scenes, tmp_path, plain)
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "a.tif"}, "names its files itself"),
        ({"suffix": ".doc"}, r"\.doc is no format"),
        ({"layers": ("lables",)}, "'lables'"),
        ({"simplify": -1.0}, "--simplify"),
        ({"device": "abacus"}, "abacus"),
        ({"resource": "GPU=1"}, "--scheduler"),
    ],
    ids=str,
)
def test_what_is_wrong_for_all_is_refused_before_work(
    tmp_path: Path, scenes: Path, plain: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        geoseg.batch(scenes, tmp_path / "out", plain, **options)
    assert not (tmp_path / "out" / "s00").exists()


def test_progress_counts_scenes_and_chunks(tmp_path: Path, scenes: Path, plain: Path) -> None:
    told: list[tuple[str, int, int]] = []
    geoseg.batch(
        [scenes / "s00.tif", scenes / "s01.tif"], tmp_path, plain, progress=lambda *step: told.append(step), chunk=100
    )
    assert told[-1] == ("scenes", 2, 2)
    assert ("scenes", 0, 2) in told
    assert [step for step in told if step[0] == "chunks"][-1] == ("chunks", 8, 8)


def fail_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every chunk of the second row fail."""
    from geoseg.engine import chunk

    whole = chunk.segment_chunk

    def failing(plan: Any, runner: Any, number: int, *more: Any) -> Any:
        if plan.chunks.window(number).row:
            raise RuntimeError("a cosmic ray")
        return whole(plan, runner, number, *more)

    monkeypatch.setattr(chunk, "segment_chunk", failing)


def test_holes_are_left_only_if_allowed_and_filled_by_a_rerun(
    tmp_path: Path, scenes: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, folder = [scenes / "s03.tif"], tmp_path / "out"
    options: dict[str, Any] = {"suffix": ".tif", "chunk": 100}
    whole = geoseg.predict(scene[0], tmp_path / "whole.tif", plain, chunk=100).files[0]
    with monkeypatch.context() as patch:
        fail_second(patch)
        report = geoseg.batch(scene, folder, plain, **options)
        assert by_status(report) == {"failed": ["s03"]}
        assert "--allow-holes" in report.scenes[0]["error"]
        assert not (folder / "s03" / "s03.tif").exists()
        report = geoseg.batch(scene, folder, plain, allow_holes=True, **options)
    assert by_status(report) == {"holes": ["s03"]}
    assert len(report.scenes[0]["holes"]) == 2
    assert {hole["cause"] for hole in report.scenes[0]["holes"]} == {"a cosmic ray"}
    with rasterio.open(folder / "s03" / "s03.tif") as file, rasterio.open(whole) as expected:
        labels, wanted = file.read(1), expected.read(1)
    first = next(row for row in range(SIDE) if labels[row, 0] == 255)
    assert 0 < first < SIDE
    assert (labels[first:] == 255).all()
    np.testing.assert_array_equal(labels[:first], wanted[:first])
    report = geoseg.batch(scene, folder, plain, **options)
    assert by_status(report) == {"done": ["s03"]}
    assert report.scenes[0]["chunks_found_done"] == 2
    with rasterio.open(folder / "s03" / "s03.tif") as file:
        np.testing.assert_array_equal(file.read(1), wanted)


def test_predict_leaves_holes_if_allowed(
    tmp_path: Path, scenes: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_second(monkeypatch)
    with pytest.raises(RunError, match=r"2 of 4 chunks failed.*--allow-holes"):
        geoseg.predict(scenes / "s03.tif", tmp_path / "a.tif", plain, chunk=100)
    assert not (tmp_path / "a.tif").exists()
    report = geoseg.predict(scenes / "s03.tif", tmp_path / "a.tif", plain, chunk=100, allow_holes=True)
    assert [number for number, _ in report.holes] == [2, 3]
    assert "a cosmic ray" in report.notes[-1]


def test_workers_keep_the_last_model_as_long_as_it_is_wanted(tmp_path: Path, scenes: Path, plain: Path) -> None:
    kept = KeepPlugin("wanted")
    kept.setup(None)
    geoseg.predict(scenes / "s00.tif", tmp_path / "a.tif", plain)
    (model,) = cluster._KEPT["wanted"]
    assert isinstance(model, Segmenter)
    kept.teardown(None)
    assert not cluster._KEPT


@pytest.mark.dist
@pytest.mark.slow
def test_a_chunk_that_kills_its_workers_costs_its_scene_alone(tmp_path: Path, plain: Path) -> None:
    class Deadly(type(geoseg.load(plain))):  # type: ignore[misc]
        """A network that a tile of pixels of 250 kills."""

        def segment(self, tiles: Any, state: Any) -> Any:
            if bool((tiles.pixels == 250).all()):
                os.kill(os.getpid(), 9)
            return super().segment(tiles, state)

    model = geoseg.load(plain)
    model.__class__ = Deadly
    paths = []
    for number in range(3):
        array = np.arange(3 * 300 * 120, dtype=np.uint32).reshape(3, 300, 120) % (200 + number)
        if number == 1:
            array[:, :130] = 250
        paths.append(write_raster(tmp_path / f"s{number}.tif", array.astype(np.uint8)))
    options: dict[str, Any] = {"suffix": ".tif", "chunk": 100, "workers": 2}
    report = geoseg.batch(paths, tmp_path / "out", model, **options)
    assert by_status(report) == {"done": ["s0", "s2"], "failed": ["s1"]}
    error = report.scenes[1]["error"]
    assert "1 of " in error
    assert "rows 0-" in error
    assert "workers that it was given to alone died" in error
    report = geoseg.batch(paths, tmp_path / "out", model, allow_holes=True, **options)
    assert report.scenes[1]["status"] == "holes"
    assert [hole["chunk"] for hole in report.scenes[1]["holes"]] == [0]
    with rasterio.open(tmp_path / "out" / "s1" / "s1.tif") as file:
        labels = file.read(1)
    assert (labels[:50] == 255).all()
    assert (labels[-50:] != 255).all()


def _command(scenes: Path, folder: Path, model: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "geoseg_cli", "batch", str(scenes), str(folder), "-m", str(model), *more]


@pytest.mark.dist
@pytest.mark.slow
def test_sixty_scenes_with_three_broken_ones_on_two_workers(tmp_path: Path, sample: Path, plain: Path) -> None:
    scenes = write_scenes(tmp_path / "in", sample, 60, (7, 31, 58))
    command = _command(scenes, tmp_path / "out", plain, "--workers", "2", "--format", "tif")
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1
    assert "57 of 60 scenes are done, 3 failed" in done.stderr
    assert "Traceback" not in done.stderr
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["totals"] == {"scenes": 60, "done": 57, "failed": 3, "pixels": 57 * SIDE * SIDE}
    failed = {scene["name"]: scene for scene in record["scenes"] if scene["status"] == "failed"}
    wanted = {"s07": "not a raster", "s31": "has 2 bands", "s58": "no valid pixel"}
    assert set(failed) == set(wanted)
    for name, text in wanted.items():
        assert text in failed[name]["error"]
        assert failed[name]["way_out"]
    before = changes(tmp_path / "out")
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1
    assert "57 of 60 scenes are done, 57 of them before, 3 failed" in done.stderr
    touched = {name.split("/")[-1] for name, time in changes(tmp_path / "out").items() if before.get(name) != time}
    own = {"report.json", "report.csv", "report.html", "collection.json", "holder", "lock"}
    assert touched - own <= {"s07.json", "s31.json", "s58.json"}


@pytest.mark.dist
@pytest.mark.slow
def test_killed_and_run_again_it_goes_on(tmp_path: Path, sample: Path, make_bundle: Callable[..., Path]) -> None:
    model = make_bundle("plainconv", tile=128, options={"width": 64, "depth": 5})
    scenes = write_scenes(tmp_path / "in", sample, 8)
    command = _command(scenes, tmp_path / "out", model, "--chunk", "60", "--format", "geojson")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 600
    records = tmp_path / "out" / ".geoseg" / "scenes"
    while time.monotonic() < deadline and process.poll() is None:
        if sum('"status": "done"' in path.read_text() for path in records.glob("*.json")) >= 2:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    again = geoseg.batch(scenes, tmp_path / "out", model, chunk=60, suffix=".geojson")
    assert set(by_status(again)) == {"kept", "done"}
    fresh = geoseg.batch(scenes, tmp_path / "fresh", model, chunk=60, suffix=".geojson")
    for scene in fresh.scenes:
        name = f"{scene['name']}/{scene['name']}.geojson"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
