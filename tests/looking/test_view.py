"""The page that is written: what is in it, what is not, and where it goes."""

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
import zlib
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from PIL import Image

import geoseg
from geoseg.errors import ConfigError, OutputError, SceneError
from geoseg.looking.frame import HALF_M, Frame
from geoseg.looking.pictures import ScenePicture, pixel_of
from geoseg.looking.serving import MapServer
from geoseg.looking.tiles import write_tiles
from geoseg.outputs.cog import write_label_cog
from tests.conftest import asymmetric, write_raster
from tests.looking.conftest import BLUE, GREY, HOSTILE, RED
from tests.serving import at_work


class Elements(HTMLParser):
    """The elements of a page, and what stands in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


def read(path):
    return Elements(path.read_text("utf-8"))


def test_the_page_holds_scene_labels_confidence_and_polygons(run, tmp_path):
    looked = geoseg.view([run.polygons, run.labels, run.confidence], tmp_path / "map.html", scene=run.scene)
    assert looked.file == tmp_path / "map.html"
    assert looked.notes == ()
    data = read(looked.file).data
    assert [(item["name"], item["color"], item["count"]) for item in data["classes"]] == [
        (HOSTILE, "#00c800", 1),
        ("Wäldchen & 森", "#ffdc00", 1),
    ]
    assert data["classes"][1]["area_m2"] == pytest.approx(1500, rel=1e-3)
    assert data["scenes"][0]["picture"].startswith("data:image/webp;base64,")
    labels, confidence = data["rasters"]
    width, height = labels["size"]
    values = np.frombuffer(zlib.decompress(base64.b64decode(labels["values"])), np.uint8).reshape(height, width)
    pixel = (labels["bounds"][2] - labels["bounds"][0]) / width
    expected = np.array([(run.values == value).sum() for value in (1, 7)]) * 0.5**2
    ground = pixel**2 * np.cos(np.radians(27.65)) ** 2
    assert np.array([(values == 2).sum(), (values == 3).sum()]) * ground == pytest.approx(expected, rel=0.02)
    assert labels["classes"][:4] == [None, None, 0, 1]
    assert labels["sure"] is not None
    assert (confidence["name"], len(confidence["ramp"])) == ("confidence", 5)
    sure = np.frombuffer(zlib.decompress(base64.b64decode(confidence["values"])), np.uint8)
    assert set(np.unique(sure)) == {0, 41, 81, 91}


def test_no_name_becomes_markup_and_no_other_script_may_run(run, tmp_path):
    polygons = tmp_path / f"{'<img src=x onerror=alert(1)>'}.gpkg"
    shutil.copy(run.polygons, polygons)
    page = read(geoseg.view(polygons, tmp_path / "map.html").file)
    tags = [tag for tag, _ in page.found]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert [a for tag, a in page.found if tag == "script"] == [{"type": "application/json", "id": "data"}, {}, {}]
    (policy,) = (a["content"] for tag, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.endswith("img-src data:")
    # Nothing is loaded from elsewhere: addresses are to be read by people only.
    loaded = [a.get("src") or a.get("href") for tag, a in page.found if tag in {"script", "link", "img", "iframe"}]
    assert set(loaded) <= {None, "data:,"}


@pytest.mark.slow
def test_a_map_that_lacks_polygons_says_so_and_shows_labels_first(run, tmp_path):
    rows = np.arange(340)[:, None] * 340 + np.arange(340)
    chequered = np.where((rows // 340 + rows) % 2, 1, 7).astype(np.uint8)
    chequered[:100, :200] = 1
    write_raster(tmp_path / "v.tif", chequered, nodata=255)
    write_label_cog(tmp_path / "v.tif", tmp_path / "labels.tif", run.classes)
    count = geoseg.vectorize(tmp_path / "labels.tif", tmp_path / "map.gpkg")
    assert 60_000 < count < 100_000
    whole = geoseg.view([tmp_path / "map.gpkg", tmp_path / "labels.tif"], scene=run.scene)
    assert whole.notes == ()
    assert read(whole.file).data["labels first"] is False
    twice = [tmp_path / "map.gpkg", tmp_path / "again.gpkg", tmp_path / "labels.tif"]
    shutil.copy(twice[0], twice[1])
    looked = geoseg.view(twice, tmp_path / "half.html", scene=run.scene)
    data = read(looked.file).data
    assert [file["count"] for file in data["polygons"]] == [50_000, 50_000]
    told = f"{count - 50_000:,} smaller polygons of map.gpkg are not shown"
    assert looked.notes[0].startswith(told)
    assert "% of the area: the map has room for 50,000, the file has them all." in looked.notes[0]
    assert data["notes"] == list(looked.notes)
    assert data["labels first"] is True


def test_the_library_comes_with_its_licence(run, tmp_path):
    text = geoseg.view(run.polygons, tmp_path / "map.html").file.read_text("utf-8")
    assert "BSD 2-Clause License" in text
    assert "Redistributions of source code must retain the above copyright" in text
    assert "sourceMappingURL" not in text


def test_without_a_scene_a_note_says_how_to_name_it(run, tmp_path):
    shutil.copy(run.polygons, tmp_path)
    looked = geoseg.view(tmp_path / "map.gpkg")
    assert looked.file == tmp_path / "map.html"
    assert looked.notes == ("no scene is shown below the outputs: name it with --scene.",)
    assert read(looked.file).data["scenes"] == []


def test_polygons_without_a_crs_are_shown_as_pixels(raster, tmp_path):
    labels = np.zeros((30, 40), np.uint8)
    labels[2:6, 10:30] = 1
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        path = raster(labels, crs=None, transform=Affine.identity())
    geoseg.vectorize(path, tmp_path / "map.gpkg", pixel_coordinates=True, only=["1"])
    data = read(geoseg.view(tmp_path / "map.gpkg").file).data
    assert data["mercator"] is False
    assert data["bounds"] == [10, -6, 30, -2]
    geoseg.preview(tmp_path / "map.gpkg")
    with pytest.raises(SceneError, match="has no CRS, so it cannot be laid over files that have one"):
        geoseg.view(tmp_path / "map.gpkg", tmp_path / "x.html", scene=raster(asymmetric(3, 30, 40), name="s.tif"))


def test_where_the_map_goes_is_checked_before_any_work(run, tmp_path):
    with pytest.raises(ConfigError, match=r"let its name end in \.html"):
        geoseg.view(run.polygons, tmp_path / "map.png")
    page = tmp_path / "map.html"
    page.write_text("older")
    with pytest.raises(OutputError, match="exists already"):
        geoseg.view(run.polygons, page)
    with pytest.raises(OutputError, match="does not exist"):
        geoseg.view(run.polygons, tmp_path / "none" / "map.html")
    geoseg.view(run.polygons, page, overwrite=True)
    assert page.read_text().startswith("<!doctype html>")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.doc").touch()
    with pytest.raises(OutputError, match="holds other files than a map"):
        geoseg.view(run.polygons, tmp_path / "folder", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["folder", "map.html"]


def test_a_folder_holds_a_page_and_tiles_and_is_replaced_when_asked(run, tmp_path):
    looked = geoseg.view(run.polygons, tmp_path / "map", scene=run.scene)
    assert looked.file == tmp_path / "map" / "index.html"
    page = read(looked.file)
    scene = page.data["scenes"][0]
    assert scene["tiles"] == "tiles/0/{z}/{x}/{y}.webp"
    (policy,) = (a["content"] for tag, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.endswith("img-src data: 'self' file:")
    tiles = sorted((tmp_path / "map" / "tiles").rglob("*.webp"))
    assert {int(tile.parts[-3]) for tile in tiles} == set(range(scene["zooms"][0], scene["zooms"][1] + 1))
    with pytest.raises(OutputError, match="exists already"):
        geoseg.view(run.polygons, tmp_path / "map", scene=run.scene)
    geoseg.view(run.polygons, tmp_path / "map", overwrite=True)
    assert sorted(os.listdir(tmp_path / "map")) == ["index.html"]
    assert os.listdir(tmp_path) == ["map"]


def test_tiles_lie_where_every_web_map_has_them(run, tmp_path):
    scene = ScenePicture.open(str(run.scene))
    steps = []
    told = write_tiles(scene, Frame(0), tmp_path / "t", "t", lambda done, of: steps.append((done, of)))
    assert steps[-1][0] == steps[-1][1] == len(steps)
    zoom = told["zooms"][1]
    side = 2 * HALF_M / 2**zoom
    _, pixel = pixel_of(scene.lonlat, scene.scene.shape, Frame(0), 10**9)
    assert pixel / 2 < side / 256 < 1.3 * pixel
    # The middle of the block of blue, from the pixel of the scene.
    x, y = scene.scene.geobox.affine * (230, 90)
    x, y = pyproj.Transformer.from_crs(32645, 3857, always_xy=True).transform(x, y)
    col, row = (x + HALF_M) / side, (HALF_M - y) / side
    with Image.open(tmp_path / "t" / str(zoom) / str(int(col)) / f"{int(row)}.webp") as image:
        assert image.size == (256, 256)
        found = np.asarray(image.convert("RGB"))[int(row % 1 * 256), int(col % 1 * 256)]
    assert np.abs(found.astype(int) - BLUE).max() < 10


def test_a_large_scene_is_made_smaller_and_its_bands_are_chosen(tmp_path):
    picture = np.stack([np.full((40, 60), value, np.uint16) for value in (9, 100, 200, 300)])
    picture[:, :, 30:] *= 2
    path = write_raster(tmp_path / "s.tif", picture, descriptions=("nir", "blue", "green", "red"), nodata=0)
    scene = ScenePicture.open(str(path))
    assert scene.scene.band_names == ("red", "green", "blue")
    bounds, pixel = pixel_of(scene.lonlat, scene.scene.shape, Frame(0), 600)
    shown = scene.whole(Frame(0), Frame(0).grid(bounds, pixel))
    assert 500 < shown.shape[0] * shown.shape[1] < 700
    assert shown[10, 5].tolist() == [0, 0, 0, 255]
    assert shown[10, -5].tolist() == [255, 255, 255, 255]


def test_only_the_map_is_served_and_only_to_this_machine(run, tmp_path):
    looked = geoseg.view(run.polygons, tmp_path / "map", scene=run.scene)
    (tmp_path / "map" / "secret.txt").write_text("secret")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "map" / "tiles" / "leak").symlink_to(tmp_path / "secret.txt")
    tile = next((tmp_path / "map" / "tiles").rglob("*.webp")).relative_to(tmp_path / "map").as_posix()
    server = MapServer(looked.file)
    port = server.server_address[1]

    def status(path, host=f"127.0.0.1:{port}"):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    with at_work(server):
        with urllib.request.urlopen(server.url) as answer:
            assert answer.read() == looked.file.read_bytes()
        assert status(f"/{tile}") == 200
        for path in ("/secret.txt", "/../secret.txt", "/tiles/leak", "/tiles/", "/", "/tiles/%2e%2e/secret.txt"):
            assert status(path) == 404, path
        assert status("/index.html", "evil.example") == 404


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(run, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "geoseg_cli", "view", str(run.polygons), "-o", str(tmp_path / "map.html"), "--serve"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "BROWSER": "true"},
        # Tests that a shell runs in the background are deaf to Ctrl-C, and so would this be.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        lines = iter(process.stderr.readline, "")
        url = next(line for line in lines if "is served" in line).split()[0]
        with urllib.request.urlopen(url) as answer:
            assert b"<!doctype html>" in answer.read()
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (0, str(tmp_path / "map.html"))
    assert err.strip() == "Stopped."


def test_the_scene_keeps_its_colours(run):
    scene = ScenePicture.open(str(run.scene))
    bounds, pixel = pixel_of(scene.lonlat, scene.scene.shape, Frame(0), 10**9)
    shown = scene.whole(Frame(0), Frame(0).grid(bounds, pixel))
    colors, counts = np.unique(shown[shown[..., 3] > 0][:, :3], axis=0, return_counts=True)
    common = {tuple(color) for color in colors[np.argsort(-counts)[:3]].tolist()}
    assert common == {GREY, RED, BLUE}
