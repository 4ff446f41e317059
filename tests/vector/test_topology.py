"""What walks rely on: the table of turns, and the room they are given."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geoseg.vector.label_map import LabelArray
from geoseg.vector.labelling import label_regions
from geoseg.vector.lattice import MEETING, TURNS, VERTEX, lattice_of
from geoseg.vector.pixel_polygons import PixelPolygons
from geoseg.vector.polygons import NOTHING, polygonize
from geoseg.vector.topology import room_for

# By heading, the steps as rows and columns.
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


@pytest.mark.parametrize("around", [regions for regions in product(range(1, 5), repeat=4) if len({*regions}) > 1])
def test_turns_follow_the_rule(around):
    """Regions 2 × 2 around a corner, each of its own number, taken from the frame of a block beside the corner."""
    (north_west, north_east), (south_west, south_east) = around[:2], around[2:]
    block = np.array([[south_east]], np.uint8)
    sides = tuple(np.array([south_east], np.int32) for _ in range(4))
    frame = ([north_west, north_east, 0], [south_west, 0, 0], [south_west], [0])
    regions = label_regions(block, NOTHING)
    lattice = lattice_of(
        block, regions, regions.numbers, sides, tuple(np.array(side, np.int32) for side in frame), (0, 0)
    )
    meeting = int(lattice.corners[0]) & int(MEETING)
    pixels = {(-1, -1): north_west, (-1, 0): north_east, (0, -1): south_west, (0, 0): south_east}
    for heading, (down, across) in enumerate(STEPS):
        # From the corner, pixels lie half a step on and half a step to either side.
        right = STEPS[(heading + 1) & 3]
        ahead_left, ahead_right, back_left, back_right = (
            pixels[(f * down + s * right[0] - 1) // 2, (f * across + s * right[1] - 1) // 2]
            for f, s in ((1, -1), (1, 1), (-1, -1), (-1, 1))
        )
        if back_left == back_right:
            continue  # no crack leads here
        if ahead_right == back_left:
            expected = ((heading + 1) & 3, True)
        elif ahead_left == back_left:
            expected = (heading, ahead_right != back_right)
        else:
            expected = ((heading + 3) & 3, True)
        turn = int(TURNS[64 * heading + meeting])
        assert (turn >> 6, bool(turn & int(VERTEX))) == expected


def room_and_need(labels):
    found = PixelPolygons.joined(polygonize(LabelArray(labels)))
    runs = len(label_regions(labels, NOTHING).numbers)
    return room_for(runs, *labels.shape), len(found.corners)


@settings(max_examples=150, deadline=None)
@given(
    labels=hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, NOTHING])
    )
)
def test_walks_have_room(labels):
    room, need = room_and_need(labels)
    assert need < room


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (64, 64)])
def test_walks_have_room_where_every_pixel_is_a_region(shape):
    row, col = np.indices(shape)
    for labels in ((row + col) % 2, row % 2 * 2 + col % 2, row % 2, col % 2):
        room, need = room_and_need(labels.astype(np.uint8))
        assert need < room
