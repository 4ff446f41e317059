"""The active contour CNN over scenes: two phases that mean the same in every tile, whichever phase is inside."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from geoseg.bundle import read_bundle
from geoseg.errors import BundleError, ConfigError, LabelsError
from geoseg.grid import TileGrid
from geoseg.networks.active_contour import ActiveContourNet
from geoseg.segmenters.active_contour import ActiveContour, fit
from geoseg.segmenters.active_contour_fit import ActiveContourSettings, final_means, is_flipped, train
from geoseg.segmenters.fitted import freeze
from geoseg.segmenters.interface import State
from geoseg.segmenters.loading import segmenter_of
from geoseg.segmenters.scene_sample import Batch
from geoseg.vector.value_names import read_value_items
from tests.segmenters.test_clustering import tiles_of

QUICK = ActiveContourSettings(channels=6, blocks=1, iterations=15, fit_tiles=4, fit_tile_size=48, batch=2)


def discs(seed, count=4, side=48):
    """Images (N, 1, H, W) of one bright disc each under noise, and the discs (N, H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    images, truth = [], []
    for _ in range(count):
        (row, col), radius = rng.uniform(side / 3, 2 * side / 3, 2), rng.uniform(side / 6, 13 * side / 48)
        truth.append((y - row) ** 2 + (x - col) ** 2 <= radius**2)
        images.append(np.where(truth[-1], 0.75, 0.25) + 0.12 * rng.standard_normal((side, side)))
    return np.stack(images)[:, None].astype(np.float32), np.stack(truth)


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def ponds(height=150, width=170, bands=2):
    """A scene (C, H, W) uint8 of dark discs on bright ground."""
    image, truth = discs(5, count=1, side=256)
    picture = np.concatenate([1 - image[0]] * bands)[:, 40 : 40 + height, 30 : 30 + width]
    return np.clip(40 + 150 * picture, 1, 254).astype(np.uint8), truth[0, 40 : 40 + height, 30 : 30 + width]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("length_weight", [0.0, 0.05])
def test_discs(length_weight, seed):
    images, truth = discs(seed)
    settings = ActiveContourSettings(length_weight=length_weight, seed=seed)
    network = ActiveContourNet.seeded(1, settings.channels, settings.blocks, seed)
    sample = [Batch(torch.from_numpy(images), None)]
    train(network, sample, settings)
    freeze(network, sample)
    means = final_means(network, sample, settings)
    with torch.no_grad():
        found = (network(sample[0].pixels) > 0)[:, 0].numpy() ^ is_flipped(means, settings)
    middle = float(means.inside + means.outside) / 2
    if length_weight:
        assert iou(found, truth) >= 0.99
    else:
        assert abs(iou(found, truth) - iou(images[:, 0] > middle, truth)) <= 0.03


@pytest.fixture(scope="module")
def fitted(scene_of):
    image, _ = ponds()
    scene = scene_of(image)
    segmenter = ActiveContour(replace(QUICK, iterations=60), scene.band_names)
    return segmenter, segmenter.prepare(scene), scene


def labels_of(segmenter, state, scene, tile):
    grid = TileGrid(tile, segmenter.spec.halo)
    ids = np.array(state.classes.ids)
    labels = np.full(scene.shape, 255, int)
    for position in grid.covering(scene.window):
        window = grid.tile_window(position)
        scores = segmenter.segment(tiles_of(scene, window), state)[0].numpy()
        core = grid.core_window(position).intersect(scene.window)
        labels[core.within(scene.window)] = ids[scores.argmax(0)][core.within(window)]
    return labels


def test_tiles_give_the_whole_scene(fitted):
    segmenter, state, scene = fitted
    halo = segmenter.spec.halo
    whole = segmenter.segment(tiles_of(scene, scene.window.padded(halo)), state)[0, :, halo:-halo, halo:-halo].numpy()
    labels = [labels_of(segmenter, state, scene, tile) for tile in (40, 64, 100, 256)]
    clear = np.abs(whole[1] - whole[0]) > 1e-3
    assert clear.mean() > 0.99
    for each in labels:
        np.testing.assert_array_equal(each[clear], labels[-1][clear])
    parts = [segmenter.segment(tiles_of(scene, scene.window.padded(halo)), state) for _ in range(2)]
    assert torch.equal(*parts)


def test_dark_ponds_are_found(fitted):
    segmenter, state, scene = fitted
    labels = labels_of(segmenter, state, scene, 128)
    assert iou(labels == state.classes.find("dark").id, ponds()[1]) > 0.85


@pytest.mark.parametrize("seed", range(3))
def test_bright_and_dark_are_complements(scene_of, seed):
    scene = scene_of(ponds()[0])
    labels, names, flipped = [], [], None
    for polarity in ("bright", "dark"):
        segmenter = ActiveContour(replace(QUICK, polarity=polarity, seed=seed), scene.band_names)
        state = segmenter.prepare(scene)
        flipped = state.figures["flipped"] if polarity == "bright" else flipped
        labels.append(labels_of(segmenter, state, scene, 64))
        names.append([state.classes.by_id(i).name for i in (0, 1)])
    np.testing.assert_array_equal(labels[0], 1 - labels[1])
    assert state.figures["flipped"] != flipped  # one network cannot have learned both
    assert names == [["dark", "bright"], ["bright", "dark"]]


def test_one_seed_gives_one_fit(fitted, scene_of):
    segmenter, state, scene = fitted
    again = fit(scene, segmenter.settings)
    assert again == state
    assert all(again.weights[name].tobytes() == value.tobytes() for name, value in state.weights.items())
    assert fit(scene, replace(segmenter.settings, seed=1)) != state
    assert pickle.loads(pickle.dumps(state)) == state  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    "settings",
    [
        replace(QUICK, activation="clip", means="count_nonzero", means_scope="batch", length_weight=0.0),
        replace(QUICK, tied=True, means_scope="batch", reference_band=2),
    ],
)
def test_a_saved_model_gives_the_same_scores(scene_of, tmp_path, settings):
    scene = scene_of(ponds()[0])
    segmenter = ActiveContour(settings, scene.band_names)
    state = segmenter.prepare(scene)
    path = tmp_path / "water.safetensors"
    state.save(path)
    again = segmenter_of(read_bundle(path))
    assert isinstance(again, ActiveContour)
    assert again.prepare(scene) == state
    assert again.spec.classes == state.classes
    tiles = tiles_of(scene, scene.window)
    assert torch.equal(again.segment(tiles, again.state), segmenter.segment(tiles, state))


def test_names(fitted, tmp_path):
    _, state, _ = fitted
    table = tmp_path / "names.csv"
    table.write_text("0,water,#0000ff\n1,land\n")
    named = state.named(read_value_items(table))
    assert [named.classes.by_id(i).name for i in (0, 1)] == ["water", "land"]
    assert named.classes.ids == state.classes.ids
    table.write_text("0,land\n1,land\n")
    with pytest.raises(LabelsError, match="both segments are called 'land'"):
        state.named(read_value_items(table))


def test_constant_scenes_and_nodata_are_finite(scene_of):
    image, _ = ponds()
    image[:, :, 60:] = 0
    for array in (np.full((2, 60, 70), 9, np.uint8), image):
        state = fit(scene_of(array, f"{array.shape[1]}.tif", nodata=0), QUICK)
        assert all(np.isfinite(value).all() for value in state.weights.values())
        assert np.isfinite(state.figures["energy"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target_segments": 3}, "2 segments, not 3"),
        ({"polarity": "blue"}, "'bright' or 'dark'"),
        ({"means": "count_nonzero"}, "activation='clip'"),
        ({"length_weight": -1}, "length_weight"),
        ({"reference_band": 0}, "reference_band"),
    ],
)
def test_refuses_settings_without_sense(given, message):
    with pytest.raises(ConfigError, match=message):
        ActiveContourSettings(**given)


def test_refuses_what_does_not_fit(fitted, tmp_path, scene_of):
    segmenter, state, scene = fitted
    with pytest.raises(ConfigError, match="reference_band is 3"):
        fit(scene, replace(QUICK, reference_band=3))
    with pytest.raises(ConfigError, match="prepare"):
        segmenter.segment(tiles_of(scene, scene.window), State())
    path = tmp_path / "water.safetensors"
    replace(state, weights={name: value for name, value in state.weights.items() if name != "head.weight"}).save(path)
    with pytest.raises(BundleError, match=r"water\.safetensors"):
        ActiveContour.from_bundle(read_bundle(path))
