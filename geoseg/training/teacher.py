"""A model that has learned before: its map, in agreement with coarse labels, is what another network learns from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from geoseg.bundle import read_bundle
from geoseg.errors import BundleError, ConfigError
from geoseg.losses.block_agreement import agreeing
from geoseg.losses.coarse_labels import CoarseLabelLoss
from geoseg.networks.inference import main_output
from geoseg.normalisation import Normalisation
from geoseg.segmenters.interface import scaled
from geoseg.segmenters.network import module_of
from geoseg.training.config import TrainConfig
from geoseg.training.labels import IGNORE
from geoseg.training.patches import Batch
from geoseg.training.site import Site

# Turned over, a patch shows the same ground: what a network makes of all four is surer than what it makes of one.
_VIEWS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


class Teacher:
    """Labels patches as the network of a bundle does, moved in each block to the shares of its coarse class.

    The network sees each patch as it is, mirrored either way and both ways, and its log-probabilities are averaged.

    Args:
        network: from scaled pixels to scores.
        scalings: of the bands: one of each site that is trained on, or one for all.
        losses: of the sources of coarse labels, whose tables say what the classes of blocks are made of.
    """

    def __init__(
        self, network: nn.Module, scalings: Sequence[Normalisation], losses: Sequence[CoarseLabelLoss]
    ) -> None:
        self._network, self._scalings, self._losses = network.eval().requires_grad_(False), scalings, losses

    @torch.no_grad()
    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the classes of pixels, (N, H, W) int64, 255 for those of no block, of a batch as it was read.

        Where there are several sources, scores are moved by each in turn, so that the last one is met exactly.
        """
        pixels = batch["pixels"]
        known = self._scalings
        chosen = known if len(known) == 1 else [known[site] for site in batch["sites"].tolist()]
        self._network.to(pixels.device)
        seen = scaled(pixels, batch["valid"], chosen)
        scores = torch.stack([self._scores(seen, axes) for axes in _VIEWS]).mean(0)
        told = torch.zeros_like(batch["valid"])
        for number, loss in enumerate(self._losses):
            if f"blocks_{number}" in batch:
                blocks, classes = batch[f"blocks_{number}"], batch[f"block_classes_{number}"]
                scores = agreeing(scores, blocks, classes, loss.means, loss.deviations)
                told |= blocks >= 0
        return scores.argmax(1).where(told & batch["valid"], IGNORE)

    def _scores(self, seen: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        """Return log-probabilities (N, K, H, W) of pixels that the network sees mirrored along ``axes``."""
        return main_output(self._network(seen.flip(axes))).flip(axes).log_softmax(1)


def open_teacher(
    config: TrainConfig, path: str, bands: int, sites: Sequence[Site], losses: Sequence[CoarseLabelLoss]
) -> Teacher:
    """Open the bundle ``coarse.teacher`` names.

    Args:
        config: of the run.
        path: as the configuration has it.
        bands: of the scenes.
        sites: that are trained on, by which bands are scaled where the bundle leaves that to scenes.
        losses: of the sources.

    Raises:
        BundleError: it cannot be used, or holds no network that labels tiles alone.
        ConfigError: it is for other classes or bands.
    """
    from geoseg.training.starting import measured_scaling

    bundle = read_bundle(config.path(path))
    description = bundle.description
    if description.method != "network":
        raise BundleError(
            f"{bundle.path} holds a {description.method} model, which is no coarse.teacher: give one of a network."
        )
    names, wanted = [item.name for item in description.classes], [item.name for item in config.data.table()]
    if names != wanted:
        raise ConfigError(
            f"coarse.teacher {bundle.path} has the classes {', '.join(names)} where data.classes are "
            f"{', '.join(wanted)}: give the same ones in the same order."
        )
    if len(description.bands) != bands:
        raise ConfigError(
            f"coarse.teacher {bundle.path} is for {len(description.bands)} bands where the scenes give {bands}."
        )
    record = description.normalisation
    scalings = [record.build()] if record else [measured_scaling([site]) for site in sites]
    return Teacher(module_of(bundle), scalings, losses)
