"""Parts of the scenes of a training, to measure the network on that it comes to."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import torch

from geoseg.errors import SceneError
from geoseg.networks.tiling import picture_side
from geoseg.normalisation import Normalisation
from geoseg.segmenters.scene_part import part_as_input
from geoseg.training.site import Site

# Each costs a few passes.
_MOST = 2


def pictures_of(sites: Sequence[Site], scalings: Sequence[Normalisation], stride: int) -> list[torch.Tensor]:
    """Return parts of the first scenes as network input (1, C, S, S), to choose the halo on.

    Args:
        sites: that are trained on.
        scalings: of the bands: one of each site, or one for all.
        stride: of the network, in pixels.
    """
    found: list[torch.Tensor] = []
    for site, scaling in zip(sites, itertools.cycle(scalings), strict=False):
        with contextlib.suppress(SceneError):  # hardly any data in it
            found.append(part_as_input(site.scene, scaling, picture_side(stride))[0])
        if len(found) == _MOST:
            break
    return found
