"""What segmenters have in common that are fitted to scenes without labels: state, scaling, statistics, bundles."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

import geoseg
from geoseg.bundle import Bundle, ClassRecord, Description, NormalisationRecord, write_bundle
from geoseg.classes import LabelClass
from geoseg.errors import BundleError, ConfigError, SceneError
from geoseg.grid import Window
from geoseg.normalisation import Normalisation
from geoseg.scene import Scene
from geoseg.segmenters.fit_settings import FitSettings
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles, normalised
from geoseg.segmenters.scene_sample import Batch

Progress = Callable[[int, int], None]
_TILE = 512
LEAST_DEVIATION = 1e-6


@dataclass(frozen=True, eq=False)
class FittedState(State):
    """A fitted network; small and picklable.

    Attributes:
        bands: names of the bands, in order.
        weights: the network's state dict as arrays.
        scaling: of the bands, from the statistics of the scenes it was fitted to.
        fill: scaled mean of each band, which stands where nothing is known.
        sample: windows of the sample in the scenes.
        figures: of the training, plain values.
    """

    bands: tuple[str, ...] = ()
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    scaling: Normalisation = field(default_factory=lambda: Normalisation((), (), 0.0, 1.0))
    fill: tuple[float, ...] = ()
    sample: tuple[Window, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides the scores."""
        total = hashlib.sha256(repr((self._deciding(), self.scaling, self.fill)).encode())
        for name in sorted(self.weights):
            total.update(name.encode())
            total.update(np.ascontiguousarray(self.weights[name]).tobytes())
        return total.hexdigest()

    def _deciding(self) -> tuple[Any, ...]:
        """Return what else decides the scores, as values that print alike when they are alike."""
        raise NotImplementedError

    def named(self, items: Sequence[LabelClass]) -> Self:
        """Return the state with segments called as ``items`` say; see :meth:`geoseg.classes.Classes.renamed`.

        Raises:
            LabelsError: an item is of no segment, or names meet that cannot.
        """
        raise NotImplementedError

    def description(self) -> Description:
        """Return what a bundle of this state says about itself."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the state as a bundle, which gives other scenes the same segments (:func:`geoseg.load`).

        Raises:
            OutputError: ``path`` exists and ``overwrite`` is False, or cannot be written.
        """
        write_bundle(path, self.description(), self.weights, overwrite=overwrite)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the digest out, so that equal states have equal pickles."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __eq__(self, other: object) -> bool:
        """Whether both give the same scores under the same names."""
        if type(other) is not type(self) or not isinstance(other, FittedState):
            return NotImplemented
        return self.digest == other.digest and self.classes == other.classes

    def __hash__(self) -> int:
        """Return a hash that agrees with equality."""
        return hash(self.digest)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, self.digest)


class FittedSegmenter(Segmenter):
    """Segments without labels: :meth:`prepare` fits a network to the scene, :meth:`segment` applies it.

    Args:
        settings: hyper-parameters of the fit.
        bands: names of the bands, or their number; ignored where ``state`` has them.
        state: of an earlier fit; :meth:`prepare` then returns it for every scene.
        references: scenes to fit to, in place of the one that is segmented.
        names: what segments are called, by number; several of one name are one segment.
        progress: told the steps done and the most there can be, while fitting.

    Raises:
        ConfigError: no bands.
    """

    state: FittedState | None

    def __init__(
        self,
        settings: FitSettings,
        bands: int | Sequence[str],
        halo: int,
        *,
        state: FittedState | None,
        references: Sequence[Scene],
        names: Sequence[LabelClass],
        progress: Progress | None,
    ) -> None:
        if state is not None:
            bands = state.bands
        called = tuple(f"band {i + 1}" for i in range(bands)) if isinstance(bands, int) else tuple(bands)
        if not called:
            raise ConfigError("clustering was given no bands: it needs at least one.")
        self.state = state
        self.references = tuple(references)
        self.names = tuple(names)
        self.progress = progress
        self.spec = Spec(
            bands=called,
            resolution=None,
            classes=state.classes if state is not None else None,
            tile=tile_for(halo),
            halo=halo,
            normalisation=state.scaling if state is not None else None,
        )
        self._built: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind, when pickled, the network (the state holds its weights) and what only a fit needs."""
        return {**self.__dict__, "_built": None, "progress": None, "references": ()}

    def prepare(self, scene: Scene) -> FittedState:
        """Fit a network to a sample of ``scene``, or of the references, or return the state of an earlier fit.

        Raises:
            SceneError: another number of bands, no valid pixel, or the file cannot be read.
        """
        for each in (scene, *self.references):
            if len(each.bands) != len(self.spec.bands):
                raise SceneError(
                    f"{each.path} is read with {len(each.bands)} bands, and this clustering is for "
                    f"{len(self.spec.bands)} ({', '.join(self.spec.bands)}): choose as many with --bands."
                )
        if self.state is not None:
            return self.state
        state = self.fitted_to(self.references or (scene,), scene)
        return state.named(self.names) if self.names else state

    @abstractmethod
    def fitted_to(self, scenes: Sequence[Scene], scene: Scene) -> FittedState:
        """Fit a network to a sample of ``scenes``, for ``scene``, which is often the only one of them."""


def scaling_of(scenes: Sequence[Scene]) -> tuple[Normalisation, tuple[float, ...]]:
    """Return the scaling of the bands, 2nd to 98th percentile on 0 to 1, and the scaled mean of each band.

    Several scenes count alike: their percentiles are averaged.
    """
    figures = [scene.statistics() for scene in scenes]
    statistics = figures[0]
    if len(figures) > 1:
        names = [item.name for item in fields(statistics)]
        mean = {name: np.mean([getattr(each, name) for each in figures], axis=0) for name in names}
        statistics = replace(statistics, **{name: tuple(map(float, values)) for name, values in mean.items()})
    scaling = Normalisation.of(statistics, "percentile")
    columns = zip(statistics.mean, scaling.offset, scaling.scale, strict=True)
    return scaling, tuple(min(max((mean - offset) / scale, 0.0), 1.0) for mean, offset, scale in columns)


def network_input(tiles: Tiles, scaling: Normalisation, fill: Sequence[float]) -> torch.Tensor:
    """Return scaled pixels (N, C, H, W) float32, the scenes' mean where nothing is known."""
    values = normalised(tiles, scaling)
    mean = torch.tensor(fill, dtype=values.dtype, device=values.device).view(1, -1, 1, 1)
    return torch.where(tiles.valid.unsqueeze(1), values, mean).contiguous(memory_format=torch.channels_last)


def is_constant(pixels: torch.Tensor, valid: torch.Tensor) -> bool:
    """Whether no band of scaled pixels (N, C, H, W) varies where ``valid`` (N, H, W)."""
    deviation = pixels.movedim(1, -1)[valid].to(torch.float64).std(dim=0, correction=0)
    return bool((deviation < LEAST_DEVIATION).all())


@torch.no_grad()
def freeze(network: torch.nn.Module, sample: Sequence[Batch]) -> None:
    """Replace the running statistics by those of ``sample`` under the final weights, and set evaluation mode for good.

    The running averages of training lag behind the weights, and statistics of single tiles would give a segment
    another meaning in every tile.
    """
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    network.train()
    for batch in sample:
        network(batch.pixels, batch.valid)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Compute deterministically inside the block, with gradients and with a fixed number of threads; then restore."""
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.use_deterministic_algorithms(before[1], warn_only=warn_only)
        torch.set_num_threads(before[0])


def arrays_of(network: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """Return the weights of a network as arrays."""
    return {name: np.ascontiguousarray(value.numpy()) for name, value in network.state_dict().items()}


def load_arrays(network: torch.nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Put arrays into a network, and set it to evaluation mode for good.

    Raises:
        RuntimeError: they do not fit.
    """
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    # A bundle stores a single number as an array of one.
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    network.load_state_dict(
        {name: value.reshape(shapes[name]) if value.numel() == 1 else value for name, value in tensors.items()}
    )
    network.eval().requires_grad_(False)


def tile_for(halo: int) -> int:
    """Return the side of the tiles for a halo, in pixels."""
    return max(_TILE, 4 * halo)


def describe(state: FittedState, method: str, settings: FitSettings, halo: int, more: Mapping[str, Any]) -> Description:
    """Return what a bundle of ``state`` says about itself; ``more`` settings are the method's own."""
    assert state.classes is not None
    return Description(
        method=method,  # type: ignore[arg-type]
        settings={
            **asdict(settings),
            "fill": list(state.fill),
            **more,
            "sample": [[w.row, w.col, w.height, w.width] for w in state.sample],
            "versions": _versions(),
        },
        bands=list(state.bands),
        normalisation=NormalisationRecord(**state.scaling.as_dict()),
        classes=[ClassRecord(**record) for record in state.classes.as_dicts()],
        tile=tile_for(halo),
        halo=halo,
        training=dict(state.figures),
    )


def described(bundle: Bundle) -> dict[str, Any]:
    """Return the parts of a state that :func:`describe` wrote, but for those of the method alone.

    Raises:
        BundleError: the bundle has no scaling.
        KeyError, TypeError, ValueError, OverflowError: a part is missing or misshapen.
    """
    about = bundle.description
    if about.normalisation is None:
        raise BundleError(f"{bundle.path} has no scaling of the bands: the bundle is damaged, fit it again.")
    fill = tuple(float(value) for value in about.settings["fill"])
    if len(fill) != len(about.bands):
        raise ValueError(f"there are {len(fill)} fill values for {len(about.bands)} bands")
    return {
        "classes": about.class_table(),
        "bands": tuple(about.bands),
        "weights": bundle.tensors(),
        "scaling": about.normalisation.build(),
        "fill": fill,
        "sample": tuple(Window(*map(int, window)) for window in about.settings["sample"]),
        "figures": about.training,
    }


def _versions() -> dict[str, str]:
    """Return the versions of what a fit depends on; superpixels are those of scikit-image."""
    others = {name: version(name) for name in ("numpy", "scikit-image")}
    return {"geoseg": geoseg.__version__, "torch": torch.__version__, **others}
