"""Maps to and fro between a scene and its patches."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from geoseg.networks.glnet_exchange import Merging, counts, crops, part_of, stage_crops
from geoseg.networks.patch_grid import patch_grid

SIZES = ((4, 5), (8, 9), (16, 17), (31, 33))
GRID = patch_grid((300, 260), (124, 100), SIZES)


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stages(count, sizes, fill=None):
    """Maps of four stages at four levels, two channels each, all different."""
    number = itertools.count(1)

    def made(size):
        return noise(count, 2, *size, seed=next(number)) if fill is None else torch.full((count, 2, *size), fill)

    return tuple(tuple(made(size) for size in sizes) for _ in range(4))


@given(st.integers(100, 900), st.integers(100, 900), st.sampled_from([(16, 16), (31, 29), (7, 64)]))
def test_counts_are_those_of_the_scene_resized(height, width, size):
    grid = patch_grid((height, width), (100, 90), [size])
    image = torch.zeros(1, 1, height, width)
    for top, left in grid.corners:
        image[..., top : top + 100, left : left + 90] += 1
    expected = F.interpolate(image, size, mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(counts(grid, grid.corners, size), expected, rtol=1e-5, atol=1e-5)


def test_crops_are_the_cells_under_a_patch():
    maps = noise(1, 3, 31, 33)
    corners = GRID.corners[3:6]
    found = crops(maps, GRID, corners)
    for one, corner in zip(found, corners, strict=True):
        rows, cols = GRID.cells(corner, (31, 33))
        assert torch.equal(one, maps[0, :, rows, cols])
    every = stage_crops(stages(1, SIZES), GRID, corners)
    assert [[tuple(each.shape[:2]) for each in levels] for levels in every] == [[(3, 2)] * 4] * 4


def test_a_merged_map_is_the_mean_of_what_the_patches_add():
    like, patches = stages(1, SIZES), stages(len(GRID.corners), SIZES)
    merging = Merging(like, GRID)
    merging.add(GRID.corners, patches)
    found = merging.maps()
    for stage, level in itertools.product(range(4), range(4)):
        size = SIZES[level]
        total = torch.zeros(2, *size)
        for corner, own in zip(GRID.corners, patches[stage][level], strict=True):
            rows, cols = GRID.cells(corner, size)
            part = part_of(own[None], GRID, corner, size)[0]
            assert part.shape[1:] == (rows.stop - rows.start, cols.stop - cols.start)
            total[:, rows, cols] += part
        expected = total / counts(GRID, GRID.corners, size)
        torch.testing.assert_close(found[stage][level][0], expected, rtol=1e-5, atol=1e-6)


def test_patches_may_come_in_any_order_and_number():
    like, patches = stages(1, SIZES), stages(len(GRID.corners), SIZES)
    whole = Merging(like, GRID)
    whole.add(GRID.corners, patches)
    other = Merging(like, GRID)
    order = torch.randperm(len(GRID.corners), generator=torch.Generator().manual_seed(3)).tolist()
    for start in range(0, len(order), 5):
        part = order[start : start + 5]
        other.add([GRID.corners[i] for i in part], tuple(tuple(maps[part] for maps in levels) for levels in patches))
    for one, two in zip(whole.maps(), other.maps(), strict=True):
        for first, second in zip(one, two, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_cells_without_a_patch_stay_empty():
    merging = Merging(stages(1, SIZES), GRID)
    merging.add(GRID.corners[:1], stages(1, SIZES, fill=3.0))
    found = merging.maps()[0][3]
    rows, cols = GRID.cells(GRID.corners[0], SIZES[3])
    torch.testing.assert_close(found[..., rows, cols], torch.full_like(found[..., rows, cols], 3.0))
    assert not found[..., rows.stop :, :].any()
    assert not found[..., cols.stop :].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_of_full_precision(dtype):
    like = tuple(tuple(maps.to(dtype) for maps in levels) for levels in stages(1, SIZES))
    merging = Merging(like, GRID)
    merging.add(GRID.corners[:1], like)
    assert {maps.dtype for levels in merging.maps() for maps in levels} == {torch.float32}
