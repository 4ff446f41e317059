"""A network that refines, in training: rough masks go in beside the pixels, and both are judged by the truth."""

from __future__ import annotations

import math
from typing import Any

import torch

from geoseg.boundary_accuracy import mean_boundary_accuracy
from geoseg.classes import Classes
from geoseg.training.module import TrainingModule, confusion_of, figures_of
from geoseg.training.patches import Batch

_MASK = Classes.parse("background,mask")


class RefinerModule(TrainingModule):
    """A refinement module with its loss and optimiser.

    Figures are of the masks against the rest, whatever their classes; with them come those of the rough masks, and the
    accuracy near boundaries (mBA) of both, a mean over the patches that have boundaries.

    Args: as of :class:`geoseg.training.module.TrainingModule`.
    """

    rough: torch.Tensor
    near: torch.Tensor

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.classes = _MASK
        self.confusion = torch.zeros(2, 2, dtype=torch.int64)
        self.register_buffer("rough", torch.zeros(2, 2, dtype=torch.int64), False)
        # Sums over patches of the accuracy of the refined and of the rough mask, and how many there were.
        self.register_buffer("near", torch.zeros(3, dtype=torch.float64), False)

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        maps = self.network(batch["pixels"], signed(batch["prior"], batch["pixels"]))
        value: torch.Tensor = self.loss(maps, batch["labels"])
        return value

    def on_validation_epoch_start(self) -> None:
        """Begin empty counts."""
        super().on_validation_epoch_start()
        self.rough.zero_()
        self.near.zero_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count pixels of refined and of rough masks."""
        maps = self.judged(batch["pixels"], signed(batch["prior"], batch["pixels"]))
        masks = [(maps["out_224"][:, 0] > 0).long(), batch["prior"].long()]
        for count, given in zip((self.confusion, self.rough), masks, strict=True):
            count += confusion_of(given, batch["labels"], 2)
        truths, *both = (each.byte().cpu().numpy() for each in (batch["labels"], *masks))
        for truth, *pair in zip(truths, *both, strict=True):
            found = [mean_boundary_accuracy(truth, given) for given in pair]
            if not math.isnan(found[0]):
                self.near += torch.tensor([*found, 1.0], dtype=torch.float64, device=self.near.device)

    def _counted(self) -> dict[str, Any]:
        rough, near = (self.trainer.strategy.reduce(each, reduce_op="sum") for each in (self.rough, self.near))
        refined_mba, rough_mba, count = near.tolist()
        before = figures_of(rough, self.classes)
        if count:
            before["mba"] = rough_mba / count
        return {**super()._counted(), **({"mba": refined_mba / count} if count else {}), "rough": before}


def signed(masks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return masks (N, H, W) as the network takes them, (N, 1, H, W): 1 inside and −1 outside."""
    return masks.to(like.dtype).mul(2).sub(1).unsqueeze(1)
