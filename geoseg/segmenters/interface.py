"""The tile interface: tiles in, class scores out.  Everything that segments is a :class:`Segmenter`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from geoseg.classes import Classes
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.normalisation import Normalisation

if TYPE_CHECKING:
    from geoseg.scene import Pixels, Scene
    from geoseg.segmenters.macro_windows import MacroGrid


@dataclass(frozen=True)
class View:
    """A coarse look at a tile's surroundings: ``extent`` scene pixels square, read at ``size`` pixels square.

    The squares lie on a lattice of the scene (:class:`geoseg.grid.ViewGrid`): neighbouring tiles share one, and what a
    tile is shown depends on nothing but its place.
    """

    extent: int
    size: int


@dataclass(frozen=True)
class Spec:
    """What a segmenter asks of its tiles and promises about its scores.

    Attributes:
        bands: names of the input channels, in order.
        resolution: true ground metres per pixel it was made for; None if any will do.
        classes: the classes, in the order of the scores' channels; None where they follow from the scene (clustering).
        tile: side in pixels of the tiles it is given; a multiple of ``stride``.
        halo: pixels on each side of a tile that only give context; a multiple of ``stride``.
        stride: pixels; shifts by multiples of it shift the scores alike.
        tile_exact: whether scores of the core equal those of one pass over the whole scene.
        bounded: whether they would with a larger halo, so that tiles of any size will do although these are not exact.
        normalisation: scaling of the bands; None where it is measured once on the scene.
        view: the surroundings it needs, if any.
        needs_prior: whether it refines the scores or labels of an earlier stage.
        deterministic: whether equal tiles give equal scores on one device.
        probabilistic: whether a softmax over its scores means a probability.
        layers: names of what it can say about each pixel beside its scores, see :meth:`Segmenter.segment_with_layers`.
        scene_pass: whether :meth:`Segmenter.prepare` computes over the whole scene, so that it is worth a GPU.
    """

    bands: tuple[str, ...]
    resolution: float | None
    classes: Classes | None
    tile: int
    halo: int
    stride: int = 1
    tile_exact: bool = True
    bounded: bool = False
    normalisation: Normalisation | None = None
    view: View | None = None
    needs_prior: bool = False
    deterministic: bool = True
    probabilistic: bool = True
    layers: tuple[str, ...] = ()
    scene_pass: bool = False

    @property
    def fixed_tile(self) -> bool:
        """Whether scores depend on the size of the tile, so that another one would be another model."""
        return not (self.tile_exact or self.bounded)


@dataclass(frozen=True)
class State:
    """What a segmenter learned about one scene before the first tile; small and picklable.

    ``classes`` are set by methods that find them in the scene; the others leave None and ``spec.classes`` holds.
    """

    classes: Classes | None = None


@dataclass(frozen=True)
class Tiles:
    """A batch of tiles of one shape.

    Attributes:
        pixels: (N, C, H, W) scene values, uint8 or float32; 0 where not valid.
        valid: (N, H, W) bool.
        windows: each tile's place in the scene (it may reach beyond the edge, where the scene is mirrored).
        view: (N, C, S, S) surroundings, where the spec asks for them; 0 where not valid.
        view_valid: (N, S, S) bool.
        view_windows: the part of the scene that each view shows.
        prior: (N, K, H, W) scores of an earlier stage, where the spec asks for them.
    """

    pixels: torch.Tensor
    valid: torch.Tensor
    windows: tuple[Window, ...]
    view: torch.Tensor | None = None
    view_valid: torch.Tensor | None = None
    view_windows: tuple[Window, ...] = ()
    prior: torch.Tensor | None = None

    @classmethod
    def of(cls, pixels: Sequence[Pixels]) -> Tiles:
        """Return tiles of ``pixels`` read from a scene: uint8 stays, everything else becomes float32."""
        data = np.stack([item.data for item in pixels])
        return cls(
            torch.from_numpy(data if data.dtype == np.uint8 else data.astype(np.float32)),
            torch.from_numpy(np.stack([item.valid for item in pixels])),
            tuple(item.window for item in pixels),
        )

    def __len__(self) -> int:
        """Return the number of tiles."""
        return int(self.pixels.shape[0])

    def singles(self) -> Iterator[Tiles]:
        """Iterate over the tiles as batches of one."""
        for i in range(len(self)):
            one = slice(i, i + 1)
            yield replace(
                self._with(lambda tensor, one=one: tensor[one]),  # type: ignore[misc]
                windows=self.windows[one],
                view_windows=self.view_windows[one],
            )

    def filled(self, count: int) -> Tiles:
        """Return the batch with its last tile repeated until there are ``count``."""
        missing = count - len(self)
        if missing <= 0:
            return self

        return replace(
            self._with(lambda tensor: torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])),
            windows=self.windows + self.windows[-1:] * missing,
            view_windows=self.view_windows + self.view_windows[-1:] * missing,
        )

    def to(self, device: torch.device) -> Tiles:
        """Return the batch on ``device``; pinned memory is copied without waiting."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Tiles:
        """Return the batch in memory that a GPU copies from without waiting."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Tiles:
        """Return the batch with every tensor changed."""

        def changed(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else change(tensor)

        return replace(
            self,
            pixels=change(self.pixels),
            valid=change(self.valid),
            view=changed(self.view),
            view_valid=changed(self.view_valid),
            prior=changed(self.prior),
        )


class Segmenter(ABC):
    """Any segmentation method.  The engine knows nothing else of it."""

    spec: Spec

    def prepare(self, scene: Scene) -> State:
        """Look at the scene once, before its tiles; most methods need nothing.

        ``scene`` is already on the grid (resolution, bands) that the tiles will have.  Where ``spec.scene_pass`` says
        so, the engine has placed the method on the device of the run before.
        """
        return State()

    @abstractmethod
    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W), float, on the tiles' device; the largest wins, a softmax gives probabilities.

        Args:
            tiles: what is to be segmented; what is said of pixels that are not valid does not matter.
            state: what :meth:`prepare` returned for the scene they are of.
        """

    def segment_with_layers(self, tiles: Tiles, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores as :meth:`segment` does, and the layers (N, L, H, W), float, that ``spec.layers`` names.

        ``tiles`` and ``state`` are those of :meth:`segment`.  Methods that name layers override it; the scores must be
        those of :meth:`segment`.
        """
        scores = self.segment(tiles, state)
        return scores, scores.new_zeros((len(scores), 0, *scores.shape[-2:]))

    def lattice(self, shape_yx: tuple[int, int]) -> MacroGrid | None:
        """Return how a scene is to be cut, for a method with a way of its own; None for plain tiles.

        ``shape_yx`` is height and width of the scene in pixels.  The answer belongs to the scene alone, never to a
        chunk.
        """
        return None

    def place(self, device: torch.device) -> None:  # noqa: B027 - a method without weights has nothing to place
        """Move what the method holds to ``device``, ready for inference; called before the first tile."""

    @property
    def engines(self) -> tuple[str, ...]:
        """What can compute the scores: ``torch``, and what :meth:`accelerate` takes."""
        return ("torch",)

    def accelerate(self, engine: str) -> None:
        """Let ``engine``, one of :attr:`engines`, compute the scores; called after :meth:`place`, if at all.

        Raises:
            ConfigError: it cannot.
        """
        if engine not in self.engines:
            raise ConfigError(f"{engine} cannot compute this method: leave --engine {engine} out.")


def normalised(tiles: Tiles, scaling: Normalisation) -> torch.Tensor:
    """Return the pixels of ``tiles`` as network input, by ``scaling``: (N, C, H, W) float32, 0 where invalid."""
    return scaled(tiles.pixels, tiles.valid, [scaling])


def scaled(pixels: torch.Tensor, valid: torch.Tensor, scalings: Sequence[Normalisation]) -> torch.Tensor:
    """Return pixels as network input: (N, C, H, W) float32, 0 where invalid.

    Args:
        pixels: (N, C, H, W) scene values.
        valid: (N, H, W) bool.
        scalings: one for all, or one each, with limits that are the same.
    """

    def column(values: list[tuple[float, ...]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=pixels.device)[..., None, None]

    offset = column([scaling.offset for scaling in scalings])
    factor = column([scaling.scale for scaling in scalings]).reciprocal()
    values = (pixels.to(torch.float32) - offset) * factor
    low, high = scalings[0].low, scalings[0].high
    if low is not None or high is not None:
        values = values.clamp(low, high)
    return values.masked_fill_(~valid.unsqueeze(1), 0.0)
