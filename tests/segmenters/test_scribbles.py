"""Scribbles, references and names of clusterings: what a user knows enters the fit or is said after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from geoseg.classes import LabelClass
from geoseg.errors import ConfigError, LabelsError
from geoseg.grid import Window
from geoseg.segmenters.clustering import FeatureClustering, fit
from geoseg.segmenters.clustering_fit import ClusteringSettings, merge, objective
from geoseg.segmenters.scene_sample import Batch, draw_sample, sample_scenes, scribbled_tiles
from geoseg.segmenters.scribbles import Scribbles
from tests.segmenters.test_clustering import QUICK, field, tiled, whole


class Squares:
    """Marks: squares of five pixels round places."""

    def __init__(self, shape, places):
        self.raster = np.full(shape, 255, np.uint8)
        for value, here in enumerate(places):
            for row, col in here:
                self.raster[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3] = value

    def read(self, window):
        rows, cols = slice(window.row, window.row_stop), slice(window.col, window.col_stop)
        return self.raster[rows, cols].copy()


def scribbles_on(scene, **places):
    return Scribbles(tuple(places), Squares(scene.shape, list(places.values())), tuple(map(tuple, places.values())))


def halves():
    """A scene whose left part is dark and whose right part is bright, with noise: (3, 120, 150)."""
    image = np.full((3, 120, 150), 70.0)
    image[:, :, 90:] = 170
    noise = 12 * np.random.default_rng(0).standard_normal(image.shape)
    return np.clip(image + noise, 1, 254).astype(np.uint8)


@pytest.mark.parametrize("smoothing", ["continuity", "superpixels"])
def test_scribbles_name_what_they_mark(scene_of, smoothing):
    scene = scene_of(halves())
    settings = replace(QUICK, iterations=60, target_segments=2, smoothing=smoothing, scribble=2.0)
    marks = scribbles_on(scene, bright=[(20, 120), (90, 110)], dark=[(30, 20), (80, 60)])
    segmenter = FeatureClustering(settings, 3, scribbles=lambda _: marks)
    state = segmenter.prepare(scene)
    assert [each.name for each in state.classes] == ["bright", "dark"]
    labels = whole(segmenter, state, scene).argmax(0)
    assert (labels[:, 95:] == 0).mean() > 0.98
    assert (labels[:, :85] == 1).mean() > 0.98


def test_more_segments_than_scribbles_keep_numbers(scene_of):
    scene = scene_of(field(150, 170))
    marks = scribbles_on(scene, forest=[(20, 120)], water=[(100, 30)])
    state = fit(scene, replace(QUICK, target_segments=4), scribbles=marks)
    names = [each.name for each in state.classes]
    assert names[:2] == ["forest", "water"]
    assert names[2:] == [f"segment {i + 1}" for i in range(len(names) - 2)]
    assert state.lookup[:2].tolist() == [0, 1]
    assert fit(scene, replace(QUICK, target_segments=4), scribbles=marks) == state


def test_scribbled_places_are_in_the_sample(scene_of):
    scene = scene_of(field(300, 300))
    settings = replace(QUICK, fit_tiles=2, fit_tile_size=40)
    tiles = draw_sample(scene, settings)
    places = {"a": [(5, 5), (290, 7)], "b": [(150, 150), (6, 6)], "c": [(299, 299)]}
    found = scribbled_tiles(scene, scribbles_on(scene, **places), tiles, 9)
    assert found.windows[:2] == tiles.windows
    assert found.pixels.shape[1:] == (3, 40, 40)
    for each in (place for here in places.values() for place in here):
        holding = [w for w in found.windows if w.row <= each[0] < w.row_stop and w.col <= each[1] < w.col_stop]
        assert holding
        assert all(w.intersect(scene.window) == w for w in holding)
    assert len(scribbled_tiles(scene, scribbles_on(scene, **places), tiles, 1).windows) == 3


def test_scribbled_pixels_aim_at_their_scribble_alone():
    generator = torch.Generator().manual_seed(0)
    response = torch.randn(1, 4, 6, 7, generator=generator).requires_grad_()
    marks = torch.full((1, 6, 7), 255, dtype=torch.uint8)
    marks[:, 2:4, 2:4] = 3
    settings = ClusteringSettings(continuity=0.0, scribble=2.0)
    objective(response, Batch(response, None, None, marks), settings).backward()
    toward = torch.softmax(response.detach(), 1)
    target = torch.where(marks == 255, response.detach().argmax(1), 3)
    expected = toward - torch.nn.functional.one_hot(target, 4).movedim(-1, 1)
    share = torch.where(marks == 255, 1 / 38, 2 / 4).unsqueeze(1)
    torch.testing.assert_close(response.grad, expected * share, rtol=1e-5, atol=1e-6)


def test_merging_keeps_scribbled_channels_apart():
    sizes = np.array([4, 9, 6, 0, 5, 6])
    means = np.zeros((6, 6))
    means[:, 0] = [0.0, 0.1, 10.0, 0.0, 0.2, 20.0]
    assert merge(sizes, means, 2, apart=2).tolist() == merge(sizes, means, 1, apart=2).tolist()
    assert merge(sizes, means, None, apart=2).tolist() == [0, 1, 2, -1, 4, 3]
    found = merge(sizes, means, 3, apart=2)
    assert found[0] == 0
    assert found[1] == 1
    assert set(found.tolist()) == {0, 1, 2, -1}
    sizes[0] = 0
    assert merge(sizes, means, 3, apart=2)[0] == 0  # a name is a segment even where no pixel won


def test_refuses_scribbles_without_room(scene_of):
    scene = scene_of(field(80, 80))
    marks = scribbles_on(scene, a=[(5, 5)], b=[(50, 50)], c=[(70, 9)])
    for change, message in (
        ({"target_segments": 2}, "3 names, which 2 segments"),
        ({"channels": 2}, "3 names, which 2 channels"),
        ({"fit": "overview"}, "overview"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(scene, replace(QUICK, **change), scribbles=marks)
    with pytest.raises(ConfigError, match="0 names"):
        Scribbles((), marks.marks, ())


# References


def test_references_take_turns_in_the_sample(scene_of):
    scenes = [scene_of(field(*shape, seed=seed), f"{seed}.tif") for seed, shape in enumerate([(200, 210), (60, 300)])]
    tiles = sample_scenes(scenes, replace(QUICK, fit_tiles=6, fit_tile_size=80))
    assert tiles.pixels.shape == (6, 3, 60, 60)
    for i, window in enumerate(tiles.windows):
        pixels = scenes[i % 2].read(Window(*(window.row, window.col, window.height, window.width)))
        np.testing.assert_array_equal(tiles.pixels[i].numpy(), pixels.data)


def test_a_fit_to_references_serves_any_scene(scene_of):
    scenes = [scene_of(field(130, 140, seed=seed), f"{seed}.tif") for seed in range(3)]
    settings = replace(QUICK, target_segments=4)
    segmenter = FeatureClustering(settings, 3, references=scenes[:2])
    state = segmenter.prepare(scenes[2])
    assert state == FeatureClustering(settings, 3, references=scenes[:2]).prepare(scenes[0])
    assert state != FeatureClustering(settings, 3).prepare(scenes[2])
    assert state.figures["references"] == 2
    assert np.isfinite(tiled(segmenter, state, scenes[2], 64)).all()


# Names


def test_names_merge_segments(scene_of):
    scene = scene_of(field(130, 140))
    segmenter = FeatureClustering(replace(QUICK, target_segments=5), 3)
    state = segmenter.prepare(scene)
    items = (LabelClass(1, "wood", "#00ff00"), LabelClass(3, "wood", "#ff0000"), LabelClass(4, "lake", "#0000ff"))
    named = state.named(items)
    assert [(each.id, each.name) for each in named.classes] == [
        (0, "segment 1"),
        (1, "wood"),
        (2, "segment 3"),
        (4, "lake"),
    ]
    assert named.classes[1].color == "#00ff00"
    before = tiled(segmenter, state, scene, 64).argmax(0)
    positions = tiled(segmenter, named, scene, 64).argmax(0)
    expected = np.array([0, 1, 2, 1, 4])[before]
    np.testing.assert_array_equal(np.array(named.classes.ids)[positions], expected)
    assert FeatureClustering(replace(QUICK, target_segments=5), 3, names=items).prepare(scene) == named


@pytest.mark.parametrize(
    ("items", "message"),
    [([(7, "a")], "7 belongs to no class"), ([(0, "segment 2")], "'segment 2' is the name of class 1")],
)
def test_refuses_names_that_do_not_fit(scene_of, items, message):
    state = fit(scene_of(field(100, 100)), replace(QUICK, target_segments=3))
    with pytest.raises(LabelsError, match=message):
        state.named([LabelClass(i, name, "#000000") for i, name in items])
