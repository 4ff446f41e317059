"""What models of other programs were trained with and seldom say: the scaling of pixel values, and their classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from geoseg.bundle import NormalisationRecord
from geoseg.classes import Classes, LabelClass, default_color
from geoseg.errors import ConfigError, unknown_name

# Mean and deviation of ImageNet's red, green and blue, on 0 to 1.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
KINDS = ("scene", "imagenet", "unit")


@dataclass(frozen=True)
class Scaling:
    """How pixel values become network input, as users say it.

    Attributes:
        kind: ``scene`` measures it on each scene, ``unit`` divides by ``full_scale``, ``imagenet`` then standardises
            red, green and blue as most pretrained encoders want; None where it is not said: what the file says, else
            ``scene``.
        full_scale: the pixel value that becomes 1: 255 for bytes, 10000 for reflectances stored so.
        mean: one for each band, in units of ``full_scale``; with ``std`` in place of what ``kind`` says.
        std: likewise.
    """

    kind: str | None = None
    full_scale: float = 255.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def record(self, bands: int) -> NormalisationRecord | None:
        """Return the scaling of so many bands as bundles keep it; None where it is measured on each scene.

        Raises:
            ConfigError: an unknown kind, another number of figures than of bands, or a figure that scales nothing.
        """
        kind = self.kind or "scene"
        if kind not in KINDS:
            raise ConfigError(unknown_name("normalisation", kind, KINDS))
        if not math.isfinite(self.full_scale) or self.full_scale <= 0:
            raise ConfigError(
                f"the full scale is {self.full_scale:g}: give the pixel value that stands for 1, say 255."
            )
        mean, std = self.mean, self.std
        if (mean is None) != (std is None):
            raise ConfigError("mean and std go together: give both, one figure for each band, or neither.")
        if mean is None or std is None:
            if kind == "scene":
                return None
            mean, std = (_IMAGENET_MEAN, _IMAGENET_STD) if kind == "imagenet" else ((0.0,) * bands, (1.0,) * bands)
        if len(mean) != bands and self.mean is None:
            raise ConfigError(
                f"the normalisation imagenet is for red, green and blue, and the model takes {bands} bands: "
                "give mean and std for each band, or use scene."
            )
        for what, values in (("mean", mean), ("std", std)):
            if len(values) != bands or not all(math.isfinite(value) for value in values):
                raise ConfigError(f"{what} is {list(values)}: give {bands} finite numbers, one for each band.")
        if not all(value > 0 for value in std):
            raise ConfigError(f"std is {list(std)}: every deviation must be above 0.")
        return NormalisationRecord(
            offset=[self.full_scale * value for value in mean], scale=[self.full_scale * value for value in std]
        )


def classes_called(names: Sequence[str]) -> Classes:
    """Return classes of the given names, ids from 0; one called *background*, in whatever form, is one.

    Raises:
        LabelsError: a name is empty or repeated, or there are too many.
    """
    items = []
    for position, name in enumerate(names):
        background = name.strip(" _-").lower() in ("background", "bg")
        items.append(LabelClass(position, name, "#d9d9d9" if background else default_color(position), background))
    return Classes(tuple(items))
