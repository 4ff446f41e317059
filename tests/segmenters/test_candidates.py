"""Candidate boxes: what they cover, that they do not overlap, and that nothing but position orders them."""

import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from geoseg.components import component_boxes
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.networks.rstn import enlarged
from geoseg.segmenters.candidates import above, boxes_of, candidates, grown, merged, overview_in, split
from geoseg.segmenters.saliency_settings import SaliencySettings

WINDOWS = st.lists(
    st.builds(Window, st.integers(0, 60), st.integers(0, 60), st.integers(1, 12), st.integers(1, 12)), max_size=25
)


@st.composite
def overviews(draw):
    """Probabilities on an overview, mostly low, the scene's shape, and settings."""
    factor = draw(st.integers(1, 5))
    shape = draw(st.tuples(st.integers(1, 120), st.integers(1, 120)))
    targets = draw(st.integers(1, 2))
    size = (targets, *(-(-side // factor) for side in shape))
    found = np.zeros(size, np.float32)
    for _ in range(draw(st.integers(0, 6))):
        place = tuple(draw(st.integers(0, side - 1)) for side in size)
        found[place] = draw(st.sampled_from([0.29, 0.3, 0.6, 1.0]))
    settings = SaliencySettings(
        factor=factor,
        margin=draw(st.integers(0, 8)),
        margin_share=draw(st.sampled_from([0.0, 0.25])),
        limit=draw(st.sampled_from([20, 33, 1024])),
        halo=draw(st.integers(0, 5)),
        most=draw(st.sampled_from([0.5, 1.0])),
    )
    return found, shape, settings


def pairs(windows):
    return [(one, other) for i, one in enumerate(windows) for other in windows[i + 1 :]]


def contains(outer, inner):
    return outer.intersect(inner) == inner


@given(overviews())
def test_boxes_of_a_scene(given):
    probabilities, shape, settings = given
    found = candidates(probabilities, shape, settings)
    scene = Window(0, 0, *shape)
    covered = np.zeros(shape, bool)
    for window in found.windows:
        assert contains(scene, window)
        assert max(window.shape) <= settings.limit
        covered[window.within(scene)] = True
    assert list(found.windows) == sorted(set(found.windows))
    wanted = np.kron(grown(above(probabilities, 0.3)), np.ones((settings.factor,) * 2, bool))[: shape[0], : shape[1]]
    assert not (wanted & ~covered).any()
    whole = merged(boxes_of(grown(above(probabilities, 0.3)), shape, settings))
    assert not any(not one.intersect(other).empty for one, other in pairs(whole))
    share = sum(box.height * box.width for box in whole) / covered.size
    if found.everywhere:
        assert share > settings.most
        assert covered.all()
        assert found.share == 1
    else:
        assert found.share == share == covered.mean() <= settings.most
        # Only parts of one box overlap.
        for one, other in pairs(found.windows):
            if not one.intersect(other).empty:
                assert any(contains(box, one) and contains(box, other) for box in whole)


def test_a_box_by_hand():
    probabilities = np.zeros((1, 40, 50))
    probabilities[0, 10, 20:24] = 0.3
    probabilities[0, 11, 24] = 0.9  # touches in a corner
    probabilities[0, 30, 30] = 0.29
    settings = SaliencySettings(margin=2, margin_share=0.25)
    found = candidates(probabilities, (160, 200), settings)
    # Rows 9 to 12 and columns 19 to 25 of the overview, grown; a quarter of 16 and 28 pixels is added.
    assert found.windows == (Window(36 - 4, 76 - 7, 16 + 8, 28 + 14),)
    assert found.share == 24 * 42 / (160 * 200)
    assert not found.everywhere


def test_a_scene_full_of_candidates_is_looked_at_everywhere():
    probabilities = np.full((1, 100, 75), 0.4)
    settings = SaliencySettings(limit=160, halo=16)
    found = candidates(probabilities, (398, 299), settings)
    assert found.everywhere
    assert found.windows == tuple(split(Window(0, 0, 398, 299), 160, 16))
    assert candidates(probabilities * 0.5, (398, 299), settings).windows == ()
    part = probabilities.copy()
    part[:, 30:] = 0
    # Rows 0 to 30 of the overview, grown, and a quarter of their 124 pixels more.
    assert candidates(part, (398, 299), settings).share == (124 + 31) / 398


@given(boxes=WINDOWS, order=st.randoms(use_true_random=False))
def test_merging(boxes, order):
    found = merged(boxes)
    assert not any(not one.intersect(other).empty for one, other in pairs(found))
    assert all(sum(contains(each, box) for each in found) == 1 for box in boxes)
    assert found == sorted(found)
    shuffled = list(boxes)
    order.shuffle(shuffled)
    assert merged(shuffled) == found
    assert merged(found) == found
    # No box is larger than it has to be: each is the box round those it holds.
    for each in found:
        inside = [box for box in boxes if contains(each, box)]
        assert each.row == min(box.row for box in inside)
        assert each.col_stop == max(box.col_stop for box in inside)


def test_boxes_that_only_touch_stay_two():
    boxes = [Window(0, 0, 5, 5), Window(0, 5, 5, 5), Window(5, 0, 5, 5)]
    assert merged(boxes) == sorted(boxes)


def test_merging_goes_on_where_the_box_round_two_meets_a_third():
    assert merged([Window(0, 0, 4, 4), Window(3, 3, 10, 10), Window(0, 11, 2, 2)]) == [Window(0, 0, 13, 13)]


@given(
    box=st.builds(Window, st.integers(0, 9), st.integers(0, 9), st.integers(1, 300), st.integers(1, 300)),
    limit=st.integers(1, 100),
    halo=st.integers(0, 40),
)
def test_splitting(box, limit, halo):
    assume(limit > 2 * halo)
    parts = split(box, limit, halo)
    assert all(contains(box, part) and max(part.shape) <= limit for part in parts)
    for axis, side in (("row", box.height), ("col", box.width)):
        length = min(limit, side)
        starts = sorted({getattr(part, axis) for part in parts})
        assert (starts[0], starts[-1] + length) == (getattr(box, axis), getattr(box, axis) + side)
        steps = np.diff(starts)
        assert (steps <= limit - 2 * halo).all()
        assert len(starts) == 1 or (len(starts) - 1) * (limit - 2 * halo) + 2 * halo < side
        assert len(steps) == 0 or steps.max() - steps.min() <= 1
    assert len(set(parts)) == len(parts) == len({p.row for p in parts}) * len({p.col for p in parts})


@given(mask=arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_growing(mask):
    padded = np.pad(mask, 1)
    expected = np.zeros_like(mask)
    for row in range(3):
        for col in range(3):
            expected |= padded[row : row + mask.shape[0], col : col + mask.shape[1]]
    assert np.array_equal(grown(mask), expected)
    assert len(component_boxes(grown(mask))) <= len(component_boxes(mask))


@given(height=st.integers(1, 40), width=st.integers(1, 40), factor=st.integers(1, 5), seed=st.integers(0, 99))
def test_an_overview_at_the_scenes_pixels(height, width, factor, seed):
    rng = np.random.default_rng(seed)
    overview = rng.random((2, -(-height // factor), -(-width // factor)), np.float32)
    scene = Window(0, 0, height, width)
    whole = overview_in(overview, factor, scene)
    expected = enlarged(torch.from_numpy(overview)[None], factor, scene.shape)[0]
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5)
    row, col = rng.integers(height), rng.integers(width)
    window = Window(int(row), int(col), int(rng.integers(1, height - row + 1)), int(rng.integers(1, width - col + 1)))
    assert np.array_equal(overview_in(overview, factor, window), whole[(slice(None), *window.within(scene))])


def test_many_boxes_are_merged_alike_in_any_order():
    order = random.Random(3)
    boxes = [
        Window(order.randrange(5000), order.randrange(5000), order.randrange(1, 90), order.randrange(1, 90))
        for _ in range(1500)
    ]
    found = merged(boxes)
    assert 1 < len(found) < 1500
    order.shuffle(boxes)
    assert merged(boxes) == found


def test_refusals():
    with pytest.raises(ConfigError, match=r"the overview has 10 × 10 pixels, but a scene of 41 × 40 .* has 11 × 10"):
        candidates(np.zeros((1, 10, 10)), (41, 40), SaliencySettings())
    for options, message in (
        ({"factor": 0}, "factor of a saliency pair is 0"),
        ({"margin": 1.5}, "margin of a saliency pair is 1.5"),
        ({"rounds": True}, "rounds of a saliency pair is True"),
        ({"threshold": 0.0}, "threshold of a saliency pair is 0.0"),
        ({"stop_dsc": float("nan")}, "stop_dsc of a saliency pair is nan"),
        ({"margin_share": -1.0}, "margin_share of a saliency pair is -1.0"),
        ({"limit": 128}, "a box of 128 pixels has nothing left inside a halo of 64: raise limit above 128"),
    ):
        with pytest.raises(ConfigError, match=message):
            SaliencySettings(**options)
