"""Fitting of the active contour CNN to a sample of scenes: the energy of two regions, one pair of means for all.

Source: J. Chen, E. Frey, *Medical Image Segmentation via Unsupervised Convolutional Neural Network*, MIDL 2020 (arXiv
2001.10155).  Means of single tiles would give "inside" another brightness in every tile, so they are followed over
batches that mix tiles from all over the scene.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from geoseg.errors import ConfigError
from geoseg.losses.active_contour import Means, Sums, chan_vese, means_of, released_energy, sums_of
from geoseg.networks.active_contour import ActiveContourNet
from geoseg.segmenters.fit_settings import FitSettings
from geoseg.segmenters.fitted import Progress
from geoseg.segmenters.scene_sample import Batch

logger = logging.getLogger(__name__)

_REMEMBERED = 0.9  # share of the old sums in the moving average


@dataclass(frozen=True, kw_only=True)
class ActiveContourSettings(FitSettings):
    """Hyper-parameters of the fit, beside those of :class:`geoseg.segmenters.fit_settings.FitSettings`.

    :meth:`authors` returns those of the released code, on tiles.

    Attributes:
        area_weight: of the area inside, in units of squared brightness.
        length_weight: of the contour's length; 0 leaves the speckle of a threshold.
        activation: ``sigmoid``, or ``clip`` to 0 … 1 as released (no gradient outside).
        means: ``mask`` weights pixels with the mask; ``count_nonzero`` repeats the released code.
        means_scope: ``ema``, a moving average over batches, or each ``batch`` alone.
        polarity: which phase is the second segment, the ``bright`` or the ``dark`` one.
        reference_band: the band, from 1, that tells bright from dark; None takes the mean of all.
        channels: features of the network.
        blocks: its recurrent blocks; each adds 4 pixels to the halo.
        tied: whether the three steps of a block share their weights.
    """

    iterations: int = 200
    learning_rate: float = 5e-3
    area_weight: float = 5e-4
    length_weight: float = 0.05
    activation: Literal["sigmoid", "clip"] = "sigmoid"
    means: Literal["mask", "count_nonzero"] = "mask"
    means_scope: Literal["ema", "batch"] = "ema"
    polarity: Literal["bright", "dark"] = "bright"
    reference_band: int | None = None
    channels: int = 16
    blocks: int = 3
    tied: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no fit can use.

        Raises:
            ConfigError: a count below 1, a rate or weight below 0 or not finite, or an unknown choice.
        """
        super().__post_init__()
        self._check_counts("channels", "blocks", *(["reference_band"] if self.reference_band is not None else []))
        self._check_weights("area_weight", "length_weight")
        self._check_choice("activation", "sigmoid", "clip")
        self._check_choice("means", "mask", "count_nonzero")
        self._check_choice("means_scope", "ema", "batch")
        self._check_choice("polarity", "bright", "dark")
        self._check_choice("tied", True, False)
        if self.target_segments not in (None, 2):
            raise ConfigError(
                f"an active contour makes 2 segments, not {self.target_segments}: leave the number out, or use "
                "feature-clustering."
            )
        if self.means == "count_nonzero" and (self.activation != "clip" or self.length_weight):
            raise ConfigError(
                "means='count_nonzero' repeats the released energy: it goes with activation='clip' and length_weight=0."
            )

    @classmethod
    def authors(cls, seed: int = 0) -> ActiveContourSettings:
        """Return the settings of the released code."""
        return cls(
            seed=seed,
            iterations=8050,
            learning_rate=5e-4,
            batch=20,
            fit_tile_size=192,
            fit_tiles=100,
            length_weight=0.0,
            activation="clip",
            means="count_nonzero",
            means_scope="batch",
        )

    @property
    def halo(self) -> int:
        """Pixels to each side that a score depends on."""
        return 4 * self.blocks


def probability(scores: torch.Tensor, settings: ActiveContourSettings) -> torch.Tensor:
    """Return the soft mask (N, 1, H, W) that scores of the network stand for."""
    return torch.sigmoid(scores) if settings.activation == "sigmoid" else scores.clamp(0, 1)


def train(
    network: ActiveContourNet,
    sample: Sequence[Batch],
    settings: ActiveContourSettings,
    progress: Progress | None = None,
) -> float:
    """Train ``network`` in place on ``sample``, cycling through its batches in their order; returns the last energy.

    ``progress`` is told the steps done and the most there can be.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    counted = [_counted(batch, settings.halo) for batch in sample]
    network.train()
    known: Sums | None = None
    energy = math.nan
    for step in range(settings.iterations):
        batch, inner = sample[step % len(sample)], counted[step % len(sample)]
        scores = network(batch.pixels, batch.valid)
        if settings.means == "count_nonzero":
            total, _ = released_energy(scores, batch.pixels, area_weight=settings.area_weight, valid=inner)
            loss = total / (scores.numel() if inner is None else inner.sum().clamp(min=1))
        else:
            mask = probability(scores, settings)
            sums = sums_of(mask.detach(), batch.pixels, inner)
            moving = settings.means_scope == "ema" and known is not None
            known = known.blended(sums, 1 - _REMEMBERED) if moving and known is not None else sums
            loss = chan_vese(
                mask,
                batch.pixels,
                area_weight=settings.area_weight,
                length_weight=settings.length_weight,
                valid=inner,
                means=means_of(known),
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        energy = float(loss.detach())
        if progress is not None:
            progress(step + 1, settings.iterations)
    logger.info("%d steps: energy %.6f", settings.iterations, energy)
    return energy


def _counted(batch: Batch, halo: int) -> torch.Tensor | None:
    """Return the pixels (N, H, W) whose energy counts: valid, and inside the border that sees the zeros beyond a tile.

    Of tiles that are all border everything counts.
    """
    height, width = batch.pixels.shape[-2:]
    if min(height, width) <= 4 * halo:
        return batch.valid
    inner = torch.zeros((len(batch.pixels), height, width), dtype=torch.bool)
    inner[:, halo:-halo, halo:-halo] = True
    return inner if batch.valid is None else inner & batch.valid


@torch.no_grad()
def final_means(network: ActiveContourNet, sample: Sequence[Batch], settings: ActiveContourSettings) -> Means:
    """Return the means of the two phases over the whole sample, by a network in evaluation mode."""
    parts = [
        sums_of(probability(network(batch.pixels), settings).double(), batch.pixels.double(), batch.valid)
        for batch in sample
    ]
    return means_of(Sums(*(torch.stack(part).sum(0) for part in zip(*parts, strict=True))))


def is_flipped(means: Means, settings: ActiveContourSettings) -> bool:
    """Whether the inside is not what ``settings.polarity`` asks for: nothing but the seed decides which phase it is.

    Raises:
        ConfigError: there is no such reference band.
    """
    band, bands = settings.reference_band, len(means.inside)
    if band is None:
        inside, outside = float(means.inside.mean()), float(means.outside.mean())
    elif band > bands:
        raise ConfigError(f"reference_band is {band}, and the scene has {bands} bands: give 1 to {bands}.")
    else:
        inside, outside = float(means.inside[band - 1]), float(means.outside[band - 1])
    return inside < outside if settings.polarity == "bright" else inside > outside
