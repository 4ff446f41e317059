"""Tiles on the stride's lattice, and what a halo costs on a user's own scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import geoseg
from geoseg.classes import Classes
from geoseg.engine.assemble import Outputs
from geoseg.engine.chunk import segment_chunk
from geoseg.engine.device import Runner
from geoseg.engine.predict import Options, make_plan
from geoseg.engine.tiling import measure_on_scene
from geoseg.errors import ConfigError, SceneError
from geoseg.grid import ChunkGrid, Window
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles
from tests.conftest import asymmetric

CPU = torch.device("cpu")


class _Coarse(Segmenter):
    """Every score is that of the first pixel of its cell of the tile's own lattice: it shows where the tile begins."""

    def __init__(self, stride: int) -> None:
        self.spec = Spec(("a", "b", "c"), None, Classes.parse("x,y,z"), tile=128, halo=32, stride=stride)
        self.windows: list[Window] = []

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        self.windows += tiles.windows
        stride = self.spec.stride
        first = tiles.pixels[:, :, ::stride, ::stride].float()
        return first.repeat_interleave(stride, 2).repeat_interleave(stride, 3)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(("blend", "chunk"), [("crop", 131), ("crop", 77), ("hann", 95)])
def test_the_engine_cuts_tiles_on_the_lattice(
    tmp_path: Path, raster: Callable[..., Path], stride: int, blend: str, chunk: int
) -> None:
    array = asymmetric(3, 301, 263)
    segmenter = _Coarse(stride)
    options = Options(chunk=chunk, blend=blend)  # type: ignore[arg-type]
    outputs = Outputs.check(tmp_path / "out.tif", options)
    plan, _ = make_plan(raster(array), outputs, segmenter, segmenter, options)
    runner = Runner(segmenter, State(), plan.classes, device=CPU, dtype=torch.float32, batch=1)
    labels = np.full(array.shape[1:], 99)
    # The engine rounds chunks to whole tiles; these are of the very size.
    chunks = ChunkGrid(array.shape[1:], chunk, chunk // 2 if blend == "hann" else 0)
    for number, window in enumerate(chunks):
        filled, _ = segment_chunk(replace(plan, chunks=chunks), runner, number)
        labels[window.within(Window(0, 0, *array.shape[1:]))] = filled.layers[0]
    assert len(segmenter.windows) > 10
    assert {(window.row % stride, window.col % stride) for window in segmenter.windows} == {(0, 0)}
    row, col = (np.arange(size) // stride * stride for size in labels.shape)
    np.testing.assert_array_equal(labels, array[:, row[:, None], col].argmax(0))


def test_a_curve_on_a_scene_ends_where_the_network_does(town: Path, make_bundle: Callable[..., Path]) -> None:
    model = make_bundle("plainconv", options={"depth": 4}, tile=128, halo=2)
    found = measure_on_scene(model, town, crop=256)
    rows = found.comparison.differences
    assert [row.halo for row in rows] == [0, 2, 16, 32, 48, 51]
    assert rows[0].score_error > rows[1].score_error
    assert max(row.score_error for row in rows[2:]) <= 1e-5  # 4 pixels is all it reaches
    assert found.stored == 2
    assert found.chosen is not None
    assert found.chosen.halo in {2, 16}
    assert found.crop.shape == (256, 256)
    loose = measure_on_scene(model, town, crop=256, bound=0.9)
    assert loose.chosen is not None
    assert loose.chosen.halo == 0


def test_a_network_that_pools_is_cut_at_its_own_tile(town: Path, make_bundle: Callable[..., Path]) -> None:
    model = make_bundle("pspnet", tile=128, halo=16)
    found = measure_on_scene(model, town, crop=256)
    assert [row.halo for row in found.comparison.differences] == [0, 16, 32]
    assert min(row.score_error for row in found.comparison.differences) > 1e-3
    with pytest.raises(ConfigError, match="crop of 200 pixels is too small"):
        measure_on_scene(model, town, crop=200)


def test_the_scene_is_seen_as_a_run_sees_it(
    raster: Callable[..., Path], make_bundle: Callable[..., Path], town: Path
) -> None:
    model = make_bundle("plainconv", resolution=1.0)
    found = measure_on_scene(model, raster(asymmetric(3, 700, 800)), crop=256)
    assert found.resolution == pytest.approx(1.0, rel=0.01)  # pixels of the file are 0.5 m
    assert found.crop == Window(48, 72, 256, 256)


def test_a_part_with_data_is_sought(raster: Callable[..., Path], plain: Path) -> None:
    array = asymmetric(3, 600, 600)
    array[:, :, :400] = 0
    found = measure_on_scene(plain, raster(array, nodata=0), crop=256)
    assert found.crop.col == 344
    array[:] = 0
    array[:, :9] = 1
    with pytest.raises(SceneError, match="half full of data"):
        measure_on_scene(plain, raster(array, nodata=0), crop=256)


def test_only_networks_have_a_halo_to_measure(tmp_path: Path, town: Path, raster: Callable[..., Path]) -> None:
    model = tmp_path / "clusters.safetensors"
    scene = raster(asymmetric(3, 150, 150))
    geoseg.cluster(scene, tmp_path / "out.tif", save_model=model)
    with pytest.raises(ConfigError, match="holds no network"):
        measure_on_scene(model, scene)
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        measure_on_scene(model, scene, bound=2.0)
