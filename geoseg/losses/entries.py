"""What is known of each loss: facts and import paths only, so that reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LossInfo:
    """What is known of a loss before it is made.

    Attributes:
        name: what sums of losses are written with.
        summary: one line.
        source: the paper, or where the loss is described.
        options: what may stand in brackets after the name.
        takes_soft: whether targets may be shares of classes (N, K, H, W), as mixed batches have them.
    """

    name: str
    summary: str
    source: str
    options: tuple[str, ...] = ()
    takes_soft: bool = False


@dataclass(frozen=True)
class Entry:
    """A loss's facts, the ``module:class`` that it is, and arguments that are always passed."""

    info: LossInfo
    module: str
    fixed: dict[str, Any] = field(default_factory=dict)


_AAF = ("sizes", "margin", "lambda_edge", "lambda_nonedge", "decay_base", "ignore_rule", "label_stride", "eps")
_SSIM = ("window", "size", "sigma", "sample_covariance", "ignored", "present_only")
_SSIM_SOURCE = "Brunet, Vrscay, Wang 2012, IEEE TIP 21(4) 1488"


def _overlap(name: str, summary: str, source: str, kind: str, *options: str) -> Entry:
    """Return the entry of a loss of segmentation_models_pytorch."""
    info = LossInfo(name, summary, source, ("class_weights", "smooth", *options))
    return Entry(info, "geoseg.losses.overlap:OverlapLoss", {"of": kind})


def _ssim(name: str, summary: str) -> Entry:
    """Return the entry of a part of structural similarity."""
    info = LossInfo(name, summary, _SSIM_SOURCE, _SSIM, takes_soft=True)
    return Entry(info, "geoseg.losses.ssim:SsimLoss", {"part": name})


ENTRIES = {
    entry.info.name: entry
    for entry in (
        Entry(
            LossInfo(
                "ce",
                "softmax cross-entropy, the default of all networks",
                "torch.nn.functional.cross_entropy",
                ("class_weights", "label_smoothing"),
                takes_soft=True,
            ),
            "geoseg.losses.standard:CrossEntropy",
        ),
        Entry(
            LossInfo(
                "ohem",
                "cross-entropy over the hard pixels alone",
                "Shrivastava, Gupta, Girshick 2016, arXiv 1604.03540",
                ("threshold", "keep", "class_weights"),
            ),
            "geoseg.losses.standard:Ohem",
        ),
        Entry(
            LossInfo(
                "bce",
                "one sigmoid a class, each against the rest",
                "torch.nn.functional.binary_cross_entropy_with_logits",
                ("class_weights",),
                takes_soft=True,
            ),
            "geoseg.losses.standard:BinaryCrossEntropy",
        ),
        Entry(
            LossInfo(
                "focal",
                "cross-entropy that counts sure pixels less",
                "Lin et al. 2017, arXiv 1708.02002 (with softmax)",
                ("gamma", "class_weights"),
            ),
            "geoseg.losses.standard:Focal",
        ),
        _overlap("dice", "1 − F1 of soft areas", "Milletari, Navab, Ahmadi 2016, arXiv 1606.04797; smp", "DiceLoss"),
        _overlap(
            "jaccard",
            "1 − IoU of soft areas",
            "Rahman, Wang 2016, doi 10.1007/978-3-319-50835-1_22; smp",
            "JaccardLoss",
        ),
        _overlap(
            "tversky",
            "as dice, false alarms (alpha) and misses (beta) weighted apart",
            "Salehi, Erdogmus, Gholipour 2017, arXiv 1706.05721; smp",
            "TverskyLoss",
            *("alpha", "beta", "gamma"),
        ),
        Entry(
            LossInfo("lovasz", "convex extension of 1 − IoU", "Berman, Triki, Blaschko 2018, arXiv 1705.08790"),
            "geoseg.losses.lovasz:Lovasz",
        ),
        Entry(
            LossInfo(
                "dsc",
                "1 − the Dice coefficient of each image, all its classes but a background together",
                "Yu et al. 2018, arXiv 1709.04518",
                ("background", "whole_batch"),
                takes_soft=True,
            ),
            "geoseg.losses.dsc:Dsc",
        ),
        Entry(
            LossInfo(
                "aaf",
                "neighbours of one class alike, of two classes apart, at sizes that an adversary weights",
                "Ke et al. 2018, arXiv 1803.10335",
                _AAF,
            ),
            "geoseg.losses.aaf:AffinityFields",
        ),
        Entry(
            LossInfo(
                "affinity",
                "affinity fields without the adversary, nearest neighbours alone",
                "Ke et al. 2018, arXiv 1803.10335",
                tuple(option for option in _AAF if option != "sizes"),
            ),
            "geoseg.losses.aaf:AffinityFields",
            {"adaptive": False, "sizes": (1,)},
        ),
        Entry(
            LossInfo(
                "ssl",
                "binary cross-entropy where the local pattern correlates worst with that of the labels",
                "Zhao et al. 2019, arXiv 1910.08711",
                ("window", "sigma", "c4", "beta", "lam", "border", "scope", "detach_weight", "prob"),
                takes_soft=True,
            ),
            "geoseg.losses.ssl_loss:StructuralSimilarityLoss",
        ),
        _ssim("s1", "level of windows: 1 − S1"),
        _ssim("s2", "contrast and structure of windows: 1 − S2"),
        _ssim("ssim", "1 − S1 · S2, the index's usual loss"),
        _ssim("d1", "the distance √(1 − S1) + √(1 − S2), rounded off at 0"),
        _ssim("d2", "2 − S1 − S2, the square of the distance D2"),
    )
}
