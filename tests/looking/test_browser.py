"""What a real browser makes of a map: the right colours at the right place, and nothing asked of a network."""

from __future__ import annotations

import asyncio
import socketserver
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

import geoseg
from geoseg.looking.serving import MapServer
from tests.looking.browser import Page, visit
from tests.looking.conftest import BLUE, RED
from tests.serving import at_work

pytestmark = pytest.mark.browser
READY = "document.body?.dataset.ready === 'yes'"
GREEN, YELLOW = (0, 200, 0), (255, 220, 0)


def near(picture: np.ndarray, color: tuple[int, int, int], tolerance: int = 40) -> np.ndarray:
    """Return which pixels left of the panel have about a colour."""
    close = np.abs(picture.astype(int) - np.array(color)[:, None, None]).max(axis=0) <= tolerance
    return close[:, : picture.shape[2] - 312]


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection of two masks over their union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def local(requests: list[str]) -> bool:
    """Whether no request left this machine's files."""
    return bool(requests) and all(address.startswith(("file:", "data:", "blob:")) for address in requests)


def test_polygons_lie_on_the_scene_in_their_colours(chromium, run, tmp_path):
    looked = geoseg.view([run.polygons, run.labels, run.confidence], tmp_path / "map.html", scene=run.scene)
    seen: dict[str, object] = {}

    async def act(page: Page) -> None:
        await page.until(READY)
        seen["title"] = await page.run("document.title")
        await page.set("opacity", 0)
        seen["scene"] = await page.picture()
        await page.set("opacity", 100)
        seen["polygons"] = await page.picture()
        await page.set("confidence", 50)
        seen["sure"] = await page.picture()
        seen["count"] = await page.run("document.getElementById('count').textContent")
        await page.set("confidence", 0)
        await page.toggle("#legend input")
        seen["toggled"] = await page.picture()
        await page.toggle("#legend input")
        await page.toggle("#layer-polygons")
        await page.toggle("#layer-labels")
        seen["labels"] = await page.picture()
        await page.set("confidence", 50)
        seen["sure labels"] = await page.picture()
        await page.set("confidence", 0)
        await page.toggle("#layer-labels")
        await page.toggle("#layer-polygons")
        row, col = (int(np.median(where)) for where in np.nonzero(near(seen["polygons"], YELLOW)))
        await page.click(col, row)
        await page.until("!!document.querySelector('.attributes')")
        seen["attributes"] = await page.run("document.querySelector('.attributes').innerText")
        seen["scripts"] = await page.run("document.querySelectorAll('script').length")

    messages, requests = visit(looked.file.as_uri(), act, tmp_path / "profile")
    assert messages == []
    assert local(requests), requests
    assert (seen["title"], seen["scripts"]) == ("map.gpkg", 3)
    red, blue = near(seen["scene"], RED), near(seen["scene"], BLUE)
    assert red.sum() > 10_000
    assert blue.sum() > 5_000
    assert agreement(near(seen["polygons"], GREEN), red) > 0.96
    assert agreement(near(seen["polygons"], YELLOW), blue) > 0.96
    assert seen["count"] == "1 of 2 shown"
    assert agreement(near(seen["sure"], GREEN), red) > 0.96
    assert near(seen["sure"], YELLOW).sum() == 0
    assert agreement(near(seen["sure"], BLUE), blue) > 0.96
    assert near(seen["toggled"], GREEN).sum() == 0
    assert near(seen["toggled"], YELLOW).sum() > 5_000
    assert agreement(near(seen["labels"], GREEN), red) > 0.94
    assert agreement(near(seen["labels"], YELLOW), blue) > 0.94
    assert near(seen["sure labels"], YELLOW).sum() < 100
    assert agreement(near(seen["sure labels"], GREEN), red) > 0.94
    lines = seen["attributes"].split()
    assert lines[:3] == ["Wäldchen", "&", "森"]
    assert lines[lines.index("area_m2") + 1] == "1,500.37"
    assert lines[lines.index("confidence") + 1] == "0.4"


@pytest.mark.slow
def test_a_folder_with_tiles_is_served_and_shows_the_same(chromium, run, tmp_path):
    looked = geoseg.view(run.polygons, tmp_path / "map", scene=run.scene)
    assert looked.file == tmp_path / "map" / "index.html"
    seen: dict[str, np.ndarray] = {}

    async def act(page: Page) -> None:
        await page.until(READY)
        await page.until("document.querySelectorAll('.leaflet-tile-loaded').length > 1")
        await asyncio.sleep(1)  # tiles fade in
        await page.set("opacity", 0)
        seen["scene"] = await page.picture()
        await page.set("opacity", 100)
        seen["polygons"] = await page.picture()

    for name, address in (("file", looked.file.as_uri()), ("server", None)):
        server = MapServer(looked.file)
        with at_work(server):
            messages, requests = visit(address or server.url, act, tmp_path / name)
        assert messages == []
        allowed = ("data:", (tmp_path / "map").as_uri() if address else server.url.rpartition("/")[0])
        assert all(request.startswith(allowed) for request in requests), requests
        red, blue = near(seen["scene"], RED), near(seen["scene"], BLUE)
        assert red.sum() > 2_000
        assert agreement(near(seen["polygons"], GREEN), red) > 0.93
        assert agreement(near(seen["polygons"], YELLOW), blue) > 0.93


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "left"), [(".gpkg", 179.9995), (".geojson", 179.9995)])
def test_outputs_across_the_antimeridian_lie_together(chromium, make_run, tmp_path, suffix, left):
    run = make_run(transform=Affine(5e-6, 0, left, 0, -5e-6, -16.0), crs="EPSG:4326", suffix=suffix)
    looked = geoseg.view([run.polygons, run.labels], tmp_path / "map.html", scene=run.scene)
    seen: dict[str, np.ndarray] = {}

    async def act(page: Page) -> None:
        await page.until(READY)
        await page.set("opacity", 0)
        seen["scene"] = await page.picture()
        await page.set("opacity", 100)
        seen["polygons"] = await page.picture()

    messages, requests = visit(looked.file.as_uri(), act, tmp_path / "profile")
    assert (messages, local(requests)) == ([], True)
    red, blue = near(seen["scene"], RED), near(seen["scene"], BLUE)
    assert red.sum() > 10_000
    assert agreement(near(seen["polygons"], GREEN), red) > 0.96
    assert agreement(near(seen["polygons"], YELLOW), blue) > 0.96


@pytest.mark.slow
def test_the_record_of_requests_would_show_one_that_leaves(chromium, tmp_path):
    class Silent(socketserver.BaseRequestHandler):
        pass

    with socketserver.TCPServer(("127.0.0.1", 0), Silent) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/x.png"
    page = tmp_path / "bad.html"
    page.write_text(f"<body data-ready=yes><img src='{address}'></body>")

    async def act(page: Page) -> None:
        await page.until(READY)

    _, requests = visit(Path(page).as_uri(), act, tmp_path / "profile")
    assert address in requests
    assert not local(requests)
