"""Labels refined tile by tile: those of another segmenter, or those of an earlier stage that are given as a prior.

A refiner looks at one mask and its surroundings.  Here the surroundings are a tile, whose lattice belongs to the scene:
what comes out depends neither on chunks nor on who computes them.  Each class but the background is refined as a mask;
what is left is background.

Source: Cheng et al. 2020, arXiv 2005.02551; the division into tiles and the classes' shares are this project's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from geoseg.bundle import Bundle
from geoseg.classes import Classes
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.metrics import IGNORED
from geoseg.normalisation import Normalisation
from geoseg.scene import SAME_RESOLUTION
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles
from geoseg.segmenters.refined_classes import components_of, shares
from geoseg.segmenters.refinement import Refiner
from geoseg.segmenters.refinement_settings import MergeSettings, RefinementSettings

if TYPE_CHECKING:
    from geoseg.scene import Scene

Whole = Literal["tile", "object"]
# A tile in sides of the refiner's crops, and how far its context reaches.
_TILE_SIDES, _HALO_SIDES = 3, 0.5


@dataclass(frozen=True)
class RefiningState(State):
    """What the first stage learned of the scene, and the scaling for the refiner where it brings none."""

    first: State | None = None
    scaling: Normalisation | None = None


class Refining(Segmenter):
    """A refiner behind another segmenter, or behind labels that are given with each tile.

    Args:
        refiner: an opened bundle of a refiner.
        first: what gives the rough labels; None where tiles bring them as a prior.
        whole: what the refiner's first look takes in: the whole ``tile``, or each connected ``object`` of a class with
            its surroundings, one after another; objects of less than ``merge.min_component`` pixels are then left as
            they are.
        settings: of the procedure, by default the refiner's own.
        merge: how objects are found.

    Raises:
        BundleError: the bundle holds no refiner.
        ConfigError: the two take other bands or resolutions.
    """

    def __init__(
        self,
        refiner: Bundle,
        first: Segmenter | None = None,
        *,
        whole: Whole = "tile",
        settings: RefinementSettings | None = None,
        merge: MergeSettings | None = None,
    ) -> None:
        description = refiner.description
        scaling = description.normalisation.build() if description.normalisation else None
        self._given = scaling
        # Where there is none, it is measured on the scene, and this one never used.
        unused = Normalisation((0.0,) * len(description.bands), (1.0,) * len(description.bands))
        self.refiner = Refiner.from_bundle(refiner, scaling or unused, settings)
        self.first, self.whole, self.merge = first, whole, merge or MergeSettings()
        side = self.refiner.settings.side
        halo = _up(round(_HALO_SIDES * side), description.stride)
        spec = Spec(
            bands=tuple(description.bands),
            resolution=description.resolution,
            classes=None,
            tile=_up(_TILE_SIDES * side, description.stride),
            halo=halo,
            stride=description.stride,
            tile_exact=False,
            normalisation=scaling,
            needs_prior=first is None,
        )
        self.spec = spec if first is None else _behind(spec, first.spec)

    def prepare(self, scene: Scene) -> RefiningState:
        """Let the first stage look at the scene, and measure the scaling of the bands where the refiner has none."""
        measured = None if self._given else Normalisation.of(scene.statistics(), "standard")
        first = None if self.first is None else self.first.prepare(scene)
        return RefiningState(None if first is None else first.classes, first, measured)

    def place(self, device: torch.device) -> None:
        """Move both stages to ``device``."""
        self.refiner.place(device)
        if self.first is not None:
            self.first.place(device)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W): logarithms of the classes' shares.

        Raises:
            ConfigError: no labels to refine, or a state of another kind.
        """
        scaling = self._given or getattr(state, "scaling", None)
        if not isinstance(state, RefiningState) or scaling is None:
            raise ConfigError("the refiner has no state: pass the state that prepare(scene) returned.")
        classes = state.classes or self.spec.classes
        if classes is None:
            raise ConfigError("the refiner does not know the classes of its labels: pass a state that has them.")
        if self.first is not None:
            assert state.first is not None
            rough = self.first.segment(tiles, state.first).float().softmax(1)
        elif tiles.prior is not None:
            rough = tiles.prior
        else:
            raise ConfigError("a refiner was given no labels: pass tiles with a prior.")
        refiner = Refiner(self.refiner.module, scaling, self.refiner.settings)
        made = [self._refined(refiner, tiles.pixels[i], tiles.valid[i], rough[i], classes) for i in range(len(tiles))]
        found = torch.from_numpy(np.stack(made)).to(tiles.pixels.device)
        return found.clamp_(min=torch.finfo(torch.float32).tiny).log_()

    def _refined(
        self, refiner: Refiner, pixels: torch.Tensor, valid: torch.Tensor, rough: torch.Tensor, classes: Classes
    ) -> NDArray[np.float32]:
        """Return the shares (K, H, W) of the classes in one tile."""
        image, here, first = pixels.cpu().numpy(), valid.cpu().numpy(), rough.cpu().numpy()
        labels = first.argmax(0).astype(np.uint8)
        labels[~here | (first.max(0) <= 0)] = IGNORED
        things = [i for i, item in enumerate(classes) if not item.background]
        if self.whole == "object":
            parts = components_of(labels, self.merge, things)
            answers = [
                (
                    part.position,
                    part.window,
                    refiner.refine(_cut(image, part.window), _cut(here, part.window), part.mask),
                )
                for part in parts
            ]
            return shares(labels, answers, len(classes))
        return _completed(labels, {i: refiner.refine(image, here, labels == i) for i in things}, classes)


def _behind(spec: Spec, first: Spec) -> Spec:
    """Return what both stages ask of their tiles.

    Raises:
        ConfigError: they take other bands or another resolution.
    """
    if [band.lower() for band in first.bands] != [band.lower() for band in spec.bands]:
        raise ConfigError(
            f"the model takes the bands {', '.join(first.bands)} and the refiner {', '.join(spec.bands)}: use a "
            "refiner for the same bands."
        )
    if first.resolution and spec.resolution and abs(first.resolution / spec.resolution - 1) > SAME_RESOLUTION:
        raise ConfigError(
            f"the model works at {first.resolution:.3g} m and the refiner at {spec.resolution:.3g} m: refine its "
            "labels afterwards with `geoseg refine`, or use a refiner for the same resolution."
        )
    stride = math.lcm(spec.stride, first.stride)
    halo = _up(max(first.halo, spec.halo), stride)
    tile = first.tile if first.fixed_tile else _up(max(first.tile, spec.tile, 2 * halo + spec.halo), stride)
    return replace(
        spec,
        resolution=first.resolution or spec.resolution,
        classes=first.classes,
        tile=tile,
        halo=halo,
        stride=stride,
        view=first.view,
        needs_prior=first.needs_prior,
        deterministic=first.deterministic,
        scene_pass=first.scene_pass,
    )


def _cut(array: NDArray[Any], window: Window) -> NDArray[Any]:
    return array[..., window.row : window.row_stop, window.col : window.col_stop]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _completed(
    labels: NDArray[np.uint8], refined: dict[int, NDArray[np.float32]], classes: Classes
) -> NDArray[np.float32]:
    """Return the shares (K, H, W): refined probabilities, and of the background what these leave.

    Where there is no background a pixel that no class has anything of keeps its label.
    """
    found = np.zeros((len(classes), *labels.shape), np.float32)
    for position, probabilities in refined.items():
        found[position] = probabilities
    behind = [i for i, item in enumerate(classes) if item.background]
    if behind:
        # Several kinds of background divide what is left as the rough labels have it.
        left = 1 - found.max(axis=0)
        for i in behind:
            found[i] = np.where((labels == i) | (len(behind) == 1), left, 0)
        unsettled = ~np.isin(labels, behind)
        found[behind[0]] = np.where(unsettled, left, found[behind[0]])
    total = found.sum(axis=0)
    rough = labels == np.arange(len(classes), dtype=np.uint8)[:, None, None]
    shared: NDArray[np.float32] = np.where(total > 0, found / np.where(total > 0, total, 1), rough).astype(np.float32)
    return shared
