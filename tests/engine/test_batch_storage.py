"""A batch whose output folder is in S3 storage: what is written there, what is done again, who may write."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pystac
import pytest

import geoseg
from geoseg.engine.batch import BatchReport
from geoseg.engine.lease import leased
from geoseg.errors import OutputError, RunError
from geoseg.places import S3Place
from tests.conftest import Storage
from tests.engine.test_batch import by_status, write_scenes
from tests.engine.test_lease import waiting

OPTIONS = {"layers": ("labels", "confidence"), "chunk": 100}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """Four scenes, the third of which is no raster."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "in", sample, 4, (2,))


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, scenes: Path, plain: Path) -> Path:
    """The output folder of a batch on the disk."""
    folder = tmp_path_factory.mktemp("near") / "out"
    geoseg.batch(scenes, folder, plain, **OPTIONS)
    return folder


def changes(storage: Storage) -> dict[str, datetime]:
    """Return the upload that made each object, by key."""
    answer = {key: storage.client.head_object(Bucket=storage.bucket, Key=key) for key in storage.names()}
    return {key: found["Metadata"].get("geoseg-upload", "") for key, found in answer.items()}


def run(storage: Storage, scenes: Path, plain: Path, **more: object) -> BatchReport:
    return geoseg.batch(scenes, storage / "all/out", plain, **{**OPTIONS, **more})


def test_a_batch_goes_there_and_again_does_only_what_is_missing(
    storage: Storage, scenes: Path, plain: Path, near: Path, tmp_path: Path
) -> None:
    report = run(storage, scenes, plain)
    assert by_status(report) == {"done": ["s00", "s01", "s03"], "failed": ["s02"]}
    assert report.folder == storage / "all/out"
    keys = {key.removeprefix("all/out/") for key in storage.names()}
    files = {file.relative_to(near).as_posix() for file in near.rglob("*") if file.is_file()}
    assert keys == files - {".geoseg/holder"}
    for name in keys:
        # A .qlr there leaves out the scene, which is on this machine.
        if Path(name).suffix in {".gpkg", ".tif", ".qml", ".xml"}:
            assert storage.get(f"all/out/{name}") == (near / name).read_bytes()
    work = tmp_path / "cache" / "work"
    assert [path.name for folder in work.iterdir() for path in folder.iterdir()] == []

    before = changes(storage)
    assert by_status(run(storage, scenes, plain)) == {"kept": ["s00", "s01", "s03"], "failed": ["s02"]}
    told = {f"all/out/{name}" for name in ("report.json", "report.csv", "report.html", "collection.json")}
    told |= {"all/out/.geoseg/lock", "all/out/.geoseg/scenes/s02.json"}
    assert {key for key, time in changes(storage).items() if before.get(key) != time} == told

    with pytest.raises(OutputError, match=r"3 scenes made with another model or other options.*--overwrite"):
        run(storage, scenes, plain, blend="hann")
    storage.client.delete_object(Bucket=storage.bucket, Key="all/out/s01/s01_labels.tif")
    assert by_status(run(storage, scenes, plain)) == {"done": ["s01"], "kept": ["s00", "s03"], "failed": ["s02"]}
    assert storage.get("all/out/s01/s01_labels.tif") == (near / "s01" / "s01_labels.tif").read_bytes()


@pytest.mark.slow
def test_the_collection_is_valid_and_leads_to_its_files(
    storage: Storage, scenes: Path, plain: Path, tmp_path: Path
) -> None:
    run(storage, [scenes / "s00.tif"], plain)
    for key in storage.names():
        place = tmp_path / "copy" / key
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(storage.get(key))
    collection = pystac.Collection.from_file(str(tmp_path / "copy" / "all" / "out" / "collection.json"))
    (item,) = collection.get_items()
    for thing, kind in ((collection, pystac.STACObjectType.COLLECTION), (item, pystac.STACObjectType.ITEM)):
        pystac.validation.validate_dict(json.loads(Path(thing.get_self_href()).read_text()), kind, "1.1.0", [])
    assert item.collection_id == collection.id == "out"
    assert {"polygons", "labels", "confidence"} <= set(item.assets)
    assert all(Path(item.assets[name].get_absolute_href()).is_file() for name in ("polygons", "labels", "confidence"))
    assert collection.assets["model"].href == Path(plain).as_uri()


def test_objects_of_somebody_else_are_not_replaced(storage: Storage, scenes: Path, plain: Path) -> None:
    storage.put("all/out/s00/s00.gpkg", b"precious")
    for _ in range(2):
        report = run(storage, [scenes / "s00.tif"], plain)
        assert "exists already" in report.scenes[0]["error"]
    assert storage.get("all/out/s00/s00.gpkg") == b"precious"
    storage.put("other/report.json", b"precious")
    with pytest.raises(OutputError, match=r"report\.json is of no batch"):
        geoseg.batch([scenes / "s00.tif"], storage / "other", plain)


def test_a_damaged_record_is_told(storage: Storage, scenes: Path, plain: Path) -> None:
    storage.put("all/out/.geoseg/scenes/s00.json", b"{")
    with pytest.raises(RunError, match=r"^s3://.*/scenes/s00\.json is damaged .*delete it"):
        run(storage, [scenes / "s00.tif"], plain)


@pytest.mark.slow
def test_a_folder_in_use_is_refused(storage: Storage, scenes: Path, plain: Path) -> None:
    with (
        leased(S3Place(storage.bucket, "all/out/.geoseg"), ""),
        waiting(),
        pytest.raises(RunError, match=r"is in use by process .*give this one another output folder"),
    ):
        run(storage, scenes, plain)


@pytest.mark.slow
def test_chunks_of_a_batch_may_lie_there_too(storage: Storage, scenes: Path, plain: Path, near: Path) -> None:
    report = run(storage, scenes, plain, workdir=storage / "work")
    assert by_status(report)["done"] == ["s00", "s01", "s03"]
    assert storage.get("all/out/s03/s03.gpkg") == (near / "s03" / "s03.gpkg").read_bytes()
    assert storage.names("work/") == []
