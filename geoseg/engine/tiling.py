"""What tiling costs on a user's own scene: disagreement against halo, measured with the model as it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from geoseg.engine.predict import Options, at_model_resolution, with_bands_of
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.networks.tiling import BOUND, Comparison, Difference, compare, halos
from geoseg.scene import Scene, open_scene
from geoseg.segmenters.loading import load
from geoseg.segmenters.scene_part import part_as_input

if TYPE_CHECKING:
    from geoseg.segmenters.network import PlainNetwork

DEFAULT_CROP = 1024
# Of a crop, the part that the largest halo may take on each side: what is compared is then a quarter of the side.
_LARGEST_SHARE = 5


@dataclass(frozen=True)
class SceneTiling:
    """What was found on a scene.

    Attributes:
        scene: its path.
        crop: the part that was read, on the model's grid.
        resolution: metres per pixel of that grid.
        comparison: differences by halo.
        bound: share of labels that may differ.
        chosen: the smallest halo that keeps the bound; None where none that was tried does.
        stored: the halo in pixels that the model has.
    """

    scene: str
    crop: Window
    resolution: float
    comparison: Comparison
    bound: float
    chosen: Difference | None
    stored: int


def measure_on_scene(
    model: str | os.PathLike[str],
    scene: str | os.PathLike[str] | Scene,
    *,
    bands: Sequence[int | str] | None = None,
    crop: int = DEFAULT_CROP,
    bound: float = BOUND,
) -> SceneTiling:
    """Compare one pass over a part of the scene with tiles of it, for several halos.

    A network that pools over the scene takes the part for its scene, in the pass and in the tiles.

    Args:
        model: path, URL or name of a bundle that holds a network.
        scene: path, URL, or an opened scene; read at the model's resolution, scaled as a run would scale it.
        bands: indices (from 1) or names; by default those the model names.
        crop: side in pixels of the part, from the middle of the scene where that has data.
        bound: share of labels that may differ.

    Raises:
        BundleError, SceneError: the model or the scene cannot be used.
        ConfigError: the model is no network, or ``crop`` or ``bound`` makes no sense.
    """
    from geoseg.segmenters.network import PlainNetwork

    if not 0 < bound < 1:
        raise ConfigError(f"the bound on labels that differ is {bound}: give a share between 0 and 1, such as {BOUND}.")
    segmenter = load(model)
    if not isinstance(segmenter, PlainNetwork):
        raise ConfigError(f"{os.fspath(model)} holds no network, and only networks depend on their tiles.")
    spec = segmenter.spec
    own = scene if isinstance(scene, Scene) else open_scene(scene, bands=bands)
    own = with_bands_of(own, spec, Options(bands=bands))
    seen, _ = at_model_resolution(own, spec, Options())
    steps, tile = _steps(segmenter, crop)
    pixels, window = part_as_input(seen, segmenter.scaling_on(seen), crop // spec.stride * spec.stride)
    comparison = compare(segmenter.module, pixels, spec.stride, steps, tile)
    chosen = comparison.smallest(bound)
    return SceneTiling(own.path, window, min(seen.resolution), comparison, bound, chosen, spec.halo)


def _steps(segmenter: PlainNetwork, crop: int) -> tuple[list[int], int | None]:
    """Return the halos to try, and the tile of a network that depends on its size.

    Raises:
        ConfigError: the crop is too small.
    """
    spec = segmenter.spec
    least = max(8 * spec.stride, 256) if not spec.fixed_tile else 2 * spec.tile
    if crop < least:
        raise ConfigError(f"a crop of {crop} pixels is too small to cut tiles of this model from: use {least} or more.")
    if spec.fixed_tile:
        largest = max(spec.tile // 4, spec.halo)
    else:
        largest = max(crop // _LARGEST_SHARE, min(spec.halo, crop // 3))
    steps = {*halos(largest // spec.stride * spec.stride, spec.stride)}
    if spec.halo <= largest:
        steps.add(spec.halo)
    return sorted(steps), spec.tile if spec.fixed_tile else None
