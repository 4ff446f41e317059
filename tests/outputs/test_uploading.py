"""Files made here and put into S3 storage with what belongs beside them."""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from geoseg.classes import Classes
from geoseg.errors import OutputError
from geoseg.outputs.qgis import write_label_style, write_vector_style
from geoseg.outputs.staging import check_place, staged
from geoseg.places import S3Place
from tests.conftest import Storage
from tests.s3_proxy import proxied

CLASSES = Classes.parse("background,roof")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_output_comes_last(storage: Storage, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxied(storage.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with staged(S3Place(storage.bucket, "maps/b.tif")) as file:
            file.write_bytes(b"raster")
            file.with_suffix(".qml").write_bytes(b"style")
            file.with_name("b.tif.aux.xml").write_bytes(b"names")
        puts = [path.rpartition("/")[2] for method, path in proxy.asked if method == "PUT"]
    assert puts == ["b.qml", "b.tif.aux.xml", "b.tif"]
    assert storage.names() == ["maps/b.qml", "maps/b.tif", "maps/b.tif.aux.xml"]
    assert storage.get("maps/b.tif") == b"raster"
    assert list(temporary.iterdir()) == []


def test_what_fails_while_it_is_made_changes_nothing(storage: Storage, temporary: Path) -> None:
    storage.put("b.tif", b"old")
    with pytest.raises(FileNotFoundError), staged(S3Place(storage.bucket, "b.tif")) as file:
        file.write_bytes((file.parent / "not there").read_bytes())
    assert storage.names() == ["b.tif"]
    assert storage.get("b.tif") == b"old"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("fault", ["busy", "drop"])
def test_what_fails_while_it_is_put_leaves_the_old_object(
    storage: Storage, temporary: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    storage.put("b.tif", b"old")
    with proxied(storage.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fault = lambda method, path: fault if method == "PUT" else None
        with (
            pytest.raises(OutputError, match=r"b\.tif cannot be reached because its storage does not answer"),
            staged(S3Place(storage.bucket, "b.tif")) as file,
        ):
            file.write_bytes(b"raster")
    assert storage.get("b.tif") == b"old"
    assert list(temporary.iterdir()) == []


def test_a_new_output_does_not_replace_one_that_came_meanwhile(storage: Storage, temporary: Path) -> None:
    def make() -> None:
        with staged(S3Place(storage.bucket, "b.tif", new=True)) as file:
            file.write_bytes(b"raster")
            file.with_suffix(".qml").write_bytes(b"style")
            storage.put("b.tif", b"another's")

    with pytest.raises(OutputError, match="exists already"):
        make()
    assert storage.names() == ["b.tif"]
    assert storage.get("b.tif") == b"another's"


def test_notes_on_the_old_raster_go_with_it(storage: Storage, temporary: Path) -> None:
    for key in ("b.tif", "b.tif.aux.xml", "b.tif.aux.xml.bak"):
        storage.put(key, b"old")
    with staged(S3Place(storage.bucket, "b.tif")) as file:
        file.write_bytes(b"raster")
    assert storage.names() == ["b.tif", "b.tif.aux.xml.bak"]


def test_one_style_serves_polygons_and_labels(storage: Storage, tmp_path: Path) -> None:
    for name, write in (("b.gpkg", write_vector_style), ("b.tif", write_label_style)):
        with staged(S3Place(storage.bucket, name)) as file:
            file.write_bytes(b"")
            write(file, CLASSES, beside=S3Place(storage.bucket, name))
        write(tmp_path / name, CLASSES)
    style = storage.get("b.qml")
    assert {part.tag for part in ET.fromstring(style)} == {"renderer-v2", "pipe"}
    assert style == (tmp_path / "b.qml").read_bytes()


def test_places_are_refused_before_work(storage: Storage) -> None:
    storage.put("b.tif", b"old")
    there = S3Place(storage.bucket, "b.tif")
    check_place(there, overwrite=True)
    check_place(S3Place(storage.bucket, "c/d.tif"), overwrite=False)
    with pytest.raises(OutputError, match=rf"^{there} exists already: .* --overwrite"):
        check_place(there, overwrite=False)
    with pytest.raises(OutputError, match="is a bucket: give the output a name in it"):
        check_place(S3Place(storage.bucket, ""), overwrite=False)
    with pytest.raises(OutputError, match="there is no bucket nowhere"):
        check_place(S3Place("nowhere", "b.tif"), overwrite=True)
    assert storage.names() == ["b.tif"]


@pytest.mark.parametrize("path", ["s3://bucket/report.json", Path("s3://bucket/report.json"), "gs://b/report.json"])
def test_what_goes_to_folders_only_refuses_addresses(path: str | Path) -> None:
    with pytest.raises(OutputError, match=r"give a path|lost a slash|s3://bucket/name"):
        check_place(path, overwrite=False)
