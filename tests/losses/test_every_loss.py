"""What every loss promises, whatever it computes: a new one is tried here by being registered."""

from __future__ import annotations

import inspect
import math
from importlib import import_module

import pytest
import torch

from geoseg.errors import ConfigError, LabelsError
from geoseg.losses import create, info, names
from geoseg.losses.entries import ENTRIES
from tests.losses.batches import IGNORED, batch, one_hot

# At a stride the labels that are looked at are not the same after a flip.
AT_FULL_SIZE = {"aaf": "aaf[label_stride=1]", "affinity": "affinity[label_stride=1]"}


@pytest.fixture(params=names())
def name(request) -> str:
    return request.param


def made(name, classes=4, **options):
    return create(name, num_classes=classes, ignore_index=options.pop("ignore_index", IGNORED), **options)


def run(loss, scores, labels):
    """Value, gradient by the scores, and those by parameters."""
    scores = scores.clone().requires_grad_()
    loss.zero_grad()
    value = loss(scores, labels)
    value.backward()
    assert value.shape == ()
    return value.detach(), scores.grad, [each.grad.clone() for each in loss.parameters()]


def finite(found):
    return all(bool(torch.isfinite(each).all()) for each in (found[0], found[1], *found[2]))


def test_it_is_described(name):
    told = info(name)
    assert told.name == name
    assert told.summary
    assert told.source
    assert told.takes_soft == made(name).takes_soft


def test_its_options_are_parameters_and_defaults_change_nothing(name):
    entry = ENTRIES[name]
    module, _, kind = entry.module.partition(":")
    parameters = inspect.signature(getattr(import_module(module), kind).__init__).parameters
    assert not set(entry.info.options) & set(entry.fixed)
    scores, labels = batch()
    plain = made(name)(scores, labels)
    for option in entry.info.options:
        assert torch.equal(made(name, **{option: parameters[option].default})(scores, labels), plain)


@pytest.mark.parametrize("there", [math.nan, math.inf, -1e30])
def test_ignored_pixels_change_neither_value_nor_gradient(name, there):
    scores, labels = batch()
    ignored = (labels == IGNORED).unsqueeze(1)
    loss = made(name)
    value, gradient, others = run(loss, scores, labels)
    assert value > 0
    assert (gradient.where(ignored, 0) == 0).all()
    assert gradient.any()
    again = run(loss, scores.masked_fill(ignored, there), labels)
    assert torch.equal(again[0], value)
    assert torch.equal(again[1], gradient)
    assert all(map(torch.equal, again[2], others))


def test_another_label_can_stand_for_none(name):
    scores, labels = batch()
    expected = made(name)(scores, labels)
    for other in (-1, 4, 1000):
        loss = made(name, ignore_index=other)
        assert torch.equal(loss(scores, labels.masked_fill(labels == IGNORED, other)), expected)
    with pytest.raises(LabelsError, match="a label is 7, but there are 4 classes"):
        made(name)(scores, labels.masked_fill(labels == IGNORED, 7))


def test_without_a_label_value_and_gradient_are_zero(name):
    scores, labels = batch()
    for classes in (2, 4):
        value, gradient, others = run(made(name, classes), scores[:, :classes], torch.full_like(labels, IGNORED))
        assert value == 0
        assert not gradient.any()
        assert not any(each.any() for each in others)


@pytest.mark.parametrize("case", ["constant", "single class", "both", "saturated", "one pixel", "sure and wrong"])
@pytest.mark.parametrize("classes", [2, 4])
def test_gradients_are_finite(name, case, classes):
    scores, labels = batch(classes=classes)
    if case in {"constant", "both"}:
        scores = torch.zeros_like(scores)
    if case in {"single class", "both"}:
        labels = torch.ones_like(labels)
    if case == "saturated":
        scores = 1e4 * scores
    if case == "sure and wrong":
        scores = -1e3 * one_hot(labels, classes).float()
    if case == "one pixel":
        labels = torch.full_like(labels, IGNORED)
        labels[2, 8, 12] = 1
    assert finite(run(made(name, classes), scores, labels))


def test_arithmetic_is_in_float32_under_autocast_too(name):
    scores, labels = batch()
    coarse = scores.bfloat16()
    expected, gradient, _ = run(made(name), coarse.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(made(name), coarse, labels)
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], gradient.bfloat16())
    precise = run(made(name).double(), coarse.double(), labels)
    assert precise[0].dtype == torch.float64
    torch.testing.assert_close(expected.double(), precise[0], rtol=1e-4, atol=1e-6)


def test_small_integers_are_labels_too(name):
    scores, labels = batch()
    assert torch.equal(made(name)(scores, labels.to(torch.uint8)), made(name)(scores, labels))


def test_shares_of_classes_where_they_are_taken(name):
    scores, labels = batch(dtype=torch.float64)
    loss = made(name).double()
    shares = one_hot(labels, 4)
    if not loss.takes_soft:
        with pytest.raises(ConfigError, match="takes labels alone: mix its losses, not its labels"):
            loss(scores, shares)
        return
    hard, soft = run(loss, scores, labels), run(loss, scores, shares)
    torch.testing.assert_close(soft[0], hard[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(soft[1], hard[1])
    ignored = (labels == IGNORED).unsqueeze(1)
    blend = (0.3 * shares + 0.7 * shares.flip(1)).where(~ignored, 0)
    value, gradient, _ = run(loss, scores, blend)
    assert value not in (hard[0], 0)
    assert (gradient.where(ignored, 0) == 0).all()
    assert torch.equal(run(loss, scores.masked_fill(ignored, math.nan), blend)[0], value)


def test_the_order_of_classes_and_samples_does_not_matter(name):
    scores, labels = batch(dtype=torch.float64)
    loss = made(name).double()
    value, gradient, _ = run(loss, scores, labels)
    places = torch.tensor([2, 0, 3, 1])
    renamed = places.argsort()[labels.where(labels != IGNORED, 0)].where(labels != IGNORED, IGNORED)
    for found, back in (
        (run(loss, scores[:, places], renamed), lambda each: each[:, places.argsort()]),
        (run(loss, scores.flip(0), labels.flip(0)), lambda each: each.flip(0)),
    ):
        torch.testing.assert_close(found[0], value, rtol=1e-12, atol=0)
        torch.testing.assert_close(back(found[1]), gradient)


def test_turning_and_mirroring_changes_nothing(name):
    scores, labels = batch(dtype=torch.float64)
    loss = made(AT_FULL_SIZE.get(name, name)).double()
    value, gradient, _ = run(loss, scores, labels)
    for turns in range(4):
        for mirrored in (False, True):

            def moved(each, back=False, turns=turns, mirrored=mirrored):
                if back:
                    each = torch.rot90(each, -turns, (-2, -1))
                    return each.flip(-1) if mirrored else each
                return torch.rot90(each.flip(-1) if mirrored else each, turns, (-2, -1))

            found = run(loss, moved(scores), moved(labels))
            torch.testing.assert_close(found[0], value, rtol=1e-12, atol=0)
            torch.testing.assert_close(moved(found[1], back=True), gradient)


def test_the_gradient_is_that_of_the_value(name):
    scores, labels = batch(dtype=torch.float64)
    loss = made(name).double()
    _, gradient, _ = run(loss, scores, labels)
    way = torch.randn(scores.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    step = 1e-6
    slope = (loss(scores + step * way, labels) - loss(scores - step * way, labels)) / (2 * step)
    torch.testing.assert_close((gradient * way).sum(), slope.detach(), rtol=1e-5, atol=1e-8)


def test_a_step_against_the_gradient_lowers_it_and_a_right_answer_costs_nothing(name):
    scores, labels = batch(dtype=torch.float64)
    loss = made(name).double()
    value, gradient, _ = run(loss, scores, labels)
    assert loss(scores - 1e-3 * gradient / gradient.abs().max(), labels) < value
    right = loss(40 * (2 * one_hot(labels, 4) - 1), labels)
    assert 0 <= right < 1e-6 < value


def test_what_is_given_stays_as_it_is(name):
    scores, labels = batch()
    copies = scores.clone(), labels.clone()
    run(made(name), scores, labels)
    assert torch.equal(scores, copies[0])
    assert torch.equal(labels, copies[1])


def test_scores_and_targets_that_do_not_fit_are_refused(name):
    scores, labels = batch()
    for given, message in (
        ((scores[:, :3], labels), r"scores are \(3, 3, 24, 27\): this loss was made for \(N, 4, H, W\)"),
        ((scores[0], labels), r"scores are \(4, 24, 27\)"),
        ((scores, labels[:, 1:]), r"the target is \(3, 23, 27\), scores are .*: give \(3, 24, 27\)"),
        ((scores, scores[:, 1:]), r"the target is \(3, 3, 24, 27\), .*: give \(3, 4, 24, 27\)"),
        ((scores, labels.float()), r"labels are torch.float32: give integers \(N, H, W\), or shares"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(name)(*given)
