"""Pairs of networks after RSTN as bundles hold them: which networks, how they look, and an untrained pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

import torch
from numpy.typing import NDArray

from geoseg import networks
from geoseg.bundle import Description, NormalisationRecord
from geoseg.classes import Classes
from geoseg.errors import ConfigError, unknown_name
from geoseg.networks.rstn import SaliencyPair, build_pair
from geoseg.segmenters.describing import describe, plain_options
from geoseg.segmenters.network import tensors_of
from geoseg.segmenters.saliency_settings import SaliencySettings

NAME: Final = "rstn"
DEFAULT_NETWORK: Final = "unet"
# The FCN-8s of the RSTN authors, which is no network for maps and stands in a pair of its like alone.
AUTHORS_NETWORK: Final = "rstn-fcn8s"
_NETWORKS = ("coarse", "fine")
# What the authors' network asks of its tiles: its crops and its 100 pixels of zeros follow no lattice.
_AUTHORS_TILE, _AUTHORS_HALO = 512, 96


@dataclass(frozen=True)
class NetworkChoice:
    """One network of a pair: its name, encoder (None for its own), and what else its builder takes."""

    name: str = DEFAULT_NETWORK
    encoder: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PairSettings:
    """Two networks, and how they look at a scene."""

    coarse: NetworkChoice = NetworkChoice()
    fine: NetworkChoice = NetworkChoice()
    looking: SaliencySettings = field(default_factory=SaliencySettings)

    @classmethod
    def of_options(cls, options: Mapping[str, Any], encoder: str | None = None) -> PairSettings:
        """Return the settings that a user names.

        Args:
            options: ``coarse`` and ``fine``, names of networks (``unet`` by default, the fine one as the coarse one);
                ``coarse_encoder``, ``coarse_options`` and the same of ``fine`` (likewise); and fields of
                :class:`geoseg.segmenters.saliency_settings.SaliencySettings`.
            encoder: of both networks where no option says it.

        Raises:
            ConfigError: an unknown name, or a value that is refused.
        """
        given = plain_options(options)
        numbers = [item.name for item in fields(SaliencySettings)]
        own = [f"{which}{part}" for which in _NETWORKS for part in ("", "_encoder", "_options")]
        for name in given:
            if name not in (*own, *numbers):
                raise ConfigError(unknown_name("option of a saliency pair", name, [*own, *numbers]))

        def choice(which: str, other: NetworkChoice) -> NetworkChoice:
            name = str(given.get(which, other.name))
            same = name == other.name
            own_encoder = given.get(f"{which}_encoder", other.encoder if same else None)
            own_options = given.get(f"{which}_options", other.options if same else {})
            if not isinstance(own_options, Mapping):
                raise ConfigError(f"{which}_options of a saliency pair is {own_options!r}: give names with values.")
            return NetworkChoice(name, own_encoder, dict(own_options))

        coarse = choice("coarse", NetworkChoice(encoder=encoder))
        if coarse.encoder is None and encoder is not None:
            coarse = NetworkChoice(coarse.name, encoder, coarse.options)
        return cls(coarse, choice("fine", coarse), SaliencySettings(**{k: v for k, v in given.items() if k in numbers}))

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> PairSettings:
        """Return the settings that a bundle holds.

        Raises:
            ConfigError: a value that is refused.
            KeyError, TypeError: it is the record of something else.
        """
        coarse, fine = (NetworkChoice(**record[which]) for which in _NETWORKS)
        return cls(coarse, fine, SaliencySettings(**{k: v for k, v in record.items() if k not in _NETWORKS}))

    def record(self) -> dict[str, Any]:
        """Return the settings as a bundle holds them."""
        return {"coarse": asdict(self.coarse), "fine": asdict(self.fine), **asdict(self.looking)}


def build(settings: PairSettings, *, bands: int, targets: int, pretrained: bool = False) -> SaliencyPair:
    """Return a pair of networks with random weights, or encoders from ImageNet.

    Raises:
        ConfigError: an unknown network or option, or a value that is refused; no such weights.
    """
    factor = settings.looking.factor
    names = {settings.coarse.name, settings.fine.name}
    if AUTHORS_NETWORK in names:
        from geoseg.networks.rstn_fcn8s import AuthorsFCN8s

        if names != {AUTHORS_NETWORK} or bands != targets:
            raise ConfigError(
                f"{AUTHORS_NETWORK} has as many targets as bands, and goes with its like alone: give it {bands} "
                "targets, in both places."
            )
        both = (AuthorsFCN8s(bands), AuthorsFCN8s(bands))
        return SaliencyPair(*both, targets=targets, bands=bands, factor=factor)

    def told(choice: NetworkChoice) -> dict[str, Any]:
        return {"encoder": choice.encoder, "pretrained": pretrained, **choice.options}

    return build_pair(
        in_channels=bands,
        targets=targets,
        coarse=settings.coarse.name,
        fine=settings.fine.name,
        coarse_options=told(settings.coarse),
        fine_options=told(settings.fine),
        factor=factor,
    )


def new_saliency(
    *,
    bands: Sequence[str],
    classes: Classes,
    settings: PairSettings | None = None,
    resolution: float | None = None,
    tile: int | None = None,
    halo: int | Literal["auto"] = "auto",
    normalisation: NormalisationRecord | None = None,
    seed: int = 0,
    pretrained: bool = False,
) -> tuple[Description, dict[str, NDArray[Any]]]:
    """Return the description and the weights of an untrained pair, ready for :func:`geoseg.bundle.write_bundle`.

    Equal arguments give equal weights.  The caller's random numbers are left alone.

    Args:
        bands: names of the input channels in order.
        classes: one of them the background, the others the targets.
        settings: networks, and how they look; by default two U-Nets.
        resolution: true ground metres per pixel of the scene, not of the overview; None for any.
        tile: of the coarse network, in pixels of the overview, see :func:`geoseg.segmenters.describing.describe`.
        halo: likewise.
        normalisation: scaling of the bands, None to measure it on each scene.
        seed: of the random weights.
        pretrained: start both encoders from ImageNet weights, which are downloaded.

    Raises:
        ConfigError: a name or size is refused, there is not one background, or weights cannot be downloaded.
    """
    from geoseg.segmenters.saliency import background_of

    background_of(classes)
    settings = settings or PairSettings()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        pair = build(settings, bands=len(bands), targets=len(classes) - 1, pretrained=pretrained)
    description = describe_saliency(
        pair, settings, bands, classes, resolution=resolution, tile=tile, halo=halo, normalisation=normalisation
    )
    return description, tensors_of(pair)


def describe_saliency(
    pair: SaliencyPair,
    settings: PairSettings,
    bands: Sequence[str],
    classes: Classes,
    *,
    resolution: float | None = None,
    tile: int | None = None,
    halo: int | Literal["auto"] = "auto",
    normalisation: NormalisationRecord | None = None,
    licence: str = "not stated",
    training: Mapping[str, Any] | None = None,
    card: Mapping[str, str] | None = None,
) -> Description:
    """Return what a bundle of a pair says about itself; tile and halo are the coarse network's, on the overview.

    Args: as of :func:`new_saliency` and :func:`geoseg.segmenters.describing.describe`.

    Raises:
        ConfigError: a name or size is refused.
    """
    told: dict[str, Any] = {
        "bands": bands,
        "classes": classes,
        "resolution": resolution,
        "normalisation": normalisation,
        "licence": licence,
        "training": training,
        "card": card,
    }
    if settings.coarse.name == AUTHORS_NETWORK:
        # Nothing is measured: one pass of it takes minutes on a CPU.
        about = _authors_description(told, tile, halo)
    else:
        networks.info(settings.coarse.name)
        about = describe(
            pair.coarse_model,
            name=settings.coarse.name,
            encoder=settings.coarse.encoder,
            options=settings.coarse.options,
            tile=tile,
            halo=halo,
            **told,
        )
    return about.model_copy(update={"method": "saliency", "settings": settings.record()})


def _authors_description(told: dict[str, Any], tile: int | None, halo: int | Literal["auto"]) -> Description:
    from geoseg.bundle import ClassRecord

    side = _AUTHORS_TILE if tile is None else tile
    reach = _AUTHORS_HALO if halo == "auto" else halo
    if not 0 <= 2 * reach < side:
        raise ConfigError(f"a tile of {side} pixels does not fit a halo of {reach}: use more than {2 * reach} pixels.")
    classes = [ClassRecord(**record) for record in told["classes"].as_dicts()]
    plain = {**told, "classes": classes, "bands": list(told["bands"])}
    plain |= {name: dict(told[name] or {}) for name in ("training", "card")}
    return Description(method="saliency", settings={}, tile=side, halo=reach, tile_exact=False, **plain)
