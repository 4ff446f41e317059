"""Adaptation in a configuration: scenes without labels, and how a trained network is moved to them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from geoseg.training.variation_config import AugmentConfig, Section

Method = Literal["self-training", "outputs", "features", "batch-norm", "scaling"]
# Those in which a discriminator tells regions apart.
ADVERSARIAL = ("outputs", "features")
# Those in which no weight learns.
STATISTICS = ("batch-norm", "scaling")


class TargetConfig(Section):
    """One scene of the region to move to.

    Attributes:
        image: the raster.
        labels: read to report scores and for nothing else: neither trained on nor chosen by.
    """

    image: str
    labels: str | None = None


class AdaptationConfig(Section):
    """How a network is moved to scenes without labels.

    Attributes:
        targets: the scenes.
        method: ``self-training`` learns from what the running average of the network is sure of there;
            ``outputs`` and ``features`` make maps that a discriminator cannot tell from those of the sources, the
            latter also at the network's auxiliary heads; ``batch-norm`` measures the statistics of its batch norms
            anew; ``scaling`` does nothing but scale the bands as ``data.scaling`` says.
        warm_up: so many steps learn from the sources alone.
        most_lost: weights with which the mean IoU on the sources' validation has fallen by more are not kept.
        confidence: of self-training: least probability of a class for a pixel to count.
        target_weight: of self-training: of the loss on the targets.
        cut: of self-training: share of the batches whose patches get a rectangle of another.
        strong: of self-training: how patches of targets, and of sources once more, are varied for the network; its
            average sees those of the targets as they are.
        adv_weight: of the adversarial loss on the scores.
        adv_aux_weight: of ``features``: of that on the auxiliary maps.
        aux_weight: of ``features``: of the auxiliary maps' own loss; the code released with the method takes 1.
        lr_discriminator: learning rate of the discriminators.
        target_bn: whether patches of a target pass the network with the statistics of the sources, as published, or
            with their own, which then also count in the running ones; for ``outputs`` and ``features``.
    """

    targets: list[TargetConfig] = Field(default_factory=list)
    method: Method = "self-training"
    warm_up: int = Field(default=0, ge=0)
    most_lost: float = Field(default=0.05, ge=0, le=1)
    confidence: float = Field(default=0.9, ge=0, lt=1)
    target_weight: float = Field(default=1.0, ge=0)
    cut: float = Field(default=0.5, ge=0, le=1)
    strong: AugmentConfig = AugmentConfig(
        brightness=0.5, contrast=0.4, gamma=0.5, mixing=0.5, noise=0.1, blur=1.5, share=0.6
    )
    adv_weight: float = Field(default=1e-3, ge=0)
    adv_aux_weight: float = Field(default=2e-4, ge=0)
    aux_weight: float = Field(default=0.1, ge=0)
    lr_discriminator: float = Field(default=4e-5, gt=0)
    target_bn: Literal["source_stats", "batch_stats"] = "source_stats"

    def check_with(self, *, start: str | None, labels: str, devices: int, average: float) -> None:
        """Refuse what does not go with the other settings of a run.

        Args:
            start: the model to go on from.
            labels: ``targets`` of the run.
            devices: to train on.
            average: decay of the running average.

        Raises:
            ValueError: they do not go together.
        """
        if not self.targets:
            if self.model_fields_set:
                raise ValueError("adaptation.targets is missing: name the scenes to move to, or leave adaptation out")
            return
        if start is None:
            raise ValueError("network.start is missing: adaptation starts from a trained model")
        if labels != "fine":
            raise ValueError(f"targets is {labels}, but adaptation learns from fine labels of the sources alone")
        if devices > 1:
            raise ValueError(f"training.devices is {devices}, but adaptation runs on one device: set 1")
        if self.method == "self-training" and not average:
            raise ValueError("training.average is 0, but self-training learns from the running average: set 0.99")
        if self.method in STATISTICS and average:
            raise ValueError(f"training.average is {average}, but {self.method} trains no weights: set 0")
