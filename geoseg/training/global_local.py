"""Training of GLNet in its three stages, each of which begins with the weights of the one before.

Memory holds the graph of one sub-batch of patches, or of the overviews of one batch, however many patches a scene has:
gradients are added up sub-batch by sub-batch.  Source: Chen et al. 2019, arXiv 1905.06368, with the
numbers of the code released with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from geoseg.errors import ConfigError, RunError
from geoseg.losses.global_local import GlobalLocalLoss, labels_at
from geoseg.networks.glnet import CollaborativeNet, GlobalNet, GlobalToLocalNet, Mode
from geoseg.networks.glnet_exchange import Merging, crops
from geoseg.networks.glnet_fpn import BranchMaps, Stages, resized
from geoseg.networks.patch_grid import Corner, PatchGrid
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.global_local_window import WindowInput
from geoseg.training.labels import IGNORE

RATES: dict[Mode, float] = {"global": 5e-5, "local": 2e-5, "collaborative": 5e-5}
EPOCHS: dict[Mode, int] = {"global": 120, "local": 50, "collaborative": 120}
_POWER = 0.9
WEIGHT_DECAY = 5e-4
_TRAINED: dict[Mode, tuple[str, ...]] = {
    "global": ("resnet_global", "fpn_global"),
    "local": ("resnet_local", "fpn_local", "ensemble_conv"),
    "collaborative": ("resnet_global", "fpn_global", "ensemble_conv"),
}


@dataclass(frozen=True)
class LabelledScene:
    """A scene, or a macro-window of one, with its labels.

    Attributes:
        pixels: (C, H, W) scene values, uint8 or float32, 0 where not valid.
        valid: (H, W) bool.
        labels: (H, W) integers, channels of the scores; 255 where no class is known.
    """

    pixels: torch.Tensor
    valid: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> LabelledScene:
        """Return it on ``device``."""
        return LabelledScene(self.pixels.to(device), self.valid.to(device), self.labels.to(device))

    def turned(self, generator: torch.Generator) -> LabelledScene:
        """Return it with its columns reversed, by an even chance, and turned by one to three quarters, by another."""
        flipped = torch.rand((), generator=generator).item() < 0.5
        turns = 0
        if torch.rand((), generator=generator).item() < 0.5:
            turns = int(torch.randint(1, 4, (), generator=generator).item())

        def turn(values: torch.Tensor) -> torch.Tensor:
            return torch.rot90(values.flip(-1) if flipped else values, turns, (-2, -1))

        return LabelledScene(turn(self.pixels), turn(self.valid), turn(self.labels))


def next_stage(network: GlobalNet, *, pretrained: bool = False) -> GlobalToLocalNet | CollaborativeNet:
    """Return the network of the next stage, which has the weights of this one where it has the same parts.

    Args:
        network: trained in its stage; it is left as it is.
        pretrained: start the local encoder from ImageNet weights, which are downloaded.

    Raises:
        ConfigError: there is no stage after the third, or weights cannot be had.
    """
    sizes = (network.in_channels, network.num_classes, network.encoder)
    if isinstance(network, CollaborativeNet):
        raise ConfigError("GLNet has three stages, and the network is of the third: there is nothing to follow.")
    if not isinstance(network, GlobalToLocalNet):
        local = GlobalToLocalNet(*sizes, pretrained)
        local.load_state_dict(local.state_dict() | network.state_dict())
        return local
    known = network.state_dict()
    both = CollaborativeNet(*sizes)
    own = both.state_dict()
    fixed = {f"fixed.{name}": value for name, value in known.items() if f"fixed.{name}" in own}
    both.load_state_dict(own | {name: value for name, value in known.items() if name in own} | fixed)
    return both


def begin_training(network: GlobalNet) -> list[nn.Parameter]:
    """Put the parts that the network's stage trains into training mode, freeze the others, and return what is trained.

    Frozen parts stay in evaluation mode, so neither their weights nor their statistics change.
    """
    network.eval().requires_grad_(False)
    parts = [network.get_submodule(name) for name in _TRAINED[network.mode]]
    return [value for part in parts for value in part.train().requires_grad_().parameters()]


def add_gradients(
    network: GlobalNet,
    scenes: Sequence[LabelledScene],
    loss: GlobalLocalLoss,
    settings: GlobalLocalSettings,
    scaling: Normalisation,
) -> float:
    """Add the gradients of a batch of scenes to the network's parameters, and return the loss.

    The loss is a sum over sub-batches of patches, in the first and third stage also the mean over the overviews.

    Args:
        network: after :func:`begin_training`.
        scenes: on the network's device.
        loss: of the stages.
        settings: sizes.
        scaling: of the bands.
    """
    inputs = [_Input(scene, scaling, settings) for scene in scenes]
    if isinstance(network, CollaborativeNet):
        return _both_ways(network, inputs, loss)
    if isinstance(network, GlobalToLocalNet):
        return sum(_patches(network, each, loss) for each in inputs)
    maps = network.overview(torch.cat([each.pixels.overview for each in inputs]))
    found = _of_overviews(network.overview_scores(maps), inputs, loss)
    found.backward()
    return found.item()


class Stage:
    """One stage in training.

    Args:
        network: of any mode, on the device to train on; its parts are put into training mode or frozen.
        settings: sizes; the authors train with six patches in a sub-batch.
        scaling: of the bands.
        loss: of the stages.
        prepare: makes the optimiser of the parameters that the stage trains, and the schedule of its rate.
    """

    def __init__(
        self,
        network: GlobalNet,
        settings: GlobalLocalSettings,
        scaling: Normalisation,
        loss: GlobalLocalLoss,
        prepare: Callable[[list[nn.Parameter]], tuple[torch.optim.Optimizer, LambdaLR]],
    ) -> None:
        self.network, self._settings, self._scaling, self._loss = network, settings, scaling, loss
        self._trained = begin_training(network)
        self.optimiser, self.schedule = prepare(self._trained)

    def step(self, scenes: Sequence[LabelledScene], *, clip: float = 0.0) -> float:
        """Do one step and return its loss, the sum over sub-batches.

        Args:
            scenes: wherever they are.
            clip: largest norm of the gradient; 0 for any.

        Raises:
            RunError: the loss is no number.
        """
        device = self._trained[0].device
        self.optimiser.zero_grad()
        placed = [each.to(device) for each in scenes]
        value = add_gradients(self.network, placed, self._loss, self._settings, self._scaling)
        if not math.isfinite(value):
            raise RunError(
                f"the loss of GLNet is {value} in step {self.schedule.last_epoch + 1}: lower the learning rate."
            )
        if clip:
            nn.utils.clip_grad_norm_(self._trained, clip)
        self.optimiser.step()
        self.schedule.step()
        return value

    def resume(self) -> None:
        """Put the network into training mode again, after it was judged."""
        begin_training(self.network)


def train_stage(
    network: GlobalNet,
    scenes: Sequence[LabelledScene],
    settings: GlobalLocalSettings,
    scaling: Normalisation,
    *,
    epochs: int | None = None,
    rate: float | None = None,
    batch: int = 6,
    loss: GlobalLocalLoss | None = None,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train a network in its stage, in place, and return the loss of each step; it ends in evaluation mode.

    Adam with the authors' weight decay, and a rate that falls as (1 - t / T)^0.9.

    Args:
        network: of any mode, on the device to train on.
        scenes: each is seen once in an epoch, in another order and turned another way.
        settings: sizes; the authors train with six patches in a sub-batch.
        scaling: of the bands.
        epochs: by default as many as the authors'.
        rate: the first learning rate, by default the authors'.
        batch: scenes of a step.
        loss: of the stages, by default with the authors' numbers.
        seed: of orders and turns.
        progress: told the step, steps in all, and the step's loss.

    Raises:
        ConfigError: no scenes.
        RunError: the loss is no number.
    """
    if not scenes:
        raise ConfigError("there are no scenes to train GLNet with: give one or more.")
    loss = loss or GlobalLocalLoss(network.num_classes)
    rounds = EPOCHS[network.mode] if epochs is None else epochs
    steps = rounds * -(-len(scenes) // batch)

    def prepare(trained: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, LambdaLR]:
        first = RATES[network.mode] if rate is None else rate
        optimiser = torch.optim.Adam(trained, first, weight_decay=WEIGHT_DECAY)
        return optimiser, LambdaLR(optimiser, lambda step: max(0.0, 1 - step / steps) ** _POWER)

    stage = Stage(network, settings, scaling, loss, prepare)
    found: list[float] = []
    for chosen in _batches(scenes, rounds, batch, torch.Generator().manual_seed(seed)):
        value = stage.step(chosen)
        found.append(value)
        if progress is not None:
            progress(len(found), steps, value)
    network.eval().requires_grad_()
    return found


class _Input:
    """A labelled scene as network input."""

    def __init__(self, scene: LabelledScene, scaling: Normalisation, settings: GlobalLocalSettings) -> None:
        self.pixels = WindowInput(scene.pixels, scene.valid, scaling, settings)
        labels = scene.labels.long().masked_fill(~scene.valid, IGNORE)
        # What is mirrored to fill a patch is known already.
        height, width = (max(0, settings.patch - int(side)) for side in labels.shape)
        self._labels = F.pad(labels, (0, width, 0, height), value=IGNORE)
        self._side = settings.patch

    def overview_labels(self, size: Sequence[int]) -> torch.Tensor:
        """Return the labels of the overview's cells, (1, h, w)."""
        return labels_at(self._labels[None], size)

    def patch_labels(self, corners: Sequence[Corner], size: Sequence[int]) -> torch.Tensor:
        """Return the labels of the cells of patches, (N, h, w)."""
        side = self._side
        return labels_at(torch.stack([self._labels[r : r + side, c : c + side] for r, c in corners]), size)


def _batches(
    scenes: Sequence[LabelledScene], epochs: int, batch: int, generator: torch.Generator
) -> Iterator[list[LabelledScene]]:
    """Yield the scenes of each step, turned."""
    for _ in range(epochs):
        order = torch.randperm(len(scenes), generator=generator).tolist()
        for start in range(0, len(order), batch):
            yield [scenes[i].turned(generator) for i in order[start : start + batch]]


def _of_overviews(scores: torch.Tensor, inputs: Sequence[_Input], loss: GlobalLocalLoss) -> torch.Tensor:
    return loss.scores(scores, torch.cat([each.overview_labels(scores.shape[-2:]) for each in inputs]))


def _patches(network: GlobalToLocalNet, scene: _Input, loss: GlobalLocalLoss) -> float:
    """Add the second stage's gradients of one scene."""
    with torch.no_grad():
        overview = network.overview(scene.pixels.overview)
    grid, total = scene.pixels.grid(overview), 0.0
    for part in scene.pixels.sub_batches(grid.corners):
        maps = network.local(scene.pixels.patches(part), overview, grid, part)
        share = network.local_share(maps)
        size = share.shape[-2:]
        scores = share + network.global_share(overview.joined, grid, part, size)
        under = resized(crops(overview.joined, grid, part), size)
        found = loss(network.local_scores(maps), scores, scene.patch_labels(part, size), maps.joined, under)
        found.backward()
        total += found.item()
    return total


def _first_look(network: CollaborativeNet, scene: _Input) -> tuple[BranchMaps, PatchGrid]:
    overview = network.overview(scene.pixels.overview)
    return overview, scene.pixels.grid(overview)


def _seen(
    network: CollaborativeNet, scene: _Input, overview: BranchMaps, grid: PatchGrid
) -> Iterator[tuple[Sequence[Corner], BranchMaps]]:
    """Yield what the local branch, which is frozen and leaves no graph, sees in the patches of a scene."""
    for part in scene.pixels.sub_batches(grid.corners):
        yield part, network.local(scene.pixels.patches(part), overview, grid, part)


def _both_ways(network: CollaborativeNet, scenes: Sequence[_Input], loss: GlobalLocalLoss) -> float:
    """Add the third stage's gradients of a batch of scenes.

    Patches are looked at twice, for the maps and for the scores, so that none are kept; and the graph of the overviews
    is gone through once, with the gradients that all patches left at its end.
    """
    merged = _merged(network, scenes)
    maps = network.extended(torch.cat([each.pixels.overview for each in scenes]), merged)
    of_overviews = _of_overviews(network.extended_scores(maps), scenes, loss)
    total = of_overviews.item()
    joined = maps.joined.detach().requires_grad_()
    for number, scene in enumerate(scenes):
        overview, grid = _first_look(network, scene)
        for part, local in _seen(network, scene, overview, grid):
            share = network.local_share(local)
            size = share.shape[-2:]
            scores = share + network.global_share(joined[number : number + 1], grid, part, size)
            found = loss.scores(scores, scene.patch_labels(part, size))
            found.backward()
            total += found.item()
    torch.autograd.backward([of_overviews, maps.joined], [None, joined.grad])
    return total


def _merged(network: CollaborativeNet, scenes: Sequence[_Input]) -> Stages:
    """Return the maps merged from all patches of each scene: (N, C, h, w) each."""
    found = []
    for scene in scenes:
        overview, grid = _first_look(network, scene)
        merging = Merging(overview.stages, grid)
        for part, local in _seen(network, scene, overview, grid):
            merging.add(part, local.stages)
        found.append(merging.maps())
    return cast(Stages, tuple(tuple(map(torch.cat, zip(*levels, strict=True))) for levels in zip(*found, strict=True)))
