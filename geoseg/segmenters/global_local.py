"""GLNet as a segmenter: a tile is a macro-window, of which an overview is seen together with its patches.

So a tile brings its own surroundings: overview, patches and what they hand each other all come of its pixels, and
tiles can be computed anywhere in any order.  Source: Chen et al. 2019, arXiv 1905.06368.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Final

import torch
from numpy.typing import NDArray

from geoseg.bundle import Bundle, ClassRecord, Description, NormalisationRecord
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError, GeosegError, one_line
from geoseg.networks.glnet import DEFAULT_ENCODER, GlobalNet, Mode, build_glnet
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.global_local_window import WindowLook, enlarged
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles
from geoseg.segmenters.macro_windows import MacroGrid
from geoseg.segmenters.network import NetworkState, load_tensors, tensors_of, undrawn

if TYPE_CHECKING:
    from geoseg.scene import Scene

METHOD: Final = "global-local"
# Half the sum of what each class's probability differs by between overview and patches: 0 to 1.
DISAGREEMENT: Final = "disagreement"


class GlobalLocal(Segmenter):
    """Looks at every tile as a whole and in patches.

    Tiles of any size are taken, that of the scene too where it is small enough; best are the windows of
    :meth:`lattice`.  Scores are means over the patches of a pixel.

    Args:
        network: of any mode.
        bands: names of the input channels in order.
        classes: in the order of the scores' channels.
        settings: sizes and choices.
        normalisation: scaling of the bands; None where it is measured on each scene.
        resolution: true ground metres per pixel; None if any will do.

    Raises:
        ConfigError: the network has other bands or classes, or coarse to fine is asked for without one background.
    """

    def __init__(
        self,
        network: GlobalNet,
        *,
        bands: Sequence[str],
        classes: Classes,
        settings: GlobalLocalSettings | None = None,
        normalisation: Normalisation | None = None,
        resolution: float | None = None,
    ) -> None:
        given, own = (len(bands), len(classes)), (network.in_channels, network.num_classes)
        if given != own:
            raise ConfigError(
                f"the network takes {own[0]} bands and tells {own[1]} classes apart: give so many, not {given[0]} and "
                f"{given[1]}."
            )
        self.network = network
        self.settings = settings or GlobalLocalSettings()
        self.spec = Spec(
            bands=tuple(bands),
            resolution=resolution,
            classes=classes,
            tile=self.settings.extent,
            halo=self.settings.patch // 2,
            tile_exact=False,
            normalisation=normalisation,
            layers=() if network.mode == "global" else (DISAGREEMENT,),
        )
        self._background = _background(classes) if self.settings.coarse_to_fine is not None else 0
        self._channels_last = False

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> GlobalLocal:
        """Return the segmenter that a bundle describes, with its weights.

        Raises:
            BundleError: a bundle of another method, one that this version cannot build, or other weights.
        """
        about = bundle.description
        if about.method != METHOD:
            raise BundleError(f"{bundle.path} is a model of the method {about.method}, not {METHOD}.")
        own = {item.name for item in fields(GlobalLocalSettings)}
        try:
            with undrawn():
                network = build_glnet(
                    in_channels=len(about.bands),
                    num_classes=len(about.classes),
                    mode=about.settings["mode"],
                    encoder=about.settings["encoder"],
                )
            found = cls(
                network,
                bands=about.bands,
                classes=about.class_table(),
                settings=GlobalLocalSettings(**{key: value for key, value in about.settings.items() if key in own}),
                normalisation=about.normalisation.build() if about.normalisation else None,
                resolution=about.resolution,
            )
        except (GeosegError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{bundle.path} asks for a network that this version of geoseg does not make: {one_line(error)}"
            ) from error
        load_tensors(network, bundle.tensors(), bundle.path)
        network.eval()
        return found

    def lattice(self, shape_yx: tuple[int, int]) -> MacroGrid:
        """Return the macro-windows of a scene of so many pixels, which overlap by a patch."""
        return MacroGrid(shape_yx, self.settings.extent, self.settings.patch)

    def prepare(self, scene: Scene) -> NetworkState:
        """Measure the scaling of the bands on the scene, unless the spec has one."""
        if self.spec.normalisation is not None:
            return NetworkState()
        return NetworkState(None, Normalisation.of(scene.statistics(), "standard"))

    def place(self, device: torch.device) -> None:
        """Make an inference copy on ``device``, channels last; the network given stays as it was."""
        network = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._channels_last = True

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W) float32 for the tiles.

        Raises:
            ConfigError: nothing scales the bands.
        """
        return torch.stack([self._seen(tile, state)[0] for tile in tiles.singles()])

    def segment_with_layers(self, tiles: Tiles, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (N, K, H, W), and how far overview and patches disagree, (N, 1, H, W); float32 both.

        Raises:
            ConfigError: nothing scales the bands.
        """
        if not self.spec.layers:
            return super().segment_with_layers(tiles, state)
        seen, layers = [], []
        for tile in tiles.singles():
            scores, overview = self._seen(tile, state)
            seen.append(scores)
            whole = enlarged(overview, (scores.shape[1], scores.shape[2]), self.settings.enlarging)[0]
            layers.append((scores.softmax(0) - whole.softmax(0)).abs_().sum(0, keepdim=True) / 2)
        return torch.stack(seen), torch.stack(layers)

    def _seen(self, tile: Tiles, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores (K, H, W) of one tile, and those (1, K, h, w) of its overview alone."""
        scaling = self.spec.normalisation or getattr(state, "normalisation", None)
        if scaling is None:
            raise ConfigError("the network has no scaling of its bands: pass the state that prepare(scene) returned.")
        with torch.no_grad():
            look = WindowLook(self.network, tile.pixels[0], tile.valid[0], scaling, self.settings)
            corners = None
            if self.settings.coarse_to_fine is not None:
                corners = look.foreground(self._background, self.settings.coarse_to_fine)
            return look.scores(corners).mean, look.overview_scores


def new_global_local(
    *,
    bands: Sequence[str],
    classes: Classes,
    mode: Mode = "collaborative",
    encoder: str = DEFAULT_ENCODER,
    settings: GlobalLocalSettings | None = None,
    resolution: float | None = None,
    normalisation: NormalisationRecord | None = None,
    seed: int = 0,
    pretrained: bool = False,
) -> tuple[Description, dict[str, NDArray[Any]]]:
    """Return the description and the weights of an untrained network, ready for :func:`geoseg.bundle.write_bundle`.

    Equal arguments give equal weights.  The caller's random numbers are left alone.

    Raises:
        ConfigError: a name or size is refused, or weights cannot be downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build_glnet(
            in_channels=len(bands), num_classes=len(classes), mode=mode, encoder=encoder, pretrained=pretrained
        )
    description = describe_global_local(
        network, encoder, bands, classes, settings, resolution=resolution, normalisation=normalisation
    )
    return description, tensors_of(network)


def describe_global_local(
    network: GlobalNet,
    encoder: str,
    bands: Sequence[str],
    classes: Classes,
    settings: GlobalLocalSettings | None = None,
    *,
    resolution: float | None = None,
    normalisation: NormalisationRecord | None = None,
    licence: str = "not stated",
    training: dict[str, Any] | None = None,
) -> Description:
    """Return what a bundle of a network says about itself.

    Raises:
        ConfigError: see :class:`GlobalLocal`.
    """
    made = GlobalLocal(network, bands=bands, classes=classes, settings=settings)
    return Description(
        method=METHOD,
        settings={"mode": network.mode, "encoder": encoder, **asdict(made.settings)},
        bands=list(bands),
        resolution=resolution,
        normalisation=normalisation,
        classes=[ClassRecord(**record) for record in classes.as_dicts()],
        tile=made.spec.tile,
        halo=made.spec.halo,
        tile_exact=False,
        licence=licence,
        training=training or {},
    )


def _background(classes: Classes) -> int:
    """Return the channel of the background.

    Raises:
        ConfigError: not exactly one class is marked as background.
    """
    channels = [channel for channel, item in enumerate(classes) if item.background]
    if len(channels) != 1:
        raise ConfigError(
            f"{len(channels)} of the classes are marked as background: coarse to fine needs exactly one, so mark it or "
            "leave coarse_to_fine out."
        )
    return channels[0]
