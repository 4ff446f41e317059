"""The active contour energy: what leaves it as it is, where it leads, and what happens at its edges."""

from __future__ import annotations

import pytest
import torch

from geoseg.losses.active_contour import chan_vese, label_energy, length, means_of, released_energy, sums_of

NU = 0.01


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def image(generator):
    return torch.rand(2, 3, 9, 11, generator=generator, dtype=torch.float64)


@pytest.fixture
def mask(generator):
    return torch.rand(2, 1, 9, 11, generator=generator, dtype=torch.float64)


def test_swapping_the_phases_changes_the_area_alone(mask, image):
    size = mask.numel()
    first, second = (chan_vese(each, image, area_weight=NU, length_weight=0.3) for each in (mask, 1 - mask))
    torch.testing.assert_close(first * size, second * size + NU * (2 * mask.sum() - size), rtol=1e-6, atol=1e-6)


def test_brightness_and_places_of_pixels(mask, image):
    energy = chan_vese(mask, image, area_weight=NU)
    order = torch.randperm(99, generator=torch.Generator().manual_seed(0))
    shuffled = [each.flatten(2)[..., order].view_as(each) for each in (mask, image)]
    torch.testing.assert_close(chan_vese(*shuffled, area_weight=NU), energy)
    torch.testing.assert_close(chan_vese(mask, image + 5, area_weight=NU), energy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(chan_vese(mask, 3 * image), 9 * chan_vese(mask, image), rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_the_whole_energy(mask, image):
    way = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = mask.clone().requires_grad_()
    chan_vese(moved, image, area_weight=NU, length_weight=0.2).backward()
    step = 1e-5
    above, below = (chan_vese(mask + sign * step * way, image, area_weight=NU, length_weight=0.2) for sign in (1, -1))
    torch.testing.assert_close((moved.grad * way).sum(), (above - below) / (2 * step), rtol=1e-5, atol=1e-7)


def test_free_masks_end_at_the_threshold(generator):
    image = torch.rand(1, 1, 12, 13, generator=generator)
    logits = (4 * (image - 0.4)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(600):
        optimizer.zero_grad()
        chan_vese(torch.sigmoid(logits), image, area_weight=NU).backward()
        optimizer.step()
    inside, outside = means_of(sums_of(torch.sigmoid(logits.detach()), image))
    threshold = (inside + outside) / 2 + NU / (2 * (inside - outside))
    clear = (image - threshold).abs() > 0.02
    assert torch.equal((logits > 0)[clear], (image > threshold)[clear])
    assert (image > threshold).any()


def test_masked_pixels_change_nothing(mask, image):
    valid = torch.ones(2, 9, 11, dtype=torch.bool)
    valid[:, :, 6:] = False
    settings = {"area_weight": NU, "length_weight": 0.2}
    spoilt = image.masked_fill(~valid.unsqueeze(1), 99.0)
    found = [mask.clone().requires_grad_() for _ in range(2)]
    chan_vese(found[0], spoilt, valid=valid, **settings).backward()
    chan_vese(found[1][..., :6], image[..., :6], **settings).backward()
    torch.testing.assert_close(found[0].grad, found[1].grad)
    torch.testing.assert_close(length(mask, valid), length(mask[..., :6]))
    energy, means = released_energy(mask, spoilt, area_weight=NU, valid=valid)
    expected, others = released_energy(mask[..., :6], image[..., :6], area_weight=NU)
    torch.testing.assert_close(energy, expected)
    torch.testing.assert_close(means, others)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("valid", [True, False])
def test_empty_phases_constant_images_and_no_data(value, valid):
    image = torch.full((1, 2, 5, 6), 0.7)
    mask = torch.full((1, 1, 5, 6), value, requires_grad=True)
    known = torch.full((1, 5, 6), valid)
    energy = chan_vese(mask, image, area_weight=NU, length_weight=0.1, valid=known)
    energy.backward()
    assert torch.isfinite(mask.grad).all()
    # A constant image costs its area, and the little under the root of the length.
    assert float(energy.detach()) == pytest.approx(NU * value + 0.1 * 1e-4 if valid else 0, abs=1e-6)
    means = means_of(sums_of(mask.detach(), image))
    torch.testing.assert_close(torch.cat(means), torch.full((4,), 0.7))
    for other in (released_energy(mask, image, area_weight=NU, valid=known)[0], label_energy(mask, mask.detach())):
        assert torch.isfinite(other)


def test_the_length_of_a_straight_edge():
    mask = torch.zeros(1, 1, 10, 20, dtype=torch.float64)
    mask[..., 7:] = 1
    assert float(length(mask)) == pytest.approx(10, abs=0.03)
    assert float(label_energy(mask, mask)) == pytest.approx(8, abs=0.03)
    assert float(label_energy(mask, 1 - mask)) == pytest.approx(8 + 200, abs=0.03)
