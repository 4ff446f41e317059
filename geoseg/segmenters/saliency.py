"""RSTN as a segmenter: a coarse network finds candidates on an overview, a fine one looks at these again and again.

A run over a scene takes the overview of the whole scene, boxes round what the coarse network finds there, and the
rounds over each box, see :mod:`geoseg.engine.saliency`.  Behind the tile interface, where other segmenters stand beside
or before it (ensembles, test-time augmentation, refinement), each tile is a small scene of its own.

Source: Yu et al. 2018, arXiv 1709.04518; overview, boxes and classes are this project's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from geoseg.bundle import Bundle
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError, GeosegError, one_line
from geoseg.grid import Window
from geoseg.networks.rstn import SaliencyPair, shrunk
from geoseg.normalisation import Normalisation
from geoseg.segmenters.candidates import Candidates, candidates, overview_in, overview_window
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles, normalised
from geoseg.segmenters.network import NetworkState, load_tensors, spec_of, undrawn
from geoseg.segmenters.recurrence import Answer, PairLook, combined, reach, recur
from geoseg.segmenters.saliency_pair import PairSettings, build
from geoseg.segmenters.saliency_settings import SaliencySettings

if TYPE_CHECKING:
    from geoseg.scene import Scene

METHOD: Final = "saliency"
# 1 where the coarse network alone has looked, 0 where the fine one has.
COARSE_ONLY: Final = "coarse only"
# From a window of the scene to its normalised pixels (B, height, width), and where they hold data.
Read = Callable[[Window], tuple[torch.Tensor, torch.Tensor]]


class SaliencyNetwork(Segmenter):
    """A pair of networks for small, rare targets.

    Scores are of all classes: each target's is its probability, the background's what the most probable target leaves.

    Args:
        pair: of as many targets as there are classes beside the background.
        classes: one of them the background; the others are the targets, in order.
        settings: how the scene is looked at; their factor is the pair's.
        coarse: what the coarse network asks of its tiles, in pixels of the overview; its bands, resolution and scaling
            are the pair's.

    Raises:
        ConfigError: not exactly one background, or a pair for other bands, targets or another factor.
    """

    def __init__(self, pair: SaliencyPair, classes: Classes, settings: SaliencySettings, coarse: Spec) -> None:
        self.background = background_of(classes)
        given = (len(coarse.bands), len(classes) - 1, settings.factor)
        own = (pair.bands, pair.targets, pair.factor)
        if given != own:
            raise ConfigError(
                f"the pair takes {own[0]} bands, finds {own[1]} targets and an overview {own[2]} times smaller: give "
                f"these, not {given[0]}, {given[1]} and {given[2]}."
            )
        self.pair = pair
        self.settings = settings
        self.coarse_spec = replace(coarse, classes=classes)
        self.spec = Spec(
            bands=coarse.bands,
            resolution=coarse.resolution,
            classes=classes,
            tile=settings.limit,
            halo=settings.halo,
            tile_exact=False,
            normalisation=coarse.normalisation,
            layers=(COARSE_ONLY,),
        )

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> SaliencyNetwork:
        """Return the segmenter that a bundle describes, with its weights.

        Raises:
            BundleError: a bundle of another method, one that this version cannot build, or other weights.
        """
        about = bundle.description
        if about.method != METHOD:
            raise BundleError(f"{bundle.path} is a model of the method {about.method}, not {METHOD}.")
        classes = about.class_table()
        try:
            told = PairSettings.of_record(about.settings)
            with undrawn():
                pair = build(told, bands=len(about.bands), targets=len(classes) - 1)
            found = cls(pair, classes, told.looking, spec_of(about))
        except (GeosegError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{bundle.path} asks for a pair of networks that this version of geoseg does not make: "
                f"{one_line(error)}"
            ) from error
        load_tensors(pair, bundle.tensors(), bundle.path)
        pair.eval()
        return found

    def coarse_pass(self) -> CoarsePass:
        """Return the coarse network as a segmenter of the overview."""
        return CoarsePass(self.pair, self.coarse_spec, self.background)

    def prepare(self, scene: Scene) -> NetworkState:
        """Measure the scaling of the bands on the scene, unless the spec has one."""
        return _prepared(self.spec, scene)

    def place(self, device: torch.device) -> None:
        """Make an inference copy on ``device``; the pair given stays as it was."""
        self.pair = copy.deepcopy(self.pair).eval().requires_grad_(False).to(device)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W) float32: logarithms of probabilities.

        Raises:
            ConfigError: nothing scales the bands.
        """
        return self.segment_with_layers(tiles, state)[0]

    def segment_with_layers(self, tiles: Tiles, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores as :meth:`segment` does, and where no fine look was, (N, 1, H, W) float32.

        Raises:
            ConfigError: nothing scales the bands.
        """
        pixels = normalised(tiles, scaling_of(self.spec, state))
        looked = [self.found_in(pixels[i], tiles.valid[i]) for i in range(len(tiles))]
        probabilities, unseen = (torch.from_numpy(np.stack(values)).to(pixels) for values in zip(*looked, strict=True))
        return scores_of(shares(probabilities, self.background)), unseen

    def found_in(self, pixels: torch.Tensor, valid: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Look at an image as at a scene: return probabilities (K, H, W), and 1 where no fine look was, (1, H, W).

        Args:
            pixels: (B, H, W), normalised.
            valid: (H, W) bool.
        """
        shape = (int(pixels.shape[1]), int(pixels.shape[2]))
        whole = Window(0, 0, *shape)
        factor = self.settings.factor
        with torch.inference_mode():
            logits = self.pair.overview(shrunk(pixels[None], factor))[0]
            known = F.max_pool2d(valid[None, None].float(), factor, ceil_mode=True)[0] > 0
            overview = logits.float().sigmoid().where(known, 0).cpu().numpy()

        def read(window: Window) -> tuple[torch.Tensor, torch.Tensor]:
            rows, cols = window.within(whole)
            return pixels[:, rows, cols], valid[rows, cols]

        boxes = self.candidates(overview, shape)
        answers = [self.answer(box, overview, Window(0, 0, *overview.shape[1:]), shape, read) for box in boxes.windows]
        return combined(answers, whole, self.pair.targets), unseen_in(answers, whole)

    def candidates(self, overview: NDArray[np.floating], shape_yx: tuple[int, int]) -> Candidates:
        """Return the boxes to be looked at, see :func:`geoseg.segmenters.candidates.candidates`."""
        return candidates(overview, shape_yx, self.settings)

    def needs(self, box: Window, shape_yx: tuple[int, int]) -> Window:
        """Return the part of the overview that the rounds over a box depend on.

        Args:
            box: in scene pixels.
            shape_yx: of the scene.
        """
        small = (-(-shape_yx[0] // self.settings.factor), -(-shape_yx[1] // self.settings.factor))
        return overview_window(self.settings.factor, reach(box, shape_yx, self.settings), small)

    def answer(
        self, box: Window, overview: NDArray[np.floating], part: Window, shape_yx: tuple[int, int], read: Read
    ) -> Answer:
        """Look at a box until the answer is stable.

        Args:
            box: one of the candidates.
            overview: the coarse network's probabilities (K, h, w) in ``part``.
            part: of the overview; it holds what the box needs.
            shape_yx: of the scene.
            read: gives the scene's pixels.
        """
        factor, whole = self.settings.factor, reach(box, shape_yx, self.settings)
        moved = Window(whole.row - factor * part.row, whole.col - factor * part.col, whole.height, whole.width)
        first = overview_in(overview, factor, moved)
        return recur(PairLook(self.pair, read), first, box, shape_yx, self.settings)


class CoarsePass(Segmenter):
    """The coarse network of a pair over an overview; its layers are the targets' probabilities, named as they are.

    Args:
        pair: of networks.
        spec: of the coarse network.
        background: position of the background among the classes.
    """

    def __init__(self, pair: SaliencyPair, spec: Spec, background: int) -> None:
        assert spec.classes is not None
        names = tuple(item.name for position, item in enumerate(spec.classes) if position != background)
        self.network = pair.coarse_model
        self.spec = replace(spec, layers=names)
        self._background = background

    def prepare(self, scene: Scene) -> NetworkState:
        """Measure the scaling of the bands on the scene, unless the spec has one."""
        return _prepared(self.spec, scene)

    def place(self, device: torch.device) -> None:
        """Make an inference copy on ``device``; the network given stays as it was."""
        self.network = copy.deepcopy(self.network).eval().requires_grad_(False).to(device)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W) float32 of all classes: logarithms of probabilities."""
        return self.segment_with_layers(tiles, state)[0]

    def segment_with_layers(self, tiles: Tiles, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores as :meth:`segment` does, and the targets' probabilities (N, K - 1, H, W) float32."""
        with torch.no_grad():
            logits = self.network(normalised(tiles, scaling_of(self.spec, state)))
        probabilities = logits.float().sigmoid()
        return scores_of(shares(probabilities, self._background)), probabilities


def background_of(classes: Classes) -> int:
    """Return the position of the background.

    Raises:
        ConfigError: not exactly one class is marked as background, or there is no other.
    """
    found = [position for position, item in enumerate(classes) if item.background]
    if len(found) != 1 or len(classes) < 2:
        raise ConfigError(
            f"{len(found)} of the {len(classes)} classes are marked as background: a pair of networks that looks for "
            "targets needs exactly one, and a target beside it; call one class background."
        )
    return found[0]


def shares(probabilities: torch.Tensor, background: int) -> torch.Tensor:
    """Return the classes' shares of each pixel, which add up to 1: (…, K + 1, H, W).

    Targets do not exclude one another.  What the most probable one leaves is the background's, so a pixel belongs to
    a target from a probability of one half on.

    Args:
        probabilities: (…, K, H, W) of the targets.
        background: where it stands among the classes.
    """
    left = 1 - probabilities.amax(-3, keepdim=True)
    before, behind = probabilities[..., :background, :, :], probabilities[..., background:, :, :]
    every = torch.cat([before, left, behind], -3)
    return every / every.sum(-3, keepdim=True)


def scores_of(parts: torch.Tensor) -> torch.Tensor:
    """Return scores whose softmax are the shares."""
    return parts.clamp(min=torch.finfo(torch.float32).tiny).log()


def unseen_in(answers: list[Answer], window: Window) -> NDArray[np.float32]:
    """Return 1 where no answer holds and 0 elsewhere: (1, height, width)."""
    found = np.ones((1, *window.shape), np.float32)
    for answer in answers:
        common = window.intersect(answer.box)
        if not common.empty:
            found[(0, *common.within(window))] = 0
    return found


def scaling_of(spec: Spec, state: State) -> Normalisation:
    """Return the scaling of the bands.

    Raises:
        ConfigError: neither spec nor state has one.
    """
    scaling: Normalisation | None = spec.normalisation or getattr(state, "normalisation", None)
    if scaling is None:
        raise ConfigError("the networks have no scaling of their bands: pass the state that prepare(scene) returned.")
    return scaling


def _prepared(spec: Spec, scene: Scene) -> NetworkState:
    if spec.normalisation is not None:
        return NetworkState()
    return NetworkState(None, Normalisation.of(scene.statistics(), "standard"))
