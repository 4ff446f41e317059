"""Affinity fields: what the sheet of the method promises beyond the golden numbers."""

import math

import pytest
import torch

from geoseg.errors import ConfigError
from geoseg.losses.aaf import AffinityFields
from tests.losses.batches import IGNORED, batch, one_hot


def made(classes=4, tables=None, **options):
    loss = AffinityFields(classes, **{"label_stride": 1, **options}).double()
    if tables is not None:
        generator = torch.Generator().manual_seed(tables)
        with torch.no_grad():
            for each in loss.parameters():
                each.copy_(torch.randn(each.shape, generator=generator))
    return loss


def parts(loss, scores, labels):
    return loss.parts(*loss.prepared(scores, labels))


@pytest.mark.parametrize("rule", ["authors", "one_sided"])
def test_the_adversary_raises_it_and_the_network_lowers_it(rule):
    scores, labels = batch(dtype=torch.float64)
    loss = made(tables=0, ignore_rule=rule)
    scores.requires_grad_()
    before = loss(scores, labels)
    before.backward()
    with torch.no_grad():
        moved = scores - 1e-2 * scores.grad / scores.grad.abs().max()
    assert loss(moved, labels) < before
    for group in ([loss.edge_logits], [loss.nonedge_logits], list(loss.parameters())):
        raised = made(ignore_rule=rule)
        raised.load_state_dict(loss.state_dict())
        step = torch.optim.SGD(raised.parameters(), lr=1e-2)
        for mine, theirs in zip(loss.parameters(), raised.parameters(), strict=True):
            theirs.grad = mine.grad.clone() if any(mine is each for each in group) else None
        step.step()
        assert raised(scores, labels) > before


def test_a_right_and_certain_answer_costs_nothing():
    _, labels = batch()
    found = parts(made(tables=1), 20 * (2 * one_hot(labels, 4) - 1), labels)
    assert found.n_edge.all()
    assert not found.edge.any()  # the divergence of 1 from 1e-4 is 9.2, more than the margin
    torch.testing.assert_close(found.nonedge, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_constant_answer_costs_the_margin_at_edges_alone():
    scores, labels = batch(dtype=torch.float64)
    scores = scores[:1, :, :1, :1].expand_as(scores)
    found = parts(made(), scores, labels)
    assert not found.nonedge.any()
    torch.testing.assert_close(found.edge, torch.full((3,), 3 / 3, dtype=torch.float64))
    assert parts(made(adaptive=False, margin=2.0), scores, labels).edge.tolist() == pytest.approx([2] * 3)
    # One class alone has edges in its channel and in another's: the weights are those of the pixels' classes.
    loss = made(2, tables=2, ignore_rule="one_sided")
    halves = torch.zeros(1, 6, 6, dtype=torch.long)
    halves[..., 3:] = 1
    weights = loss.edge_logits.detach().softmax(1).mean(0)
    torch.testing.assert_close(parts(loss, scores[:1, :2, :6, :6], halves).edge, 3 * weights)


@pytest.mark.parametrize("label", [1, IGNORED])
def test_without_edges_it_is_finite(label):
    scores, labels = batch(dtype=torch.float64)
    scores.requires_grad_()
    loss = made(tables=3)
    found = parts(loss, scores, torch.full_like(labels, label))
    assert not found.n_edge.any()
    assert not found.edge.any()
    value = loss(scores, torch.full_like(labels, label))
    value.backward()
    assert torch.isfinite(scores.grad).all()
    assert all(torch.isfinite(each.grad).all() for each in loss.parameters())
    assert (value == 0) == (label == IGNORED)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3)])
def test_images_smaller_than_the_neighbourhood(size):
    scores, labels = batch(size=size, ignored=False, dtype=torch.float64)
    found = parts(made(ignore_rule="one_sided", sizes=(1, 5)), scores, labels)
    height, width = size
    for count, s in zip((found.n_edge + found.n_nonedge).tolist(), (1, 5), strict=True):
        pairs = sum(
            max(0, height - abs(dy)) * max(0, width - abs(dx)) for dy in (-s, 0, s) for dx in (-s, 0, s) if dy or dx
        )
        assert count == 3 * 4 * pairs


def test_a_stride_picks_scores_and_labels():
    scores, labels = batch(size=(33, 41), dtype=torch.float64)
    expected = made(tables=4)(scores[..., ::4, ::4], labels[..., ::4, ::4])
    assert torch.equal(made(tables=4, label_stride=4)(scores, labels), expected)


def test_two_classes_are_complements():
    """Of two classes the second's terms are those of the first, so they need not be computed."""
    scores, labels = batch(classes=2, dtype=torch.float64)
    found = parts(made(2), scores, labels)
    padded = torch.cat([scores, torch.full_like(scores[:, :1], -1e4)], 1)  # a third class that nowhere is
    wider = parts(made(3), padded, labels)
    torch.testing.assert_close(found.edge, wider.edge)
    assert torch.equal(found.n_edge, wider.n_edge)
    assert torch.equal(3 * found.n_edge + 3 * found.n_nonedge, 2 * wider.n_edge + 2 * wider.n_nonedge)
    # The third channel adds as many pairs without any divergence.
    torch.testing.assert_close(found.nonedge * found.n_nonedge, wider.nonedge * wider.n_nonedge)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, r"the sizes of aaf are \(\)"),
        ({"sizes": (1, 0)}, r"the sizes of aaf are \(1, 0\)"),
        ({"sizes": 1.5}, "sizes"),
        ({"margin": -1.0}, "margin of aaf is -1.0"),
        ({"lambda_edge": math.nan}, "lambda_edge of aaf is nan"),
        ({"lambda_nonedge": math.inf}, "lambda_nonedge of aaf is inf"),
        ({"decay_base": 0.5}, "decay_base of aaf is 0.5"),
        ({"eps": 0.5}, "eps of aaf is 0.5"),
        ({"label_stride": 0}, "label_stride of aaf is 0"),
        ({"ignore_rule": "none"}, "ignore rule of aaf"),
    ],
)
def test_refusals(options, message):
    with pytest.raises((ConfigError, TypeError), match=message if options != {"sizes": 1.5} else "float"):
        made(**options)
