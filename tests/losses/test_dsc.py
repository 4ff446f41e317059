"""The DSC loss: its closed-form gradient, what empty items cost, and its form for label maps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.losses import create
from geoseg.losses.dsc import EPS, dsc_loss, dsc_per_item, pair_loss

IGNORED = 255


def batch(seed=0, items=3, targets=2, size=(5, 6)):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(items, targets, *size, generator=generator, dtype=torch.float64)
    return probabilities, torch.rand(items, targets, *size, generator=generator) > 0.7


@given(seed=st.integers(0, 1000), items=st.integers(1, 4))
def test_the_gradient_is_its_closed_form(seed, items):
    probabilities, target = batch(seed, items)
    target[0] = False
    probabilities.requires_grad_()
    dsc_loss(probabilities, target).backward()
    each = (1, 2, 3)
    y, p = target.double(), probabilities.detach()
    upper = (2 * (p * y).sum(each, keepdim=True)) + EPS
    lower = (p + y).sum(each, keepdim=True) + EPS
    torch.testing.assert_close(probabilities.grad, -(2 * y * lower - upper) / lower**2 / items, rtol=1e-12, atol=1e-15)


def test_of_hard_masks_it_is_one_minus_dice():
    one, other = batch(1)[1], batch(2)[1]
    for item, value in enumerate(dsc_per_item(one.double(), other).tolist()):
        common, areas = (one[item] & other[item]).sum(), one[item].sum() + other[item].sum()
        assert value == pytest.approx(1 - 2 * float(common) / float(areas), abs=1e-6)


def test_an_empty_item_teaches_only_by_its_cross_entropy():
    probabilities, target = batch(items=2)
    target[1] = False
    probabilities = (0.9 * probabilities + 0.05).requires_grad_()
    dsc_loss(probabilities, target).backward()
    small = float(probabilities.grad[1].abs().max())
    assert small < 1e-8
    probabilities.grad = None
    pair_loss(probabilities, probabilities, target).backward()
    assert float(probabilities.grad[1].min()) > 1e-3
    per_item = dsc_per_item(probabilities, target)
    alarms = -torch.log1p(-probabilities[1]).mean()
    expected = (per_item.sum() + alarms) / 2
    torch.testing.assert_close(pair_loss(probabilities, probabilities, target).double(), expected)


def test_a_pair_shares_the_loss():
    (coarse, target), (fine, _) = batch(3), batch(4)
    for share in (1 / 3, 0.0, 1.0):
        expected = share * dsc_loss(coarse, target) + (1 - share) * dsc_loss(fine, target)
        assert float(pair_loss(coarse, fine, target, coarse_weight=share)) == pytest.approx(float(expected))
    assert float(pair_loss(coarse, fine, target)) == pytest.approx(
        float(dsc_loss(coarse, target)) / 3 + float(dsc_loss(fine, target)) * 2 / 3
    )


def test_sure_answers_give_finite_gradients():
    scores = torch.tensor([-200.0, 0.0, 30.0, 200.0]).view(1, 1, 2, 2).requires_grad_()
    target = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    pair_loss(scores.sigmoid(), scores.sigmoid(), target).backward()
    assert torch.isfinite(scores.grad).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert pair_loss(scores.sigmoid().bfloat16(), scores.sigmoid(), target).dtype == torch.float32


def labelled(seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, classes, 5, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, 5, 6), generator=generator)
    labels[0, :2] = IGNORED
    return scores, labels


def by_hand(scores, labels, planes):
    values = []
    for item in range(len(scores)):
        known = labels[item] != IGNORED
        p = scores[item].softmax(0)[planes][:, known]
        y = torch.stack([(labels[item] == plane)[known] for plane in planes]).double()
        values.append(1 - (2 * (p * y).sum() + EPS) / (p.sum() + y.sum() + EPS))
    return values


def test_of_label_maps():
    scores, labels = labelled()
    for background, planes in ((None, [0, 1, 2]), (0, [1, 2]), (1, [0, 2])):
        loss = create("dsc", num_classes=3, background=background)
        expected = sum(by_hand(scores, labels, planes)) / 2
        torch.testing.assert_close(loss(scores, labels), expected)
        whole = create("dsc[whole_batch=true]", num_classes=3, background=background)
        joined = (torch.cat([each[:1], each[1:]], dim=-1) for each in (scores, labels))
        torch.testing.assert_close(whole(scores, labels), by_hand(*joined, planes)[0])


def test_of_two_classes_it_is_the_papers_with_a_sigmoid():
    scores, labels = labelled(classes=2)
    labels = labels.where(labels != IGNORED, 0)
    found = create("dsc[background=0]", num_classes=2)(scores, labels)
    chances = torch.sigmoid(scores[:, 1:] - scores[:, :1])
    torch.testing.assert_close(found, dsc_loss(chances, labels[:, None] == 1))


def test_images_of_background_alone_teach_too():
    scores, labels = labelled()
    labels[1] = 0
    loss = create("dsc[background=0]", num_classes=3)
    first, second = by_hand(scores, labels, [1, 2])
    alarms = torch.nn.functional.cross_entropy(scores[1:], labels[1:])
    torch.testing.assert_close(loss(scores, labels), (first + second + alarms) / 2)
    labels[0] = IGNORED
    torch.testing.assert_close(loss(scores, labels), second + alarms)


@pytest.mark.parametrize("background", [3, -1, 1.0, True])
def test_a_background_that_is_no_class_is_refused(background):
    with pytest.raises(ConfigError, match=r"the background of dsc is .*: give a class from 0 to 2"):
        create("dsc", num_classes=3, background=background)


def test_what_does_not_fit_is_refused():
    probabilities, target = batch()
    with pytest.raises(ConfigError, match=r"the coarse network's share of the loss is 1.5"):
        pair_loss(probabilities, probabilities, target, coarse_weight=1.5)
    with pytest.raises(ConfigError, match="give them one shape"):
        pair_loss(probabilities, probabilities[:1], target)
    with pytest.raises(ConfigError, match="whole_batch of dsc is 2: give true or false"):
        create("dsc[whole_batch=2]", num_classes=3)
