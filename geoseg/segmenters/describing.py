"""What a bundle says about a network: measured on the network itself, whether it was just made or imported."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from geoseg import networks
from geoseg.bundle import ClassRecord, Description, NormalisationRecord, TilingRecord
from geoseg.classes import Classes
from geoseg.errors import ConfigError, one_line
from geoseg.networks.memory import bytes_per_pixel
from geoseg.networks.receptive_field import exact_halo
from geoseg.networks.scene_pooling import pools_over_scene
from geoseg.networks.tiling import BOUND, SCENE_BOUND, Measured, choose_halo, choose_halo_on, measure_at, opened

# Large tiles compute fewer pixels twice.  How large they are by default follows from the memory that one takes.
_TILE, _LARGE_TILE, _TILE_BYTES = 1024, 2048, 0.55e9
# Networks that look at the whole tile depend on its size: one size for all of them, near what they are trained on.
_FIXED_TILE = 512
_LARGEST_TILE = 16384
# Side of the crops of a refiner, its authors' (Cheng et al. 2020, arXiv 2005.02551).
_REFINER_TILE = 900
# With more, tiles that are half core would need more memory than small GPUs have.
_LARGEST_HALO = 320


def describe(
    module: nn.Module,
    *,
    name: str,
    bands: Sequence[str],
    classes: Classes,
    encoder: str | None = None,
    options: Mapping[str, Any] | None = None,
    resolution: float | None = None,
    tile: int | None = None,
    halo: int | Literal["auto"] = "auto",
    bound: float | None = None,
    pictures: Sequence[torch.Tensor] = (),
    normalisation: NormalisationRecord | None = None,
    licence: str = "not stated",
    training: Mapping[str, Any] | None = None,
    card: Mapping[str, str] | None = None,
) -> Description:
    """Return the description of a network's bundle, its stride, halo and tile measured on the network as it is.

    One that refines masks has no halo: nothing is measured.

    The network is left as it was, and so are the caller's random numbers.

    Args:
        module: what ``networks.create(name, …)`` returned, with the weights that the bundle will have.
        name: of the network.
        encoder: what the network was made with; None stands for the network's own.
        options: likewise.
        bands: names of the input channels in order.
        classes: in the order of the scores' channels.
        resolution: true ground metres per pixel, None for any.
        tile: side in pixels; by default 512 for a network that pools or attends over the whole tile, else from 1024 to
            2048, as much as takes 0.55 GB; more where less than half of each side would be core.
        halo: pixels; ``"auto"`` chooses it on ``pictures`` (:func:`geoseg.networks.tiling.choose_halo_on`) or else on a
            random one (:func:`geoseg.networks.tiling.choose_halo`), at most 320 and a quarter of a tile that is given.
        bound: share of labels that may differ from those of one pass with a chosen halo; by default 1e-4, and 5e-4 on
            ``pictures``, which are judged at tiles of the size they have.
        pictures: parts of scenes that the network is trained for, as its input.
        normalisation: scaling of the bands, None to measure it on each scene.
        licence: of the weights.
        training: figures of the training.
        card: what a user should know of the model, by heading.

    Raises:
        ConfigError: a name, option or size is refused.
    """
    given = plain_options(options or {})
    info = networks.info(name)
    stride = int(getattr(module, "stride", info.stride))
    told: dict[str, Any] = {
        "settings": {"name": name, "encoder": encoder or info.encoder, "options": given},
        "bands": list(bands),
        "resolution": resolution,
        "normalisation": normalisation,
        "classes": [ClassRecord(**record) for record in classes.as_dicts()],
        "stride": stride,
        "licence": licence,
        "training": dict(training or {}),
        "card": dict(card or {}),
    }
    if info.needs_prior:
        if halo not in ("auto", 0):
            raise ConfigError(f"the halo is {halo} pixels: network {name} has none, for it looks at the whole crop.")
        tile_px = _tile(tile or _REFINER_TILE, 0, 1, bounded=False)
        return Description(method="refiner", tile=tile_px, halo=0, tile_exact=False, **told)
    measured, tiling = _judged(module, len(bands), stride, tile, halo, bound, pictures)
    if tile is None and measured.limit is not None:
        tile = _large_tile(module, len(bands), measured.halo, stride)
    return Description(
        method="network",
        tile=_tile(tile, measured.halo, stride, bounded=measured.limit is not None),
        halo=measured.halo,
        tile_exact=(info.tile_exact or pools_over_scene(module)) and measured.exact,
        tiling=tiling,
        **told,
    )


def _judged(
    module: nn.Module,
    in_channels: int,
    stride: int,
    tile: int | None,
    halo: int | Literal["auto"],
    bound: float | None,
    pictures: Sequence[torch.Tensor],
) -> tuple[Measured, TilingRecord]:
    """Return the halo, chosen if ``"auto"``, and what the bundle says of it.

    Raises:
        ConfigError: the halo is negative, or the tile has no room for one.
    """
    if halo == "auto" and tile is None and pictures:
        found = choose_halo_on(
            module, pictures, stride, _large_tile(module, in_channels, 0, stride), bound=bound or SCENE_BOUND
        )
        if found is not None:
            return found, _record(found, bound or SCENE_BOUND, len(pictures))
    measured = _measured(module, in_channels, stride, tile, halo, bound or BOUND)
    return measured, _record(measured, (bound or BOUND) if halo == "auto" else None, 0)


def _large_tile(module: nn.Module, in_channels: int, halo: int, stride: int) -> int:
    """Return the side of a tile in pixels that takes what memory tiles may take, within bounds."""
    side = math.isqrt(int(_TILE_BYTES / max(1.0, bytes_per_pixel(module, in_channels, stride, _LARGE_TILE))))
    # At least half of each side is core: with less, most of the work would be thrown away.
    side = max(_TILE, min(_LARGE_TILE, side // stride * stride), 4 * halo)
    return -(-side // stride) * stride


def _measured(
    module: nn.Module, in_channels: int, stride: int, tile: int | None, halo: int | Literal["auto"], bound: float
) -> Measured:
    """Return the halo, chosen if ``"auto"``, with what it costs.

    Raises:
        ConfigError: the halo is negative, or the tile has no room for one.
    """
    fixed = -(-(tile or _FIXED_TILE) // stride) * stride
    if halo == "auto":
        maximum = _LARGEST_HALO if tile is None else min(_LARGEST_HALO, tile // 4)
        return choose_halo(module, in_channels, stride, bound=bound, maximum=maximum, tile=fixed)
    if halo < 0:
        raise ConfigError(f"the halo is {halo} pixels: it cannot be negative.")
    halo = -(-halo // stride) * stride
    # A tile that is refused is refused before anything is computed.
    _tile(tile, halo, stride, bounded=True)
    limit = exact_halo(module, in_channels, stride)
    fixed = fixed if tile is not None else max(fixed, 4 * halo)
    return measure_at(opened(module), in_channels, stride, halo, limit=limit, tile=fixed)


def _record(measured: Measured, bound: float | None, pictures: int) -> TilingRecord:
    difference = measured.difference
    what = f"{pictures} part{'s' if pictures > 1 else ''} of the training's scenes" if pictures else "a random picture"
    finite = difference.score_error < float("inf")
    return TilingRecord(
        bound=bound,
        disagreement=difference.disagreement,
        score_error=difference.score_error if finite else None,
        decided_by=measured.decision,
        halo_exact=measured.limit,
        measured_on=f"{what} of {measured.picture} × {measured.picture} pixels",
    )


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a network as they come back from a bundle's JSON.

    Raises:
        ConfigError: one has no place in JSON, or is an argument of its own.
    """
    own = sorted({"name", "in_channels", "num_classes", "encoder", "pretrained"} & options.keys())
    if own:
        raise ConfigError(f"{own[0]} is no option of a network: it is an argument of its own.")
    try:
        record: dict[str, Any] = json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the options {dict(options)!r} cannot be kept in a bundle ({one_line(error)}): "
            "use numbers, text, lists and true or false."
        ) from error
    return record


def _tile(tile: int | None, halo: int, stride: int, bounded: bool) -> int:
    """Return the side of a tile in pixels, a multiple of the stride.

    Raises:
        ConfigError: too large, not a multiple, or a tile without a core.
    """
    if tile is None:
        tile = max(_TILE if bounded else _FIXED_TILE, 4 * halo)
        tile = -(-tile // stride) * stride
    if tile % stride:
        raise ConfigError(
            f"the tile is {tile} pixels, which the network's stride {stride} does not divide: "
            f"use {-(-tile // stride) * stride}."
        )
    if not 2 * halo < tile <= _LARGEST_TILE:
        raise ConfigError(
            f"a tile of {tile} pixels does not fit a halo of {halo}: use more than {2 * halo} and at most "
            f"{_LARGEST_TILE} pixels."
        )
    return tile
