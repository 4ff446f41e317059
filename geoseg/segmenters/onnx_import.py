"""Bundles made of ONNX files, with what the file, its user, or a trial says of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from geoseg.bundle import ClassRecord, Description, TilingRecord
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError
from geoseg.networks.pictures import scene_like
from geoseg.networks.tiling import BOUND, Comparison, Decision, Difference, halos
from geoseg.segmenters.interface import Spec
from geoseg.segmenters.onnx import TENSOR, Answer, OnnxNetwork, check_installed
from geoseg.segmenters.onnx_graph import (
    LARGEST_FILE,
    LARGEST_TILE,
    Facts,
    Graph,
    read_facts,
    read_graph,
    read_own,
)
from geoseg.segmenters.scaling import Scaling, classes_called

_TILE = 512
# What most encoders divide sides by; a fixed tile that it does not divide takes what it has in common with it.
_STRIDE = 32
# With a rarer second label than this, equal labels say little about the model.
_VARIED = 0.05
_RGB = ("red", "green", "blue")


def import_onnx(
    path: str | os.PathLike[str],
    *,
    bands: Sequence[str] | None = None,
    classes: Classes | None = None,
    resolution: float | None = None,
    scaling: Scaling | None = None,
    tile: int | None = None,
    halo: int | Literal["auto"] = "auto",
    answer: Answer | Literal["auto"] = "auto",
    licence: str = "not stated",
) -> tuple[Description, dict[str, NDArray[Any]]]:
    """Return description and content of a bundle, made of an ONNX file.

    What is not given is taken from the file: from its graph, and from the metadata of GeoDeep and Deepness.  A file
    that geoseg wrote says all of it, and is taken at its word where no more is given than classes, resolution
    or licence.

    Args:
        path: the file.
        bands: names of the input channels in order; by default red, green and blue where there are three.
        classes: in the order of the channels of the scores; a model with one channel has two, the other one first.
        resolution: true ground metres per pixel; by default the file's, else any.
        scaling: of the bands; where it does not say its kind the file's mean and deviation hold, after 0 to 255 (or the
            full scale) on 0 to 1.
        tile: side in pixels, for a model that takes any; by default the file's, else 512.
        halo: pixels; ``"auto"`` takes half the overlap that the file asks for, else measures it.
        answer: what the model gives; ``"auto"`` looks whether its last operator is a softmax or sigmoid.
        licence: of the model.

    Raises:
        BundleError: the file is refused, or its classes are not those of its scores.
        ConfigError: a size is refused, the file names no classes and none are given, or onnxruntime is not installed.
    """
    check_installed()
    name = os.fspath(path)
    data = _content(name)
    graph = read_graph(data, name)
    own = read_own(graph.metadata, name)
    untouched = scaling in (None, Scaling()) and (bands, tile, halo, answer) == (None, None, "auto", "auto")
    if own is not None and untouched:
        return _as_described(data, own, classes, resolution, licence, name), {TENSOR: np.frombuffer(data, np.uint8)}
    facts = read_facts(graph.metadata, name)
    names = _bands(graph, bands, name)
    scaling = scaling or Scaling()
    if scaling.kind is None and scaling.mean is None:
        mean, std = facts.mean or (0.0,) * len(names), facts.std or (1.0,) * len(names)
        scaling = replace(scaling, mean=mean, std=std)
    normalisation = scaling.record(len(names))
    if answer == "auto":
        answer = "probabilities" if graph.probabilities else "logits"
    threshold = 0.5 if facts.threshold is None else facts.threshold
    side = _side(graph, facts, tile, name)
    stride = _stride(side)
    model = OnnxNetwork(data, Spec(names, None, None, side, 0), answer=answer, threshold=threshold, path=name)
    table, halo_px, tiling = _tried(model, facts, classes, stride, halo, name)
    description = Description(
        method="onnx",
        settings={"answer": answer, "threshold": threshold},
        bands=list(names),
        resolution=resolution or facts.resolution,
        normalisation=normalisation,
        classes=[ClassRecord(**record) for record in table.as_dicts()],
        tile=side,
        halo=halo_px,
        stride=stride,
        tile_exact=False,
        tiling=tiling,
        licence=licence,
        training={"imported_from": os.path.basename(name)},
    )
    return description, {TENSOR: np.frombuffer(data, np.uint8)}


def _as_described(
    data: bytes, own: Description, classes: Classes | None, resolution: float | None, licence: str, path: str
) -> Description:
    """Return the description that geoseg wrote into a file, once the model is seen to be what it says.

    Raises:
        BundleError: it takes other bands or tiles, or gives scores of other classes.
    """
    answer, threshold = own.settings.get("answer"), own.settings.get("threshold", 0.5)
    if answer not in ("logits", "probabilities") or not isinstance(threshold, float) or not 0 < threshold < 1:
        raise BundleError(f"{path} does not say what its model answers with: export it again.")
    spec = Spec(tuple(own.bands), None, None, own.tile, 0)
    model = OnnxNetwork(data, spec, answer=answer, threshold=threshold, path=path)
    graph, count = model.graph, len(own.bands)
    if graph.channels not in (None, count) or graph.tile not in (None, own.tile) or own.tile > LARGEST_TILE:
        raise BundleError(
            f"{path} takes {graph.channels} bands in tiles of {graph.tile or 'any number of'} pixels, and says "
            f"{count} and {own.tile}: it is damaged, export it again."
        )
    table = classes or own.class_table()
    found = model.scores(scene_like(count, own.tile)).shape[1]
    if found != len(table):
        raise BundleError(f"{path} gives scores of {found} classes, not {len(table)}: name each, in order.")
    return own.model_copy(
        update={
            "classes": [ClassRecord(**record) for record in table.as_dicts()],
            "resolution": resolution or own.resolution,
            "licence": own.licence if licence == "not stated" else licence,
            "training": {**own.training, "imported_from": os.path.basename(path)},
        }
    )


def _content(path: str) -> bytes:
    try:
        size = os.path.getsize(path)
        if size > LARGEST_FILE:
            raise BundleError(f"{path} has {size} bytes, more than an ONNX model can have in one file.")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror or error}): check the path.") from error


def _tried(
    model: OnnxNetwork,
    facts: Facts,
    classes: Classes | None,
    stride: int,
    halo: int | Literal["auto"],
    path: str,
) -> tuple[Classes, int, TilingRecord | None]:
    """Return classes, halo in pixels, and what it costs where it was measured, having run the model on a picture.

    Raises:
        BundleError: there are other classes than channels.
        ConfigError: no class has a name, or the halo does not fit the tile.
    """
    side = model.spec.tile
    picture = scene_like(len(model.spec.bands), side + 3 * side // 8 // stride * stride)
    first = model.scores(picture[..., :side, :side])
    table = classes or _classes(facts.classes, first.shape[1], path)
    if len(table) != first.shape[1]:
        raise BundleError(f"{path} gives scores of {first.shape[1]} classes, not {len(table)}: name each, in order.")
    if halo == "auto":
        if facts.overlap is None:
            return table, *_measured_halo(model, picture, first, stride)
        halo = int(facts.overlap * side / 2) // stride * stride
    wanted = -(-halo // stride) * stride
    if wanted < 0 or 2 * wanted >= side:
        raise ConfigError(f"a halo of {halo} pixels does not fit a tile of {side}: use less than {side // 2}.")
    return table, wanted, None


def _stride(side: int) -> int:
    """Return the lattice of the tiles in pixels: 32, or of a tile that it does not divide a power of two that does."""
    stride = math.gcd(side, _STRIDE)
    while stride > 1 and 8 * stride > side:
        stride //= 2
    return stride


def _bands(graph: Graph, bands: Sequence[str] | None, path: str) -> tuple[str, ...]:
    if bands is None and graph.channels is None:
        raise ConfigError(f"{path} does not say how many bands it takes: name them.")
    if bands is None:
        count = graph.channels or 0
        return _RGB if count == len(_RGB) else tuple(f"band {i + 1}" for i in range(count))
    if graph.channels is not None and len(bands) != graph.channels:
        raise BundleError(f"{path} takes {graph.channels} bands, not {len(bands)}: name each, in order.")
    return tuple(bands)


def _side(graph: Graph, facts: Facts, tile: int | None, path: str) -> int:
    if graph.tile is not None:
        if tile not in (None, graph.tile):
            raise ConfigError(f"{path} takes tiles of {graph.tile} pixels only: leave the tile out.")
        return graph.tile
    side = tile or facts.tile or _TILE
    if not _STRIDE <= side <= LARGEST_TILE:
        raise ConfigError(f"a tile of {side} pixels cannot be used: give {_STRIDE} to {LARGEST_TILE}.")
    return side


def _classes(names: Sequence[str], count: int, path: str) -> Classes:
    """Return the classes that a file names, a background before the one class of a model with one channel."""
    if not names:
        raise ConfigError(
            f"{path} does not name its {count} classes: make a bundle of it with `geoseg import` and its --classes."
        )
    return classes_called(("background", *names) if count == 2 and len(names) == 1 else names)


def _measured_halo(
    model: OnnxNetwork, picture: torch.Tensor, first: torch.Tensor, stride: int
) -> tuple[int, TilingRecord]:
    """Return the halo at which two tiles agree where they meet, at most a quarter of the tile, and how far they do.

    Only answers can be seen, not the inside, so overlapping tiles of one picture are compared: at least the halo away
    from the edges of both, no more than ``BOUND`` of the labels may differ, as judged by :class:`Comparison`.

    Args:
        model: what is measured.
        picture: (1, C, S + d, S + d), network input; tiles of S pixels overlap by S - d.
        first: (1, K, S, S), scores of the picture's upper left tile.
        stride: halos are multiples of it.
    """
    side = first.shape[-1]
    shift = picture.shape[-1] - side
    below, beside = model.scores(picture[..., shift:, :side]), model.scores(picture[..., :side, shift:])
    deviation = first.double().std((0, 2, 3), keepdim=True)
    scale = deviation.masked_fill(deviation == 0, max(float(deviation.max()), torch.finfo(torch.float64).tiny))
    differences = []
    for halo in halos(side // 4, stride):
        along, across, moved = (
            slice(halo, side - halo),
            slice(shift + halo, side - halo),
            slice(halo, side - shift - halo),
        )
        pairs = (
            (first[..., across, along], below[..., moved, along]),
            (first[..., along, across], beside[..., along, moved]),
        )
        gap = torch.cat([((one.double() - two.double()) / scale).abs().flatten() for one, two in pairs])
        changed = torch.cat([(one.argmax(1) != two.argmax(1)).flatten() for one, two in pairs]).double().mean()
        differences.append(Difference(halo, float(changed), float(gap.square().mean().sqrt()), float(gap.max())))
    counts = torch.bincount(first.argmax(1).flatten())
    decision: Decision = "labels" if int(counts.max()) <= (1 - _VARIED) * int(counts.sum()) else "scores"
    chosen = Comparison(tuple(differences), decision).smallest(BOUND) or differences[-1]
    return chosen.halo, TilingRecord(
        bound=BOUND,
        disagreement=chosen.disagreement,
        score_error=chosen.score_error if math.isfinite(chosen.score_error) else None,
        decided_by=decision,
        measured_on=f"overlapping tiles of a random picture of {picture.shape[-1]} × {picture.shape[-1]} pixels",
    )
