"""Windows and mirrors against plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.losses.windows import gaussian, reflected, window_means


def test_weights_are_those_of_the_formula():
    found = gaussian(3, 1.5, torch.empty(0, dtype=torch.float64)).numpy()
    side = np.exp(-1 / (2 * 1.5**2))
    np.testing.assert_allclose(found, np.array([side, 1, side]) / (1 + 2 * side), rtol=1e-15)
    assert gaussian(4, float("inf"), torch.empty(0)).tolist() == [0.25] * 4


@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 12), st.integers(1, 3), st.integers(1, 3))
def test_means_are_sums_of_shifted_images(size, more_rows, more_cols, images, channels):
    rng = np.random.default_rng(size)
    values = rng.standard_normal((images, channels, size + more_rows, size + more_cols))
    weights = rng.random(size)  # not symmetric, so that a flip would show
    expected = np.zeros((images, channels, more_rows + 1, more_cols + 1))
    for row in range(size):
        for col in range(size):
            expected += weights[row] * weights[col] * values[..., row : row + more_rows + 1, col : col + more_cols + 1]
    found = window_means(torch.from_numpy(values), torch.from_numpy(weights))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 15))
def test_mirrors_are_those_of_numpy(height, width, margin):
    values = np.random.default_rng(0).standard_normal((2, 3, height, width))
    expected = np.pad(values, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="reflect")
    assert np.array_equal(reflected(torch.from_numpy(values), margin), expected)


@pytest.mark.parametrize("margin", [2, 7])
def test_mirrors_have_their_gradient(margin):
    values = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: reflected(each, margin), values)
