"""Tiles that are given the means of their scene, against one pass over it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from geoseg.bundle import write_bundle
from geoseg.classes import Classes
from geoseg.errors import ConfigError, SceneError
from geoseg.grid import TileGrid, Window
from geoseg.networks.icnet_blocks import BINS, Pyramid
from geoseg.normalisation import Normalisation
from geoseg.scene import open_scene
from geoseg.segmenters.ensemble import Ensemble, TestTimeAugmentation
from geoseg.segmenters.interface import Spec, State, Tiles
from geoseg.segmenters.loading import load
from geoseg.segmenters.network import NetworkState, PlainNetwork, new_bundle
from geoseg.segmenters.scene_pooling import ScenePooledNetwork
from tests.conftest import asymmetric
from tests.networks.test_scene_pooling import Small

CLASSES = Classes.parse("background,road,roof")
SPEC = Spec(
    ("red", "green", "blue"),
    None,
    CLASSES,
    tile=96,
    halo=24,
    stride=8,
    normalisation=Normalisation((90.0, 100.0, 110.0), (50.0, 40.0, 60.0)),
)


def _segmenter(**more):
    return ScenePooledNetwork(Small().eval(), replace(SPEC, **more))


def _tiled(segmenter, scene, state, grid):
    """Return the scores of the scene (K, H, W), tile by tile."""
    scores = torch.zeros(3, *scene.shape)
    for position in grid.covering(scene.window):
        tile = grid.tile_window(position)
        core = grid.core_window(position).intersect(scene.window)
        found = segmenter.segment(Tiles.of([scene.read(tile)]), state)[0]
        scores[:, *core.within(scene.window)] = found[:, *core.within(tile)]
    return scores


def _one_pass(scene, margin=48):
    """Return the scores of one pass over the mirrored scene, pooled by the network's own layer over the scene."""
    segmenter = _segmenter()
    tiles = Tiles.of([scene.read(scene.window.padded(margin))])
    rows, cols = segmenter.module.cells(scene.shape)
    edge = margin // 8
    with torch.no_grad():
        pixels = segmenter._input(tiles, State())
        coarse = segmenter.module.coarse(pixels)
        inner = coarse[..., edge : edge + rows, edge : edge + cols]
        after = [size - edge - count for size, count in zip(coarse.shape[2:], (rows, cols), strict=True)]
        added = functional.pad(Pyramid()(inner) - inner, (edge, after[1], edge, after[0]), mode="replicate")
        scores = segmenter.module(pixels, added)
    height, width = scene.shape
    return scores[0, :, margin : margin + height, margin : margin + width]


@pytest.mark.parametrize("size", [(257, 321), (256, 320), (203, 150), (40, 70), (1, 1)])
def test_tiles_give_the_scores_of_one_pass(raster, size):
    scene = open_scene(raster(asymmetric(3, *size)))
    expected = _one_pass(scene)
    segmenter = _segmenter()
    state = segmenter.prepare(scene)
    for grid in (TileGrid(96, 24), TileGrid(160, 32)):
        found = _tiled(segmenter, scene, state, grid)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.argmax(0), expected.argmax(0))


def test_errors_shrink_with_the_halo(raster):
    scene = open_scene(raster(asymmetric(3, 257, 321)))
    expected = _one_pass(scene)
    errors = []
    for halo in (0, 8, 16):
        segmenter = _segmenter(tile=64 + 2 * halo, halo=halo)
        found = _tiled(segmenter, scene, segmenter.prepare(scene), TileGrid(64 + 2 * halo, halo))
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_tiles_that_pool_alone_are_far_from_it(raster):
    scene = open_scene(raster(asymmetric(3, 257, 321)))
    plain = PlainNetwork(Small(pooling="tile").eval(), SPEC)
    found = _tiled(plain, scene, plain.prepare(scene), TileGrid(96, 24))
    expected = _one_pass(scene)
    assert float((found - expected).norm() / expected.norm()) > 1e-3


def test_pixels_without_data_do_not_count(raster):
    array = asymmetric(3, 230, 300)
    array[:, :, :180] = 0
    array[:, 100:140, 200:260] = 0
    scene = open_scene(raster(array, nodata=0))
    segmenter = _segmenter()
    calls = []
    segmenter.module.deep.register_forward_hook(lambda *_: calls.append(1))
    values = segmenter.prepare(scene).means.values
    # Gathering tiles have cores of 96 pixels: 3 rows and 4 columns, the first without data.
    assert len(calls) == 3 * 3

    pixels = scene.read(scene.window.padded(48))
    rows, cols = segmenter.module.cells(scene.shape)
    with torch.no_grad():
        coarse = segmenter.module.coarse(segmenter._input(Tiles.of([pixels]), State()))[0]
    coarse = coarse[:, 6 : 6 + rows, 6 : 6 + cols].double().numpy()
    weights = np.array(
        [[pixels.valid[48 + 8 * i - 4 :][:8, 48 + 8 * j - 4 :][:, :8].mean() for j in range(cols)] for i in range(rows)]
    )
    column = 0
    for bins in BINS:
        for i in range(bins):
            for j in range(bins):
                place = (
                    slice(i * rows // bins, -(-(i + 1) * rows // bins)),
                    slice(j * cols // bins, -(-(j + 1) * cols // bins)),
                )
                place = place if weights[place].any() else (slice(None), slice(None))
                mean = (coarse[:, *place] * weights[place]).sum((1, 2)) / weights[place].sum()
                np.testing.assert_allclose(values[:, column], mean, rtol=1e-4, atol=1e-4)
                column += 1
    assert column == values.shape[1]


def test_a_scene_without_data_is_refused(raster):
    scene = open_scene(raster(np.zeros((3, 50, 60), np.uint8), nodata=0))
    with pytest.raises(SceneError, match="no valid pixel"):
        _segmenter().prepare(scene)


def test_the_state_does_not_hang_on_where_and_how_the_network_lies(raster):
    scene = open_scene(raster(asymmetric(3, 150, 170)))
    state = _segmenter().prepare(scene)
    trained = ScenePooledNetwork(Small().train(), SPEC)
    assert trained.prepare(scene) == state
    assert trained.module.training
    placed = _segmenter()
    placed.place(torch.device("cpu"))
    np.testing.assert_allclose(placed.prepare(scene).means.values, state.means.values, rtol=1e-5, atol=1e-5)
    batch = Tiles.of([scene.read(Window(row, -24, 96, 96)) for row in (-24, 24)])
    both = placed.segment(batch, state)
    for i, one in enumerate(batch.singles()):
        torch.testing.assert_close(placed.segment(one, state)[0], both[i], rtol=1e-5, atol=1e-5)


def test_scaling_is_measured_where_the_spec_has_none(raster):
    scene = open_scene(raster(asymmetric(3, 60, 80)))
    state = _segmenter(normalisation=None).prepare(scene)
    assert state.normalisation == Normalisation.of(scene.statistics(), "standard")


def test_refusals():
    with pytest.raises(ConfigError, match="does not pool over the scene"):
        ScenePooledNetwork(Small(pooling="tile"), SPEC)
    with pytest.raises(ConfigError, match="multiples of 8"):
        _segmenter(tile=100)
    tiles = Tiles(torch.zeros(1, 3, 96, 96), torch.ones(1, 96, 96, dtype=torch.bool), (Window(0, 0, 96, 96),))
    with pytest.raises(ConfigError, match="no means of the scene"):
        _segmenter().segment(tiles, NetworkState())


def test_an_ensemble_averages_it_and_turning_is_refused(raster):
    scene = open_scene(raster(asymmetric(3, 150, 170)))
    pooled, plain = _segmenter(), PlainNetwork(Small(pooling="tile").eval(), SPEC)
    both = Ensemble([pooled, plain])
    assert both.spec.scene_pass
    assert not Ensemble([plain]).spec.scene_pass
    tiles = Tiles.of([scene.read(Window(-24, 24, 96, 96))])
    state = both.prepare(scene)
    one, other = (m.segment(tiles, s).softmax(1) for m, s in zip(both.members, state.states, strict=True))
    torch.testing.assert_close(both.segment(tiles, state).softmax(1), (one + other) / 2)
    for segmenter in (pooled, both):
        with pytest.raises(
            ConfigError, match="also looks at the scene round them, which is not turned: leave --tta out"
        ):
            TestTimeAugmentation(segmenter)


@pytest.mark.parametrize("options", [{}, {"encoder": "resnet18"}], ids=["pruned", "resnet"])
def test_a_bundle_says_how_its_network_pools(tmp_path, options):
    description, tensors = new_bundle(
        "icnet", bands=["a"], classes=CLASSES, tile=128, halo=32, options={"pooling": "scene"}, **options
    )
    assert description.settings["options"] == {"pooling": "scene"}
    assert not description.tile_exact
    assert 997 <= description.tiling.halo_exact <= 1088  # what its convolutions reach, and one lattice cell or two
    write_bundle(tmp_path / "scene.safetensors", description, tensors)
    segmenter = load(tmp_path / "scene.safetensors")
    assert isinstance(segmenter, ScenePooledNetwork)
    assert segmenter.spec.scene_pass
    assert segmenter.spec.bounded
    assert not segmenter.spec.fixed_tile
