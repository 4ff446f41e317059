"""Radiometric augmentation on batches."""

from __future__ import annotations

import pytest
import torch

from geoseg.training.augment import vary
from geoseg.training.variation_config import AugmentConfig

NONE = {"brightness": 0, "contrast": 0, "gamma": 0, "mixing": 0, "noise": 0, "blur": 0, "sharpen": 0, "share": 1}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randn(6, 4, 17, 23, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(6, 17, 23, dtype=torch.bool)
    valid[2, :, 11:] = False
    valid[4] = False
    return pixels.masked_fill(~valid.unsqueeze(1), 0.0), valid


def test_amounts_of_0_change_nothing() -> None:
    pixels, valid = batch()
    assert torch.equal(vary(pixels, valid, AugmentConfig(**NONE), 0), pixels)


@pytest.mark.parametrize(
    ("name", "amount"),
    [
        ("brightness", 0.5),
        ("contrast", 0.5),
        ("gamma", 0.5),
        ("mixing", 0.5),
        ("noise", 0.5),
        ("blur", 1.5),
        ("sharpen", 1),
    ],
)
def test_each_varies_valid_pixels_alone_and_repeats_itself(name: str, amount: float) -> None:
    pixels, valid = batch()
    augment = AugmentConfig(**{**NONE, name: amount})
    varied = vary(pixels, valid, augment, 3)
    assert torch.equal(varied, vary(pixels, valid, augment, 3))
    assert not torch.equal(varied, vary(pixels, valid, augment, 4))
    assert torch.isfinite(varied).all()
    assert (varied[~valid.unsqueeze(1).expand_as(varied)] == 0).all()
    changed = (varied != pixels).flatten(1).any(1)
    assert changed.tolist() == [True, True, True, True, False, True]


def test_sharpening_spreads_what_blurring_presses() -> None:
    pixels = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(8, 32, 32, dtype=torch.bool)
    sharper = vary(pixels, valid, AugmentConfig(**{**NONE, "sharpen": 1}), 5)
    softer = vary(pixels, valid, AugmentConfig(**{**NONE, "blur": 1.5}), 5)
    assert (sharper.std((1, 2, 3)) > pixels.std((1, 2, 3))).all()
    assert (softer.std((1, 2, 3)) < pixels.std((1, 2, 3))).all()
    assert torch.allclose(sharper.mean((1, 2, 3)), pixels.mean((1, 2, 3)), atol=0.05)


def test_one_amount_does_not_change_what_another_draws() -> None:
    pixels, valid = batch()
    alone = vary(pixels, valid, AugmentConfig(**{**NONE, "brightness": 0.3}), 9) - pixels
    mixed = vary(pixels, valid, AugmentConfig(**{**NONE, "brightness": 0.3, "contrast": 1e-9}), 9) - pixels
    assert torch.allclose(alone, mixed, atol=1e-5)


def test_a_share_of_patches_is_varied() -> None:
    pixels = torch.randn(400, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    augment = AugmentConfig(**{**NONE, "brightness": 0.5, "share": 0.3})
    varied = vary(pixels, torch.ones(400, 4, 4, dtype=torch.bool), augment, 0)
    assert 80 < (varied != pixels).flatten(1).any(1).sum() < 160


def test_a_constant_patch_stays_finite() -> None:
    pixels, valid = torch.full((2, 3, 8, 8), 2.0), torch.ones(2, 8, 8, dtype=torch.bool)
    everything = AugmentConfig(brightness=1, contrast=0.9, gamma=2, mixing=1, noise=0, blur=3, sharpen=2, share=1)
    varied = vary(pixels, valid, everything, 0)
    assert torch.isfinite(varied).all()
    # Light and colour change; what is flat stays flat.
    assert varied.std((2, 3)).max() < 1e-5
