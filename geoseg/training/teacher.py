"""A model that has learned before: its map, in agreement with coarse labels, is what another network learns from."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from torch import nn

from geoseg.bundle import read_bundle
from geoseg.errors import BundleError, ConfigError
from geoseg.grid import Window
from geoseg.losses.block_agreement import agreeing
from geoseg.losses.coarse_labels import CoarseLabelLoss
from geoseg.networks.inference import main_output
from geoseg.normalisation import Normalisation
from geoseg.segmenters.interface import scaled
from geoseg.segmenters.network import module_of
from geoseg.training.config import TrainConfig
from geoseg.training.labels import IGNORE, Labels
from geoseg.training.patches import Batch, Drawing, collate, read_window
from geoseg.training.site import Site

# A scene is labelled in squares of so many pixels, with so many more round them: their sum is what networks that halve
# their maps eight times can take, and cells that an edge of the square cuts are seen whole.
_SQUARE, _ROUND = 512, 128
# Turned over, a patch shows the same ground: what a network makes of all four is surer than what it makes of one.
_VIEWS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


class Teacher:
    """Labels pixels as the network of a bundle does, moved in each block to the shares of its coarse class.

    The network sees them as they are, mirrored either way and both ways, and its log-probabilities are averaged.

    Args:
        network: from scaled pixels to scores.
        scalings: of the bands: one of each site that is trained on, or one for all.
        losses: of the sources of coarse labels, whose tables say what the classes of blocks are made of.
        device: asked for where the network shall run, once it is used.
    """

    def __init__(
        self,
        network: nn.Module,
        scalings: Sequence[Normalisation],
        losses: Sequence[CoarseLabelLoss],
        device: Callable[[], torch.device] = lambda: torch.device("cpu"),
    ) -> None:
        self._network, self._scalings, self._losses = network.eval().requires_grad_(False), scalings, losses
        self._device = device

    @torch.no_grad()
    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the classes of pixels, (N, H, W) int64, 255 for those of no block, of a batch as it was read.

        Where there are several sources, scores are moved by each in turn, so that the last one is met exactly.
        """
        batch = {name: value.to(self._device()) for name, value in batch.items()}
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
        return main_output(self._network(seen.flip(axes))).flip(axes).float().log_softmax(1)

    def window(self, number: int, site: Site, window: Window) -> NDArray[np.uint8]:
        """Return the classes of a window of site ``number``, (H, W), 255 for pixels of no block.

        Raises:
            SceneError: the scene cannot be read there.
        """
        patch = replace(read_window(site, window), site=number)
        if not any((blocks.numbers >= 0).any() for blocks in patch.blocks.values()):
            return np.full(window.shape, IGNORE, np.uint8)
        return self.labels(collate([patch], [0]))[0].cpu().numpy().astype(np.uint8)


class TaughtLabels(Labels):
    """What a teacher says of a scene: labelled square by square where it is looked at, once, and kept.

    Squares are larger than most patches, so that cells are met whole, and labels do not depend on who asks first.

    Args:
        teacher: that labels.
        number: of the site.
        site: with its coarse labels.
    """

    def __init__(self, teacher: Teacher, number: int, site: Site) -> None:
        self._teacher, self._number, self._site = teacher, number, site
        # Compressed: maps of scenes that are larger than memory fit into it so.
        self._made: dict[tuple[int, int], bytes] = {}
        self._lock = threading.Lock()

    def burn(self, affine: Affine, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the classes of the nearest pixels, 255 beyond the scene and where the teacher knows of no block.

        Raises:
            SceneError: the scene cannot be read there.
        """
        rows, cols = np.indices(shape) + 0.5
        to_site: Any = ~self._site.scene.geobox.affine * affine
        col, row = (np.floor(each).astype(np.int64) for each in to_site * (cols, rows))
        height, width = self._site.scene.shape
        inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        places = np.where(inside, row // _SQUARE * width + col // _SQUARE, -1)
        found = np.full(shape, IGNORE, np.uint8)
        for place in np.unique(places[inside]).tolist():
            own = places == place
            square = self._square(*divmod(place, width))
            found[own] = square[row[own] % _SQUARE, col[own] % _SQUARE]
        return found

    def _square(self, row: int, col: int) -> NDArray[np.uint8]:
        # One at a time: several would not be labelled sooner, and take as many times the memory.
        with self._lock:
            if (row, col) not in self._made:
                side = _SQUARE + 2 * _ROUND
                window = Window(row * _SQUARE - _ROUND, col * _SQUARE - _ROUND, side, side)
                found = self._teacher.window(self._number, self._site, window)[_ROUND:-_ROUND, _ROUND:-_ROUND]
                self._made[row, col] = zlib.compress(found.tobytes(), 1)
        return np.frombuffer(zlib.decompress(self._made[row, col]), np.uint8).reshape(_SQUARE, _SQUARE)


def taught_by(teacher: Teacher, drawing: Drawing) -> Drawing:
    """Return the same drawing of patches, which have what the teacher says in place of their coarse labels."""
    sites = [
        replace(site, coarse={}, taught=TaughtLabels(teacher, number, site))
        for number, site in enumerate(drawing.sites)
    ]
    return replace(drawing, sites=sites)


def open_teacher(
    config: TrainConfig,
    path: str,
    bands: int,
    sites: Sequence[Site],
    losses: Sequence[CoarseLabelLoss],
    device: Callable[[], torch.device] = lambda: torch.device("cpu"),
) -> Teacher:
    """Open the bundle ``coarse.teacher`` names.

    Args:
        config: of the run.
        path: as the configuration has it.
        bands: of the scenes.
        sites: that are trained on, by which bands are scaled where the bundle leaves that to scenes.
        losses: of the sources.
        device: as of :class:`Teacher`.

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
    return Teacher(module_of(bundle), scalings, losses, device)
