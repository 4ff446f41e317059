"""A network in training: the step, the optimiser, and the pooled scores of a validation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from geoseg.classes import Classes
from geoseg.errors import RunError
from geoseg.losses.refinement import RefinementLoss
from geoseg.losses.supervision import Supervision
from geoseg.losses.weighted_sum import WeightedSum
from geoseg.metrics import Confusion
from geoseg.normalisation import Normalisation
from geoseg.segmenters.interface import scaled
from geoseg.training.augment import vary
from geoseg.training.config import LoopConfig, TrainConfig
from geoseg.training.labels import IGNORE
from geoseg.training.mixing import Mixing
from geoseg.training.patches import Batch


class TrainingModule(pl.LightningModule):
    """A network with its loss and optimiser.

    Args:
        network: from (N, C, H, W) to scores (N, K, H, W); in training mode possibly a dict with further outputs.
        encoder: the part of it with a learning rate of its own, None if there is none.
        loss: from outputs, labels (N, H, W), 255 where unknown, and pixels to a scalar.  Its own parameters, such as
            the adversary's of ``aaf``, are trained alike, without weight decay.
        scalings: of the bands: one of each site that is trained on, and of each that is judged on; or one for all.
        config: of the run.
        batches: makes the batches to train on, from a step on.
        where: says in words where the patches of these numbers lie.
    """

    network: nn.Module
    loss: Supervision | RefinementLoss
    confusion: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        encoder: nn.Module | None,
        loss: Supervision | RefinementLoss,
        scalings: tuple[Sequence[Normalisation], Sequence[Normalisation]],
        config: TrainConfig,
        batches: Callable[[int, int, int], Iterable[Batch]],
        where: Callable[[list[int]], str],
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.loss = loss
        self.average = copy.deepcopy(network).requires_grad_(False) if config.training.average else None
        self._encoder = [encoder]  # in a list, so that it is not registered twice
        self._scalings, self._config, self._loop = scalings, config, config.training
        self._batches, self._where = batches, where
        self._mixing = Mixing(**config.mixing.model_dump(), ignore_index=IGNORE)
        self.classes: Classes = config.data.table()
        self.register_buffer("confusion", torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64), False)
        self.figures: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.trained_loss = math.nan
        self.begins: Callable[[int], None] = lambda step: None

    @property
    def judged(self) -> nn.Module:
        """The network that is judged and kept: the running average where there is one."""
        return self.network if self.average is None else self.average

    @property
    def _frozen(self) -> bool:
        return self.global_step < self._config.network.freeze_steps

    def train_dataloader(self) -> Iterable[Batch]:
        """Return the batches from the present step on."""
        self.begins(self.global_step)
        return self._batches(self.global_step, self.global_rank, self.trainer.world_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale the bands, and vary the patches that are trained on."""
        known = self._scalings[0 if self.trainer.training else 1]
        chosen = known if len(known) == 1 else [known[site] for site in batch["sites"].tolist()]
        pixels = scaled(batch["pixels"], batch["valid"], chosen)
        if self.trainer.training:
            seed = hash_of(self._loop.seed, int(batch["numbers"][0]))
            pixels = vary(pixels, batch["valid"], self._config.augment, seed)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return {**batch, "pixels": pixels, "labels": batch["labels"].long()}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout and the like by the batch, so that a resumed run draws the same."""
        seed = hash_of(self._loop.seed + 1, int(batch["numbers"][0]))
        # torch.manual_seed would also put a note down for every kind of device that is never begun, at every step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        if self._frozen and self._encoder[0] is not None:
            self._encoder[0].eval()
        else:
            self.network.train()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch.

        Raises:
            RunError: it is not a finite number.
        """
        for part in self.loss.modules():
            if isinstance(part, WeightedSum):
                part.set_progress(self.global_step / self._loop.steps)
        loss = self._loss_of(batch)
        self.trained_loss = float(loss.detach())
        if not math.isfinite(self.trained_loss):
            rate = self.optimizers().param_groups[-1]["lr"]  # type: ignore[union-attr]
            raise RunError(
                f"the loss is {self.trained_loss} at step {self.global_step + 1} (learning rate {rate:.3g}) on patches "
                f"at {self._where(batch['numbers'].tolist())}: lower training.lr, set training.clip, or look for "
                "extreme values there."
            )
        if self.loggers:
            self.log("loss", loss.detach())
        return loss

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        return self._loss_through(self.network, batch)

    def _loss_through(self, network: Callable[[torch.Tensor], Any], batch: Batch) -> torch.Tensor:
        """Return the loss of a batch, mixed where mixing is on, that passes ``network``."""
        pixels, labels = batch["pixels"], batch["labels"]
        if not self._config.mixing.alpha:
            value: torch.Tensor = self.loss(network(pixels), labels, pixels)
            return value
        random = np.random.default_rng((self._loop.seed, int(batch["numbers"][0])))
        mixed = self._mixing(pixels, labels, random, valid=batch["valid"])
        loss = partial(self.loss, pixels=mixed.pixels)
        loss.takes_soft = self.loss.takes_soft  # type: ignore[attr-defined]
        return mixed.loss(loss, network(mixed.pixels))

    @property
    def _decay(self) -> float:
        """Of the running average: it follows fast at first, so that it soon forgets the weights that were drawn."""
        return min(self._loop.average, (1 + self.global_step) / (10 + self.global_step))

    def move_average(self) -> None:
        """Move the running average, where there is one, towards the weights."""
        if self.average is None:
            return
        kept, new = (list(network.state_dict().values()) for network in (self.average, self.network))
        floats = [i for i, value in enumerate(kept) if value.is_floating_point()]
        get_ema_multi_avg_fn(self._decay)([kept[i] for i in floats], [new[i] for i in floats], 0)
        for i in set(range(len(kept))).difference(floats):
            kept[i].copy_(new[i])

    def on_validation_epoch_start(self) -> None:
        """Begin an empty count, with what the first process has seen of means and deviations, as the bundle will."""
        self.confusion.zero_()
        self.judged.eval()
        if self.trainer.world_size > 1:
            for seen in self.judged.buffers():
                torch.distributed.broadcast(seen, 0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count pixels by true and given class."""
        output = self.judged(batch["pixels"])
        scores = next(iter(output.values())) if isinstance(output, dict) else output
        self.confusion += confusion_of(scores.argmax(1), batch["labels"], len(self.classes))

    def on_validation_epoch_end(self) -> None:
        """Turn the count of all batches and devices into figures, and note whether they are the best."""
        self.figures = {"step": self.global_step, **self._counted()}
        self.log("val_iou", self.figures["mean_iou"], rank_zero_only=False)
        for name, value in self.figures["iou"].items():
            if value is not None:
                self.log(f"val_iou_{name}", value)
        if not self.best or self.figures["mean_iou"] > self.best["mean_iou"]:
            self.best = dict(self.figures)

    def _counted(self) -> dict[str, Any]:
        """Return the figures of what all devices counted."""
        return figures_of(self.trainer.strategy.reduce(self.confusion, reduce_op="sum"), self.classes)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the figures with the weights."""
        checkpoint["geoseg"] = {"best": self.best, "figures": self.figures}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the figures."""
        self.best, self.figures = checkpoint["geoseg"]["best"], checkpoint["geoseg"]["figures"]

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and the schedule that moves its learning rates every step."""
        loop = self._loop
        encoder = self._encoder[0]
        inside = set() if encoder is None else {id(p) for p in encoder.parameters()}
        trained = [p for p in self.network.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if id(p) in inside], "lr": loop.lr * loop.encoder_lr},
            {"params": [p for p in trained if id(p) not in inside], "lr": loop.lr},
            {"params": list(self.loss.parameters()), "lr": loop.lr, "weight_decay": 0.0},
        ]
        frozen_until = [self._config.network.freeze_steps, 0, 0]
        rates = [rate_of(loop, until) for group, until in zip(groups, frozen_until, strict=True) if group["params"]]
        groups = [group for group in groups if group["params"]]
        optimiser = optimiser_of(groups, loop)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rates)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def optimiser_of(groups: list[dict[str, Any]], loop: LoopConfig) -> torch.optim.Optimizer:
    """Return the optimiser that a configuration names, for groups of parameters."""
    if loop.optimiser == "sgd":
        return torch.optim.SGD(groups, loop.lr, momentum=loop.momentum, weight_decay=loop.weight_decay)
    kind = torch.optim.AdamW if loop.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, loop.lr, weight_decay=loop.weight_decay)


def rate_of(loop: LoopConfig, frozen_until: int = 0) -> Callable[[int], float]:
    """Return the learning rate of each step as a share of the largest."""

    def rate(step: int) -> float:
        if step < frozen_until:
            return 0.0
        if step < loop.warmup:
            return (step + 1) / (loop.warmup + 1)
        done = min(1.0, (step - loop.warmup) / max(1, loop.steps - loop.warmup))
        if loop.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return (1 - done) ** 0.9 if loop.schedule == "poly" else 1.0

    return rate


def hash_of(seed: int, number: int) -> int:
    """Return a seed for batch ``number``; neighbours share nothing (a step of SplitMix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 2


def confusion_of(given: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return how many pixels of class i (rows) were given class j (columns), unknown ones left out: (K, K) int64."""
    known = labels != IGNORE
    pairs = labels[known] * count + given[known]
    return torch.bincount(pairs, minlength=count * count).view(count, count)


def figures_of(confusion: torch.Tensor, classes: Classes) -> dict[str, Any]:
    """Return IoU by class (None for one that occurs nowhere), their mean, and the share of right pixels."""
    pooled = Confusion(confusion.cpu().numpy())
    iou = [None if math.isnan(value) else float(value) for value in pooled.iou]
    found = pooled.pixels > 0
    return {
        "iou": {item.name: value for item, value in zip(classes, iou, strict=True)},
        "mean_iou": float(pooled.mean_iou) if found else 0.0,
        "accuracy": float(pooled.overall_accuracy) if found else 0.0,
        "pixels": pooled.pixels,
    }
