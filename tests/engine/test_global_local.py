"""A run with GLNet: the same whatever the chunks; with macro-windows in place of tiles, what these give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

import geoseg
from geoseg.classes import Classes
from geoseg.engine.assemble import Outputs
from geoseg.engine.chunk import segment_chunk
from geoseg.engine.device import Runner
from geoseg.engine.predict import Options, make_plan
from geoseg.errors import ConfigError
from geoseg.grid import ChunkGrid
from geoseg.networks.glnet import build_glnet
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local import GlobalLocal
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.interface import State, Tiles


@pytest.fixture(scope="module")
def corner(piece: Callable[..., Path]) -> Path:
    """A real scene of 110 × 150 pixels, with a frame of nodata at its left."""
    return piece(110, 150, blank=10)


@pytest.fixture(scope="module")
def segmenter() -> GlobalLocal:
    """Both ways between overview and patches, with weights that make labels vary."""
    torch.manual_seed(5)
    network = build_glnet(in_channels=3, num_classes=5, mode="collaborative", encoder="mobilenetv3_small_100").eval()
    for name, value in network.named_parameters():
        if value.ndim == 4 and ("fpn" in name or "ensemble" in name):
            torch.nn.init.kaiming_normal_(value)
    return GlobalLocal(
        network,
        bands=("red", "green", "blue"),
        classes=Classes.parse("field,road,roof,tree,water"),
        settings=GlobalLocalSettings(overview=32, patch=32, min_overlap=0, extent=96, sub_batch=9),
        normalisation=Normalisation((100.0,) * 3, (50.0,) * 3),
    )


def test_chunks_change_nothing(tmp_path: Path, corner: Path, segmenter: GlobalLocal, two_workers: str) -> None:
    for blend in ("crop", "hann"):
        found = []
        for i, changes in enumerate(({"chunk": 64}, {"chunk": 1024}, {"chunk": 64, "scheduler": two_workers})):
            geoseg.predict(corner, tmp_path / f"{blend}{i}.tif", segmenter, blend=blend, **changes)
            with rasterio.open(tmp_path / f"{blend}{i}.tif") as file:
                found.append(file.read(1))
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], found[2])
        assert len(np.unique(found[0])) > 3
        assert (found[0][:, :10] == 255).all()
    # Macro-windows share a patch with their neighbours in order to be blended there.
    geoseg.predict(corner, tmp_path / "default.tif", segmenter)
    assert (tmp_path / "default.tif").read_bytes() == (tmp_path / "hann1.tif").read_bytes()
    assert (tmp_path / "default.tif").read_bytes() != (tmp_path / "crop1.tif").read_bytes()
    with pytest.raises(ConfigError, match="cuts the scene in its own way: leave --tile and --halo out"):
        geoseg.predict(corner, tmp_path / "no.tif", segmenter, tile=96)


def test_macro_windows_stand_in_for_tiles(tmp_path: Path, corner: Path, segmenter: GlobalLocal) -> None:
    """Every chunk takes from each macro-window what it answers for, and no window is mirrored at the scene's edge.

    Lines between chunks run along cores, so that few macro-windows are computed twice.
    """
    options = Options(blend="crop")
    plan, _ = make_plan(corner, Outputs.check(tmp_path / "out.tif", options), segmenter, segmenter, options)
    scene, grid = plan.model_scene, segmenter.lattice(plan.model_scene.shape)
    assert len(grid) == 4
    runner = Runner(segmenter, plan.state, plan.classes, device=torch.device("cpu"), dtype=torch.float32, batch=1)
    expected = np.full(scene.shape, 255, np.uint16)
    for position in grid:
        core, window = grid.core_window(position), grid.tile_window(position)
        pixels = scene.read(window)
        with torch.inference_mode():
            labels = segmenter.segment(Tiles.of([pixels]), State())[0].argmax(0).numpy()
        part = core.within(window)
        expected[core.within(scene.window)] = np.where(pixels.valid[part], labels[part], 255)
    assert plan.tiles == grid
    plan, _ = make_plan(
        corner, Outputs.check(tmp_path / "out.tif", options), segmenter, segmenter, replace(options, chunk=grid.step)
    )
    assert plan.chunks == ChunkGrid(scene.shape, 64, 16)
    assert segment_chunk(plan, runner, 0)[1].tiles == 1
    for size in (80, 1024):
        cut = replace(plan, chunks=ChunkGrid(scene.shape, size))
        found = np.zeros_like(expected)
        for number in range(len(cut.chunks)):
            found[cut.chunks.window(number).within(scene.window)] = segment_chunk(cut, runner, number)[0].layers[0]
        assert np.array_equal(found, expected)


def test_the_commands_make_and_run_it_alike_on_one_worker_and_on_two(
    tmp_path: Path, corner: Path, two_workers: str
) -> None:
    from geoseg_cli.main import main

    def run(*arguments: object) -> None:
        with pytest.raises(SystemExit) as stop:
            main([str(each) for each in arguments])
        assert stop.value.code == 0

    model = tmp_path / "glnet.safetensors"
    small = ("overview=32", "patch=32", "min_overlap=0", "extent=96", "sub_batch=9", "mode=local")
    options = [part for each in small for part in ("--set", each)]
    encoder = ("--encoder", "mobilenetv3_small_100")
    run("init", model, "--network", "glnet", *encoder, "--classes", "field,road,roof", "--seed", 3, *options)
    run("predict", corner, tmp_path / "one.tif", "-m", model, "--chunk", 64, "-q")
    run("predict", corner, tmp_path / "two.tif", "-m", model, "--chunk", 64, "--scheduler", two_workers, "-q")
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()
    with rasterio.open(tmp_path / "one.tif") as file:
        assert set(np.unique(file.read(1))) <= {0, 1, 2, 255}
