"""A network whose tiles are given the pooled means of their scene, so that they fit together as one pass would."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from geoseg.errors import ConfigError, SceneError
from geoseg.grid import TileGrid
from geoseg.networks.inference import main_output
from geoseg.networks.receptive_field import evaluating
from geoseg.networks.scene_pooling import (
    GATHERED,
    SceneMeans,
    ScenePooling,
    ScenePyramid,
    context_of,
    parts,
    pools_over_scene,
)
from geoseg.segmenters.interface import Spec, State, Tiles
from geoseg.segmenters.network import NetworkState, PlainNetwork

if TYPE_CHECKING:
    from geoseg.scene import Scene


@dataclass(frozen=True)
class ScenePoolingState(NetworkState):
    """The means of the scene, beside its scaling."""

    means: SceneMeans | None = None


class ScenePooledNetwork(PlainNetwork):
    """A network that is given the means of the whole scene in place of those of its tile.

    :meth:`prepare` runs the part of the network below the pooling over the scene, in tiles of twice the spec's size and
    halo on a lattice of the scene's own, whatever the tiles of the run will be.  They are mirrored at the scene's edges
    and invalid pixels filled, as in the run.  Each cell of the pooled map counts by the share of valid pixels in the
    square of ``stride`` pixels round it: where all is valid that is plain pooling, and a frame of nodata neither
    dilutes the means nor is computed.  A bin without a valid pixel gets the mean of the scene.

    Args:
        module: for which :func:`geoseg.networks.scene_pooling.pools_over_scene` holds.
        spec: what it asks of its tiles.

    Raises:
        ConfigError: the network does not pool over the scene, or tile or halo are no multiples of the stride.
    """

    def __init__(self, module: nn.Module, spec: Spec) -> None:
        network: object = module
        if not pools_over_scene(network):
            raise ConfigError("the network does not pool over the scene: make it with pooling 'scene'.")
        if spec.tile % network.stride or spec.halo % network.stride:
            raise ConfigError(
                f"a tile of {spec.tile} pixels with a halo of {spec.halo} does not keep to the network's lattice: use "
                f"multiples of {network.stride}."
            )
        super().__init__(module, replace(spec, scene_pass=True))

    @property
    def _network(self) -> ScenePooling:
        assert pools_over_scene(self.module)
        return self.module

    def prepare(self, scene: Scene) -> ScenePoolingState:
        """Measure the scaling of the bands, unless the spec has one, and gather the means of the scene.

        It is computed where the network lies (see :meth:`place`), at two thirds of the cost of the run or less, and
        holds one tile at a time.

        Raises:
            SceneError: the scene has no valid pixel, or cannot be read.
        """
        scaled = super().prepare(scene)
        network = self._network
        shape = network.cells(scene.shape)
        pyramid = ScenePyramid(network.coarse_channels, shape)
        grid = self._gathering(shape)
        margin = grid.halo // network.stride
        for position, row, col, size in parts(shape, grid.core_shape[0] // network.stride):
            inner = (slice(margin, margin + size[0]), slice(margin, margin + size[1]))
            tiles = Tiles.of([scene.read(grid.tile_window(position))])
            weights = _counted(tiles.valid, network.stride)[inner]
            if not weights.any():
                pyramid.skip(row, col, size)
                continue
            pixels = self._input(tiles.to(self._device), scaled)
            with evaluating(self.module), torch.no_grad():
                pyramid.add(network.coarse(pixels)[0][:, *inner], row, col, weights)
        if not pyramid.weight > 0:
            raise SceneError(f"{scene.path} has no valid pixel: all of it is nodata, transparent or masked.")
        return ScenePoolingState(normalisation=scaled.normalisation, means=pyramid.means())

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W) float32 for the tiles, each with the means of the scene at its place.

        Raises:
            ConfigError: the state is not what :meth:`prepare` returned, or scores have another shape than they should.
        """
        means = getattr(state, "means", None)
        if means is None:
            raise ConfigError("the network has no means of the scene: pass the state that prepare(scene) returned.")
        pixels = self._input(tiles, state)
        corners = [(window.row, window.col) for window in tiles.windows]
        with torch.no_grad():
            context = context_of(self._network, means, pixels, corners)
            return self._checked(main_output(self._network(pixels, context)), pixels)

    def _gathering(self, shape: tuple[int, int]) -> TileGrid:
        """Return the tiles to gather the means of a scene of ``shape`` cells with, no larger than the scene needs."""
        halo = GATHERED * self.spec.halo
        whole = max(1, max(shape) - 1) * self._network.stride + 2 * halo
        return TileGrid(min(GATHERED * self.spec.tile, whole), halo)

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


def _counted(valid: torch.Tensor, stride: int) -> torch.Tensor:
    """Return the share of valid pixels in the square of ``stride`` pixels round each cell of a tile: (h, w) float32."""
    share = functional.avg_pool2d(valid.float(), stride, stride, stride // 2, count_include_pad=False)
    return share[0]
