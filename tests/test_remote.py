"""Scenes and models behind http and s3: the same labels as from a local file, and no more bytes than are needed."""

from __future__ import annotations

import contextlib
import http.server
import re
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.shutil import copy

import geoseg
from geoseg.engine.vectorize import vectorize
from geoseg.errors import BundleError, RunError, SceneError
from geoseg.grid import Window
from geoseg.scene import open_scene
from tests.serving import at_work

# A client that waits so long for a server that stalls has no limit of its own.
_SAT_OUT_S = 30.0


class Server(http.server.ThreadingHTTPServer):
    """A server over a folder that understands ranges and counts the bytes it gives.

    ``fault`` gives, for the number of a request (from 0), what goes wrong: ``busy`` (503), ``drop`` (the connection is
    closed without an answer), ``cut`` (it is closed after half of the answer), ``stall`` (nothing follows half of the
    answer, and the connection stays), ``silent`` (nothing comes at all), or None.  Who asks for the byte ``silent_at``
    (and others with it) hears nothing either.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent = 0
        self.asked: list[str] = []
        self.fault: Callable[[int], str | None] = lambda _: None
        self.faults = 0
        self.sat_out = 0
        self.silent_at: int | None = None
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        fault = self.server.fault(len(self.server.asked))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.server.silent_at in range(int(wanted[1]), int(wanted[2] or 0) + 1):
            fault = "silent"
        self.server.faults += fault is not None
        self.server.asked.append(self.path)
        if fault == "busy":
            self.send_error(503)
            return
        if fault in {"drop", "silent"}:
            self._hang_up(wait=fault == "silent")
            return
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        size, status = len(data), 200
        if wanted:
            start, stop = int(wanted[1]), min(int(wanted[2] or size - 1) + 1, size)
            data, status = data[start:stop], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if body:
            data = data[: len(data) // 2] if fault else data
            self.server.sent += len(data)
            self.wfile.write(data)
        if fault:
            self._hang_up(wait=fault == "stall")

    def _hang_up(self, *, wait: bool) -> None:
        self.wfile.flush()
        self.close_connection = True
        if wait:
            gone, _, _ = select.select([self.connection], [], [], _SAT_OUT_S)
            self.server.sat_out += not gone
        with contextlib.suppress(OSError):  # the other side may have hung up before
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, town: Path, sample: Path) -> Path:
    """A folder to be served: the town as a COG, the larger sample scene as one, and a page of text."""
    folder = tmp_path_factory.mktemp("served")
    copy(town, folder / "town.tif", driver="COG", blocksize=256, compress="deflate")
    copy(sample, folder / "sample.tif", driver="COG", blocksize=256, compress="deflate")
    (folder / "page.tif").write_text("<html>not a raster</html>")
    return folder


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A real HTTP server over the folder; it goes with the test."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.1")
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "20")  # a test that waits for itself fails, it does not hang
    server = Server(folder)
    with at_work(server):
        yield server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, folder: Path, plain: Path) -> bytes:
    """The labels of the COG read from the disk, chunk by chunk."""
    out = tmp_path_factory.mktemp("local") / "out.tif"
    geoseg.predict(folder / "town.tif", out, str(plain), chunk=256)
    return out.read_bytes()


def test_a_scene_is_opened_by_url(server: Server, folder: Path) -> None:
    far, near = geoseg.open(f"{server.url}/town.tif"), geoseg.open(folder / "town.tif")
    assert far.path == f"{server.url}/town.tif"
    assert (far.geobox, far.band_names, far.nodata, far.dtype) == (
        near.geobox, near.band_names, near.nodata, near.dtype,
    )  # fmt: skip
    window = Window(90, 290, 100, 150)
    np.testing.assert_array_equal(far.read(window).data, near.read(window).data)
    np.testing.assert_array_equal(far.read(window).valid, near.read(window).valid)
    assert not any("sample" in path or path.endswith("/") for path in server.asked)  # the folder is not listed


@pytest.mark.parametrize("prefix", ["", "/vsicurl/"])
def test_a_scene_by_url_gives_the_labels_of_the_local_file(
    tmp_path: Path, server: Server, plain: Path, local: bytes, prefix: str
) -> None:
    geoseg.predict(f"{prefix}{server.url}/town.tif", tmp_path / "out.tif", str(plain), chunk=256)
    assert (tmp_path / "out.tif").read_bytes() == local


@pytest.mark.parametrize("fault", ["busy", "drop", "cut"])
def test_a_server_that_fails_now_and_then_gives_the_labels_of_the_local_file(
    tmp_path: Path, server: Server, plain: Path, local: bytes, fault: str
) -> None:
    server.fault = lambda number: None if number % 3 else fault
    geoseg.predict(f"{server.url}/town.tif", tmp_path / "out.tif", str(plain), chunk=256)
    assert server.faults >= 1
    assert (tmp_path / "out.tif").read_bytes() == local


@pytest.mark.parametrize("fault", ["busy", "drop", "cut"])
def test_a_server_that_fails_for_ever_is_one_sentence(tmp_path: Path, server: Server, plain: Path, fault: str) -> None:
    server.fault = lambda _: fault
    url = f"{server.url}/town.tif"
    told = "its server (does not answer|may have failed).*try again later"
    with pytest.raises(SceneError, match=f"^{re.escape(url)} .*{told}") as caught:
        geoseg.predict(url, tmp_path / "out.gpkg", str(plain))
    assert "\n" not in str(caught.value)
    assert server.faults == len(server.asked) > 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit for servers that stall is a second, set as users set it; no further try is begun after it."""
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setenv(
        "GDAL_HTTP_LOW_SPEED_LIMIT", "10000000"
    )  # so that what came before the silence soon counts no more
    monkeypatch.delenv("GDAL_HTTP_TIMEOUT", raising=False)
    monkeypatch.setattr("geoseg.source._PATIENCE_S", 0.5)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["stall", "silent"])
def test_a_server_that_stalls_is_told_when_the_limit_is_over(
    tmp_path: Path, server: Server, plain: Path, fault: str
) -> None:
    server.fault = lambda _: fault
    url = f"{server.url}/town.tif"
    with pytest.raises(SceneError, match=f"^{re.escape(url)} .*try again later") as caught:
        geoseg.predict(url, tmp_path / "out.gpkg", str(plain))
    assert "\n" not in str(caught.value)
    assert server.sat_out == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_server_that_stalls_during_a_run_ends_it_and_the_same_command_goes_on(
    tmp_path: Path, server: Server, folder: Path, piece: Callable[..., Path], plain: Path
) -> None:
    copy(piece(300, 1500), folder / "wide.tif", driver="COG", blocksize=256, compress="deflate")
    with rasterio.open(folder / "wide.tif") as file:
        silent_at = int(file.get_tag_item("BLOCK_OFFSET_4_1", "TIFF", bidx=1))  # for the second chunk alone

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "segmenting":
            server.silent_at = silent_at

    url, out = f"{server.url}/wide.tif", tmp_path / "out.tif"
    with pytest.raises(RunError, match=r"^1 of 2 chunks failed; .*its server may have failed.*same command") as caught:
        # In another process, which has not yet seen what this one looks at before the run.
        geoseg.predict(url, out, str(plain), chunk=768, workers=1, progress=progress)
    assert "\n" not in str(caught.value)
    assert server.sat_out == 0
    assert not out.exists()
    server.silent_at = None
    assert geoseg.predict(url, out, str(plain), chunk=768).resumed == 1
    geoseg.predict(folder / "wide.tif", tmp_path / "near.tif", str(plain), chunk=768)
    assert out.read_bytes() == (tmp_path / "near.tif").read_bytes()


@pytest.mark.parametrize("fault", ["drop", "cut"])
def test_pixels_that_break_off_are_read_again(server: Server, folder: Path, fault: str) -> None:
    far, near = geoseg.open(f"{server.url}/sample.tif"), geoseg.open(folder / "sample.tif")
    before = len(server.asked)
    server.fault = lambda number: None if (number - before) % 3 else fault
    for window in (Window(0, 0, 300, 2048), Window(1500, 700, 548, 548)):
        np.testing.assert_array_equal(far.read(window).data, near.read(window).data)
    assert server.faults >= 2


def test_a_server_that_goes_away_while_pixels_are_read_is_one_sentence(server: Server) -> None:
    scene = geoseg.open(f"{server.url}/sample.tif")
    server.fault = lambda _: "drop"
    with pytest.raises(SceneError, match=r"sample\.tif cannot be read .* try again later") as caught:
        scene.read(scene.window)
    assert "\n" not in str(caught.value)


def test_a_small_area_reads_a_small_part(tmp_path: Path, server: Server, folder: Path, plain: Path) -> None:
    path = folder / "sample.tif"
    with rasterio.open(path) as file:
        west, north = file.transform * (520, 520)
        east, south = file.transform * (700, 700)
        area = geopandas.GeoDataFrame(geometry=[shapely.box(west, south, east, north)], crs=file.crs)
    area.to_file(tmp_path / "aoi.gpkg")
    url = f"{server.url}/sample.tif"
    geoseg.predict(url, tmp_path / "far.tif", str(plain), chunk=256, aoi=str(tmp_path / "aoi.gpkg"))
    assert 0 < server.sent < 0.35 * path.stat().st_size
    geoseg.predict(path, tmp_path / "near.tif", str(plain), chunk=256, aoi=str(tmp_path / "aoi.gpkg"))
    assert (tmp_path / "far.tif").read_bytes() == (tmp_path / "near.tif").read_bytes()


def test_a_coarse_resolution_reads_overviews(server: Server, folder: Path) -> None:
    coarse = open_scene(f"{server.url}/sample.tif", resolution=open_scene(folder / "sample.tif").resolution[0] * 4)
    coarse.read(coarse.window)
    assert 0 < server.sent < 0.35 * (folder / "sample.tif").stat().st_size


def test_labels_are_vectorized_by_url(tmp_path: Path, server: Server, folder: Path, local: bytes) -> None:
    (folder / "labels.tif").write_bytes(local)
    assert vectorize(f"{server.url}/labels.tif", tmp_path / "far.gpkg") > 100
    vectorize(folder / "labels.tif", tmp_path / "near.gpkg")
    far = geopandas.read_file(tmp_path / "far.gpkg", layer="far")
    near = geopandas.read_file(tmp_path / "near.gpkg", layer="near")
    assert far.equals(near)


@pytest.mark.parametrize("name", ["gone.tif", "page.tif"])
def test_a_url_without_a_raster_is_one_sentence(tmp_path: Path, server: Server, plain: Path, name: str) -> None:
    url = f"{server.url}/{name}"
    for call in (
        lambda: geoseg.open(url),
        lambda: geoseg.predict(url, tmp_path / "out.gpkg", str(plain)),
        lambda: vectorize(url, tmp_path / "out.gpkg"),
    ):
        with pytest.raises(SceneError) as caught:
            call()
        assert str(caught.value).startswith(url)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(SceneError, match=r"^http://127\.0\.0\.1:9/scene\.tif ") as caught:
        geoseg.predict("http://127.0.0.1:9/scene.tif", tmp_path / "out.gpkg", str(plain))
    assert "\n" not in str(caught.value)


def test_a_model_by_url_gives_the_labels_of_the_local_one(
    tmp_path: Path, server: Server, folder: Path, plain: Path, local: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "cache"))
    (folder / "model.safetensors").write_bytes(plain.read_bytes())
    url = f"{server.url}/model.safetensors"
    geoseg.predict(f"{server.url}/town.tif", tmp_path / "out.tif", url, chunk=256)
    assert (tmp_path / "out.tif").read_bytes() == local
    with pytest.raises(BundleError, match=r"gone\.safetensors cannot be downloaded"):
        geoseg.predict(folder / "town.tif", tmp_path / "new.tif", f"{server.url}/gone.safetensors")
    assert not (tmp_path / "new.tif").exists()


@pytest.mark.parametrize("fault", ["stall", "silent", "drop", "cut"])
def test_a_server_that_fails_while_a_list_or_a_model_is_fetched_is_one_sentence(
    tmp_path: Path, server: Server, folder: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("geoseg.fetching._TIMEOUT_S", 1)
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "cache"))
    (folder / "items.json").write_text('{"type": "FeatureCollection", "features": [], "links": []}')
    (folder / "model.safetensors").write_bytes(plain.read_bytes())
    server.fault = lambda _: fault
    with pytest.raises(SceneError, match=r"^http://.*/items\.json ") as list_fails:
        geoseg.batch([f"{server.url}/items.json"], tmp_path / "out", str(plain))
    with pytest.raises(BundleError, match=r"^http://.*/model\.safetensors cannot be downloaded") as model_fails:
        geoseg.predict(folder / "town.tif", tmp_path / "out.tif", f"{server.url}/model.safetensors")
    assert "\n" not in str(list_fails.value) + str(model_fails.value)
    assert server.sat_out == 0
    assert not (tmp_path / "out.tif").exists()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a server of moto with the town in it."""
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    running = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_S3_ENDPOINT": f"{host}:{port}",
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="scenes")
        client.upload_file(str(folder / "town.tif"), "scenes", "nepal/town.tif")
        yield "scenes"
    finally:
        running.stop()


def test_a_scene_in_a_bucket_gives_the_labels_of_the_local_file(
    tmp_path: Path, bucket: str, plain: Path, local: bytes
) -> None:
    geoseg.predict(f"s3://{bucket}/nepal/town.tif", tmp_path / "out.tif", str(plain), chunk=256)
    assert (tmp_path / "out.tif").read_bytes() == local
    with pytest.raises(SceneError, match=r"^s3://scenes/nepal/gone\.tif ") as caught:
        geoseg.open(f"s3://{bucket}/nepal/gone.tif")
    assert "\n" not in str(caught.value)
