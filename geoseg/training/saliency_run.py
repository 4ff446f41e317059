"""The training of a pair of networks as ``geoseg train`` runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from geoseg.bundle import Bundle, Description, read_bundle
from geoseg.errors import BundleError, ConfigError
from geoseg.networks.rstn import SaliencyPair
from geoseg.segmenters.checkpoint_files import read_checkpoint
from geoseg.segmenters.network import load_tensors
from geoseg.segmenters.saliency import METHOD, background_of
from geoseg.segmenters.saliency_pair import PairSettings, build, describe_saliency
from geoseg.training.config import NetworkConfig, TrainConfig
from geoseg.training.fit import LoopRun
from geoseg.training.saliency import PairLoss, SaliencyModule, TargetPatches
from geoseg.training.starting import encoder_of, load_encoder

if TYPE_CHECKING:
    from pathlib import Path

    from geoseg.normalisation import Normalisation
    from geoseg.training.module import TrainingModule

# Learning rate of the coarse network as a share of that of the other parts, where none is asked for.
_COARSE_RATE = 1 / 3


class SaliencyRun(LoopRun):
    """One training of a pair, from open scenes to the bundle.

    Args: as of :class:`geoseg.training.fit.LoopRun`.

    Raises:
        ConfigError: settings that do not go with a pair.
    """

    def __init__(self, config: TrainConfig, target: Path, folder: Path, *told: Any) -> None:
        refuse_unfit(config)
        super().__init__(config, target, folder, *told)
        self.source = TargetPatches(self.drawing, config)

    def _first(self, bands: int) -> tuple[nn.Module, NetworkConfig, Normalisation | None]:
        """Return the pair, the settings asked for, and the scaling that came with its weights."""
        config, asked = self.config, self.config.network
        self.pair_settings, scaling, bundle = PairSettings.of_options(asked.options, asked.encoder), None, None
        targets = len(config.data.classes) - 1
        if asked.start is not None:
            bundle = read_bundle(config.path(asked.start))
            self.pair_settings = _settings_of(bundle, config, bands)
            record = bundle.description.normalisation
            scaling = record.build() if record else None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.training.seed)
            pair = build(
                self.pair_settings, bands=bands, targets=targets, pretrained=asked.pretrained and bundle is None
            )
        if bundle is not None:
            load_tensors(pair, bundle.tensors(), bundle.path)
        if asked.encoder_weights is not None:
            path = config.path(asked.encoder_weights)
            tensors = read_checkpoint(path).tensors
            for network, choice in (
                (pair.coarse_model, self.pair_settings.coarse),
                (pair.fine_model, self.pair_settings.fine),
            ):
                load_encoder(encoder_of(network, choice.name), tensors, path, bands)
        return pair, asked, scaling

    def _module(self, network: Any) -> TrainingModule:
        assert isinstance(network, SaliencyPair)
        config = self.config
        if "encoder_lr" not in config.training.model_fields_set:
            loop = config.training.model_copy(update={"encoder_lr": _COARSE_RATE})
            config = config.model_copy(update={"training": loop})
        loss = PairLoss(config.saliency.coarse_weight)
        made = (self._scalings, config, self._batches, self._where)
        return SaliencyModule(self.pair_settings.looking, network, network.coarse_model, loss, *made)

    def _described(self, network: Any, **told: Any) -> Description:
        bands, classes = told.pop("bands"), told.pop("classes")
        return describe_saliency(network, self.pair_settings, bands, classes, **told)


def refuse_unfit(config: TrainConfig) -> None:
    """Refuse settings that do not go with a pair of networks.

    Raises:
        ConfigError: a loss, mixed patches, not one background, or an unknown option.
    """
    background_of(config.data.table())
    PairSettings.of_options(config.network.options, config.network.encoder)
    if "loss" in config.model_fields_set:
        raise ConfigError(f"loss is {config.loss!r}, but network rstn has a loss of its own: leave loss out.")
    if config.mixing.alpha:
        raise ConfigError(
            f"mixing.alpha is {config.mixing.alpha}, but crops that follow one target do not mix: leave it at 0."
        )


def _settings_of(bundle: Bundle, config: TrainConfig, bands: int) -> PairSettings:
    """Return the settings of a pair to go on from.

    Raises:
        BundleError: the bundle holds something else.
        ConfigError: it has other classes or bands.
    """
    about = bundle.description
    if about.method != METHOD:
        raise BundleError(
            f"{bundle.path} holds a {about.method} model, which is no start for network rstn: set network.name to what "
            "it holds, or start from another."
        )
    names, wanted = [item.name for item in about.classes], [item.name for item in config.data.table()]
    if names != wanted:
        raise ConfigError(
            f"{bundle.path} has the classes {', '.join(names)} where data.classes are {', '.join(wanted)}: give the "
            "same ones in the same order."
        )
    if len(about.bands) != bands:
        raise ConfigError(f"{bundle.path} is for {len(about.bands)} bands where the scenes give {bands}.")
    return PairSettings.of_record(about.settings)
