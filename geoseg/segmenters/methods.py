"""What can stand behind the tile interface, and how it is reached.  Listing it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from geoseg.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Method:
    """One way of segmenting a scene.

    Attributes:
        name: how it is called.
        summary: what it is.
        sees: what it looks at beside a tile and its halo.
        learns: what it learns from.
        command: how it is run.
        source: where it comes from.
    """

    name: str
    summary: str
    sees: str
    learns: str
    command: str
    source: str


_METHODS = (
    Method(
        "network",
        "any network from pixels to scores (`geoseg networks`), tile by tile",
        "nothing; with pooling=scene the means of the scene",
        "labels",
        "geoseg predict SCENE OUT -m MODEL",
        "by network, see `geoseg networks NAME`",
    ),
    Method(
        "onnx",
        "a network in an ONNX file, with onnxruntime",
        "nothing",
        "elsewhere",
        "geoseg predict SCENE OUT -m MODEL.onnx",
        "onnx.ai",
    ),
    Method(
        "ensemble",
        "the mean of several models of the same bands and classes",
        "what its members see",
        "what its members learn from",
        "geoseg predict SCENE OUT -m ONE -m OTHER",
        "-",
    ),
    Method(
        "test-time augmentation",
        "the mean over the eight flips and quarter turns of a tile",
        "nothing",
        "what the model learns from",
        "geoseg predict SCENE OUT -m MODEL --tta",
        "-",
    ),
    Method(
        "feature-clustering",
        "segments by colour and texture, fitted once to a sample of the scene",
        "a sample of the scene",
        "nothing; scribbles where there are any",
        "geoseg cluster SCENE OUT",
        "Kim, Kanezaki, Tanaka 2020, arXiv 2007.09990",
    ),
    Method(
        "superpixel-backprop",
        "the same with superpixels in training, for borders that follow the image",
        "a sample of the scene",
        "nothing; scribbles where there are any",
        "geoseg cluster SCENE OUT --method superpixel-backprop",
        "Kanezaki 2018, ICASSP, doi 10.1109/ICASSP.2018.8462533",
    ),
    Method(
        "active-contour",
        "two segments, bright and dark, with short borders: water, snow, shadow in one band or a few",
        "a sample of the scene",
        "nothing",
        "geoseg cluster SCENE OUT --method active-contour",
        "Chen, Frey 2020, arXiv 2001.10155",
    ),
    Method(
        "global-local",
        "GLNet: an overview and patches that exchange what they see",
        "a macro-window of up to ten patches a side",
        "labels",
        "geoseg predict SCENE OUT -m MODEL",
        "Chen, Jiang, Wang, Cui, Qian 2019, arXiv 1905.06368",
    ),
    Method(
        "rstn",
        "a coarse network finds small, rare targets, a fine one looks at each again and again",
        "an overview of the scene",
        "labels",
        "geoseg predict SCENE OUT -m MODEL",
        "Yu, Xie, Wang, Zhou, Fishman, Yuille 2018, arXiv 1709.04518",
    ),
    Method(
        "cascadepsp",
        "labels from anywhere, brought to the edges of the image",
        "the labels",
        "labels, spoilt on purpose",
        "geoseg refine SCENE LABELS OUT -m REFINER, or geoseg predict … --refine REFINER",
        "Cheng, Chung, Tai, Tang 2020, arXiv 2005.02551",
    ),
)


def methods() -> tuple[Method, ...]:
    """Return all methods."""
    return _METHODS


def method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        ConfigError: there is none.
    """
    for each in _METHODS:
        if each.name == name:
            return each
    raise ConfigError(unknown_name("method", name, [each.name for each in _METHODS]))
