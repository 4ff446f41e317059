"""Where the scenes of a batch come from, and their names: one plain name each, whatever the input says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.engine.scene_list import list_scenes, plain_name
from geoseg.errors import SceneError


def _touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return paths


def _item(number: str, assets: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "Feature", "id": number, "collection": "c", "properties": {}, "assets": assets, "links": [], **more}


def _items(path: Path, *items: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items), **more}))
    return path


def test_globs_folders_and_paths_each_scene_once(tmp_path: Path) -> None:
    _touch(tmp_path, "b.tif", "a.tif", "deep/c.tif", "notes.md")
    pattern = list_scenes([str(tmp_path / "*.tif")])
    assert [entry.name for entry in pattern] == ["a", "b"]
    assert [entry.source for entry in pattern] == [str(tmp_path / "a.tif"), str(tmp_path / "b.tif")]
    deep = list_scenes([str(tmp_path / "**" / "*.tif"), tmp_path, tmp_path / "b.tif"])
    assert [entry.name for entry in deep] == ["a", "b", "c"]
    (tmp_path / "link.tif").symlink_to(tmp_path / "a.tif")
    assert len(list_scenes([tmp_path / "a.tif", tmp_path / "link.tif"])) == 1


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    _touch(tmp_path, "a[1].tif", "a1.tif")
    assert [entry.source for entry in list_scenes([tmp_path / "a[1].tif"])] == [str(tmp_path / "a[1].tif")]


def test_of_a_folder_with_mosaics_these_alone(tmp_path: Path) -> None:
    _touch(tmp_path, "m1.vrt", "m2.vrt", "part1.tif", "part2.tif")
    assert [entry.name for entry in list_scenes([tmp_path])] == ["m1", "m2"]


def test_lists_are_relative_to_themselves(tmp_path: Path) -> None:
    _touch(tmp_path / "in", "a.tif", "b.tif")
    (tmp_path / "in" / "list.txt").write_text("# the first\na.tif\n\n  b.tif  \nhttps://host/c.tif?token=secret\n")
    entries = list_scenes([tmp_path / "in" / "list.txt"])
    assert [entry.source for entry in entries] == [
        str(tmp_path / "in" / "a.tif"),
        str(tmp_path / "in" / "b.tif"),
        "https://host/c.tif?token=secret",
    ]
    assert entries[2].name == "c"
    assert entries[2].shown == "https://host/c.tif"
    assert "secret" not in entries[2].identity
    (tmp_path / "in" / "list.csv").write_text("\ufeffName,Scene\nfirst one,a.tif\n,b.tif\n")
    assert [entry.name for entry in list_scenes([tmp_path / "in" / "list.csv"])] == ["first_one", "b"]
    (tmp_path / "bad.csv").write_text("what,where\n1,2\n")
    with pytest.raises(SceneError, match=r"bad\.csv has no column called scene"):
        list_scenes([tmp_path / "bad.csv"])


@pytest.mark.parametrize(
    ("given", "message"),
    [("*.tif", r"no file matches .*\*\.tif"), ("none.txt", "none.txt cannot be read"), ("empty", "names no scene")],
)
def test_what_names_nothing_is_refused(tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match=message):
        list_scenes([tmp_path / given])


def test_stac_items_and_their_assets(tmp_path: Path) -> None:
    tif = {"href": "./x/a.tif", "type": "image/tiff; application=geotiff"}
    thumbnail = {"href": "t.tif", "roles": ["thumbnail"]}
    place = _items(
        tmp_path / "items.json",
        _item("one", {"B1": tif, "small": thumbnail}, properties={"datetime": "2024-05-01T00:00:00Z"}),
        _item("two", {"B1": tif, "visual": {"href": "https://host/v.tif"}}),
        _item("three", {"B1": tif, "B2": tif}),
        _item("four", {"doc": {"href": "a.html"}}),
    )
    one, two, three, four = list_scenes([place])
    assert one.source == str(tmp_path / "x" / "a.tif")
    assert one.properties["datetime"] == "2024-05-01T00:00:00Z"
    assert two.source == "https://host/v.tif"
    assert three.fault == "the item 'three' has several rasters (B1, B2): name the asset with --asset."
    assert four.fault is not None
    assert "no raster" in four.fault
    chosen = list_scenes([place], asset="B1")
    assert [entry.fault is None for entry in chosen] == [True, True, True, False]
    assert chosen[3].fault == "the item 'four' has no asset 'B1': it has doc."


@pytest.mark.parametrize(
    "text", ["[1]", "{}", '{"type": "FeatureCollection", "features": [{"type": "Feature"}]}', "<x>"]
)
def test_other_json_is_no_stac(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SceneError, match=r"a\.json is no (STAC|JSON)"):
        list_scenes([tmp_path / "a.json"])


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address it is served at."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_items_over_http_page_by_page_and_nothing_of_this_machine(web: tuple[Path, str]) -> None:
    folder, address = web
    (folder / "deep").mkdir()
    asset = {"href": "a.tif", "type": "image/tiff"}
    _items(folder / "deep" / "one.json", _item("one", {"a": asset}), links=[{"rel": "next", "href": "../two.json"}])
    loop = [{"rel": "next", "href": f"{address}/deep/one.json"}]
    local = {"href": "file:///etc/passwd", "type": "image/tiff"}
    _items(folder / "two.json", _item("two", {"a": asset}), _item("three", {"a": local}), links=loop)
    one, two, three = list_scenes([f"{address}/deep/one.json"])
    assert one.source == f"{address}/deep/a.tif"
    assert two.source == f"{address}/a.tif"
    assert three.fault is not None
    assert "URLs alone" in three.fault
    (folder / "list.txt").write_text("/etc/passwd\n")
    with pytest.raises(SceneError, match="URLs alone"):
        list_scenes([f"{address}/list.txt"])
    with pytest.raises(SceneError, match="404"):
        list_scenes([f"{address}/none.json"])
    posted = [{"rel": "next", "href": f"{address}/x", "method": "POST"}]
    _items(folder / "posted.json", _item("one", {"a": asset}), links=posted)
    with pytest.raises(SceneError, match="posted"):
        list_scenes([f"{address}/posted.json"])


@given(st.text(max_size=300))
def test_a_plain_name_is_one_visible_part_of_a_path(text: str) -> None:
    name = plain_name(text)
    assert Path(name).name == name
    assert not name.startswith((".", "-"))
    assert len(name.encode()) <= 120
    assert not any(letter.isspace() or letter in '/\\:*?"<>|\0' for letter in name)
    assert plain_name(name) == name


def test_names_are_unique_stable_and_not_reserved(tmp_path: Path) -> None:
    paths = _touch(tmp_path, "x/tile.tif", "y/tile.tif", "z/TILE.tif", "report.html.tif")
    entries = list_scenes(paths, reserved=("report.html",))
    names = [entry.name for entry in entries]
    assert names[0] == "tile"
    assert names[1].startswith("tile-")
    assert names[2].startswith("TILE-")
    assert names[3].startswith("report.html-")
    assert len({name.casefold() for name in names}) == 4
    known = {entry.identity: entry.name for entry in entries}
    again = list_scenes([paths[2], paths[1], *_touch(tmp_path, "new/tile.tif"), paths[0]], known=known)
    assert [entry.name for entry in again[:2]] == [names[2], names[1]]
    assert again[3].name == "tile"
    assert again[2].name not in names


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "..", "a/../../b", ".hidden", "", "\x00", "con\n"])
def test_names_in_inputs_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    place = _items(tmp_path / "items.json", _item(name, {"a": {"href": "a.tif", "type": "image/tiff"}}))
    (entry,) = list_scenes([place])
    assert (tmp_path / "out" / entry.name).resolve().parent == (tmp_path / "out").resolve()
    assert entry.name
    assert not entry.name.startswith(".")
