"""Runs whose outputs and chunks lie in S3 storage, on a real server: the bytes of a run on a disk."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import geoseg
from geoseg.engine.lease import leased
from geoseg.engine.object_store import ObjectStore
from geoseg.engine.vectorize import vectorize
from geoseg.errors import ConfigError, OutputError, RunError
from geoseg.grid import ChunkGrid
from geoseg.places import S3Place
from tests.conftest import Storage
from tests.engine.conftest import OUTPUTS, predict_command
from tests.engine.test_clustering import QUICK
from tests.engine.test_lease import waiting

RASTERS = ("labels.tif", "uncertainty.tif")
DASK = (sys.executable, "-m", "dask")


def beside(place: str) -> dict[str, str]:
    """Return the options that write every raster into a place."""
    return {name: f"{place}/{name}.tif" for name in ("labels", "confidence", "uncertainty")}


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, town: Path, plain: Path) -> dict[str, bytes]:
    """All files of a run on the disk, by name."""
    folder = tmp_path_factory.mktemp("near")
    geoseg.predict(town, folder / "out.gpkg", plain, chunk=256, **beside(str(folder)))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_all_outputs_are_those_of_a_folder(
    storage: Storage, tmp_path: Path, town: Path, plain: Path, near: dict[str, bytes]
) -> None:
    report = geoseg.predict(town, storage / "maps/out.gpkg", plain, chunk=256, **beside(storage / "maps"))
    there = {key.removeprefix("maps/"): storage.get(key) for key in storage.names()}
    # Others who open the bucket would not find a scene of this machine.
    assert (b"town.tif" in near["out.qlr"], b"town.tif" in there["out.qlr"]) == (True, False)
    assert all(f"./{name}.tif".encode() in there["out.qlr"] for name in ("labels", "confidence", "uncertainty"))
    assert there | {"out.qlr": b""} == near | {"out.qlr": b""}
    names = ("out.gpkg", "labels.tif", "confidence.tif", "uncertainty.tif", "out.qlr")
    assert report.files == tuple(storage / f"maps/{name}" for name in names)
    assert storage.unfinished() == 0
    assert list((tmp_path / "cache" / "work").iterdir()) == []


def test_what_is_there_is_replaced_only_if_asked_for(
    storage: Storage, town: Path, plain: Path, near: dict[str, bytes]
) -> None:
    storage.put("labels.tif", b"old")
    for outputs in ({"labels": storage / "labels.tif"}, {"labels": None}):
        out = storage / ("out.gpkg" if outputs["labels"] else "labels.tif")
        with pytest.raises(OutputError, match=r"^s3://.*labels\.tif exists already: .*--overwrite"):
            geoseg.predict(town, out, plain, chunk=256, **outputs)
    assert storage.names() == ["labels.tif"]
    geoseg.predict(town, storage / "labels.tif", plain, chunk=256, overwrite=True)
    assert storage.get("labels.tif") == near["labels.tif"]


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", ".fgb", ".parquet"])
def test_every_format_of_polygons_goes_there(
    storage: Storage, tmp_path: Path, near: dict[str, bytes], suffix: str
) -> None:
    (tmp_path / "labels.tif").write_bytes(near["labels.tif"])
    storage.put("labels.tif", near["labels.tif"])
    vectorize(tmp_path / "labels.tif", tmp_path / f"out{suffix}")
    vectorize(storage / "labels.tif", storage / f"out{suffix}")
    assert storage.get(f"out{suffix}") == (tmp_path / f"out{suffix}").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        vectorize(storage / "labels.tif", storage / f"out{suffix}")


@pytest.mark.slow
def test_segments_go_there(storage: Storage, tmp_path: Path, part: Path) -> None:
    settings = QUICK["feature-clustering"]
    geoseg.cluster(part, tmp_path / "out.gpkg", settings=settings)
    geoseg.cluster(part, storage / "out.gpkg", settings=settings)
    assert storage.get("out.gpkg") == (tmp_path / "out.gpkg").read_bytes()
    with pytest.raises(OutputError, match="object storage"):
        geoseg.cluster(part, storage / "new.gpkg", settings=settings, save_model=storage / "model.safetensors")


def test_the_scene_is_not_overwritten(storage: Storage, town: Path, plain: Path) -> None:
    storage.put("town.tif", town.read_bytes())
    for scene in (storage / "town.tif", f"/vsis3/{storage.bucket}/town.tif"):
        with pytest.raises(OutputError, match="is the scene itself"):
            geoseg.predict(scene, storage / "town.tif", plain, overwrite=True)
    assert storage.get("town.tif") == town.read_bytes()


@pytest.mark.parametrize("out", ["gs://bucket/out.gpkg", "https://host/out.gpkg", "/vsis3/bucket/out.gpkg"])
def test_other_addresses_are_refused(tmp_path: Path, town: Path, plain: Path, out: str) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: geoseg.predict(town, out, plain),
        lambda: geoseg.predict(town, tmp_path / "out.gpkg", plain, labels=out.replace("gpkg", "tif")),
        lambda: geoseg.predict(town, tmp_path / "out.gpkg", plain, workdir=out),
        lambda: geoseg.batch([town], out, plain),
        lambda: vectorize(town, out),
    )
    for call in calls:
        with pytest.raises(OutputError, match=r"s3://bucket/") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_chunks_are_kept_there_and_gone_on_with(
    storage: Storage, tmp_path: Path, town: Path, plain: Path, near: dict[str, bytes]
) -> None:
    out = tmp_path / "labels.tif"
    options = {"workdir": storage / "work", "chunk": 256, "uncertainty": str(tmp_path / "uncertainty.tif")}
    first = geoseg.predict(town, out, plain, **options)
    assert {name: (tmp_path / name).read_bytes() for name in RASTERS} == {name: near[name] for name in RASTERS}
    chunks = [key for key in storage.names("work/") if "/c" in key]
    assert len(chunks) == len([key for key in storage.names("work/") if "/u" in key]) == first.chunks == 6
    storage.client.delete_object(Bucket=storage.bucket, Key=chunks[2])
    options["overwrite"] = True
    assert geoseg.predict(town, out, plain, **options).resumed == 5
    assert {name: (tmp_path / name).read_bytes() for name in RASTERS} == {name: near[name] for name in RASTERS}
    with pytest.raises(RunError, match=rf"^{storage / 'work'} holds the chunks of another run .*--fresh"):
        geoseg.predict(town, out, plain, **{**options, "chunk": 128})


@pytest.mark.slow
def test_chunks_of_another_run_are_thrown_away_if_asked_for(
    storage: Storage, tmp_path: Path, town: Path, plain: Path, near: dict[str, bytes]
) -> None:
    out, options = tmp_path / "labels.tif", {"workdir": storage / "work", "overwrite": True}
    geoseg.predict(town, out, plain, **options, chunk=128)
    again = geoseg.predict(town, out, plain, **options, chunk=256, fresh=True)
    assert (again.resumed, again.chunks) == (0, 6)
    assert len([key for key in storage.names("work/") if "/c" in key]) == 6
    assert out.read_bytes() == near["labels.tif"]


def test_a_prefix_of_somebody_else_is_left_alone(storage: Storage, tmp_path: Path, town: Path, plain: Path) -> None:
    storage.put("work/r00000/precious.tif", b"precious")
    for fresh in (False, True):
        with pytest.raises(RunError, match=r"is not a work folder of geoseg .*precious"):
            geoseg.predict(town, tmp_path / "out.gpkg", plain, workdir=storage / "work", fresh=fresh)
    assert storage.get("work/r00000/precious.tif") == b"precious"
    with pytest.raises(ConfigError, match="a whole bucket: give a name in it"):
        geoseg.predict(town, tmp_path / "out.gpkg", plain, workdir=f"s3://{storage.bucket}")
    with pytest.raises(OutputError, match="there is no bucket nowhere"):
        geoseg.predict(town, tmp_path / "out.gpkg", plain, workdir="s3://nowhere/work")
    assert not (tmp_path / "out.gpkg").exists()


def test_a_key_that_leads_elsewhere_is_not_followed(storage: Storage) -> None:
    names = ("r00000/c00000.tif", "r00000/u00000.tif", "r00000/../../stray.tif", "r/../../stray.tif", "r00000/other")
    for name in names:
        storage.put(f"work/{name}", name.encode())
    store = ObjectStore(S3Place(storage.bucket, "work"), ChunkGrid((200, 200), 100))
    assert store.done() == {0}
    with store.here() as local:
        found = {path.relative_to(local.folder).as_posix() for path in local.folder.rglob("*") if path.is_file()}
        assert found == set(names[:2])
        assert local.path(0).read_bytes() == names[0].encode()
        assert not (local.folder.parent / "stray.tif").exists()
    assert not local.folder.exists()


@pytest.mark.slow
def test_a_store_in_use_is_refused(storage: Storage, tmp_path: Path, town: Path, plain: Path) -> None:
    told = rf"^{storage / 'work'} is in use by process {os.getpid()} on .*give this one another --workdir"
    with leased(S3Place(storage.bucket, "work"), ""), waiting(), pytest.raises(RunError, match=told):
        geoseg.predict(town, tmp_path / "out.gpkg", plain, workdir=storage / "work")
    geoseg.predict(town, tmp_path / "out.gpkg", plain, workdir=storage / "work")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["storage", "folder"])
def test_a_killed_run_goes_on(
    storage: Storage, tmp_path: Path, town: Path, slow_model: Path, undisturbed: dict[str, bytes], place: str
) -> None:
    """Chunks in storage, or, by default, in a folder of this machine that belongs to the output."""
    command = predict_command(tmp_path, town, slow_model)
    command = [part.replace(str(tmp_path), storage / "maps") for part in command]
    work = ["--workdir", storage / "work"] if place == "storage" else []

    def chunks() -> int:
        if place == "storage":
            return len([key for key in storage.names("work/") if "/c" in key])
        return len(list((tmp_path / "cache").glob("work/*/r*/c*.tif")))

    process = subprocess.Popen([*command, *work], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while chunks() < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert storage.names("maps/") == []
    again = subprocess.run([*command, *work], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    found = re.search(r"(\d+) of them found done", again.stderr)
    assert found is not None
    assert int(found[1]) >= 3
    assert {name: storage.get(f"maps/{name}") for name in OUTPUTS} == undisturbed


@pytest.fixture
def dask_cluster(storage: Storage, tmp_path: Path) -> Iterator[str]:
    """The address of a scheduler with two worker processes, which know the storage by their environment."""
    file = tmp_path / "scheduler.json"
    commands = [
        [*DASK, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)],
        *[[*DASK, "worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny", "--no-dashboard"]] * 2,
    ]
    processes = []
    for command in commands:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, cwd=tmp_path, **quiet))
    try:
        yield str(file)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("named", [True, False])
def test_workers_elsewhere_need_nothing_but_the_storage(
    storage: Storage,
    tmp_path: Path,
    town: Path,
    slow_model: Path,
    undisturbed: dict[str, bytes],
    dask_cluster: str,
    named: bool,
) -> None:
    storage.put("scenes/town.tif", town.read_bytes())
    command = predict_command(tmp_path, storage / "scenes/town.tif", slow_model, "--scheduler", dask_cluster)
    command = [part.replace(f"{tmp_path}/", storage / "maps/") if part.endswith(OUTPUTS) else part for part in command]
    deadline = time.monotonic() + 60
    while not Path(dask_cluster).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    more = ["--workdir", storage / "work"] if named else []
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {name: storage.get(f"maps/{name}") for name in OUTPUTS} == undisturbed
    assert bool([key for key in storage.names("work/") if "/c" in key]) == named
    assert storage.names("maps/.") == []
    assert not (tmp_path / "cache" / "work").exists()
