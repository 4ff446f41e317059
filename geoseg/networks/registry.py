"""The networks there are, by name: facts and import paths only, so that listing them imports no torch."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoseg.errors import ConfigError, GeosegError, one_line, unknown_name

if TYPE_CHECKING:
    from torch import nn

# A network of more input channels or classes than these is a slip of the pen, and costs gigabytes.
_MOST_CHANNELS = 4096
_MOST_CLASSES = 4096


@dataclass(frozen=True)
class NetworkInfo:
    """What is known of a network before it is built.

    Attributes:
        name: what :func:`create` takes.
        family: the kind of method, in two or three words.
        summary: one line.
        encoder: the default encoder; None where the network takes none.
        stride: shifting the input by a multiple of it shifts the scores alike; inputs are padded to a multiple of it.
            With the default encoder and options; a built network says its own as ``network.stride``.
        tile_exact: whether tiles with enough halo give the scores of one pass over the whole scene.  It holds for
            encoders made of convolutions; one with attention or squeeze-and-excitation takes it away.
        min_size: smallest side in pixels the network itself takes; smaller inputs are padded.
        fixed_size: the only side in pixels it takes, or None for any.
        source: the paper, or where the method is described.
        auxiliary: names of the further outputs in training mode, for deep supervision; a network built with other
            options may have fewer.
    """

    name: str
    family: str
    summary: str
    encoder: str | None
    stride: int
    tile_exact: bool
    min_size: int
    source: str
    fixed_size: int | None = None
    auxiliary: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Entry:
    """A network's facts, the ``module:function`` that builds it, and arguments that are always passed."""

    info: NetworkInfo
    builder: str
    fixed: dict[str, Any] = field(default_factory=dict)


def _family(
    name: str,
    architecture: str,
    family: str,
    summary: str,
    source: str,
    *,
    stride: int = 32,
    tile_exact: bool = False,
    encoder: str = "resnet18",
    min_size: int | None = None,
) -> _Entry:
    """Return the entry of one architecture of segmentation_models_pytorch."""
    info = NetworkInfo(name, family, summary, encoder, stride, tile_exact, min_size or stride, source)
    fixed = {"architecture": architecture, "min_size": info.min_size}
    return _Entry(info, "geoseg.networks.families:build_family", fixed)


def _own(
    name: str,
    family: str,
    summary: str,
    source: str,
    *,
    encoder: str | None = "resnet34",
    stride: int = 32,
    tile_exact: bool = True,
    min_size: int = 32,
    auxiliary: tuple[str, ...] = (),
    module: str | None = None,
) -> _Entry:
    """Return the entry of a network of ours, built by ``build_<name>`` in the module of its name."""
    info = NetworkInfo(name, family, summary, encoder, stride, tile_exact, min_size, source, auxiliary=auxiliary)
    return _Entry(info, f"geoseg.networks.{module or name}:build_{name}")


_ENTRIES = {
    entry.info.name: entry
    for entry in (
        _Entry(
            NetworkInfo(
                "plainconv",
                "fully convolutional",
                "a few 3 × 3 convolutions at full resolution, with an exactly known receptive field",
                encoder=None,
                stride=1,
                tile_exact=True,
                min_size=1,
                source="Long, Shelhamer, Darrell 2015, arXiv 1411.4038 (the idea; this is the smallest such network)",
            ),
            "geoseg.networks.families:build_plainconv",
        ),
        _own(
            "san",
            "scale-aware",
            "re-reads feature maps at learned positions and weights them by what it reads there",
            "Lin, Jing, Song 2019, arXiv 1907.03089",
        ),
        _own(
            "gsn",
            "gated",
            "decoder whose gates open where the coarser scores are uncertain",
            "Wang et al. 2017, Remote Sensing 9(5) 446, doi 10.3390/rs9050446",
            auxiliary=("aux_2", "aux_3", "aux_4", "aux_5"),
        ),
        _own(
            "hrnet",
            "high resolution",
            "keeps a high-resolution branch throughout and exchanges with coarser ones",
            "Sun et al. 2019, arXiv 1904.04514; Wang et al. 2019, arXiv 1908.07919",
            encoder=None,
        ),
        _own(
            "icnet",
            "image cascade",
            "three resolutions of the input, the finest through few layers",
            "Zhao et al. 2018, arXiv 1704.08545",
            encoder=None,
            tile_exact=False,
        ),
        _own(
            "fcn8s",
            "fully convolutional",
            "coarse scores refined by two skip connections",
            "Long, Shelhamer, Darrell 2015, arXiv 1411.4038",
        ),
        _own(
            "segnet",
            "encoder-decoder",
            "VGG16 encoder whose pooling positions lead the decoder back up",
            "Badrinarayanan, Kendall, Cipolla 2017, arXiv 1511.00561",
            encoder=None,
        ),
        _family(
            "unet",
            "Unet",
            "encoder-decoder",
            "U-Net: skip connections at every scale, the default for most maps",
            "Ronneberger, Fischer, Brox 2015, arXiv 1505.04597",
            tile_exact=True,
        ),
        _family(
            "unet++",
            "UnetPlusPlus",
            "encoder-decoder",
            "U-Net with nested, densely joined skip paths",
            "Zhou et al. 2018, arXiv 1807.10165",
            tile_exact=True,
        ),
        _family(
            "linknet",
            "Linknet",
            "encoder-decoder",
            "light decoder that adds encoder features instead of stacking them",
            "Chaurasia, Culurciello 2017, arXiv 1707.03718",
            tile_exact=True,
        ),
        _family(
            "fpn",
            "FPN",
            "multi-scale pyramid",
            "feature pyramid whose levels are summed",
            "Lin et al. 2017, arXiv 1612.03144; Kirillov et al. 2019, arXiv 1901.02446",
        ),
        _family(
            "pspnet",
            "PSPNet",
            "multi-scale pyramid",
            "pyramid pooling over the whole tile, scores at an eighth of the resolution",
            "Zhao et al. 2017, arXiv 1612.01105",
            stride=8,
        ),
        _family(
            "upernet",
            "UPerNet",
            "multi-scale pyramid",
            "feature pyramid with pyramid pooling at its top",
            "Xiao et al. 2018, arXiv 1807.10221",
        ),
        _family(
            "deeplabv3",
            "DeepLabV3",
            "dilated convolution",
            "parallel dilated convolutions and whole-tile pooling, stride 8",
            "Chen et al. 2017, arXiv 1706.05587",
            stride=8,
        ),
        _family(
            "deeplabv3+",
            "DeepLabV3Plus",
            "dilated convolution",
            "DeepLabV3 with a decoder that restores edges",
            "Chen et al. 2018, arXiv 1802.02611",
            stride=16,
        ),
        _family(
            "pan",
            "PAN",
            "attention",
            "pyramid attention at the top, global attention on the way up",
            "Li et al. 2018, arXiv 1805.10180",
            stride=16,
            min_size=128,
        ),
        _family(
            "manet",
            "MAnet",
            "attention",
            "U-Net with attention over positions and channels",
            "Fan et al. 2020, IEEE Access 8, 179656",
        ),
        _family(
            "segformer",
            "Segformer",
            "transformer",
            "transformer encoder with a decoder of plain linear layers",
            "Xie et al. 2021, arXiv 2105.15203",
            encoder="mit_b0",
        ),
    )
}


def names() -> tuple[str, ...]:
    """Return the names :func:`create` knows.

    >>> "unet" in names()
    True
    """
    return tuple(_ENTRIES)


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
    with ``torch.manual_seed``) unless ``pretrained``.

    Args:
        name: one of :func:`names`.
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


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        raise ConfigError(unknown_name("network", name, _ENTRIES))
    return _ENTRIES[name]


def _builder(entry: _Entry) -> Any:
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
