"""Bundles of pairs of networks by options, as commands give them: untrained, or of weights from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from numpy.typing import NDArray

from geoseg.bundle import Description
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError
from geoseg.networks.rstn_fcn8s import from_authors
from geoseg.segmenters.checkpoint_files import read_checkpoint
from geoseg.segmenters.checkpoints import Match, load_weights
from geoseg.segmenters.network import tensors_of, undrawn
from geoseg.segmenters.saliency import background_of
from geoseg.segmenters.saliency_pair import (
    AUTHORS_NETWORK,
    NetworkChoice,
    PairSettings,
    build,
    describe_saliency,
    new_saliency,
)
from geoseg.segmenters.scaling import Scaling

# Layers that the FCN-8s of the authors has and no network of ours.
_AUTHORS_LAYERS = ("coarse_model.upscore8.weight", "fine_model.upscore8.weight")


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
    """Return description and weights of an untrained pair, see :func:`geoseg.segmenters.making.new_model`.

    Raises:
        ConfigError: a name, option or size is refused, or weights cannot be downloaded.
    """
    return new_saliency(
        bands=bands,
        classes=classes,
        settings=PairSettings.of_options(options or {}, encoder),
        resolution=resolution,
        tile=tile,
        halo=halo,
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
    """Return description and weights of a pair made of a file of weights, see ``making.import_model``.

    A file of the authors holds two FCN-8s, by whose names it is known; of any other, options say the networks.

    Raises:
        BundleError: the file cannot be used, or its weights are not those of the pair.
        ConfigError: a name, option or size is refused, or there are no classes.
    """
    if inplace_abn:
        raise ConfigError("InPlaceABN is a matter of network hrnet: leave it out for rstn.")
    if classes is None:
        raise ConfigError(f"{os.fspath(path)} does not name its classes: say them, the background too.")
    background_of(classes)
    checkpoint = read_checkpoint(path)
    settings = PairSettings.of_options(options or {}, encoder)
    tensors = checkpoint.tensors
    if any(name.removeprefix("module.").endswith(_AUTHORS_LAYERS) for name in tensors):
        try:
            tensors, channels = from_authors(tensors)
        except BundleError as error:
            raise BundleError(f"{checkpoint.path}: {error}") from error
        if (len(bands), len(classes) - 1) != (channels, channels):
            raise ConfigError(
                f"{checkpoint.path} is a pair of FCN-8s for {channels} bands and as many targets: give so many bands, "
                "and classes for the targets beside the background."
            )
        both = NetworkChoice(AUTHORS_NETWORK)
        settings = PairSettings(both, both, settings.looking)
    with undrawn():
        pair = build(settings, bands=len(bands), targets=len(classes) - 1)
    match = load_weights(pair, tensors, checkpoint, prefix=prefix)
    description = describe_saliency(
        pair.eval(),
        settings,
        bands,
        classes,
        resolution=resolution,
        tile=tile,
        halo=halo,
        normalisation=(scaling or Scaling()).record(len(bands)),
        licence=licence,
        training={"imported_from": os.path.basename(path)},
    )
    return description, tensors_of(pair), match
