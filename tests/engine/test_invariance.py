"""What comes out does not depend on how the work was cut, ordered, shared or interrupted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

import geoseg
from geoseg.engine.assemble import Outputs
from geoseg.engine.cluster import Job
from geoseg.engine.plan import Plan, Recipe
from geoseg.engine.predict import Options, make_plan
from geoseg.engine.store import ChunkStore
from geoseg.grid import Window
from geoseg.scene import open_scene
from geoseg.segmenters.interface import Tiles

FILES = ("out.geojson", "labels.tif", "confidence.tif")


def _predict(folder: Path, scene: Path, model: Path, **options: object) -> dict[str, bytes]:
    folder.mkdir()
    geoseg.predict(
        scene,
        folder / "out.geojson",
        str(model),
        labels=str(folder / "labels.tif"),
        confidence=str(folder / "confidence.tif"),
        keep_background=True,
        **options,
    )
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, town: Path, plain: Path) -> dict[str, bytes]:
    """One run with the defaults: the town is one chunk."""
    made = _predict(tmp_path_factory.mktemp("reference") / "run", town, plain)
    features = json.loads(made["out.geojson"])["features"]
    assert len({f["properties"]["class_name"] for f in features}) >= 3  # else the comparisons below mean little
    assert len(features) > 100
    return made


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 256},
        {"chunk": 512},
        {"chunk": 1024},
        {"chunk": 256, "batch": 5},
        {"chunk": 512, "tile": 512},
        {"chunk": 256, "tile": 256, "batch": 3},
        {"chunk": 300, "tile": 384},
        {"chunk": 256, "tile": 128, "halo": 30},
    ],
    ids=str,
)
def test_chunks_batches_and_tiles_change_nothing(
    tmp_path: Path, town: Path, plain: Path, reference: dict[str, bytes], options: dict[str, int]
) -> None:
    assert _predict(tmp_path / "run", town, plain, **options) == reference


@pytest.mark.dist
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(
    tmp_path: Path, town: Path, plain: Path, reference: dict[str, bytes], workers: int
) -> None:
    assert _predict(tmp_path / "run", town, plain, chunk=256, workers=workers) == reference


@pytest.mark.dist
def test_a_cluster_elsewhere_changes_nothing(
    tmp_path: Path, town: Path, plain: Path, reference: dict[str, bytes]
) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster:
        made = _predict(tmp_path / "run", town, plain, chunk=256, scheduler=cluster.scheduler_address)
    assert made == reference


def _plan(folder: Path, scene: Path, model: Path, **options: object) -> Plan:
    chosen = Options(**options)  # type: ignore[arg-type]
    outputs = Outputs.check(folder / "out.geojson", chosen)
    from geoseg.bundle import file_digest

    recipe = Recipe(((str(model), file_digest(str(model))),))
    return make_plan(scene, outputs, recipe, recipe.build(), chosen)[0]


def _labels(plan: Plan, order: list[int]) -> np.ndarray:
    """Compute the chunks in ``order`` and return the layers as one array: (2, H, W)."""
    job = Job(plan, 1)
    store = ChunkStore(plan.store, plan.chunks)
    for number in order:
        job.segment(number)
    assert store.done() == set(range(len(plan.chunks)))
    whole = np.zeros((2, *plan.source.shape), np.uint16)
    for number, window in enumerate(plan.chunks):
        with rasterio.open(store.path(number)) as file:
            whole[:, *window.within(plan.source.window)] = file.read()
    return whole


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("blend", ["crop", "hann"])
@pytest.mark.parametrize("resolution", [None, 0.21, 0.09])
def test_order_and_chunks_change_nothing_whatever_the_blend_and_grid(
    tmp_path: Path, part: Path, make_bundle: Callable[..., Path], blend: str, resolution: float | None
) -> None:
    plain = make_bundle("plainconv", tile=64)
    seen = []
    for i, chunk in enumerate((2000, 90, 133)):
        folder = tmp_path / str(i)
        folder.mkdir()
        plan = _plan(folder, part, plain, chunk=chunk, blend=blend, resolution=resolution, output_grid="scene")
        order = list(range(len(plan.chunks)))
        random.Random(i).shuffle(order)
        seen.append(_labels(plan, order))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    nodata = seen[0][0] == 255
    expected = ~open_scene(part).read(Window(0, 0, 240, 300)).valid
    assert expected.any()
    assert (nodata & ~expected).mean() < 0.02  # a pixel or two of rim where resampling knows nothing
    assert not (expected & ~nodata).any()


def test_tiled_labels_equal_one_pass_over_the_whole_scene(tmp_path: Path, town: Path, plain: Path) -> None:
    segmenter = geoseg.load(str(plain))
    spec = segmenter.spec
    scene = open_scene(town)
    state = segmenter.prepare(scene)
    window = scene.window.padded(spec.halo)
    pixels = scene.read(window)
    tiles = Tiles(torch.from_numpy(pixels.data)[None], torch.from_numpy(pixels.valid)[None], (window,))
    segmenter.place(torch.device("cpu"))
    with torch.inference_mode():
        scores = segmenter.segment(tiles, state)[0, :, spec.halo : -spec.halo, spec.halo : -spec.halo]
    expected = scores.argmax(0).numpy()
    expected[~scene.read(scene.window).valid] = 255
    for tile in (128, 200, 512):
        out = tmp_path / f"{tile}.tif"
        geoseg.predict(town, out, str(plain), tile=tile, chunk=256)
        with rasterio.open(out) as file:
            np.testing.assert_array_equal(file.read(1), expected)


def test_a_hann_blend_of_an_exact_network_gives_its_labels(tmp_path: Path, town: Path, plain: Path) -> None:
    made = []
    for blend in ("crop", "hann"):
        out = tmp_path / f"{blend}.tif"
        geoseg.predict(town, out, str(plain), blend=blend, halo=32)
        with rasterio.open(out) as file:
            made.append(file.read(1))
    assert (made[0] != made[1]).mean() < 0.005  # the outermost pixels of a tile lack context, and weigh little


def test_all_invalid_tiles_are_not_computed(
    tmp_path: Path, plain: Path, raster: Callable[..., Path], town: Path
) -> None:
    with rasterio.open(town) as file:
        array = file.read()
    array[:, :, 300:] = 0
    report = geoseg.predict(raster(array, nodata=0), tmp_path / "out.tif", str(plain), chunk=256)
    core = 128 - 2 * geoseg.load(str(plain)).spec.halo
    assert report.tiles == -(-array.shape[1] // core) * -(-300 // core)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.read(1)[:, 300:] == 255).all()
        assert (file.read(1)[:, :50] != 255).any()


@pytest.mark.parametrize("wrapped", ["tta", "ensemble"])
def test_wrappers_run_through_the_same_engine(
    tmp_path: Path, town: Path, plain: Path, make_bundle: Callable[..., Path], wrapped: str
) -> None:
    other = make_bundle("plainconv", tile=128, seed=1)
    model = [str(plain)] if wrapped == "tta" else [str(plain), str(other)]
    made = []
    for i, chunk in enumerate((256, 1024)):
        out = tmp_path / f"{i}.tif"
        geoseg.predict(town, out, model, tta=wrapped == "tta", chunk=chunk)
        made.append(out.read_bytes())
    assert made[0] == made[1]


def test_a_segmenter_of_the_callers_own_runs_too(tmp_path: Path, town: Path, plain: Path) -> None:
    geoseg.predict(town, tmp_path / "a.tif", geoseg.load(str(plain)))
    geoseg.predict(town, tmp_path / "b.tif", str(plain))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_reduced_precision_gives_nearly_the_same(tmp_path: Path, town: Path, plain: Path, precision: str) -> None:
    geoseg.predict(town, tmp_path / "a.tif", str(plain))
    geoseg.predict(town, tmp_path / "b.tif", str(plain), precision=precision)
    with rasterio.open(tmp_path / "a.tif") as one, rasterio.open(tmp_path / "b.tif") as two:
        assert 0 < (one.read(1) != two.read(1)).mean() < 0.1


def test_bands_go_by_name_before_they_go_by_number(tmp_path: Path, town: Path, plain: Path) -> None:
    with rasterio.open(town) as file:
        array, profile = file.read(), file.profile
    turned = tmp_path / "turned.tif"
    with rasterio.open(turned, "w", **profile | {"count": 4}) as file:
        file.write(np.concatenate([array[::-1], array[:1]]))
        file.descriptions = ["Blue", "Green", "Red", "NIR"]
    made = []
    for scene in (town, turned):
        out = tmp_path / f"{scene.stem}.labels.tif"
        geoseg.predict(scene, out, str(plain))
        with rasterio.open(out) as file:
            made.append(file.read(1))
    np.testing.assert_array_equal(*made)


def test_blended_tiles_are_seldom_computed_twice(tmp_path: Path, town: Path, plain: Path) -> None:
    whole = geoseg.predict(town, tmp_path / "whole.tif", str(plain), blend="hann", halo=16, chunk=2000)
    parts = geoseg.predict(town, tmp_path / "parts.tif", str(plain), blend="hann", halo=16, chunk=2 * 96)
    assert parts.chunks == 9
    assert parts.tiles <= whole.tiles * (3 / 2) ** 2  # one more row and column of tiles for two
    assert (tmp_path / "whole.tif").read_bytes() == (tmp_path / "parts.tif").read_bytes()
