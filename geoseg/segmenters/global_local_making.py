"""Bundles of GLNet by options, as commands and configurations give them: its mode and how it looks at a scene."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from numpy.typing import NDArray

from geoseg.bundle import Description
from geoseg.classes import Classes
from geoseg.errors import ConfigError, unknown_name
from geoseg.networks.glnet import DEFAULT_ENCODER, MODES, Mode
from geoseg.segmenters.checkpoints import Match
from geoseg.segmenters.describing import plain_options
from geoseg.segmenters.global_local import new_global_local
from geoseg.segmenters.global_local_checkpoints import import_global_local
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.scaling import Scaling


@dataclass(frozen=True)
class GlobalLocalOptions:
    """What a user says of a GLNet.

    Attributes:
        mode: ``global``, ``local`` or ``collaborative``, the full method.
        settings: how it looks at a scene.
    """

    mode: Mode
    settings: GlobalLocalSettings

    @classmethod
    def of(cls, options: Mapping[str, Any], tile: int | None = None) -> GlobalLocalOptions:
        """Return options by name: ``mode``, by default ``collaborative``, and fields of :class:`GlobalLocalSettings`.

        Args:
            options: of a network, plain JSON values.
            tile: side of a macro-window in pixels, in place of ``extent``.

        Raises:
            ConfigError: an unknown name, a value outside its range, or two sides of a macro-window.
        """
        given = plain_options(options)
        known = ["mode", *(item.name for item in fields(GlobalLocalSettings))]
        for name in given:
            if name not in known:
                raise ConfigError(unknown_name("option of network glnet", name, known))
        mode = given.pop("mode", "collaborative")
        if mode not in MODES:
            raise ConfigError(unknown_name("mode of GLNet", str(mode), MODES))
        if tile is not None and given.setdefault("extent", tile) != tile:
            raise ConfigError(
                f"the tile is {tile} pixels and the extent {given['extent']}: both are the side of a macro-window, "
                "so give one."
            )
        return cls(mode, GlobalLocalSettings(**given))


def new_by_options(
    *,
    bands: Sequence[str],
    classes: Classes,
    encoder: str | None = None,
    resolution: float | None = None,
    tile: int | None = None,
    halo: int | Literal["auto"] = "auto",
    seed: int = 0,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[Description, dict[str, NDArray[Any]]]:
    """Return description and weights of an untrained GLNet, see :func:`geoseg.segmenters.making.new_model`.

    Raises:
        ConfigError: a name, option or size is refused, or weights cannot be downloaded.
    """
    _refuse_halo(halo)
    asked = GlobalLocalOptions.of(options or {}, tile)
    return new_global_local(
        bands=bands,
        classes=classes,
        mode=asked.mode,
        encoder=encoder or DEFAULT_ENCODER,
        settings=asked.settings,
        resolution=resolution,
        seed=seed,
        pretrained=pretrained,
    )


def import_by_options(
    path: str | os.PathLike[str],
    *,
    bands: Sequence[str],
    classes: Classes | None = None,
    encoder: str | None = None,
    resolution: float | None = None,
    scaling: Scaling | None = None,
    tile: int | None = None,
    halo: int | Literal["auto"] = "auto",
    options: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    inplace_abn: bool = False,
    licence: str = "not stated",
) -> tuple[Description, dict[str, NDArray[Any]], Match]:
    """Return description and weights of a GLNet made of the authors' files, see ``making.import_model``.

    Of the options, ``first`` names the file of the first stage, which mode ``collaborative`` needs too.  Where nothing
    says how bands are scaled, bytes are divided by 255, as the authors do.

    Raises:
        BundleError: a file cannot be used, or its weights are not those of the network.
        ConfigError: a name, option or size is refused, or there are no classes.
    """
    _refuse_halo(halo)
    if prefix is not None or inplace_abn:
        raise ConfigError("the files of GLNet are read by the authors' names: leave out prefix and inplace-abn.")
    if classes is None:
        raise ConfigError(f"{path} does not name its classes: say them, in the order of its channels.")
    given = dict(options or {})
    first = given.pop("first", None)
    asked = GlobalLocalOptions.of(given, tile)
    said = scaling is not None and (scaling.kind is not None or scaling.mean is not None)
    full_scale = scaling.full_scale if scaling is not None else 255.0
    description, tensors = import_global_local(
        path,
        asked.mode,
        bands=bands,
        classes=classes,
        first=first,
        encoder=encoder or DEFAULT_ENCODER,
        settings=asked.settings,
        resolution=resolution,
        scaling=scaling if said else Scaling("unit", full_scale),
        licence=licence,
    )
    return description, tensors, Match(len(tensors), "", ())


def _refuse_halo(halo: int | Literal["auto"]) -> None:
    if halo != "auto":
        raise ConfigError(
            f"the halo is {halo} pixels: network glnet has none to set, neighbouring macro-windows share a patch."
        )
