"""Components of maps, and maps made of refined components."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geoseg.components import components
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.segmenters.refined_classes import claimed, components_of, grown_box, shares
from geoseg.segmenters.refinement_settings import MergeSettings

EVERY = MergeSettings(min_component=0, closing=0)
CLASSES = 4
MAPS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 3, 255]))
)


@st.composite
def refined_maps(draw):
    """A map with refined answers for some of its components, and one for a window of its own."""
    labels = draw(MAPS)
    random = np.random.default_rng(draw(st.integers(0, 99)))
    answers = [
        (each.position, each.window, random.random(each.window.shape, np.float32))
        for each in components_of(labels, EVERY)
        if draw(st.booleans())
    ]
    whole = Window(0, 0, *labels.shape)
    answers.append((draw(st.integers(0, CLASSES - 1)), whole, random.random(whole.shape, np.float32)))
    return labels, answers


@given(labels=MAPS)
def test_components_are_the_whole_map(labels):
    again = np.full_like(labels, 255)
    found = components_of(labels, EVERY)
    for each in found:
        here = each.window.within(Window(0, 0, *labels.shape))
        assert (again[here][each.mask] == 255).all()
        again[here][each.mask] = each.position
        assert each.pixels == np.count_nonzero(each.mask)
    assert np.array_equal(again, labels)
    assert len(found) == sum(components(labels == position, corners=True)[1] for position in range(CLASSES))
    assert [each.position for each in found] == sorted(each.position for each in found)


def test_what_lies_close_is_joined_and_small_things_are_left():
    labels = np.zeros((90, 140), np.uint8)
    labels[10:40, 10:30] = 1
    labels[10:40, 34:50] = 1  # four pixels on
    labels[60:70, 10:20] = 1
    labels[50:80, 60:90] = 2
    kept = MergeSettings(min_component=100)
    found = components_of(labels, kept, positions=(1, 2))
    assert [(each.position, each.pixels) for each in found] == [(1, 30 * (20 + 16)), (2, 30 * 30)]
    lopsided = components_of(labels, MergeSettings(min_component=100, as_authors=True), positions=(1, 2))
    assert [(each.position, each.pixels) for each in lopsided] == [(1, 29 * (20 + 15)), (2, 29 * 29)]
    assert len(components_of(labels, MergeSettings(min_component=100, closing=3), positions=(1,))) == 2
    assert len(components_of(labels, MergeSettings(min_component=99, closing=0), positions=(1,))) == 3
    assert [each.position for each in components_of(labels, kept)] == [0, 1, 2]


@given(
    row=st.integers(0, 60),
    col=st.integers(0, 60),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    margin=st.integers(0, 300).map(lambda percent: percent / 100),
)
def test_boxes_grow_on_both_sides_within_the_image(row, col, height, width, margin):
    box, size = Window(row, col, height, width), (row + height + 7, col + width)
    grown = grown_box(box, size, MergeSettings(box_margin=margin))
    assert grown.intersect(box) == box
    assert grown.intersect(Window(0, 0, *size)) == grown
    for start, stop, first, last, side in (
        (row, box.row_stop, grown.row, grown.row_stop, size[0]),
        (col, box.col_stop, grown.col, grown.col_stop, size[1]),
    ):
        wanted = margin / 2 * (stop - start)
        assert first == 0 or wanted <= start - first < wanted + 1
        assert last == side or wanted <= last - stop < wanted + 1
    authors = grown_box(box, size, MergeSettings(box_margin=margin, as_authors=True))
    assert authors.row_stop < size[0]
    assert authors.col_stop < size[1]
    assert authors.intersect(grown) == authors


@given(given=refined_maps())
def test_labels_are_claimed_by_who_is_surest(given):
    labels, answers = given
    kept = MergeSettings(background_classes=(0,))
    merged, confidence = claimed(labels, answers, kept)
    for row, col in np.ndindex(labels.shape):
        best, label = 0.5, labels[row, col]
        for position, window, probabilities in answers:
            if window.row <= row < window.row_stop and window.col <= col < window.col_stop:
                value = probabilities[row - window.row, col - window.col]
                value = value * np.float32(0.51) if position == 0 else value
                if value > best and labels[row, col] != 255:
                    best, label = value, position
        assert merged[row, col] == label
        assert confidence[row, col] == pytest.approx(best)
    assert labels is not merged


@given(given=refined_maps())
def test_shares_are_the_answers_over_their_sum(given):
    labels, answers = given
    found = shares(labels, answers, CLASSES)
    known = labels != 255
    np.testing.assert_allclose(found.sum(0), known, atol=1e-6)
    assert np.array_equal(found, shares(labels, answers[::-1], CLASSES))
    each = (labels == np.arange(CLASSES)[:, None, None]).astype(float)
    for position in range(CLASSES):
        parts = [np.full(labels.shape, -1.0)]
        for other, window, probabilities in answers:
            if other == position:
                part = np.full(labels.shape, -1.0)
                part[window.within(Window(0, 0, *labels.shape))] = probabilities
                parts.append(part)
        refined = np.max(parts, axis=0)
        each[position] = np.where(refined >= 0, refined, each[position])
    total = each.sum(0)
    expected = np.where(known & (total > 0), each / np.where(total > 0, total, 1), 0)
    np.testing.assert_allclose(found[:, known & (total > 0)], expected[:, known & (total > 0)], atol=1e-6)


@given(labels=MAPS)
def test_answers_that_say_the_same_change_nothing(labels):
    answers = [(each.position, each.window, each.mask.astype(np.float32)) for each in components_of(labels, EVERY)]
    assert np.array_equal(claimed(labels, answers, EVERY)[0], labels)
    known = labels != 255
    assert np.array_equal(shares(labels, answers, CLASSES).argmax(0)[known], labels[known])


def test_a_pixel_that_all_classes_gave_up_keeps_its_label():
    labels = np.array([[0, 1, 255]], np.uint8)
    nothing = [(position, Window(0, 0, 1, 3), np.zeros((1, 3), np.float32)) for position in (0, 1)]
    assert shares(labels, nothing, 2).tolist() == [[[1, 0, 0]], [[0, 1, 0]]]
    merged, confidence = claimed(labels, nothing, EVERY)
    assert np.array_equal(merged, labels)
    assert confidence.tolist() == [[0.5] * 3]


def test_refusals():
    labels = np.zeros((4, 5), np.uint8)
    for window in (Window(0, 0, 3, 3), Window(0, 4, 2, 2), Window(-1, 0, 2, 2)):
        for call in (lambda answers: claimed(labels, answers, EVERY), lambda answers: shares(labels, answers, 1)):
            with pytest.raises(ConfigError, match="give those of a window within the map"):
                call([(0, window, np.zeros((2, 2)))])
    for changed, message in (
        ({"closing": -1}, "closing of a refinement is -1"),
        ({"min_component": 1.5}, "min_component of a refinement is 1.5"),
        ({"box_margin": -0.1}, "box_margin of a refinement is -0.1"),
        ({"background_weight": 2}, "background_weight of a refinement is 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            MergeSettings(**changed)
