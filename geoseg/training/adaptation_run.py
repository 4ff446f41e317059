"""The moving of a network to scenes without labels, as ``geoseg adapt`` and ``geoseg train`` run it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.losses.supervision import Supervision
from geoseg.segmenters.interface import scaled
from geoseg.training.adaptation import AdaptationModule, AdversarialModule, SelfTrainingModule
from geoseg.training.adaptation_config import ADVERSARIAL, STATISTICS
from geoseg.training.callbacks import BEST, Progress, write_weights
from geoseg.training.config import NetworkConfig, TrainConfig
from geoseg.training.fit import LoopRun, Run
from geoseg.training.lightning import accelerator
from geoseg.training.module import confusion_of, figures_of
from geoseg.training.patches import Batch, Drawing, Judged, Judging, Loader, batches_from
from geoseg.training.sampling import Sampler, count
from geoseg.training.site import Site, open_targets, refuse_large_patches
from geoseg.training.starting import encoder_of, find_encoder, measured_scaling
from geoseg.training.variation_config import SamplingConfig

if TYPE_CHECKING:
    from pathlib import Path

    from geoseg.normalisation import Normalisation
    from geoseg.training.module import TrainingModule

# The smallest patch that leaves a discriminator something to look at.
_LEAST_PATCH = 32


def course(config: TrainConfig) -> Callable[..., Run]:
    """Return what makes the run of a configuration that names targets."""
    return StatisticsRun if config.adaptation.method in STATISTICS else AdaptationRun


class AdaptationRun(LoopRun):
    """One adaptation, from open scenes to the bundle.

    Its figures are those on the sources; ``scores`` in them compares the model before and after, on the sources and on
    those targets that have labels.

    Args: as of :class:`geoseg.training.fit.LoopRun`.

    Raises:
        ConfigError: settings that do not go with adaptation.
    """

    module: AdaptationModule

    def __init__(self, config: TrainConfig, target: Path, folder: Path, *told: Any) -> None:
        refuse_unfit(config)
        self._progress: Progress | None = told[0]
        super().__init__(config, target, folder, *told)

    def _first(self, bands: int) -> tuple[nn.Module, NetworkConfig, Normalisation | None]:
        """Return the network to adapt, and note how it scaled the bands."""
        network, settings, self._known_scaling = super()._first(bands)
        return network, settings, self._known_scaling

    def _module(self, network: Any) -> TrainingModule:
        config, told = self.config, self.config.adaptation
        self.targets, self.known = open_targets(config, self.sites[0])
        refuse_large_patches(self.targets, config)
        self.aims = self._aims()
        maps = []
        if told.method == "features":
            maps = auxiliary_maps(network, len(self.sites[0].scene.bands), len(config.data.classes))
            if not maps:
                raise ConfigError(
                    f"method features adapts auxiliary maps, and network {self.settings.name} has none as it is built "
                    "here: use the method outputs."
                )
        made = (self._scalings_of(self.targets, self.scaling), network, *self._parts(network, maps))
        if told.method not in ADVERSARIAL:
            return SelfTrainingModule(*made)
        return AdversarialModule(*made).oppose(["scores", *maps])

    def _parts(self, network: nn.Module, maps: Sequence[str]) -> tuple[Any, ...]:
        """Return what a training module is made of behind its network, whose auxiliary ``maps`` are adapted."""
        config = self.config
        encoder = find_encoder(network)
        if config.network.freeze_steps or config.training.encoder_lr != 1:
            encoder = encoder_of(network, self.settings.name)
        weights: Any = self.settings.name
        if maps:
            weights = {"scores": 1.0, **dict.fromkeys(maps, config.adaptation.aux_weight)}
        assert self.loss is not None
        return encoder, Supervision(self.loss, weights), self._scalings, config, self._batches, self._where

    def _aims(self) -> Drawing:
        """Return where patches of the targets are drawn: from all that holds data alike."""
        config, loop = self.config, self.config.training
        counts = [count(site, 1, loop.patch) for site in self.targets]
        sampler = Sampler(counts, ["data"], SamplingConfig(balance=0.0), config.augment, loop.seed + 1)
        return Drawing(self.targets, sampler, loop.patch, config.sampling.min_valid, inside=True)

    def _batches(self, step: int, rank: int, world: int) -> Any:
        """Return the batches, each with one of the targets."""
        loop = self.config.training
        numbers = batches_from(step * loop.accumulate, loop.steps * loop.accumulate, loop.batch, rank, world)
        aims = Loader(self.aims, numbers, workers=loop.workers, pinned=self._pinned)
        return Pairs(super()._batches(step, rank, world), aims)

    @staticmethod
    def _scalings_of(sites: Sequence[Site], one: Normalisation | None) -> list[Normalisation]:
        return [one] if one is not None else [measured_scaling([site]) for site in sites]

    def fit(self) -> int | None:
        """Adapt, and return the step from which an interrupted run was taken up."""
        before = self._scores(self.module.network, self._known_scaling)
        start = before
        if self.scaling != self._known_scaling:
            start = self._scores(self.module.network, self.scaling)
        self.module.least = start["source"]["mean_iou"] - self.config.adaptation.most_lost
        if len(self.judging):
            self.module.best = {"step": 0, **start["source"]}
            if not (self.folder / BEST).exists():
                write_weights(self.folder / BEST, self.module)
        resumed = self._fitted()
        after = self._scores(self.module.judged, self.scaling)
        self.figures = {"step": self.figures.get("step", self.steps), **after["source"]}
        self.figures["scores"] = {where: {"before": before[where], "after": after[where]} for where in after}
        return resumed

    def _fitted(self) -> int | None:
        return super().fit()

    def _scores(self, network: nn.Module, one: Normalisation | None) -> dict[str, dict[str, Any]]:
        """Return the figures of a network whose bands are scaled by ``one``, or by each scene's own figures if None.

        On the sources they are of the validation, or of what is trained on if there is none.
        """
        judging = self.judging if len(self.judging) else Judging.of(self.sites, self.config.training.patch)
        found = {"source": self._judged(network, judging, one)}
        if self.known:
            found["target"] = self._judged(network, Judging.of(self.known, self.config.training.patch), one)
        return found

    def _judged(self, network: nn.Module, judging: Judging, one: Normalisation | None) -> dict[str, Any]:
        loop, classes = self.config.training, self.config.data.table()
        device = torch.device(accelerator(loop))
        scalings = self._scalings_of(judging.sites, one)
        judge = copy.deepcopy(network).to(device).float().eval()
        counted = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=device)
        for batch in Judged(judging, loop.batch, loop.workers, False, 0, 1):
            chosen = scalings if len(scalings) == 1 else [scalings[site] for site in batch["sites"].tolist()]
            pixels, valid, labels = (batch[name].to(device) for name in ("pixels", "valid", "labels"))
            with torch.inference_mode():
                given = judge(scaled(pixels, valid, chosen)).argmax(1)
            counted += confusion_of(given, labels.long(), len(classes))
        return figures_of(counted, classes)


class StatisticsRun(AdaptationRun):
    """Adaptation without learning: adaptive batch norm, or nothing but another scaling of the bands.

    Source of the former: Li et al. 2016, arXiv 1603.04779.
    """

    def _fitted(self) -> int | None:
        """Measure the statistics of batch norms on as many batches of the targets as there would be steps."""
        self.steps, self.figures = 0, {}
        if self.config.adaptation.method == "scaling":
            return None
        network, loop = self.module.network, self.config.training
        norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            raise ConfigError(f"network {self.settings.name} has no batch norm to adapt: use another method.")
        device = torch.device(accelerator(loop))
        network.to(device).eval()
        momenta = [layer.momentum for layer in norms]
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean of all batches
            layer.train()
        numbers = batches_from(0, loop.steps, loop.batch, 0, 1)
        for batch in Loader(self.aims, numbers, workers=loop.workers):
            batch = {name: value.to(device) for name, value in batch.items()}
            made: Any = self.module.scaled_target(batch)
            with torch.no_grad():
                network(made["pixels"])
            self.steps += 1
            self._tell_step()
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
        network.eval()
        return None

    def _tell_step(self) -> None:
        if self._progress is not None:
            self._progress("measuring", self.steps, self.config.training.steps)


class Pairs:
    """Batches of labelled patches, each with a batch of the targets under ``"target"``."""

    def __init__(self, sources: Any, targets: Any) -> None:
        self._sources, self._targets = sources, targets

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches."""
        for source, target in zip(self._sources, self._targets, strict=True):
            yield {**source, "target": target}


def auxiliary_maps(network: nn.Module, bands: int, classes: int) -> list[str]:
    """Return the names of a network's maps in training mode, but ``scores``, that have a channel for each class."""
    tried = copy.deepcopy(network).train()
    with torch.no_grad():
        # Two patches, as batch norms of pooled features ask.
        outputs = tried(torch.zeros(2, bands, _LEAST_PATCH * 2, _LEAST_PATCH * 2))
    maps = {} if isinstance(outputs, torch.Tensor) else outputs
    return [name for name, value in maps.items() if name != "scores" and value.shape[1:2] == (classes,)]


def refuse_unfit(config: TrainConfig) -> None:
    """Refuse settings that do not go with adaptation.

    Raises:
        ConfigError: a network with a training of its own, or patches that a discriminator cannot look at.
    """
    name, info = config.network.name, networks.info(config.network.name)
    if info.needs_prior or info.needs_scene:
        raise ConfigError(f"network {name} cannot be adapted: give a model that maps the pixels of a tile to classes.")
    told, patch = config.adaptation, config.training.patch
    if told.method in ADVERSARIAL and patch < _LEAST_PATCH:
        raise ConfigError(
            f"training.patch is {patch}, and method {told.method} looks at patches of {_LEAST_PATCH} pixels or more."
        )
