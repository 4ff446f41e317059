"""Overviews against Pillow's, byte by byte."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geoseg.networks.antialias import antialiased

SIDES = st.integers(1, 90)


def resized(image, height, cols, rows):
    """Pillow's image, along rows first."""
    for size in ((cols, height), (cols, rows)):
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 1000))
def test_bytes_are_pillows(height, width, rows, cols, seed):
    array = np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)
    found = antialiased(torch.from_numpy(array), (rows, cols))
    image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), resized(image, height, cols, rows).transpose(2, 0, 1))
    other = np.asarray(image.resize((cols, rows), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(found.numpy().astype(int) - other).max() <= 1


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 1000))
def test_numbers_are_pillows(height, width, rows, cols, seed):
    array = np.random.default_rng(seed).normal(0, 1000, (2, height, width)).astype(np.float32)
    found = antialiased(torch.from_numpy(array), (rows, cols))
    expected = [resized(Image.fromarray(band), height, cols, rows) for band in array]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-4, atol=5e-2)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64])
def test_an_even_image_stays_as_it_is(kind):
    pixels = torch.full((4, 77, 131), 201, dtype=kind)
    found = antialiased(pixels, (20, 33))
    torch.testing.assert_close(found.float(), torch.full((4, 20, 33), 201.0))
    assert found.dtype == (torch.uint8 if kind == torch.uint8 else torch.float32)
    assert torch.equal(antialiased(pixels, (77, 131)), pixels.float() if kind == torch.float64 else pixels)
