"""``geoseg train`` of GLNet: its three stages one after another, on macro-windows drawn from scenes with labels.

What a configuration leaves open is as in the authors' recipe (Chen et al. 2019, arXiv 1905.06368, and the code released
with it); the steps are shared among the stages as their epochs are, and the second stage learns at two fifths of the
rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from geoseg.bundle import NormalisationRecord, write_bundle
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.losses.global_local import GlobalLocalLoss
from geoseg.networks.glnet import DEFAULT_ENCODER, MODES, GlobalNet, Mode, build_glnet
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local import METHOD, GlobalLocal, describe_global_local
from geoseg.segmenters.global_local_making import GlobalLocalOptions
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.interface import scaled
from geoseg.segmenters.macro_windows import MacroGrid
from geoseg.segmenters.network import tensors_of
from geoseg.training.augment import vary
from geoseg.training.config import TrainConfig
from geoseg.training.global_local import EPOCHS, RATES, WEIGHT_DECAY, LabelledScene, next_stage
from geoseg.training.labels import IGNORE
from geoseg.training.module import hash_of, optimiser_of, rate_of
from geoseg.training.patches import Batch, Patch, read_window
from geoseg.training.site import Site, meeting
from geoseg.training.starting import load_encoder, open_drawing, scaling_of, start_of

_BATCH = 6
_SUB_BATCH = 6


def completed(config: TrainConfig) -> TrainConfig:
    """Return the configuration with what it leaves open as in the authors' recipe.

    Macro-windows have the side that they will have in use; only flips and quarter turns vary them.

    Raises:
        ConfigError: settings that do not go with GLNet.
    """
    _refuse_unfit(config)
    loop = {"batch": _BATCH, "lr": RATES["global"], "weight_decay": WEIGHT_DECAY, "optimiser": "adam"}
    loop |= {"schedule": "poly", "patch": int(config.network.options.get("extent", GlobalLocalSettings.extent))}
    still = {name: 0.0 for name in ("rotation", "brightness", "contrast", "gamma", "noise")}
    return config.model_copy(
        update={
            "training": _filled(config.training, loop),
            "augment": _filled(config.augment, {"scale": (1.0, 1.0), **still}),
        }
    )


def _filled(section: Any, values: Mapping[str, Any]) -> Any:
    return section.model_copy(update={k: v for k, v in values.items() if k not in section.model_fields_set})


def _refuse_unfit(config: TrainConfig) -> None:
    loop = config.training
    if "loss" in config.model_fields_set:
        raise ConfigError(f"loss is {config.loss!r}, but network glnet has losses of its own: leave loss out.")
    for path, value, plain in (
        ("mixing.alpha", config.mixing.alpha, 0),
        ("network.freeze_steps", config.network.freeze_steps, 0),
        ("training.accumulate", loop.accumulate, 1),
        ("training.average", loop.average, 0),
        ("training.devices", loop.devices, 1),
        ("training.encoder_lr", loop.encoder_lr, 1),
    ):
        if value != plain:
            raise ConfigError(f"{path} is {value}, which the stages of network glnet do not have: leave it at {plain}.")
    if loop.precision == "float16":
        raise ConfigError("training.precision is float16, which network glnet is not trained in: use bfloat16.")


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run: its mode, the number of steps before it, and its own."""

    mode: Mode
    first: int
    steps: int


def stages_of(last: Mode, steps: int, start: Mode | None = None) -> tuple[StagePlan, ...]:
    """Share steps among stages as the authors do epochs, each stage one at least.

    >>> [(stage.mode, stage.steps) for stage in stages_of("collaborative", 290)]
    [('global', 120), ('local', 50), ('collaborative', 120)]

    Args:
        last: mode of the network that is wanted.
        steps: of all stages.
        start: mode of the network to go on from: the stages behind it follow, or its own once more if it is the last.

    Raises:
        ConfigError: fewer steps than stages, or a start behind the last stage.
    """
    end = MODES.index(last) + 1
    begin = 0 if start is None else min(MODES.index(start) + 1, end - 1)
    if start is not None and MODES.index(start) >= end:
        raise ConfigError(f"the start is a network of mode {start}, behind the mode {last} that is wanted: ask for it.")
    modes = MODES[begin:end]
    if steps < len(modes):
        raise ConfigError(f"training.steps is {steps}, but there are {len(modes)} stages: give each a step at least.")
    epochs = [EPOCHS[mode] for mode in modes]
    own = [max(1, steps * each // sum(epochs)) for each in epochs[:-1]]
    own.append(steps - sum(own))
    return tuple(StagePlan(mode, sum(own[:i]), own[i]) for i, mode in enumerate(modes))


class MacroSquares:
    """The macro-windows that cover what sites are judged on, as a run over the scene would cut them.

    Each pixel is judged in the window that answers for it.
    """

    def __init__(self, sites: Sequence[Site], settings: GlobalLocalSettings) -> None:
        self._sites = sites
        self._places: list[tuple[int, Window, Window]] = []
        for number, site in enumerate(sites):
            grid = MacroGrid(site.scene.shape, settings.extent, settings.patch)
            cores = [grid.core_window(position) for position in grid]
            for position, core, met in zip(grid, cores, meeting(site, cores), strict=True):
                if met:
                    self._places.append((number, grid.tile_window(position), core))

    def __len__(self) -> int:
        """Return the number of macro-windows."""
        return len(self._places)

    def __getitem__(self, number: int) -> Patch:
        """Return macro-window ``number``, in which nothing is known outside its core."""
        site, window, core = self._places[number]
        patch = read_window(self._sites[site], window)
        labels = np.full_like(patch.labels, IGNORE)
        labels[core.within(window)] = patch.labels[core.within(window)]
        return replace(patch, labels=labels, site=site)


class Preparation:
    """What all stages share: sites, drawing, scaling, settings, and the network of each stage before its first step.

    Args:
        config: of the run, see :func:`completed`.
        progress: told how many sites' labels are counted.
    """

    def __init__(self, config: TrainConfig, progress: Callable[[str, int, int], None] | None) -> None:
        self.config = config
        asked = dict(config.network.options)
        asked.setdefault("mode", "collaborative")
        GlobalLocalOptions.of(asked, config.training.patch)  # a slip is told before scenes are read
        drawing, judged = open_drawing(config, progress)
        self.drawing = replace(drawing, inside=True)
        self.sites = drawing.sites
        self.bands = self.sites[0].scene.band_names
        self._start: GlobalLocal | None = None
        if config.network.start is not None:
            self._start = GlobalLocal.from_bundle(start_of(config, config.network.start, len(self.bands), METHOD))
            kept = {name: getattr(self._start.settings, name) for name in GlobalLocalSettings.__dataclass_fields__}
            asked = {**kept, "extent": config.training.patch, **asked}
        options = GlobalLocalOptions.of(asked, config.training.patch)
        self.mode, self.settings = options.mode, options.settings
        # The authors' number for training; in use it is memory that counts.
        self.learning = replace(self.settings, sub_batch=int(asked.get("sub_batch", _SUB_BATCH)))
        for site in self.sites:
            if min(site.scene.shape) < self.settings.extent:
                height, width = site.scene.shape
                raise ConfigError(
                    f"training.patch is {self.settings.extent} pixels, the side of a macro-window, but "
                    f"{site.scene.path} has {height} × {width}: set training.patch to at most {min(height, width)}, "
                    "and network.options.patch to at most half of that."
                )
        self.squares = MacroSquares(judged, self.settings)
        known = None if self._start is None else self._start.spec.normalisation
        self.scaling = scaling_of(config, known, self.sites)
        start = None if self._start is None else self._start.network.mode
        self.stages = stages_of(self.mode, config.training.steps, start)
        self._scalings = {
            id(site): self.scaling or Normalisation.of(site.native.statistics(), "standard")
            for site in (*self.sites, *judged)
        }
        self._judged = judged
        self.encoder = config.network.encoder or DEFAULT_ENCODER
        if self._start is not None:
            self.encoder = self._start.network.encoder

    def network(self, number: int, before: GlobalNet | None) -> GlobalNet:
        """Return the network of stage ``number`` before its first step; the caller's random numbers are left alone.

        Args:
            number: in :attr:`stages`.
            before: the network of the stage before, None for the first.
        """
        asked = self.config.network
        pretrained = asked.pretrained and self._start is None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hash_of(self.config.training.seed, number))
            if before is None and self._start is not None:
                before = self._start.network
                if before.mode == self.stages[number].mode:
                    return before
            if before is None:
                made = self.empty(number, pretrained=pretrained)
            else:
                made = next_stage(before, pretrained=pretrained)
        if asked.encoder_weights is not None and made.mode != "collaborative":
            from geoseg.segmenters.checkpoint_files import read_checkpoint

            path = self.config.path(asked.encoder_weights)
            new = made.get_submodule("resnet_global" if made.mode == "global" else "resnet_local")
            load_encoder(new, read_checkpoint(path).tensors, path, len(self.bands))
        return made

    def empty(self, number: int, *, pretrained: bool = False) -> GlobalNet:
        """Return a network of stage ``number`` with random weights."""
        return build_glnet(
            in_channels=len(self.bands),
            num_classes=len(self.config.data.classes),
            mode=self.stages[number].mode,
            encoder=self.encoder,
            pretrained=pretrained,
        )

    def loss(self) -> GlobalLocalLoss:
        """Return the loss of the stages."""
        given = self.config.stages
        return GlobalLocalLoss(
            len(self.config.data.classes), gamma=given.gamma, coupling=given.coupling, ignore_index=IGNORE
        )

    def optimiser(self, stage: StagePlan, trained: list[Any]) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Return the optimiser of a stage, and the schedule of its rate over the stage's own steps."""
        loop = self.config.training
        rate = loop.lr * RATES[stage.mode] / RATES["global"]
        own = loop.model_copy(update={"lr": rate, "steps": stage.steps})
        optimiser = optimiser_of([{"params": trained, "lr": rate}], own)
        return optimiser, LambdaLR(optimiser, rate_of(own))

    def scenes(self, batch: Batch, device: torch.device) -> list[LabelledScene]:
        """Return the macro-windows of a batch with scaled and varied bands, so that nothing is left to scale."""
        valid = batch["valid"].to(device)
        chosen = [self._scalings[id(self.sites[site])] for site in batch["sites"].tolist()]
        pixels = scaled(batch["pixels"].to(device), valid, chosen)
        pixels = vary(pixels, valid, self.config.augment, hash_of(self.config.training.seed, int(batch["numbers"][0])))
        labels = batch["labels"].to(device)
        return [LabelledScene(*each) for each in zip(pixels, valid, labels, strict=True)]

    def scaling_of_judged(self, site: int) -> Normalisation:
        """Return the scaling of site ``site`` of those that are judged on."""
        return self._scalings[id(self._judged[site])]

    def write(self, target: Path, network: GlobalNet, record: Mapping[str, Any], *, overwrite: bool) -> None:
        """Write the bundle of the trained network."""
        config, scene = self.config, self.sites[0].scene
        tensors = tensors_of(network)
        if config.weights != "float32":
            tensors = {
                name: value.astype(config.weights) if np.issubdtype(value.dtype, np.floating) else value
                for name, value in tensors.items()
            }
        description = describe_global_local(
            network,
            self.encoder,
            self.bands,
            config.data.table(),
            self.settings,
            resolution=config.data.resolution or min(scene.resolution),
            normalisation=None if self.scaling is None else NormalisationRecord(**self.scaling.as_dict()),
            licence=config.licence,
            training={"config": config.record(), **record},
        ).model_copy(update={"card": dict(config.card)})
        write_bundle(target, description, tensors, overwrite=overwrite)
