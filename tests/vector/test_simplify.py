"""Simpler outlines: still a coverage, never farther than asked, the same for any blocks."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from geoseg.vector.label_map import LabelArray
from geoseg.vector.pixel_polygons import PixelPolygons
from geoseg.vector.polygons import NOTHING, polygonize
from geoseg.vector.simplify import simplified


def label_map(seed, shape, classes=3, blur=1.5, nothing=0.02):
    rng = np.random.default_rng(seed)
    fields = rng.standard_normal((classes, *shape))
    if blur:
        fields = np.stack([ndimage.gaussian_filter(field, blur) for field in fields])
    labels = fields.argmax(axis=0).astype(np.uint8)
    labels[rng.random(shape) < nothing] = NOTHING
    return labels


def polygons(labels, **options):
    found = PixelPolygons.joined(polygonize(LabelArray(labels, **options)))
    return found.taken(np.argsort(found.first_pixel))


def farthest(raw, simple):
    pairs = zip(shapely.boundary(raw), shapely.boundary(simple), strict=True)
    return max(shapely.hausdorff_distance(a, b) for a, b in pairs)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    classes=st.integers(2, 4),
    blur=st.sampled_from([0, 0.6, 1, 2, 4]),
    nothing=st.sampled_from([0, 0.02, 0.2]),
    tolerance=st.sampled_from([0, 0.5, 0.8, 1.5, 3, 10]),
    smooth=st.booleans(),
)
def test_always_a_coverage_of_the_same_area(seed, shape, classes, blur, nothing, tolerance, smooth):
    labels = label_map(seed, shape, classes, blur, nothing)
    raw = polygons(labels)
    if not len(raw):
        return
    simple = simplified(raw, labels, tolerance_m=tolerance, pixel_m=(1, 1), smooth=smooth)
    geometry = simple.geometry
    assert shapely.is_valid(geometry).all()
    assert shapely.coverage_is_valid(geometry)
    assert (shapely.area(geometry) > 0).all()
    assert shapely.area(shapely.union_all(geometry)) == pytest.approx(shapely.area(geometry).sum())
    assert farthest(raw.geometry, geometry) <= tolerance + (0.5 if smooth else 0) + 1e-8
    # The same polygons touch, and the same polygons have holes.
    assert (np.diff(simple.polygon_starts) == np.diff(raw.polygon_starts)).all()
    before, after = shapely.STRtree(raw.geometry), shapely.STRtree(geometry)
    assert edges(before, raw.geometry) == edges(after, geometry)


def edges(tree, geometry):
    pairs = tree.query(geometry, predicate="intersects").T
    lines = shapely.intersection(geometry[pairs[:, 0]], geometry[pairs[:, 1]])
    return {tuple(pair) for pair, line in zip(pairs.tolist(), lines, strict=True) if shapely.get_dimensions(line) == 1}


@pytest.mark.parametrize("smooth", [False, True])
def test_blocks_make_no_difference(smooth):
    labels = label_map(3, (70, 90), blur=2)
    whole = simplified(polygons(labels), labels, tolerance_m=2, pixel_m=(1, 1), smooth=smooth)
    for size in (7, 32):
        parts = PixelPolygons.joined(
            simplified(batch, labels, tolerance_m=2, pixel_m=(1, 1), smooth=smooth)
            for batch in polygonize(LabelArray(labels, size=size))
        )
        parts = parts.taken(np.argsort(parts.first_pixel))
        assert shapely.to_wkb(parts.geometry).tolist() == shapely.to_wkb(whole.geometry).tolist()


def test_a_staircase_becomes_a_slope():
    labels = (np.indices((40, 40)).sum(axis=0) < 40).astype(np.uint8)
    simple = simplified(polygons(labels), labels, tolerance_m=0.8, pixel_m=(1, 1))
    assert shapely.get_num_coordinates(simple.geometry).max() <= 6
    # With the corners of pixels cut the slope is straight, and its points fall away without any tolerance.
    smooth = simplified(polygons(labels), labels, tolerance_m=0, pixel_m=(1, 1), smooth=True)
    assert shapely.get_num_coordinates(smooth.geometry).max() <= 9


def test_the_tolerance_is_in_ground_metres_along_each_axis():
    labels = np.zeros((20, 60), np.uint8)
    labels[8:, :] = 1
    labels[7, 20:40] = 1  # a step of one pixel, one row high
    raw = polygons(labels)
    high = simplified(raw, labels, tolerance_m=0.9, pixel_m=(0.5, 2.0))
    low = simplified(raw, labels, tolerance_m=0.9, pixel_m=(2.0, 0.5))
    assert len(high.corners) == len(raw.corners)
    assert len(low.corners) < len(raw.corners)


def test_the_corners_of_the_raster_stay():
    labels = label_map(6, (40, 50), nothing=0)
    for smooth in (False, True):
        simple = simplified(polygons(labels), labels, tolerance_m=5, pixel_m=(1, 1), smooth=smooth)
        assert shapely.equals(shapely.union_all(simple.geometry), shapely.box(0, 0, 50, 40))


def test_without_tolerance_only_straight_lines_lose_points():
    labels = label_map(4, (30, 30))
    raw = polygons(labels)
    simple = simplified(raw, labels, tolerance_m=0, pixel_m=(1, 1))
    assert shapely.equals(raw.geometry, simple.geometry).all()


def test_two_borders_between_two_nodes_do_not_fall_together():
    # A sliver of one row between two others: both its sides run between the same two nodes.
    labels = np.array([[0] * 9, [0, *[1] * 7, 0], [2] * 9], np.uint8)
    simple = simplified(polygons(labels), labels, tolerance_m=5, pixel_m=(1, 1))
    assert (shapely.area(simple.geometry) > 0).all()
    assert shapely.coverage_is_valid(simple.geometry)


def test_far_fewer_vertices_than_the_coverage_simplifier_at_equal_distance():
    labels = label_map(5, (300, 300), blur=6, nothing=0)
    raw = polygons(labels)
    simple = simplified(raw, labels, tolerance_m=1.0, pixel_m=(1, 1)).geometry
    other = shapely.coverage_simplify(raw.geometry, 1.0)
    assert farthest(raw.geometry, simple) <= 1.0 + 1e-8
    assert shapely.get_num_coordinates(simple).sum() < shapely.get_num_coordinates(other).sum()
