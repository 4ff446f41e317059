"""Feature clustering over scenes: one fit, the same segments in every tile, and saved models that repeat it."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from geoseg.bundle import read_bundle, write_bundle
from geoseg.errors import BundleError, ConfigError, OutputError, SceneError
from geoseg.grid import TileGrid
from geoseg.losses.clustering import continuity_loss, scribble_loss, similarity_loss
from geoseg.segmenters.clustering import METHODS, FeatureClustering, fit
from geoseg.segmenters.clustering_fit import ClusteringSettings, merge
from geoseg.segmenters.interface import State, Tiles
from geoseg.segmenters.scene_sample import draw_sample

QUICK = ClusteringSettings(channels=12, iterations=12, fit_tiles=4, fit_tile_size=64, batch=2)


def field(height, width, bands=3, seed=0):
    """A smooth, asymmetric image with noise: (C, H, W) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (17 + 5 * b) + b) + np.cos(y / (11 + 3 * b) - 0.7 * b) + (x > 2 * y) for b in range(bands)]
    image = 110 + 45 * np.stack(waves) + 6 * rng.standard_normal((bands, height, width))
    return np.clip(image, 1, 254).astype(np.uint8)


def tiles_of(scene, window):
    pixels = scene.read(window)
    data = torch.from_numpy(pixels.data.astype(np.float32))
    return Tiles(data[None], torch.from_numpy(pixels.valid)[None], (window,))


def whole(segmenter, state, scene):
    """Scores (K, H, W) of one pass over the whole scene, mirrored by the halo at its edges."""
    halo = segmenter.spec.halo
    scores = segmenter.segment(tiles_of(scene, scene.window.padded(halo)), state)
    return scores[0, :, halo:-halo, halo:-halo].numpy()


def tiled(segmenter, state, scene, tile, order=1):
    """Scores (K, H, W) put together from the cores of tiles, taken in ``order``."""
    grid = TileGrid(tile, segmenter.spec.halo)
    scores = np.full((state.segments, *scene.shape), np.nan, np.float32)
    for position in grid.covering(scene.window)[::order]:
        window = grid.tile_window(position)
        found = segmenter.segment(tiles_of(scene, window), state)[0].numpy()
        core = grid.core_window(position).intersect(scene.window)
        scores[(slice(None), *core.within(scene.window))] = found[(slice(None), *core.within(window))]
    return scores


def margin(scores):
    best = np.sort(scores, axis=0)
    return best[-1] - best[-2]


def adjusted_rand(first, second):
    """Adjusted Rand index of two labellings (Hubert and Arabie, 1985, eq. 5)."""
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first.ravel(), second.ravel()), 1)

    def pairs(counts):
        return float((counts * (counts - 1) / 2).sum())

    rows, cols = pairs(table.sum(1)), pairs(table.sum(0))
    chance = rows * cols / pairs(np.array(table.sum()))
    return (pairs(table) - chance) / ((rows + cols) / 2 - chance)


@pytest.fixture(scope="module", params=["continuity", "superpixels"])
def fitted(scene_of, request):
    scene = scene_of(field(300, 420))
    settings = replace(QUICK, target_segments=5, smoothing=request.param)
    segmenter = FeatureClustering(settings, scene.band_names)
    return segmenter, segmenter.prepare(scene), scene


@pytest.mark.parametrize("tile", [64, 100, 256])
def test_tiles_give_the_whole_scene(fitted, tile):
    segmenter, state, scene = fitted
    expected, found = whole(segmenter, state, scene), tiled(segmenter, state, scene, tile)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    clear = margin(expected) > 1e-3
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found.argmax(0)[clear], expected.argmax(0)[clear])


def test_order_of_tiles_does_not_matter(fitted):
    segmenter, state, scene = fitted
    np.testing.assert_array_equal(tiled(segmenter, state, scene, 100), tiled(segmenter, state, scene, 100, -1))


def test_one_seed_gives_one_fit_whatever_the_threads(fitted, scene_of):
    segmenter, state, scene = fitted
    random, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(99)
        with torch.inference_mode():
            again = fit(scene, segmenter.settings)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(random)
    assert not torch.are_deterministic_algorithms_enabled()
    assert again == state
    for name, value in state.weights.items():
        assert again.weights[name].tobytes() == value.tobytes()
    assert fit(scene, replace(segmenter.settings, seed=1)) != state


def test_scores_agree_with_the_lookup_table(fitted):
    segmenter, state, scene = fitted
    scores = segmenter.segment(tiles_of(scene, scene.window), state)
    every = FeatureClustering(state=replace(state, lookup=np.arange(12, dtype=np.int16)))
    response = every.segment(tiles_of(scene, scene.window), every.state)[0].numpy()
    response[state.lookup < 0] = -np.inf
    np.testing.assert_array_equal(scores[0].argmax(0).numpy(), state.lookup[response.argmax(0)])


def test_equal_ground_gets_equal_segments(scene_of):
    piece = field(150, 170)
    scene = scene_of(np.tile(piece, (1, 2, 2)))
    segmenter = FeatureClustering(replace(QUICK, target_segments=6), 3)
    state = segmenter.prepare(scene)
    copies = []
    for number, tile in enumerate((64, 100, 128, 256)):
        labels = tiled(segmenter, state, scene, tile).argmax(0)
        row, col = divmod(number, 2)
        copies.append(labels[row * 150 : row * 150 + 150, col * 170 : col * 170 + 170][4:-4, 4:-4])
    for copy in copies[1:]:
        assert (copy == copies[0]).mean() >= 0.999


@pytest.mark.parametrize("target", [1, 2, 4, 50])
def test_merging_to_a_number_of_segments(scene_of, target):
    scene = scene_of(field(130, 130))
    settings = replace(QUICK, target_segments=target)
    segmenter = FeatureClustering(settings, 3)
    state = segmenter.prepare(scene)
    assert state.segments == len(state.classes) == min(target, len(state.live))
    labels = tiled(segmenter, state, scene, 64).argmax(0)
    sample = np.concatenate([labels[w.within(scene.window)].ravel() for w in state.sample])
    found, sizes = np.unique(sample, return_counts=True)
    assert found.tolist() == list(range(state.segments))
    # Tiles of the sample lack their surroundings, so sizes differ a little from those the numbers were given by.
    assert (np.diff(sizes) <= 0.02 * sample.size).all()


def test_merge_by_hand():
    sizes = np.array([4, 0, 6, 5, 6])
    means = np.zeros((5, 5))
    means[0, 0], means[2, 0], means[3, 0], means[4, 0] = 0.0, 10.0, 0.5, 20.0
    assert merge(sizes, means, None).tolist() == [3, -1, 0, 2, 1]
    assert merge(sizes, means, 3).tolist() == [0, -1, 1, 0, 2]
    assert merge(sizes, means, 2).tolist() == [1, -1, 0, 1, 0]
    assert merge(sizes, means, 1).tolist() == [0, -1, 0, 0, 0]


@pytest.mark.slow
def test_three_classes_in_four_quadrants(scene_of):
    truth = np.zeros((96, 96), int)
    truth[:48, 48:] = truth[48:, 48:] = 1
    truth[48:, :48] = 2
    means = np.array([0.2, 0.5, 0.8])
    scores = []
    for seed in range(5):
        noise = 0.03 * np.random.default_rng(seed).standard_normal((3, 96, 96))
        scene = scene_of((means[truth] + noise).astype(np.float32), f"{seed}.tif")
        settings = ClusteringSettings(
            channels=32, continuity=5.0, iterations=100, min_labels=3, target_segments=3, seed=seed
        )
        segmenter = FeatureClustering(settings, 3)
        scores.append(adjusted_rand(whole(segmenter, segmenter.prepare(scene), scene).argmax(0), truth))
    assert np.median(scores) >= 0.93


def test_a_constant_scene_is_one_segment(scene_of):
    scene = scene_of(np.full((3, 70, 80), 9, np.uint8))
    segmenter = FeatureClustering(QUICK, 3)
    state = segmenter.prepare(scene)
    assert state.segments == 1
    assert np.isfinite(whole(segmenter, state, scene)).all()


def test_nodata_takes_no_part(scene_of):
    image = field(200, 200)
    image[:, :, 90:] = 0
    image[:, 20:30, 40:60] = 0
    state = fit(scene_of(image, nodata=0), QUICK)
    other = np.where(image == 0, np.uint8(255), image)
    assert fit(scene_of(other, "other.tif", nodata=255), QUICK) == state
    assert state.figures["sample_pixels"] < len(state.sample) * 64 * 64
    assert all(np.isfinite(value).all() for value in state.weights.values())


def test_a_scene_with_little_data_is_searched(scene_of):
    image = np.zeros((3, 500, 500), np.uint8)
    image[:, 470:490, 300:330] = field(20, 30)
    sample = draw_sample(scene_of(image, nodata=0), replace(QUICK, fit_tile_size=50))
    assert sample.valid.any()


def test_sample_covers_the_scene(scene_of):
    scene = scene_of(field(256, 384))
    settings = replace(QUICK, fit_tiles=16, fit_tile_size=32)
    windows = draw_sample(scene, settings).windows
    assert len({(w.row // 64, w.col // 96) for w in windows}) == len(windows) == 16
    assert windows == draw_sample(scene, settings).windows
    assert windows != draw_sample(scene, replace(settings, seed=1)).windows
    assert all(w.intersect(scene.window) == w for w in windows)


def test_fit_on_an_overview(scene_of):
    scene = scene_of(field(40, 2500))
    sample = draw_sample(scene, replace(QUICK, fit="overview"))
    assert sample.pixels.shape == (1, 3, 14, 834)
    assert sample.windows == (scene.window,)
    assert fit(scene, replace(QUICK, fit="overview")).segments >= 1


def test_a_saved_model_gives_the_same_scores(fitted, tmp_path):
    segmenter, state, scene = fitted
    path = tmp_path / "model.safetensors"
    state.save(path)
    with pytest.raises(OutputError, match="exists already"):
        state.save(path)
    state.save(path, overwrite=True)
    again = FeatureClustering.from_bundle(read_bundle(path))
    assert read_bundle(path).description.method == METHODS[state.settings.smoothing]
    assert again.spec.classes == state.classes
    assert again.spec.bands == scene.band_names
    loaded = again.prepare(scene)
    assert loaded == state
    assert loaded.settings == state.settings
    assert loaded.sample == state.sample
    np.testing.assert_array_equal(whole(again, loaded, scene), whole(segmenter, state, scene))


@pytest.mark.parametrize(
    ("change", "drop"),
    [
        ({"lookup": [0, 1]}, None),
        ({"lookup": [7] * 12}, None),
        ({"channels": 13}, None),
        ({"channels": "many"}, None),
        ({"fill": [0.5]}, None),
        ({"sample": [[1]]}, None),
        ({}, "conv3.weight"),
    ],
)
def test_refuses_a_bundle_whose_parts_do_not_fit(fitted, tmp_path, change, drop):
    _, state, _ = fitted
    about = state.description()
    about.settings.update(change)
    path = tmp_path / "model.safetensors"
    write_bundle(path, about, {name: value for name, value in state.weights.items() if name != drop})
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        FeatureClustering.from_bundle(read_bundle(path))


def test_refuses_other_band_counts_and_foreign_states(fitted, scene_of):
    segmenter, state, scene = fitted
    five = scene_of(field(70, 70, bands=5), "five.tif", photometric="minisblack")
    for refusing in (segmenter, FeatureClustering(state=state)):
        with pytest.raises(SceneError, match="5 bands"):
            refusing.prepare(five)
    with pytest.raises(ConfigError, match="prepare"):
        segmenter.segment(tiles_of(scene, scene.window), State())


def test_pickles_are_small_and_equal(fitted):
    segmenter, state, scene = fitted
    before = pickle.dumps((segmenter, state))
    whole(segmenter, state, scene)
    assert pickle.dumps((segmenter, state)) == before
    assert len(before) < 60_000
    copy, again = pickle.loads(before)  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(whole(copy, again, scene), whole(segmenter, state, scene))


def test_progress_ends_at_the_total(scene_of):
    seen = []
    segmenter = FeatureClustering(QUICK, 3, progress=lambda done, total: seen.append((done, total)))
    segmenter.prepare(scene_of(field(100, 100)))
    assert seen[0] == (1, 12)
    assert seen[-1] == (12, 12)


@pytest.mark.parametrize(
    ("name", "value"),
    [("channels", 0), ("iterations", 1.5), ("target_segments", 0), ("momentum", -1), ("seed", -1), ("fit", "all")],
)
def test_refuses_settings_without_sense(name, value):
    with pytest.raises(ConfigError, match=name):
        ClusteringSettings(**{name: value})


def test_losses_leave_masked_pixels_out():
    generator = torch.Generator().manual_seed(0)
    response = torch.randn(1, 4, 5, 6, generator=generator)
    valid = torch.ones(1, 5, 6, dtype=torch.bool)
    valid[:, :, 3:] = False
    target = response.argmax(1)
    torch.testing.assert_close(
        similarity_loss(response, target, valid), similarity_loss(response[..., :3], target[..., :3])
    )
    for found, expected in zip(continuity_loss(response, valid), continuity_loss(response[..., :3]), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        similarity_loss(response, target), torch.nn.functional.cross_entropy(response, target), rtol=1e-6, atol=1e-6
    )


def test_losses_without_pixels_are_zero():
    response = torch.randn(1, 4, 5, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    nothing = torch.zeros(1, 5, 1, dtype=torch.bool)
    none = torch.full((1, 5, 1), 255, dtype=torch.uint8)
    total = similarity_loss(response, response.argmax(1), nothing) + scribble_loss(response, none)
    total = total + sum(continuity_loss(response, nothing))
    assert total == 0
    total.backward()
    assert (response.grad == 0).all()
