"""How patches are drawn, varied, mixed and spoilt in training: the sections of a configuration that say so."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """A part of a configuration; what it does not know is refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class SamplingConfig(Section):
    """Where patches are drawn.

    Attributes:
        balance: share of patches whose centre is drawn from a class first, all classes alike, and then from its
            pixels; the others are drawn from all labelled pixels alike.
        min_valid: least share of a patch that must hold data; another place is tried until it does.
    """

    balance: float = Field(default=0.5, ge=0, le=1)
    min_valid: float = Field(default=0.25, ge=0, le=1)


class AugmentConfig(Section):
    """How patches are varied.  Amounts are the largest that are drawn; 0 switches a thing off.

    Attributes:
        scale: least and most ground metres per pixel, as multiples of the resolution; pixels are read anew.
        flips: flips and quarter turns.
        rotation: degrees to either side.
        brightness: in standard deviations of a band.
        contrast: factor ``1 ± contrast`` about the patch's mean.
        gamma: exponent from ``1 / (1 + gamma)`` to ``1 + gamma``.
        mixing: share of other bands that is mixed into a band.
        noise: deviation of the noise, in standard deviations of a band.
        blur: deviation of a Gaussian blur in pixels.
        sharpen: how much of the difference to a Gaussian blur of one pixel is added.
        share: of the patches to which each of the last seven is done.
    """

    scale: tuple[float, float] = (0.8, 1.25)
    flips: bool = True
    rotation: float = Field(default=10.0, ge=0, le=45)
    brightness: float = Field(default=0.2, ge=0)
    contrast: float = Field(default=0.2, ge=0, lt=1)
    gamma: float = Field(default=0.2, ge=0)
    mixing: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.05, ge=0)
    blur: float = Field(default=0.0, ge=0, le=8)
    sharpen: float = Field(default=0.0, ge=0)
    share: float = Field(default=0.5, ge=0, le=1)

    @field_validator("scale")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("give two positive factors, the smaller first, such as [0.8, 1.25]")
        return value


class DamageConfig(Section):
    """How masks are spoilt for a network that learns to refine them (:mod:`geoseg.training.damage`).

    Attributes:
        iou: least and most agreement, drawn evenly, below which a mask is spoilt no further.
        cut: share of an outline that is straightened in one place.
        keep: share of an outline's other vertices that are kept; with 1 all are.
        jitter: deviation by which these move towards or away from the outline's middle, as a share of the distance.
        rounds: at most so many rounds of growing and shrinking; 0 for none.
    """

    iou: tuple[float, float] = (0.8, 1.0)
    cut: float = Field(default=0.1, ge=0, lt=1)
    keep: float = Field(default=0.1, gt=0, le=1)
    jitter: float = Field(default=0.0, ge=0)
    rounds: int = Field(default=250, ge=0)

    @field_validator("iou")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError("give two shares from 0 to 1, the smaller first, such as [0.8, 1]")
        return value


class StagesConfig(Section):
    """The losses of GLNet's stages (:class:`geoseg.losses.global_local.GlobalLocalLoss`).

    Attributes:
        gamma: of the focal loss.
        coupling: weight of the mean squared difference of the branches' maps in the second stage.
    """

    gamma: float = Field(default=3.0, ge=0)
    coupling: float = Field(default=0.15, ge=0)


class SaliencyConfig(Section):
    """How a pair of networks after RSTN learns (:mod:`geoseg.training.saliency`).

    Attributes:
        shares: of the steps that are separate, individual and joint, as multiples of each other; 0 leaves a
            stage out, which is for pairs that have been trained before.
        margin_chance: probability that the margins round a target are drawn, each from 0 to twice the usual.
        coarse_weight: the coarse network's share of the loss.
        empty: share of the patches without a target in the joint steps.
    """

    shares: tuple[float, float, float] = (2.0, 6.0, 8.0)
    margin_chance: float = Field(default=0.5, ge=0, le=1)
    coarse_weight: float = Field(default=1 / 3, ge=0, le=1)
    empty: float = Field(default=0.25, ge=0, lt=1)

    @field_validator("shares")
    @classmethod
    def _some(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or sum(value) <= 0:
            raise ValueError("give three numbers of 0 or more, not all 0, such as [2, 6, 8]")
        return value


class MixConfig(Section):
    """Whether batches are blended with themselves (:class:`geoseg.training.mixing.Mixing`).

    Attributes:
        alpha: of the distribution of shares; 0 for no mixing, 0.4 is usual.
        probability: part of the batches that are mixed.
        pairing: ``random`` (mixup), or ``foreground`` (mixmatch).
        per_sample: draw a share for each patch, not for the batch.
    """

    alpha: float = Field(default=0.0, ge=0)
    probability: float = Field(default=1.0, ge=0, le=1)
    pairing: Literal["random", "foreground"] = "random"
    per_sample: bool = False
