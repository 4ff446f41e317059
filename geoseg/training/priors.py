"""Patches for a network that refines: the mask of one class in each, and a spoilt copy to begin from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from geoseg import networks
from geoseg.classes import Classes
from geoseg.errors import ConfigError
from geoseg.training.config import TrainConfig
from geoseg.training.damage import damaged
from geoseg.training.labels import IGNORE
from geoseg.training.patches import Patch, Source, Squares
from geoseg.training.variation_config import DamageConfig

# Keeps the random numbers of a patch's mask apart from those of its place.
_STREAM = 1


def refuse_unfit(config: TrainConfig) -> None:
    """Refuse settings that do not go with a network that refines.

    Raises:
        ConfigError: a loss, mixed patches, or patches that the network does not take.
    """
    info = networks.info(config.network.name)
    if config.targets == "coarse":
        raise ConfigError(f"targets is coarse, but network {info.name} refines masks: leave targets at fine.")
    if "loss" in config.model_fields_set:
        raise ConfigError(f"loss is {config.loss!r}, but network {info.name} has a loss of its own: leave loss out.")
    if config.mixing.alpha:
        raise ConfigError(
            f"mixing.alpha is {config.mixing.alpha}, but the masks of network {info.name} do not mix: leave it at 0."
        )
    patch, stride = config.training.patch, info.stride
    if patch % stride:
        raise ConfigError(
            f"training.patch is {patch}, but network {info.name} takes multiples of {stride}: use "
            f"{-(-patch // stride) * stride}."
        )


class SpoiltMasks:
    """The patches of a source with one mask each: 1 inside, 0 outside, 255 where it is not known.

    The class is drawn from those that a patch has, background apart; a patch without any has an empty mask, so that
    what was put there by mistake is learned to go.

    Args:
        source: of patches with labels of all classes.
        classes: their table.
        damage: how the copies are spoilt.
        seed: of everything that is drawn.
    """

    def __init__(self, source: Source, classes: Classes, damage: DamageConfig, seed: int) -> None:
        self._source, self._damage, self._seed = source, damage, seed
        self._positions = [position for position, item in enumerate(classes) if not item.background]

    def __getitem__(self, number: int) -> Patch:
        """Return patch ``number``, with its prior."""
        patch = self._source[number]
        random = np.random.default_rng((self._seed, number, _STREAM))
        counts = np.bincount(patch.labels.reshape(-1), minlength=IGNORE + 1)
        present = [position for position in self._positions if counts[position]]
        mask = patch.labels == random.choice(present) if present else np.zeros(patch.labels.shape, bool)
        known = patch.labels != IGNORE
        labels = np.where(known, mask, IGNORE).astype(np.uint8)
        return replace(patch, labels=labels, prior=damaged(mask, self._damage, random) & patch.valid)


class SpoiltSquares(SpoiltMasks):
    """The same of patches that are all judged.

    Args: as of :class:`SpoiltMasks`.
    """

    def __init__(self, source: Squares, classes: Classes, damage: DamageConfig, seed: int) -> None:
        super().__init__(source, classes, damage, seed)
        self._count = len(source)

    def __len__(self) -> int:
        """Return the number of patches."""
        return self._count
