"""The authors' files of GLNet, one for each stage of training, and the bundle made of them.

All files have the same parts, trained or not; which of them count depends on the stage.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from geoseg.bundle import Description
from geoseg.classes import Classes
from geoseg.errors import ConfigError
from geoseg.networks.glnet import DEFAULT_ENCODER, CollaborativeNet, GlobalNet, Mode, build_glnet
from geoseg.segmenters.checkpoint_files import Checkpoint, read_checkpoint
from geoseg.segmenters.checkpoints import load_weights
from geoseg.segmenters.global_local import describe_global_local
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.network import tensors_of, undrawn
from geoseg.segmenters.scaling import Scaling

_PARTS = ("resnet_global.", "fpn_global.", "resnet_local.", "fpn_local.", "ensemble_conv.")
# Of training on several devices.
_PREFIX = "module."
_FIXED = "fixed."


def import_global_local(
    path: str | os.PathLike[str],
    mode: Mode,
    *,
    bands: Sequence[str],
    classes: Classes,
    first: str | os.PathLike[str] | None = None,
    encoder: str = DEFAULT_ENCODER,
    settings: GlobalLocalSettings | None = None,
    resolution: float | None = None,
    scaling: Scaling | None = None,
    licence: str = "not stated",
) -> tuple[Description, dict[str, NDArray[Any]]]:
    """Return description and weights of a bundle, made of the authors' files.

    Args:
        path: a torch or safetensors file of the stage that ``mode`` names.
        mode: ``global``, ``local`` or ``collaborative``: the authors' modes 1, 2 and 3.
        bands: names of the input channels in order.
        classes: in the order of the scores' channels.
        first: for ``collaborative`` alone, the file of the first stage, whose global branch the local one is given.
            That of the second has it too; that of the third does not, its global branch was trained further.
        encoder: of the branches.
        settings: sizes and choices.
        resolution: true ground metres per pixel, None for any.
        scaling: of the bands, by default the authors': bytes divided by 255, no mean subtracted.
        licence: of the weights.

    Raises:
        BundleError: a file cannot be used, or its weights are not those of the network.
        ConfigError: a name or size is refused, or the file of the first stage is missing or not wanted.
    """
    if (first is None) == (mode == "collaborative"):
        raise ConfigError(
            f"mode {mode} of GLNet takes {'the file of the first stage too' if first is None else 'one file'}: "
            f"{'give it as first' if first is None else 'leave first out'}."
        )
    with undrawn():
        network = build_glnet(in_channels=len(bands), num_classes=len(classes), mode=mode, encoder=encoder)
    checkpoint = read_checkpoint(path)
    tensors = _parts_of(network, checkpoint)
    if isinstance(network, CollaborativeNet) and first is not None:
        before = read_checkpoint(first)
        load_weights(network.fixed, _parts_of(network.fixed, before), before)
        tensors |= {f"{_FIXED}{name}": value for name, value in network.fixed.state_dict().items()}
    load_weights(network, tensors, checkpoint)
    description = describe_global_local(
        network,
        encoder,
        bands,
        classes,
        settings,
        resolution=resolution,
        normalisation=(scaling or Scaling("unit")).record(len(bands)),
        licence=licence,
        training={"imported_from": [os.path.basename(each) for each in (path, first) if each is not None]},
    )
    return description, tensors_of(network)


def _parts_of(network: GlobalNet, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return what of a file is the network's, or nobody's, by our names; parts of other stages are left out."""
    own: Mapping[str, torch.Tensor] = network.state_dict()
    plain = {name.removeprefix(_PREFIX): value for name, value in checkpoint.tensors.items()}
    return {name: value for name, value in plain.items() if name in own or not name.startswith(_PARTS)}
