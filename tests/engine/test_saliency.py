"""A run in two passes: the same whatever chunks and workers, and what one would get by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

import geoseg
from geoseg.bundle import NormalisationRecord, write_bundle
from geoseg.classes import Classes
from geoseg.components import component_boxes
from geoseg.engine.boxes import Boxes, BoxStore
from geoseg.errors import ConfigError, RunError
from geoseg.grid import Window
from geoseg.networks.rstn import SaliencyPair, shrunk
from geoseg.normalisation import Normalisation
from geoseg.segmenters.interface import Spec, Tiles, normalised
from geoseg.segmenters.network import tensors_of
from geoseg.segmenters.recurrence import Answer, Round, reach
from geoseg.segmenters.saliency import SaliencyNetwork
from geoseg.segmenters.saliency_pair import PairSettings, build, describe_saliency
from geoseg.segmenters.saliency_settings import SaliencySettings
from geoseg_cli.main import main
from tests.conftest import Storage, write_raster

CLASSES = Classes.parse("background,ship:#d55e00")


class Bright(nn.Module):
    """Finds what is brighter than one half."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 20 * (values - 0.5)


class Counted(Bright):
    """The same, and counts the pixels it is shown."""

    shown = 0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        Counted.shown += values[0, 0].numel()
        return super().forward(values)


def bright(fine: nn.Module | None = None, **options: Any) -> SaliencyNetwork:
    settings = SaliencySettings(**options)
    pair = SaliencyPair(Bright(), fine or Bright(), targets=1, bands=1, factor=settings.factor).eval()
    scaling = Normalisation((0.0,), (255.0,))
    return SaliencyNetwork(pair, CLASSES, settings, Spec(("grey",), None, CLASSES, 512, 8, normalisation=scaling))


SIDE, SQUARES, SQUARE = 4096, 20, 12


@pytest.fixture(scope="module")
def sea(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int]]]:
    """A scene of 4096 × 4096 pixels of noise with 20 bright squares of 12 pixels, and their corners."""
    rng = np.random.default_rng(11)
    pixels = rng.integers(0, 76, (SIDE, SIDE), np.uint8)
    cells = rng.permutation(64)[:SQUARES]
    corners = [(int(c // 8) * 512 + int(rng.integers(490)), int(c % 8) * 512 + int(rng.integers(490))) for c in cells]
    for row, col in corners:
        pixels[row : row + SQUARE, col : col + SQUARE] += 179
    path = tmp_path_factory.mktemp("sea") / "sea.tif"
    return write_raster(path, pixels, tiled=True, descriptions=["grey"]), corners


@pytest.fixture(scope="module")
def harbour(piece: Callable[..., Path]) -> Path:
    """A real scene of 330 × 410 pixels, with nodata at its left."""
    return piece(330, 410, blank=30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, harbour: Path) -> Path:
    """A pair with random weights: its coarse network finds one pixel in 1200 there, its fine one one in 100."""
    settings = PairSettings.of_options({"coarse": "plainconv", "factor": 2, "margin": 6, "limit": 96, "halo": 8})
    torch.manual_seed(1)
    pair = build(settings, bands=3, targets=1).eval()
    scaling = Normalisation((110.0, 110.0, 100.0), (50.0, 50.0, 50.0))
    with torch.no_grad():
        nn.init.constant_(pair.saliency1.bias, 1.0)
        nn.init.normal_(pair.saliency2.weight, std=0.05)
        pixels = normalised(Tiles.of([geoseg.open(harbour).read(Window(0, 40, 320, 360))]), scaling)
        for network, seen, part in ((pair.coarse_model, shrunk(pixels, 2), 0.9992), (pair.fine_model, pixels, 0.99)):
            last = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)][-1]
            last.weight *= 4 / float(network(seen).std())
            last.bias -= float(network(seen).quantile(part))
    record = NormalisationRecord(**scaling.as_dict())
    description = describe_saliency(pair, settings, ["red", "green", "blue"], CLASSES, normalisation=record)
    path = tmp_path_factory.mktemp("model") / "pair.safetensors"
    write_bundle(path, description, tensors_of(pair))
    return path


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.slow
def test_small_squares_in_a_large_scene(tmp_path: Path, sea: tuple[Path, list[tuple[int, int]]]) -> None:
    """Acceptance 8: all are found, and fine looks touch less than a twentieth of the scene."""
    scene, corners = sea
    Counted.shown = 0
    made = []
    for name, changes in (("one", {}), ("two", {"workers": 2, "chunk": 1000})):
        out, boxes = tmp_path / f"{name}.tif", tmp_path / f"{name}.geojson"
        report = geoseg.predict(scene, out, bright(Counted()), candidates=str(boxes), **changes)
        made.append((read(out), boxes.read_bytes()))
        assert report.files == (str(out), str(boxes))
        assert report.notes[0].startswith("20 candidates were looked at closely, ")
    assert 0 < Counted.shown < 0.05 * SIDE**2
    (found, boxes), other = made
    assert np.array_equal(found, other[0])
    assert boxes == other[1]
    squares = sorted((row, row + SQUARE, col, col + SQUARE) for row, col in corners)
    assert sorted(map(tuple, component_boxes(found[0] == 1).tolist())) == squares
    features = json.loads(boxes)["features"]
    assert len(features) == SQUARES
    for feature in features:
        told = feature["properties"]
        assert (told["class_name"], told["rounds"], told["pixels"], told["stable"]) == ("candidate", 2, 144, 1)
        assert told["dsc"] == 1


def predicted(folder: Path, name: str, scene: Path, model: Path, *options: str) -> list[bytes]:
    """Run the command, and return the bytes of all that it wrote."""
    beside = [folder / f"{kind}_{name}.tif" for kind in ("labels", "confidence", "uncertainty")]
    boxes, polygons = folder / f"boxes_{name}.geojson", folder / f"ships_{name}.geojson"
    asked = zip(("--labels", "--confidence", "--uncertainty"), map(str, beside), strict=True)
    given = [str(scene), str(polygons), "-m", str(model), "--candidates", str(boxes), "-q", *options]
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *given, *(part for pair in asked for part in pair)])
    assert stopped.value.code == 0
    return [path.read_bytes() for path in (*beside, polygons, boxes)]


@pytest.mark.slow
def test_two_workers_give_the_same(tmp_path: Path, harbour: Path, model: Path) -> None:
    one = predicted(tmp_path, "one", harbour, model)
    assert predicted(tmp_path, "two", harbour, model, "--workers", "2", "--chunk", "200", "--batch", "3") == one


def test_the_command_gives_the_same_whatever_the_chunks(tmp_path: Path, harbour: Path, model: Path) -> None:
    made = predicted(tmp_path, "large", harbour, model)
    assert predicted(tmp_path, "small", harbour, model, "--chunk", "100") == made
    labels, (_, unseen) = read(tmp_path / "labels_large.tif")[0], read(tmp_path / "uncertainty_large.tif")
    assert (labels[:, :30] == 255).all()
    assert (unseen[:, :30] == -1).all()
    assert set(np.unique(unseen[:, 30:])) == {0, 1}
    assert (labels[:, 30:][unseen[:, 30:] == 1] == 0).all()
    assert 10 < (labels == 1).sum() < 0.5 * labels.size
    assert (read(tmp_path / "confidence_large.tif")[0][unseen == 1] == 1).all()
    told = [each["properties"] for each in json.loads((tmp_path / "boxes_large.geojson").read_text())["features"]]
    assert len(told) > 5
    assert json.loads((tmp_path / "ships_large.geojson").read_text())["features"]
    assert all(each["rounds"] == 5 or each["stable"] for each in told)
    assert any(each["stable"] for each in told)


def test_an_interrupted_run_goes_on(
    tmp_path: Path, harbour: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What boxes and overview have left is taken up, and nothing of it computed again."""
    geoseg.predict(harbour, tmp_path / "whole.tif", model)
    before, tries = BoxStore.write, itertools.count()

    def failing(self: BoxStore, number: int, answer: Answer) -> None:
        if next(tries) >= 4:
            raise RunError("enough.")
        before(self, number, answer)

    folder = tmp_path / "work"
    monkeypatch.setattr(BoxStore, "write", failing)
    with pytest.raises(RunError, match="chunks failed"):
        geoseg.predict(harbour, tmp_path / "out.tif", model, workdir=str(folder))
    done = set(BoxStore(folder / "boxes").done())
    assert len(done) == 4
    assert not (tmp_path / "out.tif").exists()
    written: list[int] = []
    monkeypatch.setattr(
        BoxStore, "write", lambda self, number, answer: (written.append(number), before(self, number, answer))[1]
    )
    geoseg.predict(harbour, tmp_path / "out.tif", model, workdir=str(folder))
    assert sorted([*done, *written]) == list(range(4 + len(written)))
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_a_scene_full_of_targets_is_looked_at_in_tiles(tmp_path: Path) -> None:
    pixels = np.full((1, 300, 260), 200, np.uint8)
    scene = write_raster(tmp_path / "scene.tif", pixels, descriptions=["grey"])
    report = geoseg.predict(scene, tmp_path / "out.tif", bright(limit=100, halo=12))
    assert "all of it was looked at closely, in 16 tiles" in report.notes[0]
    assert (read(tmp_path / "out.tif") == 1).all()


def test_nothing_found_is_background(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", np.zeros((1, 90, 70), np.uint8), descriptions=["grey"])
    boxes = tmp_path / "boxes.geojson"
    report = geoseg.predict(scene, tmp_path / "out.tif", bright(), candidates=str(boxes))
    assert report.notes == ("0 candidates were looked at closely, 0.00% of the scene.",)
    assert (read(tmp_path / "out.tif") == 0).all()
    assert json.loads(boxes.read_text())["features"] == []


def test_an_area_of_interest_and_another_grid(tmp_path: Path) -> None:
    """A target across the edge of the area is found where the area is, and on the grid of the outputs."""
    pixels = np.zeros((1, 200, 240), np.uint8)
    pixels[0, 40:60, 90:130] = 255
    scene = write_raster(tmp_path / "scene.tif", pixels, descriptions=["grey"])
    with rasterio.open(scene) as file:
        (west, north), (east, south) = file.transform * (20, 20), file.transform * (110, 120)
    ring = [[west, north], [east, north], [east, south], [west, south], [west, north]]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32645"}}
    area = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "area.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [area]}))
    geoseg.predict(scene, tmp_path / "out.tif", bright(), aoi=str(tmp_path / "area.geojson"))
    expected = np.full((200, 240), 255)
    expected[20:120, 20:110] = 0
    expected[40:60, 90:110] = 1
    assert np.array_equal(read(tmp_path / "out.tif")[0], expected)
    geoseg.predict(scene, tmp_path / "half.tif", bright(), resolution=1.0, output_grid="scene")
    half = read(tmp_path / "half.tif")[0]
    assert half.shape == (200, 240)
    assert component_boxes(half == 1).tolist() == [[40, 60, 90, 130]]


def test_answers_are_kept_as_they_are(tmp_path: Path) -> None:
    store = BoxStore(tmp_path)
    box = Window(3, 4, 5, 6)
    values = np.random.default_rng(0).random((2, 5, 6), np.float32)
    answer = Answer(
        Window(1, 2, 9, 9), box, values, (Round(Window(1, 2, 9, 9), 7, 0.25), Round(box, 8, 0.995)), "stable"
    )
    store.write(12_345, answer)
    assert store.done() == {12_345}
    found = store.read(12_345)
    assert np.array_equal(found.probabilities, values)
    assert (found.window, found.box, found.rounds, found.end) == (answer.window, box, answer.rounds, "stable")
    assert store.read(12_345, pixels=False).rounds == answer.rounds
    store.path(12_345).write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"is damaged .*: pass --fresh"):
        store.read(12_345)


def test_boxes_near_a_chunk_are_those_that_may_grow_into_it() -> None:
    settings = SaliencySettings(margin=5, rounds=3)
    boxes = Boxes((Window(0, 0, 20, 20), Window(0, 60, 20, 20), Window(90, 90, 10, 10)))
    shape = (100, 100)
    for window in (Window(0, 30, 10, 10), Window(0, 34, 10, 10), Window(50, 50, 50, 50), Window(0, 0, 100, 100)):
        expected = [i for i, box in enumerate(boxes.windows) if not reach(box, shape, settings).intersect(window).empty]
        assert boxes.near(window, shape, settings) == expected


def test_other_models_have_no_candidates(tmp_path: Path, harbour: Path, plain: Path) -> None:
    with pytest.raises(ConfigError, match="looks everywhere and has no candidates to write: leave --candidates out"):
        geoseg.predict(harbour, tmp_path / "out.tif", plain, candidates=str(tmp_path / "boxes.geojson"))


@pytest.mark.slow
def test_outputs_go_to_object_storage_and_chunks_do_not(
    storage: Storage, tmp_path: Path, harbour: Path, model: Path
) -> None:
    place = {"candidates": str(tmp_path / "boxes.geojson")}
    geoseg.predict(harbour, tmp_path / "out.tif", model, **place)
    geoseg.predict(harbour, storage / "out.tif", model, candidates=storage / "boxes.geojson")
    assert storage.get("out.tif") == (tmp_path / "out.tif").read_bytes()
    assert storage.get("boxes.geojson") == (tmp_path / "boxes.geojson").read_bytes()
    with pytest.raises(ConfigError, match=r"two passes does not keep its chunks in s3://.*give it a folder"):
        geoseg.predict(harbour, tmp_path / "new.tif", model, workdir=storage / "work")
