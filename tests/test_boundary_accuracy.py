"""Mean boundary accuracy against its definition, and where it is not defined."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from geoseg.boundary_accuracy import boundary_radii, mean_boundary_accuracy
from geoseg.errors import LabelsError
from geoseg.morphology import ellipse


def maps(seed, shape=(60, 84), classes=3):
    """Two maps of blobs, the second a little off, the first with some pixels that are not known."""
    random = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(random.normal(size=(classes, *shape)), (0, 4, 4)) for _ in range(2)]
    truth, other = (each.argmax(0).astype(np.uint8) for each in (smooth[0], smooth[0] + 0.3 * smooth[1]))
    truth[random.random(shape) < 0.05] = 255
    return truth, other


@given(st.integers(0, 1000), st.integers(2, 4))
def test_as_defined(seed, classes):
    truth, other = maps(seed, (21, 34), classes)
    accuracies = []
    for radius in boundary_radii(truth.shape):
        shape = ellipse(2 * radius + 1, 2 * radius + 1)
        region = np.zeros(truth.shape, bool)
        for value in range(classes):
            mask = truth == value
            # Outside the map there is nothing to grow from, and nothing that eats a mask.
            region |= ndimage.binary_dilation(mask, shape) & ~ndimage.binary_erosion(mask, shape, border_value=1)
        counted = region & (truth != 255)
        accuracies.append((truth == other)[counted].mean())
    assert mean_boundary_accuracy(truth, other) == pytest.approx(np.mean(accuracies))


def test_what_is_right_and_where():
    truth, other = maps(3)
    assert mean_boundary_accuracy(truth, np.where(truth == 255, 0, truth).astype(np.uint8)) == 1
    value = mean_boundary_accuracy(truth, other)
    assert 0.3 < value < 1
    # Far from boundaries nothing counts, and pixels that are not known count nowhere.
    far = other.copy()
    far[truth == 255] = 77
    assert mean_boundary_accuracy(truth, far) == value
    assert mean_boundary_accuracy(truth, far, ignored_must_match=True) < value
    assert mean_boundary_accuracy(truth, np.where(truth == 255, truth, far), ignored_must_match=True) == value


def test_radii_grow_with_the_image():
    assert boundary_radii((100, 100)) == (1, 1, 1, 1, 1)
    assert boundary_radii((1500, 1500)) == (1, 2, 4, 6, 8)
    wide = np.zeros((40, 1460), np.uint8)
    wide[:, 700:] = 1
    near, far = wide.copy(), wide.copy()
    near[:, 699] = 1
    far[:, 696] = 1
    radii = boundary_radii(wide.shape)
    assert radii == (1, 1, 2, 3, 4)
    assert mean_boundary_accuracy(wide, near) == pytest.approx(np.mean([1 - 1 / (2 * radius) for radius in radii]))
    assert mean_boundary_accuracy(wide, far) == pytest.approx(1 - 1 / 8 / 5)


def test_without_a_boundary_there_is_no_figure():
    for truth in (np.zeros((20, 30), np.uint8), np.full((20, 30), 255, np.uint8)):
        assert math.isnan(mean_boundary_accuracy(truth, truth))


def test_maps_of_different_sizes_are_refused():
    with pytest.raises(LabelsError, match=r"\(2, 3\) and \(3, 2\) pixels"):
        mean_boundary_accuracy(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
