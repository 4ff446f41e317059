"""The networks there are, by name: facts and import paths only, so that listing them imports no torch."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoseg.errors import ConfigError, GeosegError, one_line, unknown_name
from geoseg.networks.entries import ENTRIES, Entry, NetworkInfo

if TYPE_CHECKING:
    from torch import nn

# A network of more input channels or classes than these is a slip of the pen, and costs gigabytes.
_MOST_CHANNELS = 4096
_MOST_CLASSES = 4096


def names(*, needs_prior: bool = False, needs_scene: bool = False) -> tuple[str, ...]:
    """Return the names of networks from pixels to scores, or of others.

    Args:
        needs_prior: of those that need a mask beside a tile.
        needs_scene: of those that look at more of a scene than a tile.

    >>> "unet" in names()
    True
    >>> names(needs_prior=True)
    ('cascadepsp',)
    """
    wanted = (needs_prior, needs_scene)
    return tuple(name for name, entry in ENTRIES.items() if (entry.info.needs_prior, entry.info.needs_scene) == wanted)


def every_name() -> tuple[str, ...]:
    """Return the names that :func:`create` knows, whatever a network needs.

    >>> {"unet", "cascadepsp", "glnet"} <= set(every_name())
    True
    """
    return tuple(ENTRIES)


def info(name: str) -> NetworkInfo:
    """Return what is known of network ``name`` without building it.

    >>> info("unet").stride
    32

    Raises:
        ConfigError: there is no such network.
    """
    return _entry(name).info


def create(
    name: str,
    *,
    in_channels: int,
    num_classes: int,
    encoder: str | None = None,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a network: a module from (N, ``in_channels``, H, W) float to scores (N, ``num_classes``, H, W), any H, W.

    The module has an attribute ``stride``, the shift in pixels that it follows exactly.  Weights are random (seed them
    with ``torch.manual_seed``) unless ``pretrained``.  A network that refines (``info(name).needs_prior``) is called
    with pixels and a mask instead, on sides that are multiples of its stride, and answers for that mask; the channels
    of its masks come on top of ``in_channels``.  One that looks at more than a tile (``info(name).needs_scene``) is not
    called at all: its methods are used by the segmenter of its bundle.

    Args:
        name: one of :func:`every_name`.
        in_channels: number of bands.
        num_classes: number of classes.
        encoder: any encoder that timm knows by name (``resnet34``, ``hrnet_w18``, ``convnext_tiny``), or one that only
            segmentation_models_pytorch has (``mit_b0``); by default ``info(name).encoder``.
        pretrained: start the encoder from ImageNet weights, which are downloaded.
        options: what else the network's builder takes.

    Raises:
        ConfigError: unknown name, encoder or option, a value the network refuses, or weights that cannot be had.
    """
    entry = _entry(name)
    for what, count, most in (
        ("in_channels", in_channels, _MOST_CHANNELS),
        ("num_classes", num_classes, _MOST_CLASSES),
    ):
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
            raise ConfigError(f"{what} of network {name} is {count!r}: give a whole number from 1 to {most}.")
    arguments: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes, **entry.fixed}
    if entry.info.encoder is None:
        if encoder is not None or pretrained:
            raise ConfigError(f"network {name} takes no encoder and has no pretrained weights: leave both out.")
    else:
        arguments.update(encoder=encoder or entry.info.encoder, pretrained=pretrained)
    builder = _builder(entry)
    taken = {"in_channels", "num_classes", "encoder", "pretrained", *entry.fixed}
    parameters = inspect.signature(builder).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = [option for option in parameters if option not in taken]
        for option in options:
            if option not in known:
                raise ConfigError(unknown_name(f"option of network {name}", option, known))
    try:
        network: nn.Module = builder(**arguments, **options)
    except GeosegError:
        raise
    except Exception as error:  # a library's own complaint about a value, of whatever class
        reason = one_line(error).rstrip(".") if str(error).strip() else "the library refuses the combination"
        raise ConfigError(f"network {name} cannot be built with {_listed(options, encoder)}: {reason}.") from error
    return network


def _entry(name: str) -> Entry:
    if name not in ENTRIES:
        raise ConfigError(unknown_name("network", name, ENTRIES))
    return ENTRIES[name]


def _builder(entry: Entry) -> Any:
    module, _, function = entry.builder.partition(":")
    try:
        return getattr(import_module(module), function)
    except ImportError as error:
        raise ConfigError(
            f"network {entry.info.name} needs a library that is not installed ({one_line(error)}): reinstall geoseg."
        ) from error


def _listed(options: dict[str, Any], encoder: str | None) -> str:
    given = {**({"encoder": encoder} if encoder else {}), **options}
    return ", ".join(f"{key}={value!r}" for key, value in given.items()) or "its default options"
