"""A network in training on coarse labels, and on fine ones where there are any."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geoseg.errors import ConfigError, GeosegWarning
from geoseg.losses.coarse_labels import CoarseLabelLoss
from geoseg.training.coarse_config import CoarseSourceConfig
from geoseg.training.coarse_labels import open_table
from geoseg.training.coarse_tables import CoarseTable
from geoseg.training.config import TrainConfig
from geoseg.training.labels import IGNORE
from geoseg.training.module import TrainingModule
from geoseg.training.patches import Batch


class CoarseModule(TrainingModule):
    """A network with a loss for each source of coarse labels, beside the usual one for fine labels.

    Args: as of :class:`geoseg.training.module.TrainingModule`.
    """

    coarse: nn.ModuleList

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.coarse = nn.ModuleList()

    def learn_from(self, losses: Sequence[CoarseLabelLoss]) -> CoarseModule:
        """Take the losses of the sources, in the order of the configuration, and return the module."""
        self.coarse.extend(losses)
        return self

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        outputs = self.network(batch["pixels"])
        scores = outputs if isinstance(outputs, torch.Tensor) else outputs["scores"]
        told = self._config.coarse
        total = told.fine_weight * self.loss(outputs, batch["labels"], batch["pixels"])
        if "taught" in batch:
            taught = batch["taught"].long().where(batch["labels"] == IGNORE, IGNORE)
            return total + self.loss(outputs, taught, batch["pixels"])
        for number, (loss, source) in enumerate(zip(self.coarse, told.sources, strict=True)):
            assert isinstance(loss, CoarseLabelLoss)
            loss.progress = self.global_step / self._loop.steps
            if f"blocks_{number}" in batch:
                found = loss(scores, batch[f"blocks_{number}"], batch[f"block_classes_{number}"])
                total = total + source.weight * found
        return total


def loss_of(table: CoarseTable, source: CoarseSourceConfig) -> CoarseLabelLoss:
    """Return the loss of a source.

    Raises:
        ConfigError: a number that makes no sense.
    """
    means, deviations, weights = (torch.from_numpy(each) for each in (table.means, table.deviations, table.weights))
    return CoarseLabelLoss(
        means,
        deviations,
        weights,
        form=source.form,
        grouping=source.grouping,
        least_deviation=source.least_deviation,
        eps=source.eps,
        max_block_grad=source.max_block_grad,
        outliers=source.outliers,
    )


def opened_tables(config: TrainConfig) -> list[CoarseTable]:
    """Return the tables of all sources.

    Raises:
        LabelsError: one that cannot be used.
        ConfigError: settings that do not go with coarse labels.
    """
    coarse = config.coarse
    if not coarse.fine_weight and coarse.teacher is None and "loss" in config.model_fields_set:
        raise ConfigError(f"loss is {config.loss!r}, but coarse.fine_weight is 0: raise that, or leave loss out.")
    return [open_table(source, config) for source in coarse.sources]


def told_of(tables: Sequence[CoarseTable], pixels: NDArray[np.float64]) -> list[str]:
    """Return in words what the coarse classes that occur can teach; warn where they cannot tell classes apart.

    Args:
        tables: of the sources.
        pixels: how many the first source has of each of its coarse classes; of others all classes count.
    """
    told = []
    for number, table in enumerate(tables):
        rows = [z for z in range(len(table.codes)) if table.weights[z] > 0 and (number > 0 or pixels[z] > 0)]
        if rows:
            told.append(table.warn_if_blind(rows))
    if not pixels[: len(tables[0].codes)].any():
        warnings.warn(
            f"nothing that is trained on has a coarse class of {tables[0].path} with a weight.",
            GeosegWarning,
            stacklevel=2,
        )
    return told
