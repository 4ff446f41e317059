"""The loss of coarse labels: what it must not depend on, its gradient, its edges, and that it teaches."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.losses.coarse_labels import CoarseLabelLoss, Form, Grouping, block_shares

MEANS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0]])
RADII = torch.tensor([[0.2, 0.1, 0.1], [0.05, 0.3, 0.2], [0.15, 0.1, 0.25], [0.0, 0.0, 0.0]])
EVERY = [(form, grouping) for form in get_args(Form) for grouping in get_args(Grouping)]


def made(form="gaussian", grouping="block", **options):
    return CoarseLabelLoss(MEANS, RADII, torch.tensor([1.0, 0.5, 2.0, 1.0]), form=form, grouping=grouping, **options)


def case(seed=0, images=2, size=(12, 15)):
    """Scores, seven blocks an image of which one is empty, some pixels of none, and the blocks' classes."""
    random = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(images, 3, *size, generator=random, dtype=torch.float64)
    blocks = torch.randint(-1, 6, (images, *size), generator=random)
    return scores, blocks, torch.randint(0, 4, (images, 7), generator=random)


def run(loss, scores, blocks, classes):
    scores = scores.clone().requires_grad_()
    value = loss(scores, blocks, classes)
    value.backward()
    return value.detach(), scores.grad


@pytest.mark.parametrize(("form", "grouping"), EVERY)
def test_neither_the_order_of_pixels_nor_of_blocks_matters(form, grouping):
    loss = made(form, grouping)
    scores, blocks, classes = case()
    value, gradient = run(loss, scores, blocks, classes)
    order = torch.randperm(blocks[0].numel(), generator=torch.Generator().manual_seed(1))
    moved = (each.flatten(-2)[..., order].view(each.shape) for each in (scores, blocks))
    torch.testing.assert_close(run(loss, *moved, classes)[0], value, rtol=1e-12, atol=0)
    names = torch.tensor([4, 0, 6, 1, 5, 2, 3])
    renamed = torch.where(blocks >= 0, names[blocks.clamp(min=0)], -1)
    found = run(loss, scores, renamed, classes[:, names.argsort()])
    torch.testing.assert_close(found, (value, gradient), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("form", "grouping"), EVERY)
def test_pixels_of_no_block_do_not_matter_and_nothing_is_zero(form, grouping):
    loss = made(form, grouping)
    scores, blocks, classes = case()
    outside = (blocks < 0).unsqueeze(1)
    value, gradient = run(loss, scores, blocks, classes)
    assert not gradient.where(outside, 0).any()
    again = run(loss, scores.masked_fill(outside, math.nan), blocks, classes)
    assert torch.equal(again[0], value)
    for none in (torch.full_like(blocks, -1), blocks):
        told = classes if none is not blocks else torch.full_like(classes, -1)
        value, gradient = run(loss, scores, none, told)
        assert value == 0
        assert not gradient.any()


@pytest.mark.parametrize(("form", "grouping"), EVERY)
def test_an_image_without_a_block_is_left_out(form, grouping):
    loss = made(form, grouping)
    scores, blocks, classes = case()
    alone = loss(scores[:1], blocks[:1], classes[:1])
    blocks[1] = -1
    torch.testing.assert_close(loss(scores, blocks, classes), alone)


@pytest.mark.parametrize(("form", "grouping"), EVERY)
@pytest.mark.parametrize("times", [0.0, 400.0, 1e5])
def test_gradients_are_finite(form, grouping, times):
    for dtype in (torch.float32, torch.float64):
        scores, blocks, classes = case()
        value, gradient = run(made(form, grouping), times * scores.to(dtype), blocks, classes)
        assert value.dtype == dtype
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("form", "grouping"), EVERY)
def test_the_gradient_is_that_of_the_value(form, grouping):
    scores, blocks, classes = case(images=1, size=(4, 5))
    assert torch.autograd.gradcheck(lambda s: made(form, grouping)(s, blocks, classes), scores.requires_grad_())


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_closed_form_of_the_gradient(seed):
    """dD/dp = d / (s n) + (1 / s − d² / s²) (1 − 2 p) / (2 n²), against what autograd finds for the logits."""
    scores, blocks, classes = case(seed, images=1, size=(6, 7))
    loss = made(least_deviation=0.05)
    _, gradient = run(loss, scores, blocks, classes)
    shares = block_shares(scores, blocks, 7)
    weight = (loss.weights[classes] * shares.pixels / shares.pixels.sum())[0]
    p, own = scores[0].softmax(0), blocks[0].clamp(min=0)
    n = shares.pixels[0][own]
    d = (shares.mean[0] - loss.means[classes[0]])[own].permute(2, 0, 1)
    s = (shares.variance[0] + loss.deviations[classes[0]] ** 2 + loss.eps)[own].permute(2, 0, 1)
    by_share = (d / (s * n) + 0.5 * (1 / s - d**2 / s**2) * (1 - 2 * p) / n**2) * weight[own] * (blocks[0] >= 0)
    by_logit = p * (by_share - (p * by_share).sum(0))
    torch.testing.assert_close(gradient[0], by_logit, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", get_args(Form))
def test_an_image_cut_between_blocks_weighs_its_parts_by_pixels(form):
    loss = made(form)
    scores, _, classes = case(images=1, size=(8, 12))
    blocks = torch.arange(6).view(2, 3).repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
    blocks[:, 0, 0] = -1
    whole = loss(scores, blocks, classes)
    parts = [loss(scores[..., part], blocks[..., part], classes) for part in (slice(0, 4), slice(4, 12))]
    torch.testing.assert_close(whole, (31 * parts[0] + 64 * parts[1]) / 95, rtol=1e-12, atol=0)


def test_blocks_of_one_class_are_one_group_where_that_is_wanted():
    scores, blocks, _ = case()
    classes = torch.full((2, 7), 2)
    together = torch.where(blocks >= 0, 0, -1)
    expected = made()(scores, together, torch.full((2, 1), 2))
    torch.testing.assert_close(made(grouping="class")(scores, blocks, classes), expected)
    assert made()(scores, blocks, classes) != expected


def test_a_large_batch_in_half_precision_is_summed_in_full():
    scores, blocks, classes = case()
    coarse = scores.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made()(coarse, blocks, classes)
    assert torch.equal(found, made()(coarse.float(), blocks, classes))


def test_pull_is_bounded_and_the_value_is_not():
    scores, blocks, classes = case()
    free, bounded = made(), made(max_block_grad=0.5)
    value, gradient = run(free, scores, blocks, classes)
    found = run(bounded, scores, blocks, classes)
    torch.testing.assert_close(found[0], value)
    assert found[1].abs().max() < 0.1 * gradient.abs().max()
    torch.testing.assert_close(run(made(max_block_grad=1e9), scores, blocks, classes)[1], gradient)


def test_blocks_far_off_their_class_are_left_out_after_a_fifth():
    scores = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
    scores[:, 2] = 40
    blocks = torch.tensor([0, 0, 1, 1]).expand(1, 2, 4)
    classes = torch.tensor([[0, 3]])  # the first holds 10 % of what is everywhere, the second 100 %
    loss = made(outliers=4.0)
    early = loss(scores, blocks, classes)
    assert early > made()(scores[..., 2:], blocks[..., 2:], classes)
    loss.progress = 0.2
    torch.testing.assert_close(loss(scores, blocks, classes), made()(scores[..., 2:], blocks[..., 2:], classes))


def toy(seed):
    """96 × 96 pixels, blocks of 8 × 8 of two coarse classes, and a noisy image of the fine classes."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 2, (12, 12), generator=random)
    first = torch.tensor([0.8, 0.3])[coarse] + 0.1 * torch.randn(12, 12, generator=random)
    share = first.clamp(0, 1).repeat_interleave(8, 0).repeat_interleave(8, 1)
    fine = (torch.rand(96, 96, generator=random) >= share).long()
    image = 1.0 - 2.0 * fine + 0.35 * torch.randn(96, 96, generator=random)
    blocks = torch.arange(144).view(12, 12).repeat_interleave(8, 0).repeat_interleave(8, 1)[None]
    return image, fine, blocks, coarse.view(1, -1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("form", "grouping"), EVERY)
def test_coarse_labels_alone_teach_fine_ones(form, grouping, seed):
    image, fine, blocks, classes = toy(seed)
    means = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    loss = CoarseLabelLoss(means, torch.full_like(means, 0.1), form=form, grouping=grouping)
    weights = torch.zeros(2, 2, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=0.05)
    features = torch.stack([image, torch.ones_like(image)])
    for _ in range(400):
        optimiser.zero_grad()
        scores = torch.einsum("kf,fhw->khw", weights, features)[None]
        loss(scores, blocks, classes).backward()
        optimiser.step()
    accuracy = (scores[0].argmax(0) == fine).double().mean().item()
    print(f"{form} {grouping} {seed}: {accuracy:.4f}")
    assert accuracy >= 0.995


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "gauss"}, "no form of a coarse-label loss named 'gauss'; did you mean gaussian"),
        ({"grouping": "blocks"}, "no grouping .* did you mean block"),
        ({"eps": -1.0}, "eps of a coarse-label loss is -1.0: give a number of 0 or more"),
        ({"outliers": math.nan}, "outliers of a coarse-label loss is nan"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        made(**options)


def test_tables_and_scores_of_other_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"tables of a coarse-label loss are \(4, 3\), \(3, 3\)"):
        CoarseLabelLoss(MEANS, RADII[:3])
    scores, blocks, classes = case()
    for wrong in ((scores[:, :2], blocks, classes), (scores, blocks[:, 1:], classes), (scores, blocks, classes[0])):
        with pytest.raises(ConfigError, match=r"give \(N, 3, H, W\), \(N, H, W\) and \(N, B\)"):
            made()(*wrong)
