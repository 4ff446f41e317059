"""Differentiable feature clustering as a segmenter: fitted once to a sample of a scene, then the same everywhere.

Source: W. Kim, A. Kanezaki, M. Tanaka, *Unsupervised Learning of Image Segmentation Based on Differentiable Feature
Clustering*, IEEE Transactions on Image Processing 29, 2020 (arXiv 2007.09990).  No labels are needed; segments are
numbered by decreasing size and mean nothing by themselves.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

import geoseg
from geoseg.bundle import Bundle, ClassRecord, Description, NormalisationRecord, write_bundle
from geoseg.classes import MAX_CLASSES, Classes
from geoseg.errors import BundleError, ConfigError, GeosegError, SceneError, one_line
from geoseg.grid import Window
from geoseg.networks.feature_clustering import FeatureClusteringNet
from geoseg.normalisation import Normalisation
from geoseg.scene import Scene
from geoseg.segmenters.clustering_fit import (
    Batch,
    ClusteringSettings,
    Progress,
    batches,
    census,
    draw_sample,
    freeze,
    merge,
    train,
)
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles, normalised

METHOD: Final = "feature-clustering"
_TILE = 512
_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True, eq=False)
class ClusteringState(State):
    """A fitted network and what its channels mean; small and picklable.

    Attributes:
        bands: names of the bands, in order.
        weights: the network's state dict as arrays.
        settings: how it was fitted.
        scaling: of the bands, from the statistics of the scene it was fitted to.
        fill: scaled mean of each band, which stands where nothing is known.
        lookup: (q,) int16, the final segment of every channel, -1 for channels that no sample pixel had.
        sample: windows of the sample in the scene.
        figures: of the training, plain values.
    """

    bands: tuple[str, ...] = ()
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    settings: ClusteringSettings = field(default_factory=ClusteringSettings)
    scaling: Normalisation = field(default_factory=lambda: Normalisation((), (), 0.0, 1.0))
    fill: tuple[float, ...] = ()
    lookup: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16), repr=False)
    sample: tuple[Window, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def live(self) -> NDArray[np.intp]:
        """The channels that occur, in ascending order."""
        return np.flatnonzero(self.lookup >= 0)

    @property
    def segments(self) -> int:
        """Number of final segments."""
        return int(self.lookup.max()) + 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides the scores."""
        text = repr((self.settings.convolutions, self.scaling, self.fill, self.lookup.tolist()))
        total = hashlib.sha256(text.encode())
        for name in sorted(self.weights):
            total.update(name.encode())
            total.update(np.ascontiguousarray(self.weights[name]).tobytes())
        return total.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the digest out, so that equal states have equal pickles."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __eq__(self, other: object) -> bool:
        """Whether both give the same scores under the same names."""
        if not isinstance(other, ClusteringState):
            return NotImplemented
        return self.digest == other.digest and self.classes == other.classes

    def __hash__(self) -> int:
        """Return a hash that agrees with equality."""
        return hash(self.digest)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, self.digest)


class FeatureClustering(Segmenter):
    """Segments without labels: :meth:`prepare` fits a network to the scene, :meth:`segment` applies it.

    A final segment's score is the largest response among the channels merged into it, so the winning score belongs to
    the winning channel.  Tiles give the responses of the whole scene, mirrored at its edges, but for their outermost
    ``settings.convolutions`` pixels.

    Args:
        settings: hyper-parameters of the fit.
        bands: names of the bands, or their number; ignored where ``state`` has them.
        state: of an earlier fit; :meth:`prepare` then returns it for every scene.
        progress: told the steps done and the most there can be, while fitting.

    Raises:
        ConfigError: no bands.
    """

    def __init__(
        self,
        settings: ClusteringSettings | None = None,
        bands: int | Sequence[str] = 3,
        *,
        state: ClusteringState | None = None,
        progress: Progress | None = None,
    ) -> None:
        if state is not None:
            bands = state.bands
        names = tuple(f"band {i + 1}" for i in range(bands)) if isinstance(bands, int) else tuple(bands)
        if not names:
            raise ConfigError("feature clustering was given no bands: it needs at least one.")
        self.settings = state.settings if state is not None else settings or ClusteringSettings()
        self.state = state
        self.progress = progress
        self.spec = Spec(
            bands=names,
            resolution=None,
            classes=state.classes if state is not None else None,
            tile=_tile(self.settings.convolutions),
            halo=self.settings.convolutions,
            normalisation=state.scaling if state is not None else None,
        )
        self._built: tuple[tuple[str, torch.device], FeatureClusteringNet, list[int]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the network and the progress behind when pickled: the state holds the weights."""
        return {**self.__dict__, "_built": None, "progress": None}

    def prepare(self, scene: Scene) -> ClusteringState:
        """Fit a network to a sample of ``scene``, or return the state of an earlier fit.

        Raises:
            SceneError: another number of bands, no valid pixel, or the file cannot be read.
        """
        if len(scene.bands) != len(self.spec.bands):
            raise SceneError(
                f"{scene.path} is read with {len(scene.bands)} bands, and this clustering is for "
                f"{len(self.spec.bands)} ({', '.join(self.spec.bands)}): choose as many with --bands."
            )
        return self.state if self.state is not None else fit(scene, self.settings, self.progress)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return each final segment's largest response: (N, K, H, W), float, on the tiles' device."""
        if not isinstance(state, ClusteringState):
            raise ConfigError("feature clustering was given no state: call prepare with the scene first.")
        network, members = self._network(state, tiles.pixels.device)
        with torch.no_grad():
            response = network(_network_input(tiles, state.scaling, state.fill))
            return torch.stack([part.amax(dim=1) for part in response.split(members, dim=1)], dim=1)

    def _network(self, state: ClusteringState, device: torch.device) -> tuple[FeatureClusteringNet, list[int]]:
        """Return the network with its live channels ordered by final segment, and the channels per segment."""
        key = (state.digest, device)
        built = self._built
        if built is None or built[0] != key:
            with torch.inference_mode(False):
                network = _restored(state)
                order = np.argsort(state.lookup, kind="stable")[-len(state.live) :]
                _keep_responses(network, torch.from_numpy(order))
                network = network.to(device).to(memory_format=torch.channels_last)
            built = (key, network, np.bincount(state.lookup[state.live]).tolist())
            self._built = built
        return built[1], built[2]

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> FeatureClustering:
        """Return the fitted segmenter that :func:`save` wrote.

        Raises:
            BundleError: a bundle of another method, or one whose parts do not fit each other.
        """
        about = bundle.description
        if about.method != METHOD:
            raise BundleError(f"{bundle.path} is a model of the method {about.method}, not {METHOD}.")
        if about.normalisation is None:
            raise BundleError(f"{bundle.path} has no scaling of the bands: the bundle is damaged, fit it again.")
        try:
            own = {item.name for item in fields(ClusteringSettings)}
            state = ClusteringState(
                classes=about.class_table(),
                bands=tuple(about.bands),
                weights=bundle.tensors(),
                settings=ClusteringSettings(**{k: v for k, v in about.settings.items() if k in own}),
                scaling=about.normalisation.build(),
                fill=tuple(float(value) for value in about.settings["fill"]),
                lookup=np.asarray(about.settings["lookup"], np.int16),
                sample=tuple(Window(*map(int, window)) for window in about.settings["sample"]),
                figures=about.training,
            )
            state = _checked(state)
            return cls(state=state)
        except BundleError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, GeosegError) as error:
            raise BundleError(f"{bundle.path} does not hold a whole clustering ({one_line(error)}).") from error


def fit(scene: Scene, settings: ClusteringSettings, progress: Progress | None = None) -> ClusteringState:
    """Fit a network to a sample of ``scene``: scaling, training, population statistics, merging, numbering.

    The result depends on the scene and the settings alone; neither the global random state nor the number of
    threads outside matters or changes.

    Raises:
        SceneError: no valid pixel, or the file cannot be read.
    """
    statistics = scene.statistics()
    scaling = Normalisation.of(statistics, "percentile")
    fill = tuple(
        min(max((mean - offset) / scale, 0.0), 1.0)
        for mean, offset, scale in zip(statistics.mean, scaling.offset, scaling.scale, strict=True)
    )
    figures: dict[str, Any] = {}
    with _reproducible(settings.threads):
        tiles = draw_sample(scene, settings)
        figures["sample_pixels"] = int(tiles.valid.sum())
        network = FeatureClusteringNet.seeded(len(fill), settings.channels, settings.convolutions, settings.seed)
        pixels = _network_input(tiles, scaling, fill)
        deviation = pixels.movedim(1, -1)[tiles.valid].to(torch.float64).std(dim=0, correction=0)
        if bool((deviation < _LEAST_DEVIATION).all()):
            lookup = np.full(settings.channels, -1, np.int16)
            lookup[0] = 0
        else:
            sample = batches(pixels, tiles.valid, settings.batch)
            network.to(memory_format=torch.channels_last)
            done = train(network, sample, settings, progress)
            sizes, means = _settled(network, sample, done.earlier, settings.target_segments or 0)
            lookup = merge(sizes, means, min(settings.target_segments or MAX_CLASSES, MAX_CLASSES))
            figures.update(steps=done.steps, labels=int(np.count_nonzero(sizes)), loss=done.loss)
    return ClusteringState(
        classes=Classes.numbered(int(lookup.max()) + 1),
        bands=scene.band_names,
        weights={name: np.ascontiguousarray(value.numpy()) for name, value in network.state_dict().items()},
        settings=settings,
        scaling=scaling,
        fill=fill,
        lookup=lookup,
        sample=tiles.windows,
        figures=figures,
    )


def _settled(
    network: FeatureClusteringNet,
    sample: Sequence[Batch],
    earlier: Sequence[Mapping[str, torch.Tensor]],
    target: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Freeze ``network`` and return its census, having gone back to ``earlier`` weights until ``target`` labels live.

    Labels can be merged, never divided, and the last pass of a training may lose many at once.
    """
    freeze(network, sample)
    found = census(network, sample)
    for weights in reversed(earlier):
        if np.count_nonzero(found[0]) >= target:
            break
        network.load_state_dict(weights)
        freeze(network, sample)
        found = census(network, sample)
    return found


@contextmanager
def _reproducible(threads: int) -> Iterator[None]:
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


def to_description(state: ClusteringState, *, licence: str = "not stated") -> Description:
    """Return what a bundle of ``state`` says about itself."""
    classes = state.classes or Classes.numbered(state.segments)
    halo = state.settings.convolutions
    return Description(
        method=METHOD,
        settings={
            **asdict(state.settings),
            "fill": list(state.fill),
            "lookup": state.lookup.tolist(),
            "sample": [[w.row, w.col, w.height, w.width] for w in state.sample],
            "versions": {"geoseg": geoseg.__version__, "torch": torch.__version__, "numpy": np.__version__},
        },
        bands=list(state.bands),
        normalisation=NormalisationRecord(**state.scaling.as_dict()),
        classes=[ClassRecord(**record) for record in classes.as_dicts()],
        tile=_tile(halo),
        halo=halo,
        licence=licence,
        training=dict(state.figures),
    )


def save(state: ClusteringState, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write ``state`` as a bundle, which gives other scenes the same segments (:meth:`FeatureClustering.from_bundle`).

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is False, or cannot be written.
    """
    write_bundle(path, to_description(state), state.weights, overwrite=overwrite)


def _tile(halo: int) -> int:
    """Return the side of the tiles for a halo, in pixels."""
    return max(_TILE, 4 * halo)


def _network_input(tiles: Tiles, scaling: Normalisation, fill: Sequence[float]) -> torch.Tensor:
    """Return scaled pixels (N, C, H, W) float32, the scene's mean where nothing is known."""
    values = normalised(tiles, scaling)
    mean = torch.tensor(fill, dtype=values.dtype, device=values.device).view(1, -1, 1, 1)
    return torch.where(tiles.valid.unsqueeze(1), values, mean).contiguous(memory_format=torch.channels_last)


def _restored(state: ClusteringState) -> FeatureClusteringNet:
    """Return the fitted network, in evaluation mode, on the CPU."""
    settings = state.settings
    network = FeatureClusteringNet.seeded(len(state.fill), settings.channels, settings.convolutions, settings.seed)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    # A bundle stores a single number as an array of one.
    tensors = {name: torch.tensor(value) for name, value in state.weights.items()}
    network.load_state_dict(
        {name: value.reshape(shapes[name]) if value.numel() == 1 else value for name, value in tensors.items()}
    )
    return network.eval().requires_grad_(False)


def _keep_responses(network: FeatureClusteringNet, channels: torch.Tensor) -> None:
    """Reduce the last layer of ``network`` to ``channels``, in their order: no other can win."""
    for module in (network.conv3, network.bn3):
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.ndim:
                tensor.data = tensor.data[channels].clone()
    network.conv3.out_channels = network.bn3.num_features = len(channels)


def _checked(state: ClusteringState) -> ClusteringState:
    """Return ``state`` if its parts fit each other.

    Raises:
        ConfigError: they do not.
    """
    lookup, bands = state.lookup, len(state.bands)
    if lookup.shape != (state.settings.channels,) or lookup.min() < -1:
        raise ConfigError(f"the lookup table has {lookup.size} entries for {state.settings.channels} channels.")
    if state.classes is None or not np.array_equal(np.unique(lookup[state.live]), np.arange(len(state.classes))):
        raise ConfigError("the lookup table and the classes disagree.")
    if {len(state.scaling.offset), len(state.fill)} != {bands}:
        raise ConfigError(f"there are {len(state.fill)} fill values for {bands} bands.")
    _restored(state)
    return state
