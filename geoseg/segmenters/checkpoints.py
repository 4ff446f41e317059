"""Weights that other programs trained, matched by name to a network of ours, and the bundle made of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import nn

from geoseg import networks
from geoseg.bundle import Description
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError
from geoseg.segmenters.checkpoint_files import Checkpoint, read_checkpoint
from geoseg.segmenters.describing import describe, plain_options
from geoseg.segmenters.network import tensors_of
from geoseg.segmenters.scaling import Scaling, classes_called

# Parts that only training needs: losses, deep supervision, a second task.
_TRAINING = (
    "criterion.",
    "loss.",
    "loss_fn.",
    "auxiliary_head.",
    "aux_classifier.",
    "classification_head.",
    "train_metrics.",
    "val_metrics.",
    "test_metrics.",
)
# Counts batches in training; inference does not read it.
_NOT_NEEDED = "num_batches_tracked"
# The library's own ResNets compute exactly what timm's do, unless they are dilated.
_NATIVE = ("resnet", "resnext")
# What a mask tells apart, for weights that were not trained on named classes.
_MASK_CLASSES = ("background", "object")
_HRNET_ANCHOR = "stage4.0.branches.3.0.conv1.weight"


@dataclass(frozen=True)
class Match:
    """How a file's names went onto a network's.

    Attributes:
        taken: how many tensors were taken.
        prefix: what stood before each name in the file.
        left_out: names in the file of parts that inference does not need.
    """

    taken: int
    prefix: str
    left_out: tuple[str, ...]


def import_checkpoint(
    path: str | os.PathLike[str],
    network: str,
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
    """Return description and weights of a bundle, made of a file that another program wrote.

    Args:
        path: a torch or safetensors file.
        network: the network of ours whose weights it holds.
        bands: names of the input channels in order.
        classes: in the order of the channels of the scores; by default those that the file names.  A network that
            refines masks has none of its own.
        encoder: by default the network's own; for ``hrnet`` the width is then read from the file, unless an option
            says it.
        resolution: true ground metres per pixel, None for any.
        scaling: of the bands; by default measured on each scene, for a network that refines masks ImageNet's.
        tile: side in pixels, see :func:`geoseg.segmenters.describing.describe`.
        halo: pixels; ``"auto"`` chooses it by what the weights show.
        options: what else the network's builder takes.
        prefix: what stands before the network's names, for a file that holds several networks.
        inplace_abn: the weights of an HRNet were trained with InPlaceABN, see
            :func:`geoseg.networks.hrnet_checkpoints.from_authors`.
        licence: of the weights.

    Raises:
        BundleError: the file cannot be used, or its weights are not those of the network.
        ConfigError: a name, option or size is refused, or there are no classes.
    """
    checkpoint = read_checkpoint(path)
    scaling = scaling or Scaling()
    if networks.info(network).needs_prior:
        classes = classes or classes_called(_MASK_CLASSES)
        # The authors of the only published weights trained so.
        scaling = replace(scaling, kind=scaling.kind or "imagenet")
    if classes is None and not checkpoint.classes:
        raise ConfigError(f"{checkpoint.path} does not name its classes: say them, in the order of its channels.")
    classes = classes or classes_called(checkpoint.classes)
    module, given, match = filled_network(
        checkpoint,
        network,
        in_channels=len(bands),
        num_classes=len(classes),
        encoder=encoder,
        options=options,
        prefix=prefix,
        inplace_abn=inplace_abn,
    )
    description = describe(
        module,
        name=network,
        bands=bands,
        classes=classes,
        encoder=encoder,
        options=given,
        resolution=resolution,
        tile=tile,
        halo=halo,
        normalisation=scaling.record(len(bands)),
        licence=licence,
        training={"imported_from": os.path.basename(path)},
    )
    return description, tensors_of(module), match


def filled_network(
    checkpoint: Checkpoint,
    network: str,
    *,
    in_channels: int,
    num_classes: int,
    encoder: str | None = None,
    options: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    inplace_abn: bool = False,
) -> tuple[nn.Module, dict[str, Any], Match]:
    """Return a network with the weights of a checkpoint, the options it was built with, and how the names matched.

    Args:
        checkpoint: what was read.
        network: the network of ours whose weights it holds.
        in_channels: number of bands.
        num_classes: number of classes.
        encoder: by default the network's own.
        options: what else the network's builder takes.
        prefix: what stands before the network's names.
        inplace_abn: see :func:`import_checkpoint`.

    Raises:
        BundleError: the weights are not those of the network.
        ConfigError: a name or option is refused.
    """
    given = plain_options(options or {})
    tensors = checkpoint.tensors
    if network == "hrnet":
        tensors, told = _hrnet_tensors(checkpoint, inplace_abn)
        if encoder is None and "width" not in given:
            given = {**told, **given}
    elif inplace_abn:
        raise ConfigError(f"InPlaceABN is a matter of network hrnet: leave it out for {network}.")
    module = networks.create(network, in_channels=in_channels, num_classes=num_classes, encoder=encoder, **given)
    return module, given, load_weights(module, tensors, checkpoint, encoder=encoder, prefix=prefix)


def load_weights(
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    checkpoint: Checkpoint,
    *,
    encoder: str | None = None,
    prefix: str | None = None,
) -> Match:
    """Give ``module`` the weights of a checkpoint: all that it needs, and none that it does not know.

    The network's names may stand in the file as ours, without ``network.``, or as the library's own ResNet encoders
    name theirs, and behind any prefix.

    Args:
        module: a network of ours.
        tensors: of the checkpoint, perhaps under other names.
        checkpoint: where they come from, for messages.
        encoder: its name, where the network has one.
        prefix: what stands before the network's names in the file; found by default.

    Raises:
        BundleError: names are missing or left over, a shape or a value is wrong, or two networks fit.
    """
    own = {name: value for name, value in module.state_dict().items() if not name.endswith(_NOT_NEEDED)}
    pairs, found = _best_pairs(own, tensors, _layouts(module, own, encoder), prefix, checkpoint.path)
    used = set(pairs.values())
    rest = [name for name in tensors if name not in used and not name.endswith(_NOT_NEEDED)]
    left_out = [name for name in rest if not name.startswith(found) or _is_spare(name.removeprefix(found), own)]
    _check(own, pairs, tensors, [name for name in rest if name not in left_out], checkpoint)
    with torch.no_grad():
        for name, theirs in pairs.items():
            own[name].copy_(tensors[theirs])
    for name, theirs in pairs.items():
        if not bool(torch.isfinite(own[name]).all()):
            raise BundleError(f"{checkpoint.path} has values in {theirs} that are not finite: the training failed.")
    return Match(len(pairs), found, tuple(left_out))


def _layouts(module: nn.Module, own: Mapping[str, Any], encoder: str | None) -> list[dict[str, str]]:
    """Return the ways in which files name the network's tensors: their name to ours, each."""
    plain = {name.removeprefix("network."): name for name in own}
    layouts = [{name: name for name in own}, plain]
    inner = getattr(getattr(module, "network", None), "encoder", None)
    dilated = any(layer.dilation != (1, 1) for layer in module.modules() if isinstance(layer, nn.Conv2d))
    of_timm = isinstance(inner, nn.Module) and hasattr(inner, "model")
    # Without a name it is the family's default, which is a ResNet.
    if of_timm and not dilated and (encoder or "resnet18").removeprefix("tu-").startswith(_NATIVE):
        layouts.append({name.replace("encoder.model.", "encoder.", 1): ours for name, ours in plain.items()})
    return layouts


def _best_pairs(
    own: Mapping[str, Any],
    tensors: Mapping[str, Any],
    layouts: list[dict[str, str]],
    prefix: str | None,
    path: str,
) -> tuple[dict[str, str], str]:
    """Return our names with theirs, and the prefix, for the layout and prefix under which most names fit.

    Raises:
        BundleError: another prefix fits as many.
    """
    found: list[tuple[dict[str, str], str]] = []
    for layout in layouts:
        counts: Counter[str] = Counter()
        for name in tensors:
            parts = name.split(".")
            for start in range(len(parts)):
                if ".".join(parts[start:]) in layout:
                    counts["".join(f"{part}." for part in parts[:start])] += 1
        for candidate in [prefix] if prefix is not None else counts:
            pairs = {ours: candidate + theirs for theirs, ours in layout.items() if candidate + theirs in tensors}
            found.append((pairs, candidate))
    most = max((len(pairs) for pairs, _ in found), default=0)
    if not most:
        return {}, ""
    best = [(pairs, candidate) for pairs, candidate in found if len(pairs) == most]
    pairs, chosen = best[0]
    for other, candidate in best[1:]:
        if other != pairs and len(pairs) > len(own) // 2:
            raise BundleError(
                f"{path} holds two networks that fit, behind {chosen!r} and {candidate!r}: say which with --prefix."
            )
    return pairs, chosen


def _is_spare(name: str, own: Mapping[str, Any]) -> bool:
    """Whether inference does without the tensor: of training, or of encoder stages that the network leaves out."""
    if name.startswith(_TRAINING):
        return True
    part, _, rest = name.partition(".")
    stage = rest.partition(".")[0]
    return part == "encoder" and stage.startswith("layer") and not any(stage in ours.split(".") for ours in own)


def _check(
    own: Mapping[str, torch.Tensor],
    pairs: Mapping[str, str],
    tensors: Mapping[str, torch.Tensor],
    unexpected: Sequence[str],
    checkpoint: Checkpoint,
) -> None:
    """Refuse weights that do not fit, saying what is missing, left over, and of another shape.

    Raises:
        BundleError: anything of these.
    """
    faults = []
    if missing := [name.removeprefix("network.") for name in own if name not in pairs]:
        faults.append(f"lacks {len(missing)} of {len(own)} tensors ({_some(missing)})")
    if unexpected:
        faults.append(f"has {len(unexpected)} that the network does not ({_some(unexpected)})")
    wrong = [
        f"{theirs} {tuple(tensors[theirs].shape)} for {tuple(own[name].shape)}"
        for name, theirs in pairs.items()
        if tensors[theirs].shape != own[name].shape
    ]
    if wrong:
        faults.append(f"has {len(wrong)} of another shape ({_some(wrong)})")
    if faults:
        said = ", ".join(f"{key} {value}" for key, value in checkpoint.facts.items())
        hint = f" The file says: {said}." if said else ""
        raise BundleError(
            f"{checkpoint.path} does not fit: it {'; it '.join(faults)}. Choose the network, encoder, bands, classes "
            f"and options that it was trained with.{hint}"
        )


def _hrnet_tensors(checkpoint: Checkpoint, inplace_abn: bool) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors under our names, and the options of the HRNet that they belong to.

    Raises:
        BundleError: they are not those of an HRNet for segmentation.
    """
    from geoseg.networks import hrnet_checkpoints

    places = [name.removesuffix(_HRNET_ANCHOR) for name in checkpoint.tensors if name.endswith(_HRNET_ANCHOR)]
    if not places:
        raise BundleError(f"{checkpoint.path} has no {_HRNET_ANCHOR}: it does not hold an HRNet.")
    prefix = places[0]
    if any(name.startswith(f"{prefix.removesuffix('backbone.')}head.") for name in checkpoint.tensors):
        ours = {
            f"network.{name.removeprefix(prefix.removesuffix('backbone.'))}": value
            for name, value in checkpoint.tensors.items()
        }
    else:
        prefix = prefix.removesuffix("backbone.")
        plain = {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items()}
        try:
            if any(name.startswith("decode_head.") for name in plain):
                ours = hrnet_checkpoints.from_mmsegmentation(plain)
            else:
                ours = hrnet_checkpoints.from_authors(plain, inplace_abn=inplace_abn)
        except BundleError as error:
            raise BundleError(f"{checkpoint.path}: {error}") from error
    shape = hrnet_checkpoints.shape_of(ours)
    return ours, {"width": shape.width, **({"ocr": True} if shape.ocr else {})}


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
