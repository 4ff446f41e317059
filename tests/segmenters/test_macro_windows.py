"""Macro-windows: cover the scene, never leave it, and blend to a whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.segmenters.macro_windows import MacroGrid


@st.composite
def grids(draw):
    overlap = 2 * draw(st.integers(0, 8))
    extent = draw(st.integers(max(8, 2 * overlap), 2 * overlap + 40))
    return MacroGrid((draw(st.integers(1, 120)), draw(st.integers(1, 120))), extent, overlap)


@given(grids())
def test_cores_partition_the_scene(grid):
    count = np.zeros(grid.shape_yx, int)
    scene = Window(0, 0, *grid.shape_yx)
    for position in grid:
        core, window = grid.core_window(position), grid.tile_window(position)
        assert not core.empty
        assert core.intersect(window) == core
        assert window.intersect(scene) == window
        assert window.shape == tuple(min(side, grid.extent) for side in grid.shape_yx)
        count[core.within(scene)] += 1
    assert (count == 1).all()


@given(grids())
def test_weights_add_up_to_one(grid):
    total = np.zeros(grid.shape_yx)
    scene = Window(0, 0, *grid.shape_yx)
    for position in grid:
        rows, cols = grid.weights(position)
        assert rows.min() >= 0
        assert rows.max() <= 1
        total[grid.tile_window(position).within(scene)] += rows[:, None] * cols
        # A core's own weight is at least that of anyone else there.
        inside = grid.core_window(position).within(grid.tile_window(position))
        assert rows[inside[0]].min() >= 0.5 - 1e-6
        assert cols[inside[1]].min() >= 0.5 - 1e-6
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(grids(), st.data())
def test_covering_finds_all_whose_core_meets_a_window(grid, data):
    row, col = (data.draw(st.integers(0, side - 1)) for side in grid.shape_yx)
    window = Window(row, col, data.draw(st.integers(1, 100)), data.draw(st.integers(1, 100)))
    near = data.draw(st.integers(0, 30))
    expected = [
        position for position in grid if not grid.core_window(position).padded(near).intersect(window).empty
    ]  # fmt: skip
    assert grid.covering(window, near) == expected
    strip = grid.overlap // 2
    meeting = [
        position
        for position in grid
        if (part := grid.tile_window(position).intersect(window).intersect(Window(0, 0, *grid.shape_yx)))
        and not part.empty
        and (grid.weights(position)[0][part.within(grid.tile_window(position))[0]] > 0).any()
        and (grid.weights(position)[1][part.within(grid.tile_window(position))[1]] > 0).any()
    ]
    assert set(meeting) <= set(grid.covering(window, strip))


def test_the_lattice_is_the_scenes_own():
    grid = MacroGrid((2448, 6000), 2448, 508)
    assert [grid.tile_window(position) for position in grid] == [
        Window(0, 0, 2448, 2448),
        Window(0, 1940, 2448, 2448),
        Window(0, 3552, 2448, 2448),
    ]
    assert [grid.core_window(position) for position in grid] == [
        Window(0, 0, 2448, 2194),
        Window(0, 2194, 2448, 1940),
        Window(0, 4134, 2448, 1866),
    ]
    assert grid.counts == (1, 3)
    assert len(grid) == 3
    # A longer scene has the same windows, but for the last.
    longer = MacroGrid((2448, 7000), 2448, 508)
    assert list(map(longer.tile_window, longer))[:2] == list(map(grid.tile_window, grid))[:2]


def test_flanks_are_those_of_blended_tiles():
    from geoseg.grid import blend_weights

    grid = MacroGrid((100, 200), 60, 16)
    np.testing.assert_allclose(grid.weights((0, 1))[1], blend_weights(60, 8), atol=1e-6)


@pytest.mark.parametrize(("extent", "overlap"), [(100, 15), (100, 52), (0, 0), (100, -2)])
def test_refused_sizes(extent, overlap):
    with pytest.raises(ConfigError, match=f"macro-windows of {extent} pixels cannot share {overlap}"):
        MacroGrid((300, 300), extent, overlap)


def test_a_scene_without_pixels_is_refused():
    with pytest.raises(ConfigError, match="0 × 300"):
        MacroGrid((0, 300), 100, 10)
