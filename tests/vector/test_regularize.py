"""Rasterised buildings come back with straight walls at right angles, as large as they were, off each other."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize, shapes
from shapely import affinity, box

from geoseg.vector.regularize import LEAST_IOU, OVERLAP_PX, REACH_PX, Regularizer, iou, regularize
from geoseg.vector.right_angles import Course, Wall, main_direction, right_angled

PLANS = {
    "bar": [box(0, 0, 40, 18)],
    "L": [box(0, 0, 44, 16), box(0, 0, 16, 38)],
    "T": [box(0, 24, 54, 40), box(18, 0, 36, 40)],
    "U": [box(0, 0, 56, 16), box(0, 0, 16, 40), box(40, 0, 56, 40)],
    "Z": [box(0, 0, 36, 16), box(20, 0, 36, 40), box(20, 24, 60, 40)],
}


def plan(name: str, turn: float, stretch: float, x: float, y: float) -> shapely.Polygon:
    whole = affinity.scale(shapely.union_all(PLANS[name]), stretch, 1.0, origin=(0, 0))
    return affinity.translate(affinity.rotate(whole, turn), x, y)


def rasterised(polygons, shape=(110, 130)) -> list[shapely.Polygon]:
    """Return the largest region of each polygon on the pixel grid; later polygons cover earlier ones."""
    labels = rasterize([(polygon, 1 + nth) for nth, polygon in enumerate(polygons)], out_shape=shape, dtype="int32")
    found: dict[int, shapely.Polygon] = {}
    for geometry, value in shapes(labels, mask=labels > 0):
        region = shapely.geometry.shape(geometry)
        if int(value) not in found or region.area > found[int(value)].area:
            found[int(value)] = region
    return np.array([found[value] for value in sorted(found)], object)


def turns(polygon: shapely.Polygon) -> np.ndarray:
    """Return the turn at each corner of a polygon's rings in degrees, from 0 to 180."""
    angles = []
    for ring in shapely.get_rings(polygon):
        walls = np.diff(shapely.get_coordinates(ring), axis=0)
        heading = np.degrees(np.arctan2(walls[:, 1], walls[:, 0]))
        angles.append(np.abs((np.roll(heading, -1) - heading + 180) % 360 - 180))
    return np.concatenate(angles)


PLACED = {
    "name": st.sampled_from(sorted(PLANS)),
    "turn": st.floats(0, 360),
    "stretch": st.floats(0.9, 1.4),
    "x": st.floats(20, 30),
    "y": st.floats(30, 40),
}


@settings(deadline=None, max_examples=100)
@given(**PLACED)
def test_walls_meet_at_right_angles_and_area_stays(name, turn, stretch, x, y):
    truth = plan(name, turn, stretch, x, y)
    (raw,) = rasterised([truth])
    (found,), (agreement,) = regularize(np.array([raw]), 0.3, diagonals=False)
    assert found.is_valid
    assert found.area == pytest.approx(raw.area, rel=1e-6)
    np.testing.assert_allclose(turns(found), 90, atol=1e-4)
    assert agreement == pytest.approx(raw.intersection(found).area / raw.union(found).area, abs=1e-9)
    assert agreement > 0.88
    assert iou(np.array([truth]), np.array([found]))[0] > 0.9


@settings(deadline=None, max_examples=60)
@given(**PLACED)
def test_plans_come_back_with_their_corners_and_direction(name, turn, stretch, x, y):
    truth = plan(name, turn, stretch, x, y)
    (found,), _ = regularize(np.array(rasterised([truth])), 0.3)
    wanted, given_corners = shapely.get_num_coordinates([truth, found])
    assert given_corners <= wanted + 2
    away = (np.degrees(main_direction(found, 1.0)) - turn + 45) % 90 - 45
    assert abs(away) < 4


@settings(deadline=None, max_examples=40)
@given(turn=st.floats(0, 90), cut=st.floats(14, 20))
def test_walls_at_45_degrees_where_the_outline_asks_for_them(turn, cut):
    corner = shapely.Polygon([(0, 0), (cut, 0), (0, cut)])
    truth = affinity.translate(affinity.rotate(box(0, 0, 50, 40).difference(corner), turn), 35, 35)
    (raw,) = rasterised([truth])
    (with_diagonals,), (agreement,) = regularize(np.array([raw]), 0.3)
    (without,), (other,) = regularize(np.array([raw]), 0.3, diagonals=False)
    assert agreement > other
    away = turns(with_diagonals) % 45
    np.testing.assert_allclose(np.minimum(away, 45 - away), 0, atol=1e-4)
    np.testing.assert_allclose(turns(without), 90, atol=1e-4)
    assert shapely.get_num_coordinates(with_diagonals) == 6


@settings(deadline=None, max_examples=40)
@given(turn=st.floats(0, 90), x=st.floats(35, 40), y=st.floats(35, 40))
def test_holes_are_kept(turn, x, y):
    whole = box(0, 0, 60, 50).difference(shapely.union_all([box(10, 12, 24, 30), box(36, 20, 50, 36)]))
    (raw,) = rasterised([affinity.translate(affinity.rotate(whole, turn), x, y)])
    (found,), _ = regularize(np.array([raw]), 0.3, diagonals=False)
    assert found.is_valid
    assert len(found.interiors) == 2
    assert found.area == pytest.approx(raw.area, rel=1e-6)
    np.testing.assert_allclose(turns(found), 90, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_neighbours_do_not_overlap_and_the_earlier_one_keeps_its_outline(seed):
    rng = np.random.default_rng(seed)
    names = rng.choice(sorted(PLANS), 6)
    # Plans laid over one another: on the grid, each shows what the later ones leave of it.
    raw = rasterised([plan(n, rng.uniform(0, 90), 1, *rng.uniform(10, 60, 2)) for n in names])
    found, agreement = regularize(raw, 0.3)
    assert shapely.is_valid(found).all()
    assert (shapely.get_type_id(found) == shapely.GeometryType.POLYGON).all()
    assert (shapely.area(found) > 0).all()
    np.testing.assert_allclose(agreement, iou(raw, found), atol=1e-12)
    one, other = np.triu_indices(len(found), 1)
    assert shapely.area(shapely.intersection(found[one], found[other])).max(initial=0) < OVERLAP_PX
    alone = regularize(raw[:1], 0.3)[0][0]
    assert alone.equals_exact(found[0], 0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 9))
def test_batches_make_no_difference_and_what_lies_far_above_is_forgotten(seed, size):
    rng = np.random.default_rng(seed)
    names = rng.choice(sorted(PLANS), 24)
    places = zip(rng.uniform(10, 90, 24), np.sort(rng.uniform(10, 900, 24)), strict=True)
    raw = rasterised(
        [plan(n, rng.uniform(0, 90), 1, *place) for n, place in zip(names, places, strict=True)], (980, 170)
    )
    raw = raw[np.argsort(shapely.bounds(raw)[:, 1], kind="stable")]
    tops = shapely.bounds(raw)[:, 1]
    regularizer = Regularizer(0.3)
    parts = []
    for start in range(0, len(raw), size):
        parts.append(regularizer.add(raw[start : start + size], tops[start]))
        bottoms = shapely.bounds(raw[: start + size])[:, 3]
        assert len(regularizer) <= size + (bottoms > tops[start] - REACH_PX - 20).sum()
    found, agreement = regularize(raw, 0.3)
    assert len(regularizer) < len(raw)
    assert shapely.equals_identical(np.concatenate([result for result, _ in parts]), found).all()
    np.testing.assert_array_equal(np.concatenate([ious for _, ious in parts]), agreement)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.3, 0.7))
def test_any_regions_give_valid_polygons_of_nearly_their_size(seed, share):
    labels = (np.random.default_rng(seed).random((12, 15)) < share).astype(np.uint8)
    raw = np.array([shapely.geometry.shape(shape) for shape, value in shapes(labels) if value], object)
    found, agreement = regularize(raw, 0.5)
    assert shapely.is_valid(found).all()
    assert (shapely.area(found) <= shapely.area(raw) * (1 + 1e-9) + OVERLAP_PX).all()
    assert ((agreement > 0) & (agreement <= 1)).all()
    again, same = regularize(raw.copy(), 0.5)
    assert shapely.equals_identical(found, again).all()
    np.testing.assert_array_equal(agreement, same)


def test_what_no_right_angles_fit_keeps_its_outline():
    cross = shapely.union_all([affinity.rotate(box(-40, -2, 40, 2), turn) for turn in (0, 37, 71, 113, 151)])
    (raw,) = rasterised([affinity.translate(cross, 60, 55)])
    (found,), (agreement,) = regularize(np.array([raw]), 0.3)
    if agreement == 1:
        assert found.equals(raw)
    else:
        assert agreement >= LEAST_IOU


def test_no_polygons_and_single_pixels():
    none, nothing = regularize(np.empty(0, object), 0.3)
    assert len(none) == len(nothing) == 0
    (found,), (agreement,) = regularize(np.array([box(3, 4, 4, 5)]), 0.3)
    assert found.equals(box(3, 4, 4, 5))
    assert agreement == 1


def test_walls_shorter_than_wanted_go():
    jagged = box(0, 0, 60, 40).union(box(20, 40, 26, 46))
    (kept,), _ = regularize(np.array([jagged]), 1.0, shortest_m=4)
    (gone,), _ = regularize(np.array([jagged]), 1.0, shortest_m=9)
    assert shapely.get_num_coordinates([kept, gone]).tolist() == [9, 5]
    assert gone.area == pytest.approx(jagged.area)


@given(st.lists(st.floats(5, 9), min_size=2, max_size=9))
def test_a_wall_takes_off_as_much_as_it_adds(heights):
    count = len(heights)
    top = np.column_stack([np.repeat(np.arange(count + 1), 2)[1:-1], np.repeat(heights, 2)])
    course = Course(np.vstack([top, [[count, 0], [0, 0]], top[:1]]))
    first = int(np.flatnonzero((course.ring[:-1] == top[0]).all(axis=1))[0])
    assert course.offset(Wall(0, first, first + len(top) - 1)) == pytest.approx(np.mean(heights))


def test_a_ring_of_nothing_but_a_spike_has_no_right_angles():
    ring = np.array([[0, 0], [20, 0], [20, 0.5], [0, 0.5], [0, 0]], float)
    assert right_angled(Course(ring), 1.0, 3.0, False) is None
