"""What is known of each network: facts and import paths only, so that reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NetworkInfo:
    """What is known of a network before it is built.

    Attributes:
        name: what :func:`geoseg.networks.create` takes.
        family: the kind of method, in two or three words.
        summary: one line.
        encoder: the default encoder; None where the network takes none.
        stride: pixels; shifting the input by a multiple of it shifts the scores alike; inputs are padded to a multiple
            of it.
            With the default encoder and options; a built network says its own as ``network.stride``.
        tile_exact: whether tiles with enough halo give the scores of one pass over the whole scene.  It holds for
            encoders made of convolutions; one with attention or squeeze-and-excitation takes it away.
        min_size: smallest side in pixels the network itself takes; smaller inputs are padded.
        fixed_size: the only side in pixels it takes, or None for any.
        source: the paper, or where the method is described.
        exact_with: the option with which tiles can be exact all the same, where there is one.
        auxiliary: names of the further outputs in training mode, for deep supervision; a network built with other
            options may have fewer.
        needs_prior: whether it refines the mask of an earlier stage: it is then called with pixels and a mask, and
            answers for that mask alone.
        needs_scene: whether it looks at more than a tile, so that it is no module to be called with pixels alone: the
            segmenter of its bundle knows how it is used.
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
    exact_with: str | None = None
    needs_prior: bool = False
    needs_scene: bool = False


@dataclass(frozen=True)
class Entry:
    """A network's facts, the ``module:function`` that builds it, and arguments that are always passed."""

    info: NetworkInfo
    builder: str
    fixed: dict[str, Any] = field(default_factory=dict)


_LSR = "Malkin et al. 2019, ICLR, OpenReview rkxwShA9Ym; the code released with it"


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
) -> Entry:
    """Return the entry of one architecture of segmentation_models_pytorch."""
    info = NetworkInfo(name, family, summary, encoder, stride, tile_exact, min_size or stride, source)
    fixed = {"architecture": architecture, "min_size": info.min_size}
    return Entry(info, "geoseg.networks.families:build_family", fixed)


def _lsr(name: str, family: str, stride: int, summary: str) -> Entry:
    """One of the networks that label super-resolution was released with."""
    info = NetworkInfo(name, family, summary, None, stride, tile_exact=True, min_size=stride, source=_LSR)
    if name == "lsr-fcn":
        return Entry(info, "geoseg.networks.lsr:build_lsr_fcn")
    return Entry(info, "geoseg.networks.lsr:build_lsr_unet", {"variant": name})


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
    exact_with: str | None = None,
    needs_prior: bool = False,
    module: str | None = None,
) -> Entry:
    """Return the entry of a network of ours, built by ``build_<name>`` in the module of its name."""
    info = NetworkInfo(
        *(name, family, summary, encoder, stride, tile_exact, min_size, source),
        auxiliary=auxiliary,
        exact_with=exact_with,
        needs_prior=needs_prior,
    )
    return Entry(info, f"geoseg.networks.{module or name}:build_{name}")


def _torchvision(
    name: str,
    architecture: str,
    family: str,
    summary: str,
    source: str,
    *,
    encoder: str = "resnet50",
    stride: int,
    tile_exact: bool = False,
) -> Entry:
    """Return the entry of one architecture of torchvision."""
    info = NetworkInfo(name, family, summary, encoder, stride, tile_exact, min_size=32, source=source)
    return Entry(info, "geoseg.networks.torchvision_families:build_torchvision", {"architecture": architecture})


ENTRIES = {
    entry.info.name: entry
    for entry in (
        Entry(
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
            auxiliary=("ecm4", "ecm3", "ecm2", "ecm1"),
        ),
        _own(
            "hrnet",
            "high resolution",
            "keeps a high-resolution branch throughout and exchanges with coarser ones",
            "Sun et al. 2019, arXiv 1904.04514; Wang et al. 2019, arXiv 1908.07919",
            encoder="hrnet_w18",
            min_size=64,
        ),
        _own(
            "icnet",
            "image cascade",
            "three resolutions of the input, the finest through few layers",
            "Zhao et al. 2018, arXiv 1704.08545",
            encoder="pruned",
            tile_exact=False,
            auxiliary=("scores_4", "scores_8", "scores_16"),
            exact_with="pooling=scene",
        ),
        _own(
            "cascadepsp",
            "refinement",
            "snaps a rough mask to the edges of the image, at three resolutions in turn",
            "Cheng, Chung, Tai, Tang 2020, arXiv 2005.02551",
            encoder="resnet50",
            stride=8,
            tile_exact=False,
            min_size=8,
            needs_prior=True,
        ),
        Entry(
            NetworkInfo(
                "glnet",
                "global-local",
                "an overview and patches that exchange what they see, for large scenes in little memory",
                encoder="resnet50",
                stride=1,
                tile_exact=False,
                min_size=1,
                source="Chen, Jiang, Wang, Cui, Qian 2019, arXiv 1905.06368",
                needs_scene=True,
            ),
            "geoseg.networks.glnet:build_glnet",
        ),
        Entry(
            NetworkInfo(
                "rstn",
                "coarse to fine",
                "a coarse network finds small, rare targets on an overview, a fine one looks at each again and again",
                encoder=None,
                stride=1,
                tile_exact=False,
                min_size=1,
                source="Yu, Xie, Wang, Zhou, Fishman, Yuille 2018, arXiv 1709.04518",
                needs_scene=True,
            ),
            "geoseg.networks.rstn:build_rstn",
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
        _own(
            "unet",
            "encoder-decoder",
            "U-Net: skip connections at every scale, the default for most maps",
            "Ronneberger, Fischer, Brox 2015, arXiv 1505.04597",
            encoder="resnet18",
        ),
        _lsr("lsr-unet", "encoder-decoder", 16, "slender U-Net that coarse labels were first trained with"),
        _lsr("lsr-unet-large", "encoder-decoder", 16, "the same with twelve times the weights, for larger areas"),
        _lsr("lsr-fcn", "fully convolutional", 1, "sixteen 3 × 3 convolutions that see little ground"),
        Entry(
            NetworkInfo(
                "local-statistics",
                "fully convolutional",
                "local means and deviations of the bands and few weights, for coarse labels that are few",
                encoder=None,
                stride=1,
                tile_exact=True,
                min_size=1,
                source="Unser 1986, Signal Processing 11(1) 61 (local transforms as texture; this choice is ours)",
            ),
            "geoseg.networks.local_statistics:build_local_statistics",
        ),
        Entry(
            NetworkInfo(
                "unet-lext",
                "encoder-decoder",
                "U-Net of six levels that adversarial adaptation was published with, with an auxiliary head on request",
                None,
                64,
                tile_exact=True,
                min_size=64,
                source="Panfilov et al. 2019, arXiv 1908.04126",
                auxiliary=("aux",),
            ),
            "geoseg.networks.unet_lext:build_unet_lext",
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
        Entry(
            NetworkInfo(
                "dpt",
                "transformer",
                "plain vision transformer, its layers assembled to a pyramid",
                encoder="vit_small_patch16_224",
                stride=32,
                tile_exact=False,
                min_size=32,
                source="Ranftl, Bochkovskiy, Koltun 2021, arXiv 2103.13413",
            ),
            "geoseg.networks.families:build_dpt",
        ),
        _torchvision(
            "torchvision-fcn",
            "fcn",
            "fully convolutional",
            "dilated ResNet and a small head, of torchvision",
            "Long, Shelhamer, Darrell 2015, arXiv 1411.4038; torchvision",
            stride=8,
            tile_exact=True,
        ),
        _torchvision(
            "torchvision-deeplabv3",
            "deeplabv3",
            "dilated convolution",
            "DeepLabV3 in torchvision's form, for its checkpoints",
            "Chen et al. 2017, arXiv 1706.05587; torchvision",
            stride=8,
        ),
        _torchvision(
            "torchvision-lraspp",
            "lraspp",
            "mobile",
            "the smallest: MobileNetV3 with a head of two scales",
            "Howard et al. 2019, arXiv 1905.02244; torchvision",
            encoder="mobilenet_v3_large",
            stride=16,
        ),
    )
}
