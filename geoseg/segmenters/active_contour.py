"""Active contours without edges as a segmenter of two segments: fitted once to a sample, the same everywhere.

Source: J. Chen, E. Frey, *Medical Image Segmentation via Unsupervised Convolutional Neural Network*, MIDL 2020 (arXiv
2001.10155).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Self

import torch

from geoseg.bundle import Bundle, Description
from geoseg.classes import Classes, LabelClass
from geoseg.errors import BundleError, ConfigError, GeosegError, LabelsError, one_line
from geoseg.networks.active_contour import ActiveContourNet
from geoseg.scene import Scene
from geoseg.segmenters.active_contour_fit import ActiveContourSettings, final_means, is_flipped, train
from geoseg.segmenters.fitted import (
    FittedSegmenter,
    FittedState,
    Progress,
    arrays_of,
    describe,
    described,
    freeze,
    load_arrays,
    network_input,
    reproducible,
    scaling_of,
)
from geoseg.segmenters.interface import State, Tiles
from geoseg.segmenters.scene_sample import batches, sample_scenes

METHOD: Final = "active-contour"
_DARK, _BRIGHT = "#0072b2", "#f0e442"


@dataclass(frozen=True, eq=False)
class ActiveContourState(FittedState):
    """A fitted network and which phase is which: the classes are in the order of the scores, outside and inside.

    The phase that ``settings.polarity`` asks for has id 1 and the other 0, so the classes of a network that learned
    the phases the other way round stand in the other order.

    Attributes:
        settings: how it was fitted.
    """

    settings: ActiveContourSettings = field(default_factory=ActiveContourSettings)

    def _deciding(self) -> tuple[Any, ...]:
        return (self.settings.activation, self.settings.blocks)

    def named(self, items: Sequence[LabelClass]) -> Self:
        """Return the state with its two segments called as ``items`` say.

        Raises:
            LabelsError: an item is of no segment, or both get one name.
        """
        assert self.classes is not None
        classes, places = self.classes.renamed(items)
        if len(classes) != len(places):
            raise LabelsError(f"both segments are called {classes[0].name!r}, and an active contour makes two.")
        return replace(self, classes=classes)

    def description(self) -> Description:
        """Return what a bundle of this state says about itself."""
        return describe(self, METHOD, self.settings, self.settings.halo, {})


class ActiveContour(FittedSegmenter):
    """Two segments without labels, one bright and one dark, with short borders between them.

    Args:
        settings: hyper-parameters of the fit.
        bands: names of the bands, or their number; ignored where ``state`` has them.
        state: of an earlier fit; :meth:`prepare` then returns it for every scene.
        references: scenes to fit to, in place of the one that is segmented.
        names: what the segments are called, by number.
        progress: told the steps done and the most there can be, while fitting.

    Raises:
        ConfigError: no bands.
    """

    def __init__(
        self,
        settings: ActiveContourSettings | None = None,
        bands: int | Sequence[str] = 1,
        *,
        state: ActiveContourState | None = None,
        references: Sequence[Scene] = (),
        names: Sequence[LabelClass] = (),
        progress: Progress | None = None,
    ) -> None:
        self.settings = state.settings if state is not None else settings or ActiveContourSettings()
        halo = self.settings.halo
        super().__init__(self.settings, bands, halo, state=state, references=references, names=names, progress=progress)

    def fitted_to(self, scenes: Sequence[Scene], scene: Scene) -> ActiveContourState:
        """Fit a network to a sample of ``scenes``."""
        return fit(scenes, self.settings, self.progress)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores of being outside and inside: (N, 2, H, W), float, whose softmax is the network's sigmoid."""
        if not isinstance(state, ActiveContourState):
            raise ConfigError("an active contour was given no state: call prepare with the scene first.")
        network = self._network(state, tiles.pixels.device)
        with torch.no_grad():
            half = network(network_input(tiles, state.scaling, state.fill)) / 2
            return torch.cat([-half, half], dim=1)

    def _network(self, state: ActiveContourState, device: torch.device) -> ActiveContourNet:
        key = (state.digest, device)
        if self._built is None or self._built[0] != key:
            with torch.inference_mode(False):
                network = _restored(state).to(device).to(memory_format=torch.channels_last)
            self._built = (key, network)
        found: ActiveContourNet = self._built[1]
        return found

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> ActiveContour:
        """Return the fitted segmenter that :meth:`~geoseg.segmenters.fitted.FittedState.save` wrote.

        Raises:
            BundleError: a bundle of another method, or one whose parts do not fit each other.
        """
        about = bundle.description
        if about.method != METHOD:
            raise BundleError(f"{bundle.path} is a model of the method {about.method}, not {METHOD}.")
        try:
            own = {item.name for item in fields(ActiveContourSettings)}
            state = ActiveContourState(
                **described(bundle),
                settings=ActiveContourSettings(**{k: v for k, v in about.settings.items() if k in own}),
            )
            if len(about.classes) != 2:
                raise ConfigError(f"there are {len(about.classes)} classes, and an active contour makes two.")
            _restored(state)
            return cls(state=state)
        except BundleError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, GeosegError) as error:
            raise BundleError(f"{bundle.path} does not hold a whole active contour ({one_line(error)}).") from error


def fit(
    scenes: Scene | Sequence[Scene], settings: ActiveContourSettings, progress: Progress | None = None
) -> ActiveContourState:
    """Fit a network to a sample of scenes: scaling, training, population statistics, polarity.

    The result depends on the scenes and the settings alone; neither the global random state nor the number of
    threads outside matters or changes.

    Raises:
        SceneError: no valid pixel, or a file cannot be read.
        ConfigError: there is no such reference band.
    """
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    scaling, fill = scaling_of(scenes)
    if settings.reference_band is not None and settings.reference_band > len(fill):
        raise ConfigError(
            f"reference_band is {settings.reference_band}, and the scene has {len(fill)} bands: give 1 to {len(fill)}."
        )
    with reproducible(settings.threads):
        tiles = sample_scenes(scenes, settings)
        network = _network_of(settings, len(fill)).to(memory_format=torch.channels_last)
        sample = batches(network_input(tiles, scaling, fill), tiles.valid, settings.batch)
        energy = train(network, sample, settings, progress)
        freeze(network, sample)
        means = final_means(network, sample, settings)
    flipped = is_flipped(means, settings)
    figures: dict[str, Any] = {
        "sample_pixels": int(tiles.valid.sum()),
        "energy": energy,
        "mean_inside": means.inside.tolist(),
        "mean_outside": means.outside.tolist(),
        "flipped": flipped,
    }
    return ActiveContourState(
        classes=_classes(settings, flipped),
        bands=scenes[0].band_names,
        weights=arrays_of(network),
        settings=settings,
        scaling=scaling,
        fill=fill,
        sample=tiles.windows,
        figures=figures,
    )


def _classes(settings: ActiveContourSettings, flipped: bool) -> Classes:
    """Return the classes of the phases outside and inside."""
    named = [("dark", _DARK), ("bright", _BRIGHT)]
    if settings.polarity == "dark":
        named.reverse()
    phases = [LabelClass(i, name, color) for i, (name, color) in enumerate(named)]
    return Classes(tuple(reversed(phases) if flipped else phases))


def _network_of(settings: ActiveContourSettings, bands: int) -> ActiveContourNet:
    clipped = settings.activation == "clip"
    return ActiveContourNet.seeded(
        bands, settings.channels, settings.blocks, settings.seed, tied=settings.tied, clipped=clipped
    )


def _restored(state: ActiveContourState) -> ActiveContourNet:
    """Return the fitted network, in evaluation mode, on the CPU."""
    network = _network_of(state.settings, len(state.fill))
    load_arrays(network, state.weights)
    return network
