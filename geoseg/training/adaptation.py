"""Moving a network to scenes without labels: what a step learns from patches of them, beside labelled ones.

Sources: ``outputs`` and ``features``: Panfilov et al. 2019, arXiv 1908.04126v3 (UDA1, UDA2), after Tsai et al. 2018,
arXiv 1802.10349.  ``self-training``: Tarvainen, Valpola 2017, arXiv 1703.01780 (the averaged teacher); Tranheden et al.
2021, arXiv 2007.08702 (one batch of both regions, the loss weighted by how much the teacher is sure of); French et al.
2020, arXiv 1906.01916 (patches cut into each other).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError
from geoseg.networks.unet_lext import Discriminator
from geoseg.normalisation import Normalisation
from geoseg.segmenters.interface import scaled
from geoseg.training.augment import vary
from geoseg.training.labels import IGNORE
from geoseg.training.module import TrainingModule, hash_of, rate_of
from geoseg.training.patches import Batch

Outputs = torch.Tensor | Mapping[str, torch.Tensor]
# What is asked of a discriminator: where a map is from.
SOURCE, TARGET = 0.0, 1.0


class AdaptationModule(TrainingModule):
    """A network in training on labelled patches, with patches of the targets under ``"target"`` in its batches.

    Args:
        target_scalings: of the bands: one of each target, or one for all.
        made: as of :class:`geoseg.training.module.TrainingModule`.

    Attributes:
        least: mean IoU on the sources' validation below which weights are not kept.
    """

    least = 0.0

    def __init__(self, target_scalings: Sequence[Normalisation], *made: Any) -> None:
        super().__init__(*made)
        self._target_scalings = target_scalings

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale and vary the labelled patches; scale those of the targets."""
        made: Any = super().on_after_batch_transfer(batch, dataloader_idx)
        if "target" in made:
            made["target"] = self.scaled_target(made["target"])
        found: Batch = made
        return found

    def scaled_target(self, batch: Any) -> Batch:
        """Scale patches of the targets, and say under ``seen`` (N, H, W) where they hold data of one."""
        known = self._target_scalings
        chosen = known if len(known) == 1 else [known[site] for site in batch["sites"].tolist()]
        pixels = scaled(batch["pixels"], batch["valid"], chosen).contiguous(memory_format=torch.channels_last)
        return {**batch, "pixels": pixels, "seen": batch["labels"] != IGNORE}

    def on_validation_epoch_end(self) -> None:
        """Keep the latest weights that have not lost too much on the sources: targets have no labels to choose by."""
        before = self.best
        super().on_validation_epoch_end()
        self.best = dict(self.figures) if self.figures["mean_iou"] >= self.least else before

    def _seed_of(self, batch: Batch) -> int:
        return hash_of(self._loop.seed + 2, int(batch["numbers"][0]))


class AdversarialModule(AdaptationModule):
    """UDA1 and UDA2: maps of the targets shall look, to discriminators, like those of the sources.

    The discriminators and their optimiser live and are saved with the module; they compute in float32.
    """

    def __init__(self, *made: Any) -> None:
        super().__init__(*made)
        self.discriminators = nn.ModuleDict()
        self.found: dict[str, float] = {}
        self._opponent: torch.optim.Optimizer | None = None
        self._opponent_state: dict[str, Any] | None = None

    def oppose(self, maps: Sequence[str]) -> AdversarialModule:
        """Make a discriminator for each of the network's maps, and return the module."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._loop.seed)
            self.discriminators.update({name: Discriminator(len(self.classes)) for name in maps})
        return self

    @property
    def _weights(self) -> dict[str, float]:
        told = self._config.adaptation
        return {name: told.adv_weight if name == "scores" else told.adv_aux_weight for name in self.discriminators}

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        if self.global_step < self._config.adaptation.warm_up or not any(self._weights.values()):
            return super()._loss_of(batch)
        passed: list[Outputs] = []

        def noted(pixels: torch.Tensor) -> Outputs:
            passed.append(self.network(pixels))
            return passed[-1]

        loss = self._loss_through(noted, batch)
        pixels, size = batch["pixels"], batch["pixels"].shape[-2:]
        source = passed[0]
        if self._config.mixing.alpha:
            # The discriminators see no blends.
            with torch.no_grad(), running_statistics(self.network):
                source = self.network(pixels)
        target: Any = batch["target"]
        with self._passing():
            aims = self.network(target["pixels"])
        known, shown = (self._shares(outputs, size) for outputs in (source, aims))
        self.discriminate(known, batch["valid"], shown, target["seen"])
        return loss + self.adversarial(shown, target["seen"])

    def _passing(self) -> contextlib.AbstractContextManager[None]:
        own = self._config.adaptation.target_bn == "batch_stats"
        return contextlib.nullcontext() if own else running_statistics(self.network)

    def _shares(self, outputs: Outputs, size: torch.Size) -> dict[str, torch.Tensor]:
        """Return the class probabilities of each map that has a discriminator, (N, K, H, W) float32.

        Raises:
            ConfigError: the network lacks one of the maps.
        """
        maps = {"scores": outputs} if isinstance(outputs, torch.Tensor) else outputs
        found = {}
        for name in self.discriminators:
            if name not in maps:
                raise ConfigError(f"the network gives no map {name!r} to adapt: use the method outputs.")
            scores = maps[name].float()
            if scores.shape[-2:] != size:
                scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)
            found[name] = scores.softmax(1)
        return found

    def discriminate(
        self,
        source: Mapping[str, torch.Tensor],
        source_seen: torch.Tensor,
        target: Mapping[str, torch.Tensor],
        target_seen: torch.Tensor,
    ) -> None:
        """Let the discriminators learn one step from maps (N, K, H, W) by name; the network learns nothing.

        Args:
            source: maps of labelled patches.
            source_seen: (N, H, W) bool, where they hold data.
            target: maps of patches of the targets.
            target_seen: likewise.
        """
        optimiser = self._discriminating()
        self.discriminators.requires_grad_()
        # Not under the network's automatic precision: entropies of whole maps are lost in 16 bits.
        with torch.autocast(self.device.type, enabled=False), torch.enable_grad():
            halves = [
                0.5 * belief(self.discriminators[name], maps[name].detach(), seen, place)
                for name in self.discriminators
                for maps, seen, place in ((source, source_seen, SOURCE), (target, target_seen, TARGET))
            ]
            loss = torch.stack(halves).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        self.found["discriminator"] = float(loss.detach())

    def adversarial(self, target: Mapping[str, torch.Tensor], seen: torch.Tensor) -> torch.Tensor:
        """Return how well the discriminators tell that maps are of a target, weighted; they learn nothing from it."""
        self.discriminators.requires_grad_(False)
        with torch.autocast(self.device.type, enabled=False):
            each = [
                weight * belief(self.discriminators[name], target[name], seen, SOURCE)
                for name, weight in self._weights.items()
            ]
            return torch.stack(each).sum()

    def _discriminating(self) -> torch.optim.Optimizer:
        loop, told = self._loop, self._config.adaptation
        if self._opponent is None:
            parameters = self.discriminators.parameters()
            self._opponent = torch.optim.Adam(parameters, told.lr_discriminator, weight_decay=loop.weight_decay)
            if self._opponent_state is not None:
                self._opponent.load_state_dict(self._opponent_state)
        for group in self._opponent.param_groups:
            group["lr"] = told.lr_discriminator * rate_of(loop)(self.global_step)
        return self._opponent

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the discriminators' optimiser too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["opponent"] = None if self._opponent is None else self._opponent.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it, once the discriminators are where they compute."""
        super().on_load_checkpoint(checkpoint)
        self._opponent_state = checkpoint["opponent"]


class SelfTrainingModule(AdaptationModule):
    """The network learns, on varied patches of the targets, what its running average is sure of on plain ones."""

    @property
    def _decay(self) -> float:
        """One pace from the first step on: the average starts from weights that are worth keeping."""
        return self._loop.average

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        told = self._config.adaptation
        seed = self._seed_of(batch)
        # What is labelled is varied as strongly: the teacher must stand light and blur before it can teach them.
        batch = {**batch, "pixels": vary(batch["pixels"], batch["valid"], told.strong, seed + 1)}
        if self.global_step < told.warm_up or not told.target_weight:
            return super()._loss_of(batch)
        target: Any = batch["target"]
        labels, trust = self.believed(target["pixels"], target["seen"])
        varied = vary(target["pixels"], target["seen"], told.strong, seed)
        random = np.random.default_rng(seed)
        if random.random() < told.cut:
            varied, labels = cut_into(varied, labels, random)
        aims: list[Outputs] = []

        def joined(pixels: torch.Tensor) -> Outputs:
            # Together, so that the statistics of batch norms are those of both regions, as in use.
            outputs = self.network(torch.cat([pixels, varied]))
            aims.append(_part(outputs, slice(len(pixels), None)))
            return _part(outputs, slice(len(pixels)))

        loss = self._loss_through(joined, batch)
        if not trust:
            return loss
        return loss + told.target_weight * trust * self.loss(aims[0], labels, varied)

    def believed(self, pixels: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return the classes that the running average is sure of, 255 elsewhere, and their share of what is seen.

        Args:
            pixels: (N, C, H, W), scaled.
            seen: (N, H, W) bool, where they hold data.
        """
        assert self.average is not None
        self.average.eval()
        with torch.no_grad():
            sure, labels = self.average(pixels).float().softmax(1).max(1)
        labels = labels.masked_fill((sure < self._config.adaptation.confidence) | ~seen, IGNORE)
        return labels, float((labels != IGNORE).sum() / seen.sum().clamp(min=1))


def cut_into(
    pixels: torch.Tensor, labels: torch.Tensor, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return patches (N, C, H, W) and labels (N, H, W), each with one rectangle of the patch before it in the batch.

    All rectangles lie alike, and take half of a patch on average.
    """
    height, width = labels.shape[-2:]
    share = random.random()
    aspect = random.uniform(share, 1.0)
    tall, wide = round(height * aspect), round(width * share / aspect)
    row, col = (int(random.integers(most + 1)) for most in (height - tall, width - wide))
    inside = torch.zeros(height, width, dtype=torch.bool, device=pixels.device)
    inside[row : row + tall, col : col + wide] = True
    return torch.where(inside, pixels.roll(1, 0), pixels), torch.where(inside, labels.roll(1, 0), labels)


def _part(outputs: Outputs, part: slice) -> Outputs:
    if isinstance(outputs, torch.Tensor):
        return outputs[part]
    return {name: values[part] for name, values in outputs.items()}


@contextlib.contextmanager
def running_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch norms use, and not move, their running statistics, and switch dropout off; all else stays as it is.

    Only layers without layers in them change: a network that gives auxiliary maps in training mode still does.
    """
    training = [layer for layer in network.modules() if layer.training and not any(True for _ in layer.children())]
    for layer in training:
        layer.training = False
    try:
        yield
    finally:
        for layer in training:
            layer.training = True


def belief(discriminator: nn.Module, shares: torch.Tensor, seen: torch.Tensor, place: float) -> torch.Tensor:
    """Return the binary cross-entropy of a discriminator's map with a place, the mean over pixels with data.

    Args:
        discriminator: of the map.
        shares: (N, K, H, W) float32 probabilities.
        seen: (N, H, W) bool, where the patches hold data; those that hold none are left out.
        place: ``SOURCE`` or ``TARGET``.
    """
    kept = seen.flatten(1).any(1)
    if not kept.any():
        return shares.sum() * 0
    logits, counted = discriminator(shares[kept])[:, 0], seen[kept]
    each = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, place), reduction="none")
    return (each * counted).sum() / counted.sum()
