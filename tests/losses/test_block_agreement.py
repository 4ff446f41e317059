"""Scores that are moved until blocks have the shares that are known of them."""

import math

import pytest
import torch

from geoseg.losses.block_agreement import agreeing, wanted_shares
from geoseg.losses.coarse_labels import block_shares

MEANS = {2: [[0.9, 0.1], [0.35, 0.65]], 4: [[0.7, 0.1, 0.15, 0.05], [0.1, 0.3, 0.35, 0.25]]}
# Blocks of two images of 12 × 18 pixels, the first four columns of none: 3 × 4 each, of unequal sizes.
ROWS, COLS = torch.arange(12) // 5, (torch.arange(18) - 4) // 4
BLOCKS = torch.where(COLS >= 0, ROWS.view(-1, 1) * 4 + COLS.clamp(min=0), -1).expand(2, -1, -1)
CLASSES = torch.arange(24).view(2, 12) % 3 - 1


def _scores(classes: int, scale: float) -> torch.Tensor:
    return torch.randn(2, classes, 12, 18, generator=torch.Generator().manual_seed(classes)) * scale


@pytest.fixture
def known():
    """Blocks without those whose coarse class is not known, as batches have them."""
    told = torch.cat([CLASSES, CLASSES.new_full((2, 1), -1)], 1).gather(1, BLOCKS.flatten(1) % 13).view(BLOCKS.shape)
    return torch.where(told >= 0, BLOCKS, -1)


@pytest.mark.parametrize("scale", [0.1, 2.0, 50.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_blocks_get_the_shares_of_their_class(known, classes, scale):
    means = torch.tensor(MEANS[classes], dtype=torch.float64)
    found = agreeing(_scores(classes, scale), known, CLASSES, means, torch.zeros_like(means))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 12, 18, dtype=torch.float64))
    shares = block_shares(found, known, 12)
    filled = shares.pixels > 0
    assert filled.sum() == 16
    torch.testing.assert_close(shares.mean[filled], means[CLASSES[filled]], rtol=0, atol=1e-5)


def test_pixels_of_no_block_stay_and_others_keep_their_order(known):
    means = torch.tensor(MEANS[2])
    scores = _scores(2, 2.0)
    before, found = scores.double().log_softmax(1), agreeing(scores, known, CLASSES, means, torch.zeros_like(means))
    outside = (known < 0).unsqueeze(1).expand_as(scores)
    assert torch.equal(found[outside], before[outside])
    for image, block in ((0, 1), (1, 5)):
        odds = [(each[image, 1] - each[image, 0])[known[image] == block] for each in (before, found)]
        moved = odds[1] - odds[0]
        torch.testing.assert_close(moved, moved[0].expand_as(moved))
        assert abs(float(moved[0])) > 0.1


def test_what_is_within_a_deviation_is_left_alone(known):
    means, deviations = torch.tensor(MEANS[2], dtype=torch.float64), torch.full((2, 2), 0.2, dtype=torch.float64)
    scores = _scores(2, 1.0)
    scores[1] += torch.tensor([3.0, 0.0]).view(2, 1, 1)
    found = agreeing(scores, known, CLASSES, means, deviations)
    before, after = (block_shares(each, known, 12) for each in (scores.double(), found))
    told = CLASSES.clamp(min=0)
    inside = ((before.mean - means[told]).abs() <= 0.2).all(-1) & (before.pixels > 0)
    beyond = ~inside & (before.pixels > 0)
    assert inside.any()
    assert beyond.any()
    torch.testing.assert_close(after.mean[inside], before.mean[inside])
    torch.testing.assert_close((after.mean - means[told])[beyond].abs(), torch.full_like(after.mean[beyond], 0.2))


def test_by_hand():
    """Two pixels with odds 3 : 1 and 1 : 3, of which a share of 3/4 is wanted."""
    scores = torch.tensor([[0.0, 0.0], [math.log(3), -math.log(3)]]).view(1, 2, 1, 2)
    means = torch.tensor([[0.25, 0.75]])
    found = agreeing(
        scores, torch.zeros(1, 1, 2, dtype=torch.int64), torch.zeros(1, 1).long(), means, torch.zeros(1, 2)
    )
    # Both odds grow by a factor r:  3r / (3r + 1) + r / (r + 3) = 3/2, which is 3r² − 10r − 9 = 0.
    r = (10 + math.sqrt(100 + 108)) / 6
    wanted = [3 * r / (3 * r + 1), r / (r + 3)]
    torch.testing.assert_close(found.exp()[0, 1, 0], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-5)


def test_wanted_shares_are_shares():
    found = torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]]], dtype=torch.float64)
    means = torch.tensor([[[0.3, 0.3, 0.4], [0.5, 0.45, 0.05]]], dtype=torch.float64)
    wanted = wanted_shares(found, means, torch.full_like(means, 0.1))
    torch.testing.assert_close(wanted.sum(-1), torch.ones(1, 2, dtype=torch.float64))
    torch.testing.assert_close(wanted[0, 0], torch.tensor([0.2, 0.2, 0.5], dtype=torch.float64) / 0.9)


def test_without_a_block_nothing_moves():
    scores = _scores(3, 1.0)
    none = torch.full((2, 12, 18), -1)
    found = agreeing(scores, none, torch.full((2, 1), -1), torch.full((1, 3), 1 / 3), torch.zeros(1, 3))
    assert torch.equal(found, scores.double().log_softmax(1))
