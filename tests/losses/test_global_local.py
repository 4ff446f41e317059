"""GLNet's losses; their numbers are held to the authors' in tests/golden."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geoseg.errors import ConfigError
from geoseg.losses.global_local import GlobalLocalLoss, labels_at

CLASSES, IGNORED = 3, 255


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, seed=1):
    return torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(seed))


def parts(seed=0):
    return (
        noise(2, CLASSES, 5, 6, seed=seed + 1).requires_grad_(),
        noise(2, CLASSES, 5, 6, seed=seed + 2).requires_grad_(),
        labels(2, 5, 6, seed=seed + 3),
        noise(2, 8, 5, 6, seed=seed + 4).requires_grad_(),
        noise(2, 8, 5, 6, seed=seed + 5).requires_grad_(),
    )


def test_the_sum_and_where_its_gradients_go():
    local, ensemble, given_labels, own, other = parts()
    loss = GlobalLocalLoss(CLASSES, gamma=0, coupling=0.25)
    found = loss(local, ensemble, given_labels, own, other)
    expected = F.cross_entropy(local, given_labels) + F.cross_entropy(ensemble, given_labels)
    expected = expected + 0.25 * F.mse_loss(own, other)
    torch.testing.assert_close(found, expected)
    found.backward()
    torch.testing.assert_close(own.grad, 0.25 * 2 * (own - other).detach() / own.numel())
    assert other.grad is None
    assert local.grad.any()
    assert ensemble.grad.any()


def test_the_authors_numbers_are_the_defaults():
    loss = GlobalLocalLoss(CLASSES)
    scores, target = noise(1, CLASSES, 4, 4), labels(1, 4, 4)
    chances = scores.softmax(1).gather(1, target[:, None])
    torch.testing.assert_close(loss.scores(scores, target), -((1 - chances) ** 3 * chances.log()).mean())
    assert loss.coupling == 0.15


def test_nothing_known_costs_nothing():
    local, ensemble, _, own, other = parts()
    nowhere = torch.full((2, 5, 6), IGNORED)
    loss = GlobalLocalLoss(CLASSES, coupling=0)
    found = loss(local, ensemble, nowhere, own, other)
    found.backward()
    assert found.item() == 0
    for each in (local, ensemble, own):
        assert not each.grad.any()


def test_low_precision_is_computed_in_full():
    own, other = noise(1, 8, 5, 6), noise(1, 8, 5, 6, seed=2)
    scores, target = noise(1, CLASSES, 5, 6), labels(1, 5, 6)
    loss = GlobalLocalLoss(CLASSES)
    *_, difference = loss.terms(scores, scores, target, own.bfloat16(), other.bfloat16())
    assert difference.dtype == torch.float32


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_labels_are_picked_as_pillow_picks_them(height, width, rows, cols):
    given_labels = torch.arange(height * width, dtype=torch.int32).view(1, height, width)
    found = labels_at(given_labels, (rows, cols))[0]
    expected = np.asarray(Image.fromarray(given_labels[0].numpy()).resize((cols, rows), Image.Resampling.NEAREST))
    # The middle of a cell may lie on the line between two pixels, where Pillow's sums of rounded steps decide.
    row_lines, col_lines = (
        (2 * np.arange(count) + 1) * size % (2 * count) == 0 for count, size in ((rows, height), (cols, width))
    )
    clear = ~row_lines[:, None] & ~col_lines
    assert np.array_equal(found.numpy()[clear], expected[clear])


def test_refusals():
    with pytest.raises(ConfigError, match="coupling of GLNet's branches is -1"):
        GlobalLocalLoss(CLASSES, coupling=-1)
    local, ensemble, target, own, other = parts()
    with pytest.raises(ConfigError, match=r"maps of the branches are \(2, 8, 5, 6\) and \(2, 8, 5, 5\)"):
        GlobalLocalLoss(CLASSES)(local, ensemble, target, own, other[..., :5])
