"""Other projects' HRNet weights under the names of ours: pure functions from state dict to state dict.

What comes out is what :func:`geoseg.networks.hrnet.build_hrnet` takes in ``load_state_dict``, with every name under
``network.``.  Nothing is read from disk here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from geoseg.errors import BundleError

_HEAD = ("last_layer.", "aux_head.", "conv3x3_ocr.", "ocr_distri_head.", "cls_head.")
# Parts of a file that belong to training, not to the network.
_TRAINING = ("loss.", "criterion.", "auxiliary_head.")
# The CUDA kernel of InPlaceABN multiplies by the absolute weight plus this, whatever the sign of the weight.
_INPLACE_EPS = 1e-5
_MMSEGMENTATION = {
    "decode_head.convs.0.conv.": "last_layer.0.",
    "decode_head.convs.0.bn.": "last_layer.1.",
    "decode_head.conv_seg.": "last_layer.3.",
}


@dataclass(frozen=True)
class Shape:
    """What must be said to :func:`geoseg.networks.hrnet.build_hrnet` for weights to fit."""

    in_channels: int
    num_classes: int
    width: int | str
    ocr: bool


def from_authors(state: Mapping[str, Any], *, inplace_abn: bool = False) -> dict[str, torch.Tensor]:
    """Return the authors' weights under our names.

    Args:
        state: as in the authors' files, possibly under ``state_dict`` and behind ``module.`` and ``model.``.
        inplace_abn: the weights were trained with InPlaceABN (files of the ``torch04`` kind: LIP, COCO-Stuff, ADE20K,
            and all of the branch ``master``).  Its batch norm multiplies by |γ| + 1e-5, which is written into γ.

    Raises:
        BundleError: these are not the weights of an HRNetV2 for segmentation.
    """
    plain = {name.removeprefix("model."): value for name, value in _unwrapped(state).items()}
    return _ours(plain, inplace_abn)


def from_mmsegmentation(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return weights of mmsegmentation (HRNet with one FCN head) under our names.

    Its head's first convolution has no bias; ours gets zeros.

    Raises:
        BundleError: these are not the weights of such a network.
    """
    plain: dict[str, torch.Tensor] = {}
    for name, value in _unwrapped(state).items():
        for theirs, ours in _MMSEGMENTATION.items():
            if name.startswith(theirs):
                plain[ours + name.removeprefix(theirs)] = value
                break
        else:
            if name.startswith("decode_head."):
                raise BundleError(
                    f"the checkpoint has {name}, which no HRNet with a single FCN head has: only such heads are read."
                )
            plain[name.removeprefix("backbone.")] = value
    first = plain.get("last_layer.0.weight")
    if first is not None and "last_layer.0.bias" not in plain:
        plain["last_layer.0.bias"] = first.new_zeros(len(first))
    return _ours(plain, inplace_abn=False)


def shape_of(weights: Mapping[str, torch.Tensor]) -> Shape:
    """Return what network the weights, under our names, belong to.

    Raises:
        BundleError: no HRNet of ours has such layers.
    """
    try:
        stem = weights["network.backbone.conv1.weight"]
        finest = len(weights["network.backbone.transition1.0.0.weight"])
        ocr = "network.head.cls_head.weight" in weights
        final = weights["network.head.cls_head.weight" if ocr else "network.head.last_layer.3.weight"]
    except KeyError as error:
        raise BundleError(f"the weights have no {error.args[0]}: they are not those of network hrnet.") from error
    width: int | str = finest
    if "network.backbone.stage2.0.branches.0.2.conv1.weight" not in weights:
        width = "small-v1" if finest == 16 else "small-v2"
    return Shape(stem.shape[1], len(final), width, ocr)


def _unwrapped(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that belong to the network, without the prefix of data-parallel training."""
    inner = state.get("state_dict", state)
    if not isinstance(inner, Mapping):
        raise BundleError("the checkpoint's state_dict is no table of tensors: give a file of weights.")
    found = {}
    for name, value in inner.items():
        name = str(name).removeprefix("module.")
        if isinstance(value, torch.Tensor) and not name.removeprefix("model.").startswith(_TRAINING):
            found[name] = value
    return found


def _ours(plain: Mapping[str, torch.Tensor], inplace_abn: bool) -> dict[str, torch.Tensor]:
    """Return weights under the authors' plain names under ours."""
    for needed in ("conv1.weight", "stage4.0.branches.3.0.conv1.weight"):
        if needed not in plain:
            raise BundleError(f"the checkpoint has no {needed}: it does not hold an HRNet.")
    if not any(name.startswith(("last_layer.", "cls_head.")) for name in plain):
        raise BundleError("the checkpoint has no last_layer: it holds an HRNet without a head for segmentation.")
    ours = {}
    for name, value in plain.items():
        if inplace_abn and name.endswith(".weight") and name.removesuffix("weight") + "running_var" in plain:
            value = value.abs() + _INPLACE_EPS
        ours[f"network.{'head' if name.startswith(_HEAD) else 'backbone'}.{name}"] = value
    return ours
