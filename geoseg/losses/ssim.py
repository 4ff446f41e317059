"""Structural similarity of windows in its two parts, and the distances and losses made of them.

Source: Brunet, Vrscay, Wang 2012, IEEE Transactions on Image Processing 21(4) 1488-1499; Wang et al. 2004, IEEE TIP.

S1 compares the means of two windows, S2 their contrast and structure, and SSIM = S1 · S2.  The complements 1 − S1 and
1 − S2 are computed, not the parts: they lose no digits and are never negative.  √(1 − S1) and √(1 − S2) are metrics,
and so are D1 = √(1 − S1) + √(1 − S2) and D2 = √(2 − S1 − S2); 1 − SSIM is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from geoseg.errors import ConfigError, unknown_name
from geoseg.losses.loss import Loss, Target, mean_over
from geoseg.losses.windows import gaussian, window_means

Window = Literal["gaussian", "uniform"]
Ignored = Literal["renormalised", "strict"]
Part = Literal["s1", "s2", "ssim", "d1", "d2"]
_K1, _K2 = 0.01, 0.03
_ROUNDING = 1e-6  # added under the roots of the loss d1, whose slope would have no bound at equal windows


@dataclass(frozen=True)
class SsimMaps:
    """Structural similarity of every window of two images, upper left window first.

    Attributes:
        level: 1 − S1, (N, C, H − k + 1, W − k + 1).
        structure: 1 − S2, of the same shape.
        counted: (N, 1, H − k + 1, W − k + 1) bool, the windows with enough valid pixels.
    """

    level: torch.Tensor
    structure: torch.Tensor
    counted: torch.Tensor

    @property
    def s1(self) -> torch.Tensor:
        """S1, from 0 to 1 for means of one sign."""
        return 1 - self.level

    @property
    def s2(self) -> torch.Tensor:
        """S2, above −1 and at most 1."""
        return 1 - self.structure

    @property
    def ssim(self) -> torch.Tensor:
        """SSIM = S1 · S2."""
        return self.s1 * self.s2

    @property
    def d1(self) -> torch.Tensor:
        """The distance √(1 − S1) + √(1 − S2).  It has no gradient at equal windows."""
        return self.level.sqrt() + self.structure.sqrt()

    @property
    def d2(self) -> torch.Tensor:
        """The distance √(2 − S1 − S2).  It has no gradient at equal windows; its square has."""
        return self.d2_squared.sqrt()

    @property
    def d2_squared(self) -> torch.Tensor:
        """2 − S1 − S2."""
        return self.level + self.structure

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of a map of this shape over the windows that count; 0 where none does."""
        return mean_over(values, self.counted.expand_as(values))

    @property
    def image_d2(self) -> torch.Tensor:
        """The distance of the images, √ of the mean of 2 − S1 − S2 over the windows that count."""
        return self.mean(self.d2_squared).sqrt()


def ssim_maps(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    data_range: float,
    window: Window = "gaussian",
    size: int = 11,
    sigma: float = 1.5,
    sample_covariance: bool = False,
    valid: torch.Tensor | None = None,
    ignored: Ignored = "strict",
) -> SsimMaps:
    """Return the structural similarity of all windows of ``x`` and ``y`` (N, C, H, W) that lie fully inside.

    Args:
        x: one image, float; in float64 for levels of many digits.
        y: the other, of the same shape.
        data_range: L, what lies between the least and the largest possible value.  Fix it for a scene, not for a tile.
        window: Gaussian weights, or equal ones.
        size: k, side of the windows in pixels.
        sigma: of Gaussian weights, in pixels.
        sample_covariance: divide variances by 1 − Σw² (which is N − 1 in place of N for equal weights).
        valid: (N, 1, H, W) bool, pixels that count; all where None.
        ignored: what becomes of windows with pixels that do not count: ``"strict"`` drops them, ``"renormalised"``
            takes the rest where it has half of the weight at least.

    Raises:
        ConfigError: a value outside its range, or a window larger than the image.
    """
    _check(window, size, sigma, ignored)
    if not 0 < data_range < inf:
        raise ConfigError(f"the data range of ssim is {data_range}: give what lies between least and largest value.")
    if x.shape != y.shape or min(x.shape[-2:]) < size:
        raise ConfigError(
            f"images of {tuple(x.shape)} and {tuple(y.shape)} cannot be compared in windows of {size} pixels: "
            f"give two of one shape, {size} pixels or more on each side."
        )
    weights = gaussian(size, sigma if window == "gaussian" else inf, x)
    mass = None if valid is None else window_means(valid.to(x.dtype), weights)
    spread: torch.Tensor | float = 1.0
    if sample_covariance:
        used = (weights**2).sum() ** 2
        if valid is not None and mass is not None:
            used = window_means(valid.to(x.dtype), weights**2) / (mass**2).where(mass > 0, 1)
        spread = 1 / (1 - used).clamp(min=torch.finfo(x.dtype).eps)
    level, structure = _complements(x, y, weights, valid, mass, spread, data_range)
    if valid is None or mass is None:
        counted = torch.ones_like(level[:, :1], dtype=torch.bool)
    elif ignored == "strict":
        counted = F.max_pool2d((~valid).float(), size, stride=1) == 0
    else:
        counted = mass >= 0.5 - 1e-6
    return SsimMaps(level, structure, counted)


class SsimLoss(Loss):
    """Structural similarity of the probabilities (softmax) with the labels' maps, as a loss.

    The mean over images, classes and windows of 1 − S1 (``"s1"``), 1 − S2 (``"s2"``), 1 − S1 · S2 (``"ssim"``),
    2 − S1 − S2 (``"d2"``) or the distance D1 (``"d1"``, rounded off where windows are equal).

    Args:
        part: which of them.
        window: Gaussian weights, or equal ones.
        size: side of the windows in pixels.
        sigma: of Gaussian weights, in pixels.
        sample_covariance: see :func:`ssim_maps`.
        ignored: see :func:`ssim_maps`.
        present_only: average over the classes that an image's labels or predictions have; else over all, of which those
            absent add next to nothing.

    Raises:
        ConfigError: a value outside its range.
    """

    takes_soft = True

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        *,
        part: Part = "d2",
        window: Window = "gaussian",
        size: int = 11,
        sigma: float = 1.5,
        sample_covariance: bool = False,
        ignored: Ignored = "renormalised",
        present_only: bool = False,
    ) -> None:
        super().__init__(num_classes, ignore_index)
        if part not in get_args(Part):
            raise ConfigError(unknown_name("part of ssim", str(part), get_args(Part)))
        _check(window, size, sigma, ignored)
        self.part = part
        self.window = window
        self.size = size
        self.sigma = sigma
        self.sample_covariance = sample_covariance
        self.ignored = ignored
        self.present_only = present_only

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return the mean over the windows that count."""
        shares, chances = target.shares(scores.dtype), torch.softmax(scores, dim=1)
        found = ssim_maps(
            chances,
            shares,
            data_range=1.0,
            window=self.window,
            size=self.size,
            sigma=self.sigma,
            sample_covariance=self.sample_covariance,
            valid=None if bool(target.valid.all()) else target.valid.unsqueeze(1),
            ignored=self.ignored,
        )
        values = self._losses(found)
        weights = found.counted.to(values).expand_as(values)
        if self.present_only:
            predicted = torch.zeros_like(shares).scatter_(1, chances.argmax(1, keepdim=True), 1)
            present = (torch.maximum(predicted * target.valid.unsqueeze(1), shares)).amax((2, 3), keepdim=True) > 0
            weights = weights * present
        return mean_over(values, weights)

    def _losses(self, found: SsimMaps) -> torch.Tensor:
        """Return the loss of every window."""
        if self.part == "s1":
            return found.level
        if self.part == "s2":
            return found.structure
        if self.part == "ssim":
            return found.level + found.structure - found.level * found.structure
        if self.part == "d2":
            return found.d2_squared
        roots = (found.level + _ROUNDING).sqrt() + (found.structure + _ROUNDING).sqrt()
        return roots - 2 * _ROUNDING**0.5


def _complements(
    x: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor,
    valid: torch.Tensor | None,
    mass: torch.Tensor | None,
    spread: torch.Tensor | float,
    data_range: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 1 − S1 and 1 − S2.

    All comes from four means, of the difference u and the sum s of the images and of their squares: var x + var y is
    (var u + var s) / 2, and so with the squares of the means.  Variances are taken about one value for each plane:
    E[x²] − E[x]² would lose all digits of a small spread on a large level.  A variance does not depend on that value,
    so no gradient flows through it.
    """
    e1, e2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    if valid is None:
        centre_x, centre_y = (each.detach().mean((-2, -1), keepdim=True) for each in (x, y))
    else:
        known = valid.sum((-2, -1), keepdim=True).clamp(min=1)
        x, y = x.where(valid, 0), y.where(valid, 0)
        centre_x, centre_y = (each.detach().sum((-2, -1), keepdim=True) / known for each in (x, y))
    # Levels go first: the sum of two large numbers is rounded before they are.
    x, y = x - centre_x, y - centre_y
    both = torch.stack([x - y, x + y])
    centre = torch.stack([centre_x - centre_y, centre_x + centre_y])
    if valid is not None:
        both = both.where(valid, 0)
    means = window_means(torch.cat([both, both * both]).flatten(0, 1), weights).unflatten(0, (4, len(x)))
    if mass is not None:
        means = means / mass.where(mass > 0, 1)
    variances = (means[2:] - means[:2] ** 2).clamp(min=0)
    levels = (means[:2] + centre) ** 2
    structure = spread * variances[0] / (spread * (variances[0] + variances[1]) / 2 + e2)
    level = levels[0] / ((levels[0] + levels[1]) / 2 + e1)
    return level, structure


def _check(window: str, size: int, sigma: float, ignored: str) -> None:
    """Refuse options of windows.

    Raises:
        ConfigError: a value outside its range.
    """
    for kind, given, known in (("window", window, Window), ("rule for ignored pixels", ignored, Ignored)):
        if given not in get_args(known):
            raise ConfigError(unknown_name(f"{kind} of ssim", str(given), get_args(known)))
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        raise ConfigError(f"the window of ssim has {size!r} pixels: give a whole number of 2 or more.")
    if not 0 < sigma < inf:
        raise ConfigError(f"sigma of ssim is {sigma}: give a number of pixels above 0.")
