"""Training of a pair of networks after RSTN: its patches, its three stages, and its loss.

First each network learns by itself, the fine one from crops round the labels (separate); then the saliency
transformation stands before the fine one (individual); then crops follow what the coarse network finds (joint), as they
do in use.  Source: Yu et al. 2018, arXiv 1709.04518, with the code released with it; that a crop is of one connected
target, as boxes are in use, and patches without a target are this project's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from geoseg.components import components
from geoseg.losses.dsc import target_loss
from geoseg.networks.rstn import MODES, THRESHOLD, Box, Mode, SaliencyPair, crop_box, drawn_margins, enlarged, shrunk
from geoseg.segmenters.interface import Spec
from geoseg.segmenters.saliency import SaliencyNetwork, background_of, shares
from geoseg.segmenters.saliency_settings import SaliencySettings
from geoseg.training.config import TrainConfig
from geoseg.training.labels import IGNORE
from geoseg.training.module import TrainingModule, confusion_of, hash_of
from geoseg.training.patches import Batch, Drawing, Patch

# Keeps what is drawn here apart from the places of patches.
_STREAM = 2
# Another patch is drawn so often where one has a target and should not, or has none and should.
_TRIES = 8


def mode_at(step: int, config: TrainConfig) -> Mode:
    """Return how the pair is trained in a step, counted from 0."""
    parts = np.cumsum(config.saliency.shares)
    # By the middle of the step, so that rounding puts no step into a stage that has none.
    place = (step + 0.5) / config.training.steps * parts[-1]
    return MODES[int(np.searchsorted(parts, place, side="right"))]


class TargetPatches:
    """Patches that hold a target, and in the joint steps some without one.

    Args:
        drawing: of patches from all sites.
        config: of the run.
    """

    def __init__(self, drawing: Drawing, config: TrainConfig) -> None:
        from dataclasses import replace

        classes = config.data.table()
        self._config, self._background = config, background_of(classes)
        self._targets = [position for position in range(len(classes)) if position != self._background]
        with_target, without = (
            replace(drawing, sampler=drawing.sampler.of_classes(chosen))
            for chosen in (self._targets, [self._background])
        )
        self._drawings = {True: with_target, False: without}

    def wanted(self, number: int) -> bool:
        """Return whether patch ``number`` is to hold a target."""
        loop, saliency = self._config.training, self._config.saliency
        step = number // (loop.batch * loop.devices * loop.accumulate)
        random = np.random.default_rng((loop.seed, number, _STREAM))
        return mode_at(step, self._config) != "joint" or bool(random.random() >= saliency.empty)

    def __getitem__(self, number: int) -> Patch:
        """Return patch ``number``; of those that are not as wanted the last that was tried."""
        wanted, loop = self.wanted(number), self._config.training
        every = loop.steps * loop.batch * loop.devices * loop.accumulate
        for attempt in range(_TRIES):
            patch = self._drawings[wanted][number + attempt * every]
            if bool(np.isin(patch.labels, self._targets).any()) == wanted:
                break
        return patch


class PairLoss(nn.Module):
    """The loss of both networks: the DSC loss, and cross-entropy where there is no target, weighted.

    Args:
        coarse_weight: the coarse network's share, 0 to 1.
    """

    takes_soft = False

    def __init__(self, coarse_weight: float) -> None:
        super().__init__()
        self.coarse_weight = coarse_weight

    def forward(
        self, coarse: torch.Tensor, fine: torch.Tensor, target: torch.Tensor, inside: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            coarse: probabilities (N, K, H, W) of the coarse network, 0 where nothing is known.
            fine: of the fine one, likewise.
            target: (N, K, H, W) bool.
            inside: (N, 1, H, W) bool, what the fine network saw; it answers for no more.
        """
        first, second = target_loss(coarse, target), target_loss(fine, target & inside)
        return self.coarse_weight * first + (1 - self.coarse_weight) * second


class SaliencyModule(TrainingModule):
    """A pair with its loss and optimiser; its coarse network is the part with a learning rate of its own.

    Args:
        looking: how the pair looks at a scene.
        arguments: of :class:`geoseg.training.module.TrainingModule`.
    """

    def __init__(self, looking: SaliencySettings, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._looking = looking
        self._background = background_of(self.classes)
        self._targets = [position for position in range(len(self.classes)) if position != self._background]

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        pair, pixels, labels = self.network, batch["pixels"], batch["labels"]
        assert isinstance(pair, SaliencyPair)
        mode = mode_at(self.global_step, self._config)
        target = torch.stack([labels == position for position in self._targets], 1)
        known = (labels != IGNORE)[:, None]
        logits = pair.overview(shrunk(pixels, pair.factor))
        coarse = enlarged(logits.float().sigmoid(), pair.factor, tuple(pixels.shape[-2:])) * known
        random = np.random.default_rng((self._loop.seed, int(batch["numbers"][0]), _STREAM))
        boxes = self._boxes(mode, coarse.detach(), target, random)
        inside = torch.zeros_like(known)
        for item, (row, row_stop, col, col_stop) in enumerate(boxes):
            inside[item, :, row:row_stop, col:col_stop] = True
        fine = pair.fine_pass(pixels, boxes, None if mode == "separate" else coarse)
        value: torch.Tensor = self.loss(coarse, fine.float() * known, target, inside)
        return value

    def _boxes(self, mode: Mode, coarse: torch.Tensor, target: torch.Tensor, random: np.random.Generator) -> list[Box]:
        """Return the box of one connected target of each item, drawn; all of an item that has none."""
        generator = torch.Generator().manual_seed(hash_of(self._loop.seed + 2, int(random.integers(2**31))))
        masks = target.any(1)
        if mode == "joint":
            found = (coarse >= THRESHOLD).any(1)
            masks = found.where(found.flatten(1).any(1)[:, None, None], masks)
        boxes = []
        for mask in masks.cpu().numpy():
            numbers, count = components(mask, corners=True)
            chosen = torch.from_numpy(numbers == int(random.integers(1, count + 1)) if count else mask)
            margins = drawn_margins(self._looking.margin, self._config.saliency.margin_chance, generator)
            boxes.append(crop_box(chosen[None], margins))
        return boxes

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count pixels by true and given class, each patch looked at as in use."""
        pair, pixels = self.judged, batch["pixels"]
        assert isinstance(pair, SaliencyPair)
        bands = tuple(map(str, range(pair.bands)))
        spec = Spec(bands, None, self.classes, self._looking.limit, 0)
        network = SaliencyNetwork(pair, self.classes, self._looking, spec)
        found = [network.found_in(one, valid)[0] for one, valid in zip(pixels, batch["valid"], strict=True)]
        probabilities = torch.from_numpy(np.stack(found)).to(pixels.device)
        given = shares(probabilities, self._background).argmax(1)
        self.confusion += confusion_of(given, batch["labels"], len(self.classes))
