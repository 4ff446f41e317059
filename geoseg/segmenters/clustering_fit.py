"""Fitting of feature clustering and superpixel backpropagation: training, population statistics, merging.

Sources: W. Kim, A. Kanezaki, M. Tanaka, *Unsupervised Learning of Image Segmentation Based on Differentiable Feature
Clustering*, IEEE Transactions on Image Processing 29, 2020, section III (arXiv 2007.09990); A. Kanezaki, *Unsupervised
Image Segmentation by Backpropagation*, ICASSP 2018.  The authors fit and label one image; here one network is fitted to
a sample of the scene and then frozen, so that a segment keeps its number in every tile.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geoseg.losses.clustering import UNLABELLED, continuity_loss, scribble_loss, similarity_loss
from geoseg.networks.feature_clustering import FeatureClusteringNet
from geoseg.segmenters.fit_settings import FitSettings
from geoseg.segmenters.scene_sample import Batch
from geoseg.segmenters.superpixels import vote

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
_EARLIER = 8


@dataclass(frozen=True, kw_only=True)
class ClusteringSettings(FitSettings):
    """Hyper-parameters of the fit, beside those of :class:`geoseg.segmenters.fit_settings.FitSettings`.

    The defaults fit in seconds on one processor core.  The authors' code has ``channels=100``, ``iterations=1000``, and
    ``continuity=1`` for a single image; :meth:`authors` returns its settings for several images, on larger tiles.

    Attributes:
        smoothing: what makes segments whole: the ``continuity`` of neighbours' responses (feature clustering), or the
            vote of ``superpixels`` on the labels that training aims at (superpixel backpropagation).
        channels: q, features and initial clusters.
        convolutions: M, 3×3 convolutions; also the halo in pixels.
        min_labels: training stops once no more than this many labels (or ``target_segments``, if larger) are left.
        momentum: of stochastic gradient descent.
        similarity: weight of the cross-entropy with the pixels' own labels.
        continuity: weight of the response differences between neighbours (the paper's mu).
        scribble: weight of the cross-entropy with scribbles (the paper's nu).
        superpixel_area: pixels of a superpixel.
        compactness: of superpixels, weight of distance in pixels against distance in colour.
    """

    smoothing: Literal["continuity", "superpixels"] = "continuity"
    channels: int = 32
    convolutions: int = 2
    min_labels: int = 3
    momentum: float = 0.9
    similarity: float = 1.0
    continuity: float = 5.0
    scribble: float = 0.5
    superpixel_area: int = 16
    compactness: float = 100.0

    def __post_init__(self) -> None:
        """Refuse values that no fit can use.

        Raises:
            ConfigError: a count below 1, a rate or weight below 0 or not finite, or an unknown choice.
        """
        super().__post_init__()
        self._check_counts("channels", "convolutions", "min_labels", "superpixel_area")
        self._check_weights("momentum", "similarity", "continuity", "scribble", "compactness")
        self._check_choice("smoothing", "continuity", "superpixels")

    @classmethod
    def authors(cls, seed: int = 0, target_segments: int | None = None) -> ClusteringSettings:
        """Return the settings of the authors' code for several images (reference mode)."""
        return cls(channels=100, iterations=1000, fit_tile_size=256, seed=seed, target_segments=target_segments)


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
            seen |= _occurring(response.argmax(dim=1), batch.valid, settings.channels)
            total = objective(response, batch, settings)
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


def objective(response: torch.Tensor, batch: Batch, settings: ClusteringSettings) -> torch.Tensor:
    """Return the loss of one step, from the responses (N, q, H, W) to a batch.

    Labels that training aims at are the responses' own or, with superpixels, those of the vote; scribbled pixels aim
    at their scribble alone.
    """
    target = response.detach().argmax(dim=1)
    counted = batch.valid
    if batch.superpixels is not None:
        target = vote(target, batch.superpixels, response.shape[1])
    if batch.scribbles is not None:
        free = batch.scribbles == UNLABELLED
        counted = free if counted is None else free & counted
    total = settings.similarity * similarity_loss(response, target, counted)
    if settings.smoothing == "continuity":
        down, across = continuity_loss(response, batch.valid)
        total = total + settings.continuity * (down + across)
    if batch.scribbles is not None:
        total = total + settings.scribble * scribble_loss(response, batch.scribbles, batch.valid)
    return total


def _occurring(labels: torch.Tensor, valid: torch.Tensor | None, channels: int) -> torch.Tensor:
    """Return which channels occur among the valid labels: (channels,) bool, on the CPU."""
    chosen = labels.flatten() if valid is None else labels[valid]
    return torch.bincount(chosen, minlength=channels).cpu() > 0


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


def merge(
    sizes: NDArray[np.int64], means: NDArray[np.float64], target: int | None, apart: int = 0
) -> NDArray[np.int16]:
    """Return the final segment of every channel, -1 for channels that do not occur: (q,) int16.

    The pair whose union adds least to the variance within segments is merged until ``target`` are left; ties go to the
    smallest channels.  Segments are numbered by decreasing size, ties by smallest channel, after those of the channels
    that stay ``apart``.

    Args:
        sizes: (q,) pixels per channel.
        means: (q, q) mean response of each channel's pixels.
        target: most segments; None merges nothing.
        apart: the first so many channels, those of scribbles, are segments of these numbers even where they do not
            occur, and never merge with each other.
    """
    members = [[int(channel)] for channel in np.flatnonzero((sizes > 0) | (np.arange(len(sizes)) < apart))]
    weight = [float(sizes[group[0]]) for group in members]
    centre = [means[group[0]].astype(np.float64) for group in members]
    while target is not None and len(members) > max(target, apart, 1):
        count = len(members)
        middle = np.stack(centre)
        heavy = np.array(weight)
        both = np.maximum(np.add.outer(heavy, heavy), 1.0)
        cost = np.square(middle[:, None] - middle[None]).sum(-1) * np.outer(heavy, heavy) / both
        cost[np.tril_indices(count)] = np.inf
        cost[:apart, :apart] = np.inf  # a merged pair keeps the place of its first, so these stay in front
        cost[(heavy == 0) | (heavy[:, None] == 0)] = np.inf
        if not np.isfinite(cost).any():
            break
        first, second = divmod(int(np.argmin(cost)), count)
        total = weight[first] + weight[second]
        centre[first] = (weight[first] * centre[first] + weight[second] * centre[second]) / total
        weight[first] = total
        members[first] += members[second]
        del members[second], weight[second], centre[second]
    table = np.full(len(sizes), -1, np.int16)
    free = sorted(range(apart, len(members)), key=lambda group: (-weight[group], min(members[group])))
    for number, group in enumerate([*range(apart), *free]):
        table[members[group]] = number
    return table
