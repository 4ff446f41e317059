"""Polygons that mending would not get done with."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from geoseg.errors import SceneError
from geoseg.mending import refuse_tangled

_RING = [(0, 0), (9, 0), (9, 7), (0, 7)]


def test_an_outline_that_runs_round_a_thousand_times_is_refused():
    shapes = np.array([shapely.box(0, 0, 1, 1), shapely.Polygon(_RING * 1000)])
    with pytest.raises(SceneError, match=r"a\.gpkg has a polygon \(feature 2\)"):
        refuse_tangled("a.gpkg", shapes)


def test_a_scribble_of_five_thousand_vertices_across_itself_is_refused():
    rng = np.random.default_rng(2)
    with pytest.raises(SceneError, match="again and again"):
        refuse_tangled("a.gpkg", np.array([shapely.Polygon(rng.random((5000, 2)))]))


def test_what_is_not_finite_is_refused():
    with pytest.raises(SceneError, match="no finite numbers"):
        refuse_tangled("a.gpkg", np.array([shapely.Polygon([(0, 0), (np.inf, 0), (1, 1)])]))


def test_what_is_valid_or_wrong_in_one_place_passes():
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    bow = circle.copy()
    bow[[3, 4]] = bow[[4, 3]]
    shapes = np.array([shapely.Polygon(circle), shapely.Polygon(bow), None, shapely.Polygon(), shapely.Point(1, 2)])
    assert not shapely.is_valid(shapes[1])
    refuse_tangled("a.gpkg", shapes)
