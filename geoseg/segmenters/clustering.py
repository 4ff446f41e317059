"""Feature clustering and superpixel backpropagation as a segmenter: fitted once to a sample, the same everywhere.

Sources: W. Kim, A. Kanezaki, M. Tanaka, *Unsupervised Learning of Image Segmentation Based on Differentiable Feature
Clustering*, IEEE Transactions on Image Processing 29, 2020 (arXiv 2007.09990); A. Kanezaki, *Unsupervised Image
Segmentation by Backpropagation*, ICASSP 2018, the same network with superpixels in place of continuity.  No labels are
needed; segments are numbered by decreasing size and mean nothing by themselves, but for those of scribbles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray

from geoseg.bundle import Bundle, Description
from geoseg.classes import MAX_CLASSES, Classes, LabelClass, default_color
from geoseg.errors import BundleError, ConfigError, GeosegError, one_line
from geoseg.networks.feature_clustering import FeatureClusteringNet
from geoseg.scene import Scene
from geoseg.segmenters.clustering_fit import ClusteringSettings, census, merge, train
from geoseg.segmenters.fitted import (
    FittedSegmenter,
    FittedState,
    Progress,
    arrays_of,
    describe,
    described,
    freeze,
    is_constant,
    load_arrays,
    network_input,
    reproducible,
    scaling_of,
)
from geoseg.segmenters.interface import State, Tiles
from geoseg.segmenters.scene_sample import Batch, batches, sample_scenes, scribbled_tiles
from geoseg.segmenters.scribbles import ScribbleReader, Scribbles
from geoseg.segmenters.superpixels import superpixels_of

# What bundles call the two ways of smoothing.
METHODS: Final = {"continuity": "feature-clustering", "superpixels": "superpixel-backprop"}


@dataclass(frozen=True, eq=False)
class ClusteringState(FittedState):
    """A fitted network and what its channels mean.

    Attributes:
        settings: how it was fitted.
        lookup: (q,) int16, the final segment of every channel, -1 for channels that no sample pixel had.
    """

    settings: ClusteringSettings = field(default_factory=ClusteringSettings)
    lookup: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16), repr=False)

    @property
    def live(self) -> NDArray[np.intp]:
        """The channels that occur, in ascending order."""
        return np.flatnonzero(self.lookup >= 0)

    @property
    def segments(self) -> int:
        """Number of final segments."""
        return int(self.lookup.max()) + 1

    def _deciding(self) -> tuple[Any, ...]:
        return (self.settings.convolutions, self.lookup.tolist())

    def named(self, items: Sequence[LabelClass]) -> Self:
        """Return the state with segments called as ``items`` say; those of one name are one segment.

        Raises:
            LabelsError: an item is of no segment, or gives a name that another segment keeps.
        """
        assert self.classes is not None
        classes, places = self.classes.renamed(items)
        lookup = np.where(self.lookup < 0, -1, np.asarray(places, np.int16)[self.lookup]).astype(np.int16)
        return replace(self, classes=classes, lookup=lookup)

    def description(self) -> Description:
        """Return what a bundle of this state says about itself."""
        settings, method = self.settings, METHODS[self.settings.smoothing]
        return describe(self, method, settings, settings.convolutions, {"lookup": self.lookup.tolist()})


class FeatureClustering(FittedSegmenter):
    """Segments without labels: :meth:`prepare` fits a network to the scene, :meth:`segment` applies it.

    A final segment's score is the largest response among the channels merged into it, so the winning score belongs to
    the winning channel.  Tiles give the responses of the whole scene, mirrored at its edges, but for their outermost
    ``settings.convolutions`` pixels.

    Args:
        settings: hyper-parameters of the fit.
        bands: names of the bands, or their number; ignored where ``state`` has them.
        state: of an earlier fit; :meth:`prepare` then returns it for every scene.
        references: scenes to fit to, in place of the one that is segmented (the paper's reference images).
        scribbles: marks on the scene that is segmented; their names become segments.
        names: what segments are called, by number; several of one name are one segment.
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
        references: Sequence[Scene] = (),
        scribbles: ScribbleReader | None = None,
        names: Sequence[LabelClass] = (),
        progress: Progress | None = None,
    ) -> None:
        self.settings = state.settings if state is not None else settings or ClusteringSettings()
        self.scribbles = scribbles
        halo = self.settings.convolutions
        super().__init__(self.settings, bands, halo, state=state, references=references, names=names, progress=progress)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what only a fit needs."""
        return {**super().__getstate__(), "scribbles": None}

    def fitted_to(self, scenes: Sequence[Scene], scene: Scene) -> ClusteringState:
        """Fit a network to a sample of ``scenes``, and to the marks on ``scene``."""
        marks = None if self.scribbles is None else self.scribbles(scene)
        return fit(scenes, self.settings, self.progress, scene=scene, scribbles=marks)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return each final segment's largest response: (N, K, H, W), float, on the tiles' device."""
        if not isinstance(state, ClusteringState):
            raise ConfigError("feature clustering was given no state: call prepare with the scene first.")
        network, members = self._network(state, tiles.pixels.device)
        with torch.no_grad():
            response = network(network_input(tiles, state.scaling, state.fill))
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
        """Return the fitted segmenter that :meth:`~geoseg.segmenters.fitted.FittedState.save` wrote.

        Raises:
            BundleError: a bundle of another method, or one whose parts do not fit each other.
        """
        about = bundle.description
        if about.method not in METHODS.values():
            raise BundleError(f"{bundle.path} is a model of the method {about.method}, which is no clustering.")
        try:
            own = {item.name for item in fields(ClusteringSettings)}
            state = ClusteringState(
                **described(bundle),
                settings=ClusteringSettings(**{k: v for k, v in about.settings.items() if k in own}),
                lookup=np.asarray(about.settings["lookup"], np.int16),
            )
            return cls(state=_checked(state))
        except BundleError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, GeosegError) as error:
            raise BundleError(f"{bundle.path} does not hold a whole clustering ({one_line(error)}).") from error


def fit(
    scenes: Scene | Sequence[Scene],
    settings: ClusteringSettings,
    progress: Progress | None = None,
    *,
    scene: Scene | None = None,
    scribbles: Scribbles | None = None,
) -> ClusteringState:
    """Fit a network to a sample of scenes: scaling, training, population statistics, merging, numbering.

    The result depends on the scenes and the settings alone; neither the global random state nor the number of
    threads outside matters or changes.

    Args:
        scenes: one scene, or several of the same bands (reference mode).
        settings: of the fit.
        progress: told the steps done and the most there can be.
        scene: the one that ``scribbles`` are marks on; by default the first of ``scenes``.
        scribbles: marks; their names become the first segments.

    Raises:
        SceneError: no valid pixel, or a file cannot be read.
        ConfigError: more names of scribbles than segments or channels, or scribbles on an overview.
    """
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    marked = scene or scenes[0]
    if scribbles is not None:
        settings = _with_room_for(scribbles, settings)
    apart = 0 if scribbles is None else len(scribbles.names)
    scaling, fill = scaling_of(scenes)
    figures: dict[str, Any] = {} if len(scenes) == 1 else {"references": len(scenes)}
    with reproducible(settings.threads):
        tiles = sample_scenes(scenes, settings)
        marks = None
        if scribbles is not None:
            unmarked = 0 if scenes == [marked] else len(tiles)
            tiles = scribbled_tiles(marked, scribbles, tiles, settings.fit_tiles, apart_from=unmarked)
            marks = _marks(scribbles, tiles, unmarked)
        figures["sample_pixels"] = int(tiles.valid.sum())
        network = FeatureClusteringNet.seeded(len(fill), settings.channels, settings.convolutions, settings.seed)
        pixels = network_input(tiles, scaling, fill)
        if is_constant(pixels, tiles.valid):
            lookup = merge(
                np.eye(1, settings.channels, dtype=np.int64)[0], np.zeros((settings.channels,) * 2), 1, apart
            )
        else:
            superpixels = None
            if settings.smoothing == "superpixels":
                superpixels = superpixels_of(pixels, tiles.valid, settings.superpixel_area, settings.compactness)
            sample = batches(pixels, tiles.valid, settings.batch, superpixels=superpixels, scribbles=marks)
            network.to(memory_format=torch.channels_last)
            done = train(network, sample, settings, progress)
            sizes, means = _settled(network, sample, done.earlier, settings.target_segments or 0)
            lookup = merge(sizes, means, min(settings.target_segments or MAX_CLASSES, MAX_CLASSES), apart)
            figures.update(steps=done.steps, labels=int(np.count_nonzero(sizes)), loss=done.loss)
    return ClusteringState(
        classes=_classes(int(lookup.max()) + 1, () if scribbles is None else scribbles.names),
        bands=marked.band_names,
        weights=arrays_of(network),
        settings=settings,
        scaling=scaling,
        fill=fill,
        lookup=lookup,
        sample=tiles.windows,
        figures=figures,
    )


def _with_room_for(scribbles: Scribbles, settings: ClusteringSettings) -> ClusteringSettings:
    """Return the settings of a fit that keeps the names of ``scribbles`` apart.

    Raises:
        ConfigError: there is no room for them, or marks would have to be read on an overview.
    """
    names = len(scribbles.names)
    for what, most in (("segments", settings.target_segments), ("channels", settings.channels)):
        if most is not None and names > most:
            raise ConfigError(f"scribbles have {names} names, which {most} {what} cannot keep apart: ask for more.")
    if settings.fit != "tiles":
        raise ConfigError("scribbles are marks on pixels of the scene, not of an overview: leave fit at 'tiles'.")
    return replace(settings, min_labels=max(names, 1))


def _marks(scribbles: Scribbles, tiles: Tiles, unmarked: int) -> torch.Tensor:
    """Return the marks on sample tiles, (N, H, W) uint8; the first ``unmarked`` are of other scenes and have none."""
    found = [scribbles.marks.read(window) for window in tiles.windows]
    for each in found[:unmarked]:
        each[:] = 255
    return torch.from_numpy(np.stack(found))


def _classes(count: int, scribbled: Sequence[str]) -> Classes:
    """Return the classes of ``count`` segments, of which the first bear the names of scribbles."""
    taken = set(scribbled)
    others = (name for i in range(count) if (name := f"segment {i + 1}") not in taken)
    return Classes(
        tuple(
            LabelClass(i, scribbled[i] if i < len(scribbled) else next(others), default_color(i)) for i in range(count)
        )
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


def _restored(state: ClusteringState) -> FeatureClusteringNet:
    """Return the fitted network, in evaluation mode, on the CPU."""
    settings = state.settings
    network = FeatureClusteringNet.seeded(len(state.fill), settings.channels, settings.convolutions, settings.seed)
    load_arrays(network, state.weights)
    return network


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
    lookup = state.lookup
    if lookup.shape != (state.settings.channels,) or lookup.min() < -1:
        raise ConfigError(f"the lookup table has {lookup.size} entries for {state.settings.channels} channels.")
    if state.classes is None or not np.array_equal(np.unique(lookup[state.live]), np.arange(len(state.classes))):
        raise ConfigError("the lookup table and the classes disagree.")
    _restored(state)
    return state
