"""The active contour energies against the authors' loss classes and an independent Chan–Vese energy (float64)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoseg.losses.active_contour import chan_vese, label_energy, length, means_of, released_energy, sums_of

pytestmark = pytest.mark.golden
STORED = 1e-7  # gradients are stored as float32


@pytest.fixture(scope="module")
def reference(golden):
    return golden("active_contour_cnn")


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return getattr(torch, request.param)


@pytest.fixture
def noise(reference, weights, dtype):
    """Return the references' random numbers: by what is added to the seed, and the number of bands."""
    count, _, height, width = reference["input_shape"].tolist()

    def drawn(more, bands=1):
        return weights.golden_input((count, bands, height, width), int(reference["seed"]) + more).to(dtype)

    return drawn


@pytest.fixture
def image(noise):
    return torch.sigmoid(noise(0))


@pytest.fixture
def area_weight(reference):
    return float(reference["area_weight"])


def close(found, expected, dtype, tolerance=STORED):
    """Compare relatively to the largest value."""
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    loose = tolerance if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(np.asarray(found.detach()) / scale, expected / scale, rtol=0, atol=loose)


def test_the_released_energy(reference, noise, image, area_weight, dtype):
    output = (0.6 + 0.5 * noise(50)).requires_grad_()
    energy, means = released_energy(output, image, area_weight=area_weight)
    close(energy, reference["released_loss"], dtype, 1e-9)
    close(torch.cat(means), reference["released_c_in_c_out"], dtype, 1e-9)
    energy.backward()
    close(output.grad, reference["released_grad"], dtype)


def test_the_label_energy(reference, noise, dtype):
    output = (0.6 + 0.5 * noise(50)).requires_grad_()
    energy = label_energy(output, (noise(51) > 0).to(dtype))
    close(energy, reference["label_loss"], dtype, 1e-9)
    energy.backward()
    close(output.grad, reference["label_grad"], dtype)


def test_the_energy_and_its_gradients(reference, noise, image, area_weight, dtype):
    logit = noise(50).requires_grad_()
    mask = torch.sigmoid(logit)
    mask.retain_grad()
    energy = chan_vese(mask, image, area_weight=area_weight)
    close(energy, reference["cv_energy_per_pixel"], dtype, 1e-9)
    close(energy * mask.numel(), reference["cv_energy"], dtype, 1e-9)
    means = means_of(sums_of(mask, image))
    close(torch.cat(means), reference["cv_c_in_c_out"], dtype, 1e-9)
    (energy * mask.numel()).backward()
    close(mask.grad, reference["cv_grad_p"], dtype)
    close(logit.grad, reference["cv_grad_logit"], dtype)
    inside, outside = means
    by_hand = (image - inside).square() - (image - outside).square() + area_weight
    torch.testing.assert_close(mask.grad, by_hand, rtol=0, atol=1e-8 if dtype == torch.float64 else 1e-6)


def test_the_length(reference, noise, dtype):
    logit = noise(50).requires_grad_()
    found = length(torch.sigmoid(logit))
    close(found, reference["length"], dtype, 1e-9)
    found.backward()
    close(logit.grad, reference["length_grad_logit"], dtype)


def test_the_energy_of_several_bands(reference, noise, area_weight, dtype):
    mask, image = torch.sigmoid(noise(50)), torch.sigmoid(noise(60, bands=3))
    energy = chan_vese(mask, image, area_weight=area_weight) * mask.numel()
    close(energy, reference["vector_cv_energy"], dtype, 1e-9)
    inside, outside = means_of(sums_of(mask, image))
    close(inside, reference["vector_c_in"], dtype, 1e-9)
    close(outside, reference["vector_c_out"], dtype, 1e-9)
