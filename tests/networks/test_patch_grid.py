"""Grids of patches: the authors' where these leave no hole, denser ones elsewhere."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.networks.patch_grid import patch_grid, span

# Cells along a side of the maps at strides 4, 8, 16 and 32 of an overview of as many pixels as a patch.
MAPS = {508: (127, 64, 32, 16), 536: (134, 67, 34, 17), 256: (64, 32, 16, 8), 124: (31, 16, 8, 4)}


def starts(side, patch, maps=(), **options):
    """Rows of the patches of a scene that is one patch wide."""
    grid = patch_grid((side, patch), (patch, patch), [(cells, 1) for cells in maps], **options)
    assert grid.lefts == (0,)
    return grid.tops


def authors_spans(side, patch, count, cells):
    """First and last cell of every patch in the authors' arithmetic, nothing mended."""
    step = (side - patch) / (count - 1)
    tops = [round(i * step) for i in range(count - 1)] + [side - patch]
    rows = round(cells * (patch / side))
    return [(round(cells * (top / side)), round(cells * (top / side)) + rows) for top in tops]


def holes(spans, cells):
    return set(range(cells)) - {row for first, stop in spans for row in range(first, stop)}


@pytest.mark.parametrize("patch", MAPS)
def test_every_side_is_covered_and_none_is_left(patch):
    """All sides from 300 to 6000; smaller ones than a patch are enlarged to one before."""
    for side in range(max(300, patch), 6001):
        tops = starts(side, patch, MAPS[patch])
        assert tops[0] == 0
        assert tops[-1] == side - patch
        assert all(0 < after - before <= patch - 50 for before, after in itertools.pairwise(tops))
        for cells in MAPS[patch]:
            found = [span(top, patch, side, cells) for top in tops]
            assert all(first >= 0 and count >= 1 and first + count <= cells for first, count in found)
            assert not holes([(first, first + count) for first, count in found], cells)


@given(
    st.integers(60, 700),
    st.integers(1, 4000),
    st.integers(0, 59),
    st.lists(st.integers(1, 200), min_size=1, max_size=4),
)
def test_any_patch_and_maps(patch, more, overlap, maps):
    side = patch + more
    tops = starts(side, patch, maps, min_overlap=overlap)
    assert all(0 <= after - before <= patch - overlap for before, after in itertools.pairwise(tops))
    for cells in maps:
        found = [span(top, patch, side, cells) for top in tops]
        assert all(count >= 1 and first + count <= cells for first, count in found)
        assert not holes([(first, first + count) for first, count in found], cells)


def test_the_authors_grid_is_kept_where_it_leaves_no_hole():
    patch, maps = 508, MAPS[508]
    denser, moved = [], []
    for side in range(patch + 1, 6001):
        plain = starts(side, patch)
        tops = starts(side, patch, maps)
        theirs = {cells: authors_spans(side, patch, len(plain), cells) for cells in maps}
        if any(holes(spans, cells) for cells, spans in theirs.items()):
            denser.append(side)
            assert len(tops) > len(plain)
            continue
        assert tops == plain
        for cells, spans in theirs.items():
            ours = [span(top, patch, side, cells) for top in tops]
            if [(first, first + count) for first, count in ours] != spans:
                moved.append(side)
                assert max(stop for _, stop in spans) > cells
    # What the authors' arithmetic does to these sides was counted by running it.
    assert len(denser) == 605
    assert {2323, 2334} <= set(denser)
    assert moved == [1016]


def test_rows_and_columns():
    grid = patch_grid((300, 260), (124, 100), [(31, 31)])
    assert grid.corners[:4] == ((0, 0), (0, 40), (0, 80), (0, 120))
    assert len(grid.corners) == len(grid.tops) * len(grid.lefts) == 20
    assert grid.cells((176, 160), (31, 13)) == (slice(18, 31), slice(8, 13))


@pytest.mark.parametrize(
    ("scene", "options", "told"),
    [
        ((123, 300), {}, "a scene of 123 pixels is smaller than a patch of 124"),
        ((300, 300), {"min_overlap": 124}, "patches of 124 pixels cannot share 124"),
        ((300, 300), {"min_overlap": -1}, "patches of 124 pixels cannot share -1"),
    ],
)
def test_refusals(scene, options, told):
    with pytest.raises(ConfigError, match=told):
        patch_grid(scene, (124, 124), **options)
