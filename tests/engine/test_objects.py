"""Objects matched by IoU, by hand and against every pair."""

from __future__ import annotations

import numpy as np
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geoseg.engine.objects import InnerPoints, Objects, match_objects
from geoseg.grid import ChunkGrid
from geoseg.metrics import IGNORED


def _boxes(*bounds: tuple[float, float, float, float], classes: list[int] | None = None) -> Objects:
    shapes = np.array([shapely.box(*b) for b in bounds], object)
    return Objects(shapes, np.array(classes or [1] * len(bounds), np.int64))


def _match(reference: Objects, prediction: Objects, counted=None):
    counted = counted or (np.ones(len(reference), bool), np.ones(len(prediction), bool))
    return match_objects(reference, prediction, counted, 3)


def test_by_hand():
    reference = _boxes((0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10))
    # Exactly half of the first, too little of the second, and one where there is nothing.
    prediction = _boxes((0, 0, 10, 5), (25, 0, 35, 10), (70, 0, 80, 10))
    counts, iou = _match(reference, prediction)
    assert (counts.found.tolist(), counts.wrong.tolist(), counts.missed.tolist()) == ([0, 1, 0], [0, 2, 0], [0, 2, 0])
    assert iou.tolist() == [0.5]


def test_another_class_is_no_partner():
    counts, _ = _match(_boxes((0, 0, 9, 9), classes=[1]), _boxes((0, 0, 9, 9), classes=[2]))
    assert (counts.found.sum(), counts.wrong.tolist(), counts.missed.tolist()) == (0, [0, 0, 1], [0, 1, 0])


def test_an_object_has_one_partner_the_best():
    reference = _boxes((0, 0, 10, 10))
    counts, iou = _match(reference, _boxes((0, 0, 10, 8), (0, 0, 10, 9), (0, 0, 10, 7)))
    assert (counts.found[1], counts.wrong[1], counts.missed[1], iou.tolist()) == (1, 2, 0, [0.9])


def test_objects_that_do_not_count_are_neither_wrong_nor_missed():
    reference, prediction = _boxes((0, 0, 9, 9), (20, 0, 29, 9)), _boxes((0, 0, 9, 9), (40, 0, 49, 9))
    no, yes = np.zeros(2, bool), np.ones(2, bool)
    assert sum(int(n.sum()) for n in _match(reference, prediction, (no, no))[0].__dict__.values()) == 0
    counts, _ = _match(reference, prediction, (no, yes))
    assert (counts.found.sum(), counts.wrong.sum(), counts.missed.sum()) == (1, 1, 0)


@given(st.integers(0, 10_000))
def test_every_pair_agrees_where_objects_do_not_overlap_each_other(seed):
    rng = np.random.default_rng(seed)
    corners = [(x, y) for x in range(0, 80, 20) for y in range(0, 60, 20)]
    sides = []
    for _ in range(2):
        kept = [c for c in corners if rng.random() < 0.8]
        starts = [(x + rng.integers(0, 6), y + rng.integers(0, 6)) for x, y in kept]
        bounds = [(x, y, x + rng.integers(6, 14), y + rng.integers(6, 14)) for x, y in starts]
        sides.append(_boxes(*bounds, classes=rng.integers(0, 3, len(bounds)).tolist()))
    reference, prediction = sides
    found = 0
    for a, i in zip(reference.geometry, reference.index, strict=True):
        for b, j in zip(prediction.geometry, prediction.index, strict=True):
            found += bool(i == j and a.intersection(b).area >= 0.5 * a.union(b).area)
    counts, _ = _match(reference, prediction)
    assert counts.found.sum() == found
    assert (counts.wrong + counts.found).sum() == len(prediction)
    assert (counts.missed + counts.found).sum() == len(reference)


def test_what_is_cut_at_the_edge_and_what_is_ignored():
    shapes = np.array([shapely.box(-5, 2, 5, 8), shapely.box(2, 2, 4, 4), shapely.box(90, 2, 99, 8)], object)
    some = Objects.of(shapes, np.array([1, IGNORED, 1], np.uint8), (10, 20))
    assert [shape.bounds for shape in some.geometry] == [(0, 2, 5, 8)]


@given(st.integers(1, 30))
def test_inner_points_are_found_whatever_the_blocks(size):
    objects = _boxes((0, 0, 3, 3), (5, 5, 9, 8), (14, 0, 19, 3), (10, 11, 19, 19))
    evaluated = np.ones((20, 20), bool)
    evaluated[5:8, 5:9] = False
    points = InnerPoints(objects)
    for window in ChunkGrid((20, 20), size):
        points.look(window, evaluated[window.row : window.row_stop, window.col : window.col_stop])
    assert points.counted.tolist() == [True, False, True, True]
