"""Windows, chunks, tiles, mirroring and blending weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.grid import ChunkGrid, TileGrid, Window, blend_weights, mirror, reflected, taken

sizes = st.integers(1, 300)


across = st.none() | st.tuples(st.integers(1, 400), st.integers(0, 399))


@given(sizes, sizes, st.integers(1, 400), st.integers(0, 399), across)
def test_chunks_partition_the_scene(
    height: int, width: int, size: int, offset: int, across: tuple[int, int] | None
) -> None:
    seen = np.zeros((height, width), int)
    across = across and (across[0], across[1] % across[0])
    chunks = ChunkGrid((height, width), size, offset % size, across)
    assert chunks.record == [size, offset % size, *(across or ())]
    for number, window in enumerate(chunks):
        assert window == chunks.window(number)
        assert not window.empty
        seen[window.within(Window(0, 0, height, width))] += 1
    assert (seen == 1).all()


@given(sizes, sizes, st.integers(0, 20), st.integers(1, 60), st.none() | st.integers(1, 60), st.integers(1, 90))
def test_tile_cores_cover_every_chunk_once(
    height: int, width: int, halo: int, core: int, across: int | None, chunk: int
) -> None:
    tiles = TileGrid(core + 2 * halo, halo, across and across + 2 * halo)
    assert tiles.core_shape == (core, across or core)
    for window in ChunkGrid((height, width), chunk):
        seen = np.zeros(window.shape, int)
        for position in tiles.covering(window):
            part = tiles.core_window(position).intersect(window)
            assert not part.empty
            seen[part.within(window)] += 1
        assert (seen == 1).all()


@given(st.integers(1, 40), st.integers(-90, 90), st.integers(0, 120))
def test_mirroring_equals_numpy(size: int, start: int, length: int) -> None:
    axis = np.arange(size)
    padded = np.pad(axis, 100 + length, mode="reflect")
    offset = 100 + length
    if start + offset < 0 or start + length + offset > len(padded):
        return
    assert (axis[reflected(start, start + length, size)] == padded[start + offset : start + offset + length]).all()


@given(
    st.integers(1, 20), st.integers(1, 20), st.tuples(*[st.integers(-50, 50)] * 2), st.tuples(*[st.integers(1, 70)] * 2)
)
def test_a_mirrored_window_is_what_looking_up_every_pixel_gives(
    height: int, width: int, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    raster = np.arange(2 * height * width).reshape(2, height, width)
    part, rows, cols = mirror(Window(*corner, *size), (height, width))
    read = raster[:, *part.within(Window(0, 0, height, width))]
    expected = raster[
        :,
        reflected(corner[0], corner[0] + size[0], height)[:, None],
        reflected(corner[1], corner[1] + size[1], width),
    ]
    found = read if rows is None or cols is None else taken(read, rows, cols)
    np.testing.assert_array_equal(found, expected)


@given(st.data(), st.integers(1, 9), st.integers(1, 9))
def test_pixels_taken_anywhere(data: st.DataObject, height: int, width: int) -> None:
    raster = np.arange(height * width).reshape(height, width)
    rows, cols = (
        np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=12)), np.intp)
        for size in (height, width)
    )
    np.testing.assert_array_equal(taken(raster, rows, cols), raster[rows[:, None], cols])


@given(st.integers(0, 40), st.integers(1, 50), st.integers(2, 6))
def test_blend_weights_add_up_to_one_everywhere(halo: int, extra: int, count: int) -> None:
    tile = 4 * halo + extra
    core = tile - 2 * halo
    total = np.zeros(core * count + 2 * halo)
    for i in range(count):
        total[i * core : i * core + tile] += blend_weights(tile, halo)
    inside = total[2 * halo : len(total) - 2 * halo] if halo else total
    np.testing.assert_allclose(inside, 1, atol=1e-6)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(0, 60), st.integers(0, 60), st.integers(-50, 50))
def test_intersection_is_what_both_hold(row: int, col: int, height: int, width: int, shift: int) -> None:
    one, two = Window(row, col, height, width), Window(row + shift, col - shift, width, height)
    pixels = [{(r, c) for r in range(w.row, w.row_stop) for c in range(w.col, w.col_stop)} for w in (one, two)]
    common = one.intersect(two)
    assert common.height * common.width == len(pixels[0] & pixels[1])
    assert common == two.intersect(one)


@given(
    st.sampled_from([8, 16, 32]), st.integers(0, 4), st.integers(1, 6), st.integers(1, 150), sizes, sizes, st.booleans()
)
def test_tiles_begin_on_the_lattice_of_the_stride_whatever_the_chunks(
    stride: int, halo: int, core: int, half: int, height: int, width: int, blended: bool
) -> None:
    tiles = TileGrid((core + 2 * halo) * stride, halo * stride, (core + 1 + 2 * halo) * stride)
    chunk = 2 * half + 1  # odd: no multiple of any stride
    for window in ChunkGrid((height, width), chunk, half if blended else 0):
        for position in tiles.covering(window, tiles.halo if blended else 0):
            tile = tiles.tile_window(position)
            assert (tile.row % stride, tile.col % stride) == (0, 0)
            assert tile.shape == tiles.shape == (tiles.tile, tiles.tile + stride)


@given(
    st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([1, 8, 32]), st.integers(0, 6), st.integers(417, 2048)
)
def test_tiles_that_fit_a_scene_compute_no_more_of_it(
    height: int, width: int, stride: int, halo: int, tile: int
) -> None:
    given = TileGrid(-(-tile // stride) * stride, halo * stride)
    found = given.fitted((height, width), stride)
    pixels, before = (
        math.prod(grid.shape) * len(grid.covering(Window(0, 0, height, width))) / (height * width)
        for grid in (found, given)
    )
    assert found.halo == given.halo
    assert pixels <= before
    for length, side in zip((height, width), found.shape, strict=True):
        assert 256 <= side <= given.tile
        assert side % stride == 0
        # Each axis as if the scene were square.
        assert given.fitted((length, length), stride) == TileGrid(side, given.halo)
    if max(height, width) <= given.core_shape[0]:
        assert len(found.covering(Window(0, 0, height, width))) == 1 or pixels < before


def test_small_scenes_get_small_tiles() -> None:
    assert TileGrid(2048, 64).fitted((512, 500), 32) == TileGrid(640, 64)
    assert TileGrid(1024, 64).fitted((4096, 4096), 32) == TileGrid(960, 64)
    assert TileGrid(128, 32).fitted((50, 50), 32) == TileGrid(128, 32)
    assert TileGrid(2048, 64).fitted((300, 1300), 32) == TileGrid(448, 64, 1440)


@given(st.integers(0, 30), st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 90))
def test_weights_of_tiles_that_are_not_square_add_up_to_one(
    halo: int, high: int, wide: int, height: int, width: int
) -> None:
    tiles = TileGrid(4 * halo + high, halo, 4 * halo + wide)
    scene = Window(0, 0, height, width)
    total = np.zeros((height, width))
    for position in tiles.covering(scene, tiles.reach):
        tile = tiles.tile_window(position)
        down, across = tiles.weights(position)
        part = tile.intersect(scene)
        total[part.within(scene)] += (down[:, None] * across)[part.within(tile)]
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_tile_without_a_core_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="--tile 256"):
        TileGrid(128, 64)


def test_chunks_need_a_size() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        ChunkGrid((10, 10), 0)
    with pytest.raises(ConfigError, match="offset of chunks is 7"):
        ChunkGrid((10, 10), 5, 0, (7, 7))
