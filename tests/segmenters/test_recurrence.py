"""Rounds over a box: when they end, how far a box moves, and that many boxes make one answer in any order."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geoseg.components import component_boxes
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.networks.rstn import SaliencyPair, shrunk
from geoseg.segmenters.candidates import candidates, overview_in
from geoseg.segmenters.recurrence import Answer, PairLook, agreement, combined, reach, recur
from geoseg.segmenters.saliency_settings import SaliencySettings

SHAPE = (60, 80)


def masks(*squares, shape=SHAPE):
    """Probabilities (1, H, W): 0.9 in squares (row, col, height, width), 0.1 elsewhere."""
    found = np.full((1, *shape), 0.1, np.float32)
    for row, col, height, width in squares:
        found[0, row : row + height, col : col + width] = 0.9
    return found


def answering(*answers):
    """A fine network that gives one prepared answer after the other, the last one for ever."""
    scene = Window(0, 0, *SHAPE)

    def look(box, probabilities, whole):
        look.seen.append((box, probabilities.copy(), whole))
        answer = answers[min(len(look.seen), len(answers)) - 1]
        return answer[(slice(None), *box.within(scene))]

    look.seen = []
    return look


def run(look, first, window, clean=lambda mask: mask, **options):
    settings = SaliencySettings(**{"margin": 3, **options})
    seen = reach(window, SHAPE, settings).within(Window(0, 0, *SHAPE))
    return recur(look, first[(slice(None), *seen)], window, SHAPE, settings, clean)


WINDOW = Window(10, 20, 20, 24)


def test_a_stable_mask_ends_it():
    look = answering(masks((15, 25, 10, 10)), masks((15, 25, 10, 11)))
    found = run(look, masks((18, 28, 3, 3)), WINDOW)
    assert found.end == "stable"
    assert [each.box for each in found.rounds] == [WINDOW, Window(12, 22, 16, 16), Window(12, 22, 16, 17)]
    assert [each.pixels for each in found.rounds] == [100, 110, 110]
    assert [each.dsc for each in found.rounds] == [2 * 9 / 109, 200 / 210, 1.0]
    assert found.box == found.rounds[-1].box
    assert found.probabilities.shape == (1, 16, 17)
    # Each round is given the last one's probabilities, and nothing outside the box these were computed for.
    _, given, whole = look.seen[1]
    inside = WINDOW.within(whole)
    assert np.array_equal(
        given[(slice(None), *inside)], masks((15, 25, 10, 10))[(slice(None), *WINDOW.within(Window(0, 0, *SHAPE)))]
    )
    assert given.sum() == pytest.approx(float(given[(slice(None), *inside)].sum()))


def test_a_lower_bound_ends_it_sooner():
    answers = (masks((15, 25, 10, 10)), masks((15, 25, 10, 11)))
    found = run(answering(*answers), masks((18, 28, 3, 3)), WINDOW, stop_dsc=0.95)
    assert len(found.rounds) == 2
    assert len(run(answering(*answers), masks((15, 25, 10, 10)), WINDOW, stop_dsc=0.95).rounds) == 1


def test_what_becomes_empty_stays_empty():
    look = answering(masks((15, 25, 10, 10)), masks(), masks((15, 25, 10, 10)))
    found = run(look, masks((18, 28, 3, 3)), WINDOW)
    assert found.end == "empty"
    assert len(look.seen) == 2
    assert found.rounds[-1].pixels == 0
    assert found.probabilities.max() < 0.5


def test_a_candidate_below_one_half_is_looked_at_all_the_same():
    first = masks((18, 28, 3, 3)) - np.float32(0.5)
    assert run(answering(masks((15, 25, 10, 10))), first, WINDOW).end == "stable"
    found = run(answering(masks()), first, WINDOW)
    assert (found.end, len(found.rounds), found.rounds[0].dsc) == ("empty", 1, 1.0)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_a_mask_that_swings_ends_with_the_rounds(rounds):
    swinging = [masks((15, 25 + 5 * (number % 2), 10, 10)) for number in range(9)]
    found = run(answering(*swinging), masks(), WINDOW, rounds=rounds)
    assert (found.end, len(found.rounds)) == ("rounds", rounds)


def test_what_lies_beyond_the_box_is_of_others():
    first = masks((18, 28, 3, 3), (18, 50, 5, 5))
    found = run(answering(masks((18, 28, 3, 3))), first, WINDOW)
    assert found.rounds[0].dsc == 1.0


def test_a_cleaned_mask_decides_and_the_probabilities_stay():
    def largest(mask):
        kept = mask.copy()
        kept[..., 18:, :] = False
        return kept

    answer = masks((12, 22, 4, 4), (26, 40, 2, 2))
    found = run(answering(answer), masks(), WINDOW, clean=largest, rounds=2)
    assert found.rounds[0].pixels == 16
    assert found.rounds[1].box == Window(9, 19, 10, 10)


@given(
    row=st.integers(0, 50), col=st.integers(0, 70), height=st.integers(1, 30), width=st.integers(1, 30),
    margin=st.integers(0, 9), limit=st.integers(30, 50), rounds=st.integers(1, 6),
)  # fmt: skip
def test_a_box_grows_by_the_margin_and_not_beyond_the_limit(row, col, height, width, margin, limit, rounds):
    scene = Window(0, 0, *SHAPE)
    window = Window(row, col, height, width).intersect(scene)
    look = answering(masks((0, 0, *SHAPE)))
    found = run(look, masks(), window, margin=margin, limit=limit, halo=0, rounds=rounds, stop_dsc=1.0)
    whole = reach(window, SHAPE, SaliencySettings(margin=margin, limit=limit, halo=0, rounds=rounds))
    for number, each in enumerate(found.rounds):
        down, across = (min(number * margin, (limit - side) // 2) for side in window.shape)
        grown = Window(window.row - down, window.col - across, window.height + 2 * down, window.width + 2 * across)
        assert each.box == grown.intersect(scene)
        assert each.box.padded(3).intersect(scene).intersect(whole) == each.box.padded(3).intersect(scene)
    # It goes on until the box stays the same.
    assert len(found.rounds) == rounds or found.rounds[-1].box == found.rounds[-2].box


@given(seed=st.integers(0, 999), targets=st.integers(1, 2))
def test_answers_are_averaged_in_any_order_and_any_window(seed, targets):
    order = random.Random(seed)
    rng = np.random.default_rng(seed)
    answers = []
    for _ in range(order.randrange(6)):
        box = Window(order.randrange(40), order.randrange(50), order.randrange(1, 20), order.randrange(1, 30))
        answers.append(Answer(box, box, rng.random((targets, *box.shape), np.float32), (), "stable"))
    scene = Window(0, 0, *SHAPE)
    whole = combined(answers, scene, targets)
    for row, col in ((order.randrange(60), order.randrange(80)) for _ in range(40)):
        values = [
            answer.probabilities[:, row - answer.box.row, col - answer.box.col]
            for answer in answers
            if not answer.box.intersect(Window(row, col, 1, 1)).empty
        ]
        np.testing.assert_allclose(whole[:, row, col], np.mean(values, 0) if values else 0, rtol=1e-6)
    order.shuffle(answers)
    window = Window(7, 9, 31, 44)
    assert np.array_equal(combined(answers, window, targets), whole[(slice(None), *window.within(scene))])


def test_agreement_of_nothing_with_nothing():
    nothing, something = np.zeros(5, bool), np.ones(5, bool)
    assert agreement(nothing, nothing) == 1
    assert agreement(nothing, something) == 0


def test_probabilities_of_another_window_are_refused():
    with pytest.raises(
        ConfigError, match=r"the probabilities of a box are \(60, 80\): give those of its reach, \(45, 54\)"
    ):
        recur(answering(masks()), masks(), WINDOW, SHAPE, SaliencySettings(margin=3))


@pytest.fixture
def pair():
    torch.manual_seed(4)
    found = SaliencyPair(nn.Conv2d(2, 1, 1), nn.Conv2d(2, 1, 3, padding=1), targets=1, bands=2).eval()
    nn.init.normal_(found.saliency2.weight)
    nn.init.constant_(found.saliency1.bias, 1.0)
    return found


def test_a_look_is_the_pairs_fine_pass(pair):
    """A window a little larger than the box gives what the whole scene does, also at its edge."""
    generator = torch.Generator().manual_seed(0)
    pixels, chances = torch.randn(1, 2, *SHAPE, generator=generator), torch.rand(1, 1, *SHAPE, generator=generator)
    read, scene = [], Window(0, 0, *SHAPE)
    valid = torch.ones(SHAPE, dtype=torch.bool)
    valid[12:15, 22:60] = False

    def reading(window):
        read.append(window)
        return pixels[(0, slice(None), *window.within(scene))], valid[window.within(scene)]

    look, given = PairLook(pair, reading), chances[0].numpy()
    for box, whole, seen in (
        (Window(5, 20, 17, 9), Window(2, 6, 50, 60), Window(2, 17, 23, 15)),
        (Window(0, 50, 40, 30), Window(0, 47, 60, 33), Window(0, 47, 43, 33)),
    ):
        with torch.no_grad():
            expected = pair.fine_pass(pixels, [(box.row, box.row_stop, box.col, box.col_stop)], chances)
        found = look(box, given[(slice(None), *whole.within(scene))], whole)
        assert found.dtype == np.float32
        expected = expected.where(valid, 0)[(0, slice(None), *box.within(scene))]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert read.pop() == seen


SIDE, SQUARES, SQUARE = 4096, 20, 12


@pytest.fixture(scope="module")
def scene():
    """A scene (1, 4096, 4096) of noise with 20 bright squares of 12 pixels, and their corners."""
    rng = np.random.default_rng(11)
    pixels = rng.random((1, SIDE, SIDE), np.float32) * 0.3
    cells = rng.permutation(64)[:SQUARES]
    corners = [(int(c // 8) * 512 + int(rng.integers(490)), int(c % 8) * 512 + int(rng.integers(490))) for c in cells]
    for row, col in corners:
        pixels[0, row : row + SQUARE, col : col + SQUARE] += 0.7
    return torch.from_numpy(pixels), corners


class Bright(nn.Module):
    """Finds what is brighter than one half."""

    def forward(self, values):
        return 20 * (values - 0.5)


class Looking:
    """All stages over an array, as a run does them over a scene."""

    def __init__(self, pixels, **options):
        self.pixels, self.shape = pixels, tuple(pixels.shape[1:])
        self.scene = Window(0, 0, *self.shape)
        self.settings = SaliencySettings(**options)
        self.pair = SaliencyPair(Bright(), Bright(), targets=1, bands=1, factor=self.settings.factor).eval()
        with torch.inference_mode():
            overview = self.pair.overview(shrunk(pixels[None], self.settings.factor))
        self.overview = overview.sigmoid()[0].numpy()
        self.candidates = candidates(self.overview, self.shape, self.settings)
        self.read = np.zeros(self.shape, bool)

    def reading(self, window):
        rows, cols = window.within(self.scene)
        self.read[rows, cols] = True
        return self.pixels[:, rows, cols], torch.ones(window.shape, dtype=torch.bool)

    def answer(self, window):
        given = overview_in(self.overview, self.settings.factor, reach(window, self.shape, self.settings))
        return recur(PairLook(self.pair, self.reading), given, window, self.shape, self.settings)


def test_small_squares_in_a_large_scene(scene):
    """Acceptance: all are found, few pixels are read, and neither order nor threads make a difference."""
    pixels, corners = scene
    run = Looking(pixels)
    windows = list(run.candidates.windows)
    assert len(windows) == SQUARES
    answers = [run.answer(window) for window in windows]
    assert run.read.mean() < 0.05
    assert {answer.end for answer in answers} == {"stable"}
    mosaic = combined(answers, run.scene, 1)
    assert sorted(map(tuple, component_boxes(mosaic[0] >= 0.5).tolist())) == sorted(
        (row, row + SQUARE, col, col + SQUARE) for row, col in corners
    )
    random.Random(1).shuffle(windows)
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(run.answer, windows))
    for window in windows:
        assert np.array_equal(combined(again, window, 1), mosaic[(slice(None), *window.within(run.scene))])
    by_window = {answer.window: answer.rounds for answer in answers}
    assert {answer.window: answer.rounds for answer in again} == by_window


@pytest.mark.parametrize("most", [0.5, 1.0])
def test_a_target_larger_than_a_box_is_put_together_from_parts(most):
    """Also where it fills so much of the scene that the whole of it is looked at."""
    pixels = torch.rand(1, 300, 260, generator=torch.Generator().manual_seed(0)) * 0.3
    pixels[0, 20:270, 30:220] += 0.7
    run = Looking(pixels, limit=100, halo=12, most=most)
    assert run.candidates.everywhere == (most == 0.5)
    assert len(run.candidates.windows) > 6
    found = combined(map(run.answer, run.candidates.windows), run.scene, 1)
    assert component_boxes(found[0] >= 0.5).tolist() == [[20, 270, 30, 220]]
    expected = torch.sigmoid(20 * (pixels - 0.5)).numpy()
    # A network that sees single pixels says the same of every part.
    np.testing.assert_allclose(found[0, 20:270, 30:220], expected[0, 20:270, 30:220], rtol=1e-6)
