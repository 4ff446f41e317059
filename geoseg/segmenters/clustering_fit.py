"""Fitting of differentiable feature clustering to one scene: sample, training, population statistics, merging.

Source: W. Kim, A. Kanezaki, M. Tanaka, *Unsupervised Learning of Image Segmentation Based on Differentiable Feature
Clustering*, IEEE Transactions on Image Processing 29, 2020, section III (arXiv 2007.09990).  The authors fit and label
one image; here one network is fitted to a sample of the scene and then frozen, so that a segment keeps its number in
every tile.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from geoseg.errors import ConfigError, SceneError
from geoseg.grid import Window
from geoseg.networks.feature_clustering import FeatureClusteringNet
from geoseg.scene import Pixels, Scene
from geoseg.segmenters.interface import Tiles

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Corner = tuple[int, int]
UNLABELLED = 255
_OVERVIEW_SIDE = 1024
_EARLIER = 8
_ENOUGH_VALID = 0.95
_LOOKS = 8  # sample tiles read in one part of the scene before the best of them is taken


@dataclass(frozen=True)
class ClusteringSettings:
    """Hyper-parameters of the fit.

    The defaults fit in seconds on one processor core.  The authors' code has ``channels=100``, ``iterations=1000``, and
    ``continuity=1`` for a single image; :meth:`authors` returns its settings for several images, on larger tiles.

    Attributes:
        channels: q, features and initial clusters.
        convolutions: M, 3×3 convolutions; also the halo in pixels.
        iterations: most steps of gradient descent.
        min_labels: training stops once no more than this many labels (or ``target_segments``, if larger) are left.
        learning_rate: of stochastic gradient descent.
        momentum: of stochastic gradient descent.
        similarity: weight of the cross-entropy with the pixels' own labels.
        continuity: weight of the response differences between neighbours (the paper's mu).
        scribble: weight of the cross-entropy with scribbles (the paper's nu).
        seed: of the sample and of the initial weights.
        target_segments: merge to this many segments at most; None keeps what training leaves.
        fit: ``tiles`` at full resolution, or one ``overview`` of at most 1024 × 1024 pixels.
        fit_tiles: number of sample tiles.
        fit_tile_size: their side in pixels.
        batch: tiles per step.
        threads: processor threads of the fit; sums round differently with another number, so it is fixed.
    """

    channels: int = 32
    convolutions: int = 2
    iterations: int = 100
    min_labels: int = 3
    learning_rate: float = 0.1
    momentum: float = 0.9
    similarity: float = 1.0
    continuity: float = 5.0
    scribble: float = 0.5
    seed: int = 0
    target_segments: int | None = None
    fit: Literal["tiles", "overview"] = "tiles"
    fit_tiles: int = 16
    fit_tile_size: int = 128
    batch: int = 4
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse values that no fit can use.

        Raises:
            ConfigError: a count below 1, a rate or weight below 0 or not finite, or an unknown kind of fit.
        """
        counts = (
            "channels",
            "convolutions",
            "iterations",
            "min_labels",
            "fit_tiles",
            "fit_tile_size",
            "batch",
            "threads",
        )
        for name in (*counts, *(["target_segments"] if self.target_segments is not None else [])):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}: feature clustering needs a whole number of at least 1.")
        for name in ("learning_rate", "momentum", "similarity", "continuity", "scribble"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name} is {value!r}: feature clustering needs a number of at least 0.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed is {self.seed!r}: give a whole number from 0 to 2^63 - 1.")
        if self.fit not in ("tiles", "overview"):
            raise ConfigError(f"fit is {self.fit!r}: it is either 'tiles' or 'overview'.")

    @classmethod
    def authors(cls, seed: int = 0, target_segments: int | None = None) -> ClusteringSettings:
        """Return the settings of the authors' code for several images (reference mode)."""
        return cls(channels=100, iterations=1000, fit_tile_size=256, seed=seed, target_segments=target_segments)


class Batch(NamedTuple):
    """Network input of one step: ``pixels`` (N, C, H, W) float32, ``valid`` (N, H, W) bool, None if all pixels are."""

    pixels: torch.Tensor
    valid: torch.Tensor | None


class Training(NamedTuple):
    """What a training did.

    Attributes:
        steps: steps taken.
        labels: labels alive in the last pass over the sample.
        loss: of the last step.
        earlier: weights before each of the last passes, kept where a number of segments was asked for.
    """

    steps: int
    labels: int
    loss: float
    earlier: tuple[dict[str, torch.Tensor], ...]


def similarity_loss(response: torch.Tensor, target: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean cross-entropy of ``response`` with ``target``; 0 where no pixel counts.

    With the response's own argmax as target this is the paper's feature similarity (section III-B1), between 0 and
    log q; with scribbles it is the scribble loss (section III-C).

    Args:
        response: (N, q, H, W) float.
        target: (N, H, W) int64 channels; any value where ``counted`` is False.
        counted: (N, H, W) bool, the pixels that count; None means all.
    """
    # Gathered by hand: PyTorch's own cross-entropy of maps has no deterministic form on GPUs.
    inside = target if counted is None else torch.where(counted, target, torch.zeros_like(target))
    loss = -F.log_softmax(response, dim=1).gather(1, inside.unsqueeze(1)).squeeze(1)
    if counted is None:
        return loss.mean()
    weight = counted.to(loss.dtype)
    return (loss * weight).sum() / weight.sum().clamp(min=1.0)


def scribble_loss(
    response: torch.Tensor, scribbles: torch.Tensor, valid: torch.Tensor | None = None, unlabelled: int = UNLABELLED
) -> torch.Tensor:
    """Return the mean cross-entropy with ``scribbles`` (N, H, W) where these are not ``unlabelled``; 0 without any.

    Source: section III-C.  ``response`` is (N, q, H, W); a scribble's value is its channel.
    """
    counted = scribbles != unlabelled
    return similarity_loss(response, scribbles.long(), counted if valid is None else counted & valid)


def continuity_loss(response: torch.Tensor, valid: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean absolute difference of neighbours below each other, and of neighbours beside each other.

    Means run over channels too, so a weight does not depend on q (section III-B2 writes a sum).

    Args:
        response: (N, q, H, W) float.
        valid: (N, H, W) bool; pairs with a pixel that is not valid do not count.
    """
    return (_mean_difference(response, valid, 2), _mean_difference(response, valid, 3))


def _mean_difference(response: torch.Tensor, valid: torch.Tensor | None, axis: int) -> torch.Tensor:
    size = response.shape[axis]
    if size < 2:
        return response.new_zeros(())
    difference = (response.narrow(axis, 1, size - 1) - response.narrow(axis, 0, size - 1)).abs()
    if valid is None:
        return difference.mean()
    pairs = valid.narrow(axis - 1, 1, size - 1) & valid.narrow(axis - 1, 0, size - 1)
    weight = pairs.unsqueeze(1).to(difference.dtype)
    return (difference * weight).sum() / (weight.sum() * response.shape[1]).clamp(min=1.0)


def draw_sample(scene: Scene, settings: ClusteringSettings) -> Tiles:
    """Read the tiles a network is fitted to, all of one shape.

    The scene is divided into as many parts as tiles are wanted; in each, places on a regular grid are looked at in an
    order drawn from the seed, and the first that is nearly all valid is taken, or the best of a few.

    Raises:
        SceneError: no valid pixel, or the file cannot be read.
    """
    if settings.fit == "overview":
        factor = math.ceil(max(scene.shape) / _OVERVIEW_SIDE)
        shape = (math.ceil(scene.shape[0] / factor), math.ceil(scene.shape[1] / factor))
        coarse = scene if factor == 1 else scene.on_grid(scene.geobox.zoom_to(shape))
        return _stacked([replace(coarse.read(coarse.window), window=scene.window)])
    height, width = (min(settings.fit_tile_size, side) for side in scene.shape)
    parts = _parts(scene.shape, (height, width), settings)
    chosen: list[Pixels] = []
    looks, before = 0, -1
    # In a scene with little data every place is looked at until one has some; after that, patience ends.
    while looks > before and (not chosen or looks < _LOOKS * settings.fit_tiles):
        before = looks
        for part in parts:
            best, share = None, 0.0
            for corner in islice(part, _LOOKS):
                pixels = scene.read(Window(*corner, height, width))
                looks += 1
                valid = float(pixels.valid.mean())
                best, share = (pixels, valid) if valid > share else (best, share)
                if share >= _ENOUGH_VALID:
                    break
            chosen += [best] if best is not None else []
            if len(chosen) == settings.fit_tiles:
                return _stacked(chosen)
    if not chosen:
        raise SceneError(f"{scene.path} has no valid pixel where it was looked at: check its nodata value.")
    return _stacked(chosen)


def _parts(shape: tuple[int, int], tile: tuple[int, int], settings: ClusteringSettings) -> list[Iterator[Corner]]:
    """Return, for each part of the scene, the upper left corners of its places; parts and places in drawn order."""
    rng = np.random.Generator(np.random.PCG64(settings.seed))
    across = math.isqrt(settings.fit_tiles)
    strata = []
    axes = zip(shape, tile, (across, math.ceil(settings.fit_tiles / across)), strict=True)
    for size, side, count in axes:
        starts = np.round(np.linspace(0, size - side, math.ceil(size / side))).astype(int)
        strata.append([part for part in np.array_split(starts, count) if len(part)])
    parts = [_drawn(rows, cols, rng.permutation(len(rows) * len(cols))) for rows in strata[0] for cols in strata[1]]
    return [parts[i] for i in rng.permutation(len(parts))]


def _drawn(rows: NDArray[np.int_], cols: NDArray[np.int_], order: NDArray[np.int_]) -> Iterator[Corner]:
    return ((int(rows[i // len(cols)]), int(cols[i % len(cols)])) for i in order)


def _stacked(pixels: Sequence[Pixels]) -> Tiles:
    return Tiles(
        torch.from_numpy(np.stack([item.data.astype(np.float32) for item in pixels])),
        torch.from_numpy(np.stack([item.valid for item in pixels])),
        tuple(item.window for item in pixels),
    )


def batches(pixels: torch.Tensor, valid: torch.Tensor, size: int) -> list[Batch]:
    """Split sample tiles (N, C, H, W), in their order, into batches of nearly equal length, at most ``size``."""
    count = math.ceil(len(pixels) / size)
    parts = zip(torch.tensor_split(pixels, count), torch.tensor_split(valid, count), strict=True)
    return [
        Batch(part.contiguous(memory_format=torch.channels_last), None if bool(mask.all()) else mask)
        for part, mask in parts
    ]


def train(
    network: FeatureClusteringNet,
    sample: Sequence[Batch],
    settings: ClusteringSettings,
    progress: Progress | None = None,
) -> Training:
    """Train ``network`` in place on ``sample``, cycling through its batches in their order.

    Labels are counted over each whole pass, before its steps, and training stops when few enough are left; at least
    one pass is made.  ``progress`` is told the steps done and the most there can be.
    """
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    enough = max(settings.min_labels, settings.target_segments or 0)
    network.train()
    step, labels, loss = 0, 0, math.inf
    earlier: deque[dict[str, torch.Tensor]] = deque(maxlen=_EARLIER)
    while step < settings.iterations:
        if settings.target_segments is not None and step > 0:
            earlier.append({name: value.clone() for name, value in network.state_dict().items()})
        seen = torch.zeros(settings.channels, dtype=torch.bool)
        for batch in sample:
            response = network(batch.pixels, batch.valid)
            target = response.argmax(dim=1)
            seen |= _occurring(target, batch.valid, settings.channels)
            down, across = continuity_loss(response, batch.valid)
            total = settings.similarity * similarity_loss(response, target, batch.valid)
            total = total + settings.continuity * (down + across)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            step, loss = step + 1, float(total.detach())
            if step == settings.iterations:
                break
            if progress is not None:
                progress(step, settings.iterations)
        labels = int(seen.sum())
        logger.info("step %d of at most %d: %d labels, loss %.4f", step, settings.iterations, labels, loss)
        if labels <= enough:
            break
    if progress is not None:
        progress(settings.iterations, settings.iterations)
    return Training(step, labels, loss, tuple(earlier))


def _occurring(labels: torch.Tensor, valid: torch.Tensor | None, channels: int) -> torch.Tensor:
    """Return which channels occur among the valid labels: (channels,) bool, on the CPU."""
    chosen = labels.flatten() if valid is None else labels[valid]
    return torch.bincount(chosen, minlength=channels).cpu() > 0


@torch.no_grad()
def freeze(network: FeatureClusteringNet, sample: Sequence[Batch]) -> None:
    """Replace the running statistics by those of ``sample`` under the final weights, and set evaluation mode for good.

    The running averages of training lag behind the weights, and statistics of single tiles would give a segment
    another meaning in every tile.
    """
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    network.train()
    for batch in sample:
        network(batch.pixels, batch.valid)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


@torch.no_grad()
def census(network: FeatureClusteringNet, sample: Sequence[Batch]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Label ``sample`` and return each channel's number of pixels (q,) and the mean response there (q, q).

    Rows of channels that no pixel has are 0.
    """
    channels = network.conv3.out_channels
    sizes = torch.zeros(channels, dtype=torch.int64)
    sums = torch.zeros(channels, channels, dtype=torch.float64)
    for batch in sample:
        response = network(batch.pixels)
        labels = response.argmax(dim=1)
        if batch.valid is not None:
            labels = torch.where(batch.valid, labels, -1)
        for channel in torch.unique(labels[labels >= 0]).tolist():
            here = labels == channel
            sizes[channel] += int(here.sum())
            sums[channel] += response.movedim(1, -1)[here].to(torch.float64).sum(0).cpu()
    return sizes.numpy(), (sums / sizes.clamp(min=1).unsqueeze(1)).numpy()


def merge(sizes: NDArray[np.int64], means: NDArray[np.float64], target: int | None) -> NDArray[np.int16]:
    """Return the final segment of every channel, -1 for channels that do not occur: (q,) int16.

    The pair whose union adds least to the variance within segments is merged until ``target`` are left; ties go to the
    smallest channels.  Segments are numbered by decreasing size, ties by smallest channel.

    Args:
        sizes: (q,) pixels per channel.
        means: (q, q) mean response of each channel's pixels.
        target: most segments; None merges nothing.
    """
    members = [[int(channel)] for channel in np.flatnonzero(sizes)]
    weight = [float(sizes[group[0]]) for group in members]
    centre = [means[group[0]].astype(np.float64) for group in members]
    while target is not None and len(members) > max(target, 1):
        count = len(members)
        middle = np.stack(centre)
        heavy = np.array(weight)
        cost = np.square(middle[:, None] - middle[None]).sum(-1) * np.outer(heavy, heavy) / np.add.outer(heavy, heavy)
        cost[np.tril_indices(count)] = np.inf
        first, second = divmod(int(np.argmin(cost)), count)
        both = weight[first] + weight[second]
        centre[first] = (weight[first] * centre[first] + weight[second] * centre[second]) / both
        weight[first] = both
        members[first] += members[second]
        del members[second], weight[second], centre[second]
    table = np.full(len(sizes), -1, np.int16)
    order = sorted(range(len(members)), key=lambda group: (-weight[group], min(members[group])))
    for number, group in enumerate(order):
        table[members[group]] = number
    return table
