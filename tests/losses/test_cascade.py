"""Cascade label guidance: labels are picked, levels are weighted, and a level without labels adds nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.losses.cascade import CascadeLoss, shrunk

IGNORED = 255


def maps(height, width, classes=5, strides=(4, 8, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"scores_{s}": torch.randn(2, classes, -(-height // s), -(-width // s), generator=generator) for s in strides
    }


@given(height=st.integers(1, 70), width=st.integers(1, 70), stride=st.sampled_from([4, 8, 16]))
def test_shrinking_makes_no_new_labels(height, width, stride):
    generator = torch.Generator().manual_seed(height * 71 + width)
    labels = torch.tensor([0, 4, IGNORED])[torch.randint(0, 3, (2, height, width), generator=generator)]
    found = shrunk(labels, stride)
    assert set(found.flatten().tolist()) <= {0, 4, IGNORED}
    for row in range(found.shape[1]):
        for col in range(found.shape[2]):
            assert torch.equal(found[:, row, col], labels[:, stride * row, stride * col])
    assert found.shape[1:] == (-(-height // stride), -(-width // stride))


def test_it_is_the_weighted_sum_of_its_levels():
    outputs = {**maps(65, 97), "scores": torch.full((2, 5, 65, 97), math.nan)}
    labels = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(1))
    labels[:, :20] = IGNORED
    means = {
        stride: torch.nn.functional.cross_entropy(
            outputs[f"scores_{stride}"], labels[:, ::stride, ::stride], ignore_index=IGNORED
        ).item()
        for stride in (4, 8, 16)
    }
    for weights in ({4: 1.0, 8: 0.4, 16: 0.16}, {8: 2.0}):
        expected = sum(weight * means[stride] for stride, weight in weights.items())
        assert CascadeLoss(weights)(outputs, labels).item() == pytest.approx(expected, rel=1e-6)
    expected = means[4] + 0.4 * means[8] + 0.4 * means[16]
    assert CascadeLoss()(outputs, labels).item() == pytest.approx(expected, rel=1e-6)


def test_a_level_without_labels_adds_nothing():
    outputs = {name: value.requires_grad_() for name, value in maps(33, 33).items()}
    labels = torch.full((2, 33, 33), IGNORED)
    labels[:, 4, 4] = 1  # found at stride 4 only
    loss = CascadeLoss()(outputs, labels)
    loss.backward()
    expected = torch.nn.functional.cross_entropy(outputs["scores_4"][:, :, 1, 1], torch.tensor([1, 1]))
    assert loss.item() == pytest.approx(expected.item())
    assert not outputs["scores_8"].grad.any()
    assert not outputs["scores_16"].grad.any()


@pytest.mark.parametrize(
    ("weights", "message"),
    [({}, "weights of the cascade loss are {}"), ({4: -1.0}, "-1.0"), ({4: math.inf}, "inf"), ({0: 1.0}, "{0: 1.0}")],
)
def test_weights_that_are_refused(weights, message):
    with pytest.raises(ConfigError, match=message):
        CascadeLoss(weights)


def test_scores_that_do_not_fit():
    with pytest.raises(ConfigError, match="no scores_16"):
        CascadeLoss()(maps(33, 33, strides=(4, 8)), torch.zeros(2, 33, 33))
    with pytest.raises(ConfigError, match=r"scores_4 has \(9, 9\) cells where labels of \(29, 33\) pixels ask"):
        CascadeLoss()(maps(33, 33), torch.zeros(2, 29, 33))
