"""What a raster may make GDAL open besides itself."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from geoseg.engine.batch_journal import source_stamp
from geoseg.engine.scene_list import Entry
from geoseg.errors import SceneError
from geoseg.references import FLAG, parts
from geoseg.scene import open_scene
from geoseg.source import gdal_environment
from tests.conftest import write_raster

_PIXELS = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)


def _vrt_of(path: Path, vrt: Path, **replaced: str) -> Path:
    with rasterio.open(path) as dataset:
        rasterio.shutil.copy(dataset, vrt, driver="VRT")
    text = vrt.read_text()
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    vrt.write_text(text)
    return vrt


@pytest.fixture
def scene(tmp_path):
    folder = tmp_path / "scenes" / "parts"
    folder.mkdir(parents=True)
    return write_raster(folder / "part.tif", _PIXELS)


def _read(path, **more):
    scene = open_scene(path, **more)
    return scene.read(scene.window).data[0]


def test_a_vrt_of_files_below_its_folder_is_read_also_through_another(scene, tmp_path):
    first = _vrt_of(scene, tmp_path / "scenes" / "a.vrt")
    second = tmp_path / "scenes" / "b.vrt"
    second.write_text(first.read_text().replace("parts/part.tif", "a.vrt"))
    assert np.array_equal(_read(second), _PIXELS)
    assert parts(str(second)) == (os.path.realpath(first), os.path.realpath(scene))


@pytest.mark.parametrize("link", [False, True])
def test_a_vrt_of_files_elsewhere_needs_the_flag(scene, tmp_path, link):
    other = tmp_path / "other"
    other.mkdir()
    path = scene
    if link:
        path = other / "part.tif"
        path.symlink_to(scene)
    vrt = _vrt_of(path, other / "a.vrt")
    with pytest.raises(SceneError, match=f"outside of its folder.*{FLAG}"):
        open_scene(vrt)
    assert np.array_equal(_read(vrt, elsewhere=True), _PIXELS)
    lowered = open_scene(vrt, elsewhere=True).at_resolution(1.0)
    assert lowered.read(lowered.window).data.shape[1:] == lowered.shape


def test_a_vrt_below_that_leads_elsewhere_is_found(scene, tmp_path):
    deep = tmp_path / "top" / "deep"
    deep.mkdir(parents=True)
    inner = _vrt_of(scene, deep / "inner.tif")
    outer = tmp_path / "top" / "outer.vrt"
    outer.write_text(inner.read_text().replace(str(scene), "deep/inner.tif").replace('ToVRT="0"', 'ToVRT="1"'))
    with pytest.raises(SceneError, match=r"inner\.tif refers to"):
        open_scene(outer)


def _changed(scene: Path, tmp_path: Path, old: str, new: str) -> Path:
    return _vrt_of(scene, tmp_path / "scenes" / "a.vrt", **{old: new})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (">parts/part.tif<", ">http://127.0.0.1:9/part.tif<"),
        (">parts/part.tif<", ">/vsicurl/http://127.0.0.1:9/part.tif<"),
        (">parts/part.tif<", ">WMS:http://127.0.0.1:9/<"),
        (">parts/part.tif<", ">&lt;VRTDataset/&gt;<"),
        (">parts/part.tif<", ">parts/../../part.tif<"),
        ("<SourceFilename", '<Overview SOURCEFILENAME="/etc/hostname"/><SourceFilename'),
        ("<VRTRasterBand ", '<VRTRasterBand subClass="VRTRawRasterBand" '),
        ("<SimpleSource>", "<PixelFunctionLanguage>Python</PixelFunctionLanguage><SimpleSource>"),
        ("<SimpleSource>", "<PixelFunctionCode>import os</PixelFunctionCode><SimpleSource>"),
        ("<VRTDataset ", '<VRTDataset subClass="VRTProcessedDataset" '),
        ("<SimpleSource>", "<OpenOptions><OOI key='A'>B</OOI></OpenOptions><SimpleSource>"),
        ("<VRTRasterBand ", "<GDALWarpOptions><SourceDataset>/etc/x</SourceDataset></GDALWarpOptions><VRTRasterBand "),
        ("<VRTRasterBand ", "<Metadata domain='G'><MDI key='X_DATASET'>/etc/x</MDI></Metadata><VRTRasterBand "),
    ],
)
def test_what_leads_elsewhere_is_refused(scene, tmp_path, old, new):
    with pytest.raises(SceneError, match=FLAG):
        open_scene(_changed(scene, tmp_path, old, new))


def test_entities_depth_and_endless_nesting_are_refused(scene, tmp_path):
    vrt = _vrt_of(scene, tmp_path / "scenes" / "a.vrt")
    text = vrt.read_text()
    vrt.write_text('<!DOCTYPE a [<!ENTITY b "bbbb">]>' + text)
    with pytest.raises(SceneError, match="document type"):
        open_scene(vrt)
    vrt.write_text("<VRTDataset>" + "<a>" * 100_000)
    with pytest.raises(SceneError, match="more than 64 deep"):
        open_scene(vrt)
    for number in range(12):
        (tmp_path / "scenes" / f"{number}.vrt").write_text(text.replace("parts/part.tif", f"{number + 1}.vrt"))
    with pytest.raises(SceneError, match="more than 8 deep"):
        open_scene(tmp_path / "scenes" / "0.vrt")


@pytest.fixture
def server():
    """An address, and the paths that it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - the server's name

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


_WMS = (
    '<GDAL_WMS><Service name="TMS"><ServerUrl>{}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow>'
    "<UpperLeftX>-20037508.34</UpperLeftX><UpperLeftY>20037508.34</UpperLeftY><LowerRightX>20037508.34</LowerRightX>"
    "<LowerRightY>-20037508.34</LowerRightY><TileLevel>1</TileLevel><TileCountX>1</TileCountX><TileCountY>1</TileCountY>"
    "<YOrigin>top</YOrigin></DataWindow><Projection>EPSG:3857</Projection><BandsCount>3</BandsCount></GDAL_WMS>"
)


def test_a_file_that_describes_a_server_asks_it_nothing(server, scene, tmp_path):
    address, asked = server
    path = tmp_path / "scenes" / "harmless.tif"
    path.write_text(_WMS.format(address))
    with pytest.raises(SceneError, match=FLAG):
        open_scene(path)
    with pytest.raises(SceneError, match=FLAG):
        open_scene(_changed(scene, tmp_path, ">parts/part.tif<", ">harmless.tif<"))
    path.rename(scene.with_name("part.tif.ovr"))
    with pytest.raises(SceneError, match=FLAG):
        open_scene(scene)
    assert asked == []
    opened = open_scene(write_raster(tmp_path / "plain.tif", _PIXELS))
    assert opened.shape == (64, 48)
    lone = tmp_path / "wms.xml"
    lone.write_text(_WMS.format(address))
    with pytest.raises(SceneError, match="cannot be read"):
        _read(lone, elsewhere=True)
    assert asked != []


def test_overviews_named_in_metadata_are_refused(scene):
    scene.with_name("part.tif.aux.xml").write_text(
        "<PAMDataset><Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>/vsicurl/http://127.0.0.1:9/a</MDI>"
        "</Metadata></PAMDataset>"
    )
    with pytest.raises(SceneError, match="refers to"):
        open_scene(scene)


def test_gdal_never_runs_python():
    with gdal_environment("a.tif") as env:
        assert env.options["GDAL_VRT_ENABLE_PYTHON"] == "NO"


def test_a_batch_sees_that_a_part_has_changed(scene, tmp_path):
    vrt = _vrt_of(scene, tmp_path / "scenes" / "a.vrt")
    entry = Entry(str(vrt), "a", str(vrt))
    before = source_stamp(entry)
    assert source_stamp(entry) == before
    os.utime(scene, ns=(1, 1))
    assert source_stamp(entry) != before
