"""Mixed batches: what they hold, which loss they get, and that chance comes from the seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from geoseg.errors import ConfigError
from geoseg.losses import create, names
from geoseg.losses.supervision import Supervision
from geoseg.training.mixing import Mixing

IGNORED = 255
CLASSES = 4


def batch(seed: int = 0, count: int = 5, size: tuple[int, int] = (16, 18)) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N, 3, H, W) and labels (N, H, W), some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, *size, generator=generator)
    labels = torch.randint(0, CLASSES, (count, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORED
    return pixels, labels


def scores_of(seed: int = 1, count: int = 5) -> torch.Tensor:
    return torch.randn(count, CLASSES, 16, 18, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("pairing", ["random", "foreground"])
@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"probability": 0.0}])
def test_a_share_of_one_returns_the_batch(pairing, options):
    pixels, labels = batch()
    pixels[1, 0, 3, 4] = math.nan  # stays where it is, and does not spread to a partner
    mixed = Mixing(pairing=pairing, **options)(pixels, labels, np.random.default_rng(0))
    assert (mixed.share == 1).all()
    assert torch.equal(mixed.pixels.nan_to_num(7), pixels.nan_to_num(7))
    assert torch.equal(mixed.first, labels)
    loss = create("ce", num_classes=CLASSES)
    assert torch.equal(mixed.loss(loss, scores_of()), loss(scores_of(), labels))


@given(st.integers(0, 999), st.sampled_from(["random", "foreground"]), st.booleans())
def test_shares_sum_to_one_where_both_tiles_have_a_label(seed, pairing, per_sample):
    pixels, labels = batch(seed)
    mixed = Mixing(pairing=pairing, per_sample=per_sample)(pixels, labels, np.random.default_rng(seed))
    soft = mixed.soft(CLASSES, torch.float64)
    counts = (labels[mixed.order] != IGNORED) & (labels[mixed.partners] != IGNORED)
    some = (mixed.share > 0) & (mixed.share < 1)
    assert torch.equal((soft.sum(1) > 0)[some], counts[some])
    torch.testing.assert_close(soft.sum(1)[some], counts[some].double(), atol=1e-12, rtol=0)
    assert (soft >= 0).all()
    share = mixed.share[:, None, None, None].float()
    expected = share * pixels[mixed.order] + (1 - share) * pixels[mixed.partners]
    torch.testing.assert_close(mixed.pixels, expected)
    assert torch.equal(mixed.blend(pixels), mixed.pixels)  # further rasters of the same tiles
    assert len(set(mixed.share.tolist())) == (len(labels) if per_sample else 1)


@pytest.mark.parametrize("pairing", ["random", "foreground"])
def test_every_tile_is_used_once_on_either_side(pairing):
    _, labels = batch()
    for seed in range(20):
        order, partners = Mixing(pairing=pairing).pairs(labels, np.random.default_rng(seed))
        assert sorted(order.tolist()) == sorted(partners.tolist()) == list(range(len(labels)))
        if pairing == "random":
            assert order.tolist() == list(range(len(labels)))


def test_least_foreground_meets_most_and_ties_keep_their_order():
    labels = torch.zeros(5, 4, 4, dtype=torch.long)
    for tile, count in enumerate([3, 0, 3, 16, 1]):
        labels[tile].view(-1)[:count] = 1 + tile % 2
    labels[1, 0, 0] = IGNORED
    order, partners = Mixing(pairing="foreground").pairs(labels, np.random.default_rng(0))
    assert order.tolist() == [1, 4, 0, 2, 3]
    assert partners.tolist() == [3, 2, 0, 4, 1]
    chosen = Mixing(pairing="foreground", foreground_classes=[2]).foreground(labels)
    assert chosen.tolist() == [0, 0, 0, 16, 0]


@pytest.mark.parametrize("alpha", [0.2, 0.4, 0.7, 3.0])
def test_shares_are_of_the_beta_distribution(alpha):
    rng = np.random.default_rng(0)
    drawn = np.array([Mixing(alpha).shares(1, rng)[0] for _ in range(10_000)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert ((drawn >= 0) & (drawn <= 1)).all()


def test_as_many_batches_are_mixed_as_are_to_be():
    rng = np.random.default_rng(0)
    mixed = np.mean([Mixing(probability=0.3).shares(2, rng)[0] < 1 for _ in range(4000)])
    assert mixed == pytest.approx(0.3, abs=0.03)


class Tiles(Dataset):
    """Tiles that say who read them if they could: workers must not matter."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = batch(index, 1)
        return pixels[0], labels[0]


def test_the_seed_alone_decides_whatever_the_workers():
    def all_mixed(workers: int, seed: int) -> list[torch.Tensor]:
        loader = DataLoader(Tiles(), batch_size=4, num_workers=workers)
        mixing = Mixing(pairing="random", per_sample=True)
        found = [mixing(*each, np.random.default_rng((seed, step))) for step, each in enumerate(loader)]
        return [value for each in found for value in (each.pixels, each.first, each.second, each.share)]

    alone, together = all_mixed(0, 5), all_mixed(2, 5)
    assert all(map(torch.equal, alone, together))
    assert not all(map(torch.equal, alone, all_mixed(0, 6)))


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_form_of_the_loss_follows_from_the_loss(name, per_sample):
    pixels, labels = batch()
    mixed = Mixing(per_sample=per_sample)(pixels, labels, np.random.default_rng(3))
    loss, scores = create(name, num_classes=CLASSES).double(), scores_of()
    found = mixed.loss(loss, scores)
    parts = [slice(i, i + 1) for i in range(len(labels))] if per_sample else [slice(None)]
    each = [
        mixed.share[part][0] * loss(scores[part], mixed.first[part])
        + (1 - mixed.share[part][0]) * loss(scores[part], mixed.second[part])
        for part in parts
    ]
    two = torch.stack(each).mean()
    torch.testing.assert_close(mixed.loss(loss, scores, mode="two_term"), two, rtol=1e-12, atol=0)
    if loss.takes_soft:
        torch.testing.assert_close(found, loss(scores, mixed.soft(CLASSES, torch.float64)), rtol=1e-12, atol=0)
        assert torch.equal(mixed.loss(loss, scores, mode="soft"), found)
    else:
        torch.testing.assert_close(found, two, rtol=1e-12, atol=0)
        with pytest.raises(ConfigError, match="this loss takes labels alone: leave the mode of mixing at auto"):
            mixed.loss(loss, scores, mode="soft")


@pytest.mark.parametrize("mode", ["soft", "two_term"])
@pytest.mark.parametrize("name", ["ce", "bce", "ce+0.5*d2"])
def test_where_either_partner_is_ignored_nothing_counts(mode, name):
    pixels, labels = batch()
    mixed = Mixing()(pixels, labels, np.random.default_rng(1))
    ignored = (labels[mixed.order] == IGNORED) | (labels[mixed.partners] == IGNORED)
    loss, scores = create(name, num_classes=CLASSES), scores_of().requires_grad_()
    value = mixed.loss(loss, scores, mode=mode)
    value.backward()
    assert (scores.grad.movedim(1, -1)[ignored] == 0).all()
    spoilt = scores.detach().masked_fill(ignored.unsqueeze(1), math.nan)
    assert torch.equal(mixed.loss(loss, spoilt, mode=mode), value)


def test_cross_entropy_is_linear_and_so_are_sums_of_it():
    pixels, labels = batch()
    mixed = Mixing()(pixels, labels, np.random.default_rng(2))
    for name in ("ce", "bce", "ce[label_smoothing=0.1]+2*bce"):
        loss = create(name, num_classes=CLASSES)
        soft, two = (mixed.loss(loss, scores_of(), mode=mode).item() for mode in ("soft", "two_term"))
        assert soft == pytest.approx(two, rel=1e-12)


def test_auxiliary_maps_are_mixed_with_their_scores():
    pixels, labels = batch()
    mixed = Mixing(per_sample=True)(pixels, labels, np.random.default_rng(4))
    outputs = {"scores": scores_of(1), "aux": scores_of(2)}
    for name in ("ce", "dice"):
        loss = Supervision(create(name, num_classes=CLASSES), {"scores": 1.0, "aux": 0.5})
        expected = sum(weight * mixed.loss(loss.loss, outputs[key]) for key, weight in (("scores", 1.0), ("aux", 0.5)))
        torch.testing.assert_close(mixed.loss(loss, outputs), expected)


def test_a_second_batch_meets_the_first_in_order():
    pixels, labels = batch(0)
    others = batch(9)
    mixed = Mixing()(pixels, labels, np.random.default_rng(0), partner=others)
    share = mixed.share[0].item()
    torch.testing.assert_close(mixed.pixels, share * pixels + (1 - share) * others[0])
    with pytest.raises(ConfigError, match="cannot be mixed with one of"):
        Mixing()(pixels, labels, np.random.default_rng(0), partner=batch(9, 4))


def test_tiles_without_data_there_do_not_count():
    pixels, labels = batch()
    valid = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    mixed = Mixing()(pixels, labels, np.random.default_rng(0), valid=valid)
    known = valid & (labels != IGNORED)
    assert torch.equal(mixed.first != IGNORED, known[mixed.order] & known[mixed.partners])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha of mixing is -0.1: give 0"),
        ({"alpha": math.inf}, "alpha of mixing is inf"),
        ({"probability": 1.5}, "the probability of mixing is 1.5"),
        ({"pairing": "class"}, "pairing"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        Mixing(**options)
    mixed = Mixing()(*batch(), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="mode of a mixed loss"):
        mixed.loss(create("ce", num_classes=CLASSES), scores_of(), mode="hard")
