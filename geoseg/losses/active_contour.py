"""Active contours without edges as losses of a soft mask: two regions of constant brightness, and the contour's length.

Sources: T. Chan, L. Vese, *Active Contours Without Edges*, IEEE TIP 10(2), 2001, eq. 9; T. Chan, B. Sandberg, L. Vese,
*Active Contours without Edges for Vector-Valued Images*, 2000; J. Chen, E. Frey, *Medical Image Segmentation via
Unsupervised Convolutional Neural Network*, MIDL 2020 (arXiv 2001.10155); X. Chen et al., *Learning Active Contour
Models for Medical Image Segmentation*, CVPR 2019.  They have no name in ``geoseg losses``: the energies need no labels,
and :func:`label_energy` is of one binary mask, costs something where it is right (the length of its contour), and
changes when the image is mirrored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

EPS = 1e-6
_ROOT_EPS = 1e-8


class Sums(NamedTuple):
    """What the two means follow from: areas (scalars) and sums of the image (C,), inside and outside."""

    inside: torch.Tensor
    image_inside: torch.Tensor
    outside: torch.Tensor
    image_outside: torch.Tensor

    def blended(self, other: Sums, share: float) -> Sums:
        """Return these sums with a ``share`` of ``other`` in them."""
        return Sums(*(mine.lerp(theirs, share) for mine, theirs in zip(self, other, strict=True)))


class Means(NamedTuple):
    """Mean of the image (C,) inside and outside the contour."""

    inside: torch.Tensor
    outside: torch.Tensor


def sums_of(mask: torch.Tensor, image: torch.Tensor, valid: torch.Tensor | None = None) -> Sums:
    """Return areas and sums over a batch.

    Args:
        mask: (N, 1, H, W), 0 to 1.
        image: (N, C, H, W).
        valid: (N, H, W) bool, the pixels that count; None means all.
    """
    inside, outside = mask, 1 - mask
    if valid is not None:
        inside, outside = inside * valid.unsqueeze(1), outside * valid.unsqueeze(1)
    return Sums(inside.sum(), (inside * image).sum((0, 2, 3)), outside.sum(), (outside * image).sum((0, 2, 3)))


def means_of(sums: Sums) -> Means:
    """Return the means of the two phases; an empty phase has the mean of the other (its energy is 0 anyway)."""
    inside = sums.image_inside / (sums.inside + EPS)
    outside = sums.image_outside / (sums.outside + EPS)
    return Means(torch.where(sums.inside > EPS, inside, outside), torch.where(sums.outside > EPS, outside, inside))


def data_term(image: torch.Tensor, means: Means) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared distances (N, 1, H, W) of an image to the mean inside and to that outside, averaged over bands."""

    def distance(mean: torch.Tensor) -> torch.Tensor:
        return (image - mean.view(1, -1, 1, 1)).square().mean(1, keepdim=True)

    return distance(means.inside), distance(means.outside)


def chan_vese(
    mask: torch.Tensor,
    image: torch.Tensor,
    *,
    area_weight: float = 0.0,
    length_weight: float = 0.0,
    valid: torch.Tensor | None = None,
    means: Means | None = None,
) -> torch.Tensor:
    """Return the energy of a soft mask, per pixel that counts; 0 where none does.

    Both means are stationary points of the energy, so no gradient flows through them: it is that of the full energy
    all the same.

    Args:
        mask: (N, 1, H, W), 0 to 1.
        image: (N, C, H, W).
        area_weight: of the mask's area (Chan and Vese's nu), in units of squared brightness.
        length_weight: of the contour's length (Chan and Vese's mu).
        valid: (N, H, W) bool, the pixels that count; None means all.
        means: of the two phases; by default those of this batch, shared by all its images.
    """
    if means is None:
        means = means_of(sums_of(mask.detach(), image, valid))
    inside, outside = data_term(image, means)
    energy = mask * inside + (1 - mask) * outside + area_weight * mask
    total = (energy if valid is None else energy * valid.unsqueeze(1)).sum()
    if length_weight:
        total = total + length_weight * length(mask, valid)
    return total / (mask.numel() if valid is None else valid.sum().clamp(min=1))


def length(mask: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Return the total variation of a mask (N, 1, H, W): the length of its contours in pixels, summed over the batch.

    Differences lead to the pixel to the right and below, there are none at the last column and row, and none with a
    pixel that is not ``valid`` (N, H, W).
    """
    across, down = torch.zeros_like(mask), torch.zeros_like(mask)
    across[..., :, :-1] = mask[..., :, 1:] - mask[..., :, :-1]
    down[..., :-1, :] = mask[..., 1:, :] - mask[..., :-1, :]
    if valid is None:
        return (across.square() + down.square() + _ROOT_EPS).sqrt().sum()
    there = valid.unsqueeze(1).to(mask.dtype)
    across[..., :, :-1] *= there[..., :, 1:] * there[..., :, :-1]
    down[..., :-1, :] *= there[..., 1:, :] * there[..., :-1, :]
    return ((across.square() + down.square() + _ROOT_EPS).sqrt() * there).sum()


def released_energy(
    output: torch.Tensor, image: torch.Tensor, *, area_weight: float, valid: torch.Tensor | None = None
) -> tuple[torch.Tensor, Means]:
    """Return the energy as the authors' code has it, a sum over the batch, and the two values it takes for means.

    The mask is the output clipped to 0 … 1, and sums are divided by the number of pixels that are not 0, so that these
    are no means of a soft mask; gradients flow through them.  It serves to repeat the authors' results alone.

    Args:
        output: (N, 1, H, W), any range.
        image: (N, C, H, W).
        area_weight: of the mask's area.
        valid: (N, H, W) bool, the pixels that count; None means all.
    """
    inside = output.clamp(0, 1)
    outside = 1 - inside
    if valid is not None:
        inside, outside = inside * valid.unsqueeze(1), outside * valid.unsqueeze(1)
    means = Means(*((part * image).sum((0, 2, 3)) / (part != 0).sum().clamp(min=1) for part in (inside, outside)))
    to_inside, to_outside = data_term(image, means)
    return (inside * to_inside + outside * to_outside + area_weight * inside).sum().abs(), means


def label_energy(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the energy of an output (N, 1, H, W) against binary labels of that shape, as the authors' code has it.

    Length and region are sums; the two differences of the length are taken at neighbouring pixels, not at one, as in
    the code of X. Chen et al.
    """
    mask = output.clamp(0, 1)
    down = mask[..., 2:, :-2] - mask[..., 1:-1, :-2]
    across = mask[..., :-2, 2:] - mask[..., :-2, 1:-1]
    contour = ((down.square() + across.square()).abs() + _ROOT_EPS).sqrt().sum()
    region = (mask * (label - 1).square()).sum().abs() + ((1 - mask) * label.square()).sum().abs()
    return contour + region
