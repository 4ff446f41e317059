"""Tiles against one pass: how much a network's labels and scores change where it sees a tile instead of everything.

The receptive field says how far a score *can* depend on a pixel; how much that matters for the map is measured here,
on a picture and for several halos, and a halo is chosen for a stated share of labels that may differ.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from geoseg.errors import ConfigError
from geoseg.networks.one_pass import CORE, Decision, Difference, OnePass, Profile
from geoseg.networks.pictures import scene_like
from geoseg.networks.receptive_field import exact_halo, measure_halo
from geoseg.networks.scene_pooling import pools_over_scene

# Share of labels that may differ from those of one pass, unless told otherwise.
BOUND = 1e-4
# The same for networks that are judged on scenes of their own, at tiles of the size they will have; and the largest
# halo that they are given, in pixels.
SCENE_BOUND = 5e-4
SCENE_HALO = 256
# Relative error of scores up to which tiles are called exact: a few roundings of float32.
EXACT = 1e-5
# What one pass sees beyond the largest halo, in pixels.
_MARGIN = 64
# Halos are tried in steps of at least so many pixels.
_STEP = 16
# Weights of a whole branch at most this large were put there to start training with the branch shut.
_SHUT = 1e-4


@dataclass(frozen=True)
class Comparison:
    """Differences by halo, ascending, and what they can be judged by.

    ``decision`` is ``labels`` where the picture gives at least two labels their share, ``scores`` where nearly all of
    it is one label, which untrained networks often give, and ``nothing`` where the scores are the same everywhere.
    """

    differences: tuple[Difference, ...]
    decision: Decision

    def smallest(self, bound: float) -> Difference | None:
        """Return the smallest halo that, like all larger ones, keeps ``bound``; None where the largest does not."""
        kept = None
        for difference in reversed(self.differences):
            if difference.expected(self.decision) > bound:
                break
            kept = difference
        return kept


@dataclass(frozen=True)
class Measured:
    """The halo chosen for a network, and why.

    Attributes:
        halo: pixels, a multiple of the stride.
        limit: halo with which tiles are certainly exact; None where the network pools or attends over the whole tile.
        decision: ``structure`` where the halo is the limit, else see :class:`Comparison`.
        difference: from one pass, at the halo.
        exact: whether scores at the halo equal those of one pass to rounding: an error up to :data:`EXACT`, or
            what float32 allows for where the structure says so.
        picture: side in pixels of the picture that was seen at once.
    """

    halo: int
    limit: int | None
    decision: Literal["structure", "labels", "scores", "nothing"]
    difference: Difference
    exact: bool
    picture: int


def choose_halo(
    network: nn.Module,
    in_channels: int,
    stride: int,
    *,
    bound: float = BOUND,
    maximum: int = 256,
    tile: int = 512,
    seed: int = 0,
) -> Measured:
    """Choose the smallest halo at which no more than ``bound`` of the labels differ from those of one pass.

    A network that is exact within ``maximum`` gets the halo that makes it so.  One that reaches further is compared
    with itself on a random picture, from the radius that its gradients tell on; one that pools over the whole tile is
    compared in tiles of ``tile`` pixels, and where nothing keeps the bound gets a quarter of them.
    Branches that wait at zero for training to open them are opened first, in a copy: shut, they hide their reach.

    Args:
        network: from (N, ``in_channels``, H, W) to scores (N, K, H, W).
        in_channels: number of bands.
        stride: the shift in pixels that the network follows exactly.
        bound: share of labels.
        maximum: largest halo in pixels to answer.
        tile: side in pixels of the tiles of a network that depends on it.
        seed: of the random picture.

    Raises:
        ConfigError: ``bound`` is not between 0 and 1, or another number is not positive.
    """
    _check_bound(bound)
    network = opened(network)
    maximum = max(stride, maximum // stride * stride)
    reach = measure_halo(network, in_channels, stride, maximum=maximum, seed=seed)
    if reach.limit is None:
        return _fixed_tile(network, in_channels, stride, bound, min(maximum, tile // 4), tile, seed)
    if reach.exact:
        return measure_at(network, in_channels, stride, reach.radius, limit=reach.limit, seed=seed)
    pixels = scene_like(in_channels, _side(maximum, stride), seed=seed)
    whole = OnePass(network, pixels, stride)
    steps = halos(maximum, stride)
    at = min(range(len(steps)), key=lambda i: abs(steps[i] - reach.radius))
    found = {at: whole.difference(steps[at])}
    while found[at].expected(whole.decision) <= bound and at > 0:
        at -= 1
        found[at] = whole.difference(steps[at])
    while found[at].expected(whole.decision) > bound and at < len(steps) - 1:
        at += 1
        found.setdefault(at, whole.difference(steps[at]))
    return _measured(found[at], reach.limit, whole)


def choose_halo_on(
    network: nn.Module, pictures: Sequence[torch.Tensor], stride: int, tile: int, *, bound: float = SCENE_BOUND
) -> Measured | None:
    """Choose the smallest halo at which no more than ``bound`` of the labels differ on scenes of the network's own.

    What differs lies near the edges of tiles; so tiles without a halo are compared with one pass, by the distance from
    their edges, and from that follows what larger ones with any halo would show.

    Args:
        network: from (N, C, H, W) to scores (N, K, H, W), trained.
        pictures: parts of scenes as network input (1, C, S, S), of :func:`picture_side` pixels.
        stride: the shift in pixels that the network follows exactly.
        tile: side in pixels that tiles will have, halo included.
        bound: share of labels.

    Returns:
        The halo, or None where :func:`choose_halo` has to choose: tiles can be made exact, or nothing but their size or
        the whole scene decides.

    Raises:
        ConfigError: ``bound`` is not between 0 and 1.
    """
    _check_bound(bound)
    maximum = _scene_halo(stride)
    limit = exact_halo(network, pictures[0].shape[1], stride)
    if limit is None or limit <= maximum or pools_over_scene(network):
        return None
    passes = [OnePass(network, picture, stride, core=2 * (maximum + _MARGIN)) for picture in pictures]
    profile = functools.reduce(Profile.with_, (one.by_distance() for one in passes))
    # Pictures that are nearly all of one label say less than the others.
    best = min(passes, key=lambda one: ("labels", "scores", "nothing").index(one.decision))
    steps = [halo for halo in halos(maximum, stride) if 4 * halo <= tile]
    differences = tuple(profile.difference(halo, tile - 2 * halo) for halo in steps)
    chosen = Comparison(differences, best.decision).smallest(bound)
    return _measured(chosen or differences[-1], limit, best)


def picture_side(stride: int) -> int:
    """Return the side in pixels of the pictures of :func:`choose_halo_on`."""
    return -(-(4 * _scene_halo(stride) + 2 * _MARGIN) // (2 * stride)) * 2 * stride


def _scene_halo(stride: int) -> int:
    return max(stride, SCENE_HALO // stride * stride)


def measure_at(
    network: nn.Module,
    in_channels: int,
    stride: int,
    halo: int,
    *,
    limit: int | None,
    tile: int = 512,
    seed: int = 0,
) -> Measured:
    """Compare tiles of a given halo with one pass over a random picture.

    Args:
        network: from (N, ``in_channels``, H, W) to scores (N, K, H, W); branches shut by zeros stay so.
        in_channels: number of bands.
        stride: the shift in pixels that the network follows exactly.
        halo: pixels, a multiple of ``stride``.
        limit: from :func:`geoseg.networks.receptive_field.exact_halo`.
        tile: side in pixels of the tiles of a network that depends on it.
        seed: of the random picture.
    """
    if limit is None:
        whole = OnePass(network, scene_like(in_channels, 2 * tile, seed=seed), stride)
        difference = whole.tile_differences(tile, [min(halo, tile // 2 - 1)])[0]
        return _measured(difference, None, whole, halo=halo)
    whole = OnePass(network, scene_like(in_channels, _side(halo, stride), seed=seed), stride)
    return _measured(whole.difference(halo), limit, whole)


def compare(
    network: nn.Module, pixels: torch.Tensor, stride: int, steps: Sequence[int], tile: int | None
) -> Comparison:
    """Compare one pass over ``pixels`` (1, C, H, W) with tiles of each halo of ``steps``, cut from their middle.

    What is compared is what 64 pixels and the largest halo leave of the picture, or with ``tile`` the core of the tile.

    Args:
        network: from (1, C, H, W) to scores (1, K, H, W).
        pixels: the picture as network input; it must reach beyond the largest halo.
        stride: tiles begin at multiples of it.
        steps: halos in pixels, ascending multiples of ``stride``.
        tile: side in pixels of the tiles of a network that pools over them; None lets tiles grow with the halo.

    Raises:
        ConfigError: the picture is too small for the halos.
    """
    core = min(pixels.shape[-2:]) - 2 * (max(steps) + _MARGIN)
    whole = OnePass(network, pixels, stride, core=tile or core)
    if tile is not None:
        return Comparison(whole.tile_differences(tile, steps), whole.decision)
    return Comparison(tuple(whole.difference(halo) for halo in steps), whole.decision)


def halos(maximum: int, stride: int) -> list[int]:
    """Return the halos to try: 0 to ``maximum`` in multiples of ``stride``, at least 16 pixels apart but for the last.

    >>> halos(100, 32)
    [0, 32, 64, 96]
    """
    last = maximum // stride * stride
    return [*range(0, last, -(-_STEP // stride) * stride), last]


def opened(network: nn.Module) -> nn.Module:
    """Return a copy in which no branch is shut by zero scales, as training would have it.

    Encoders start whole residual branches with the scale of their last normalisation (or a scale of its own, called
    ``gamma``) at zero or nearly so; the copy has 1 there.  A network without such branches comes back as a plain copy.
    """
    network = copy.deepcopy(network)
    with torch.no_grad():
        for module in network.modules():
            for name, value in module.named_parameters(recurse=False):
                scale = name == "gamma" or (name == "weight" and value.ndim == 1)
                if scale and value.numel() and float(value.abs().max()) <= _SHUT:
                    value.fill_(1.0)
    return network


def _fixed_tile(
    network: nn.Module, in_channels: int, stride: int, bound: float, maximum: int, tile: int, seed: int
) -> Measured:
    """Choose the halo of a network whose scores depend on the size of the tile."""
    whole = OnePass(network, scene_like(in_channels, 2 * tile, seed=seed), stride)
    comparison = Comparison(whole.tile_differences(tile, halos(maximum, stride)), whole.decision)
    chosen = comparison.smallest(bound)
    return _measured(chosen or comparison.differences[-1], None, whole)


def _measured(difference: Difference, limit: int | None, whole: OnePass, *, halo: int | None = None) -> Measured:
    halo = difference.halo if halo is None else halo
    structure = limit is not None and halo >= limit
    return Measured(
        halo=halo,
        limit=limit,
        decision="structure" if structure else whole.decision,
        difference=difference,
        exact=limit is not None and difference.score_error <= (max(EXACT, whole.rounding) if structure else EXACT),
        picture=whole.pixels.shape[-1],
    )


def _side(halo: int, stride: int) -> int:
    """Return the side of a picture that goes beyond a halo round what is compared, a multiple of the stride."""
    return -(-(CORE + 2 * halo + 2 * _MARGIN) // (2 * stride)) * 2 * stride


def _check_bound(bound: float) -> None:
    if not 0 < bound < 1:
        raise ConfigError(f"the bound on labels that differ is {bound}: give a share between 0 and 1, such as {BOUND}.")
