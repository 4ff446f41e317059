"""Sums: each term with its weight, pixels to those that want them, progress to those that change."""

import pytest
import torch

from geoseg.errors import ConfigError
from geoseg.losses import create
from geoseg.losses.loss import Loss
from geoseg.losses.weighted_sum import WeightedSum
from tests.losses.batches import batch


class Contrast(Loss):
    """Takes the pixels."""

    takes_pixels = True

    def forward(self, scores, target, pixels):
        return (scores - pixels).abs().mean()


def test_it_is_the_sum_of_its_terms():
    scores, labels = batch()
    found = create("0.25*ce+dice+3*ssl[lam=0.2]+0*focal", num_classes=4)
    assert found.names == ("ce", "dice", "ssl", "focal")
    assert found.weights == (0.25, 1, 3, 0)
    single = [create(each, num_classes=4)(scores, labels) for each in ("ce", "dice", "ssl[lam=0.2]", "focal")]
    assert list(found.terms(scores, labels)) == single
    torch.testing.assert_close(found(scores, labels), 0.25 * single[0] + single[1] + 3 * single[2])


def test_shares_only_if_all_terms_take_them():
    assert create("ce+d2", num_classes=4).takes_soft
    assert not create("ce+dice", num_classes=4).takes_soft


def test_pixels_go_to_those_that_take_them():
    scores, labels = batch()
    pixels = torch.ones_like(scores)
    mean = create("ce", num_classes=4)
    found = WeightedSum([("ce", 2.0, mean.losses[0]), ("contrast", 0.5, Contrast(4))])
    assert found.takes_pixels
    assert not mean.takes_pixels
    torch.testing.assert_close(
        found(scores, labels, pixels), 2 * mean(scores, labels) + 0.5 * (scores - pixels).abs().mean()
    )
    with pytest.raises(ConfigError, match=r"the loss ce\+contrast needs the pixels as well"):
        found(scores, labels)


def test_progress_reaches_what_changes():
    scores, labels = batch()
    found = create("ce+0.5*aaf+affinity[decay_base=1]", num_classes=4)
    ce, fields, constant = (each.item() for each in found.terms(scores, labels))
    for progress in (0.5, 1):
        found.set_progress(progress)
        assert [each.item() for each in found.terms(scores, labels)] == pytest.approx(
            [ce, fields * 10**-progress, constant]
        )


def test_only_the_adversary_has_parameters():
    assert [name for name, _ in create("ce+aaf+affinity", num_classes=4).named_parameters()] == [
        "losses.1.edge_logits",
        "losses.1.nonedge_logits",
    ]
