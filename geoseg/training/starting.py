"""What a training starts from: a network with its first weights, and the scaling of the bands."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from geoseg import networks
from geoseg.bundle import Bundle, read_bundle
from geoseg.errors import BundleError, ConfigError
from geoseg.normalisation import Normalisation, Statistics
from geoseg.segmenters.checkpoint_files import read_checkpoint
from geoseg.segmenters.network import load_tensors
from geoseg.training.config import NetworkConfig, TrainConfig
from geoseg.training.patches import Drawing
from geoseg.training.sampling import Count, Sampler, count
from geoseg.training.site import Site, open_sites, refuse_large_patches

if TYPE_CHECKING:
    from geoseg.training.coarse_tables import CoarseTable

_ENCODERS = ("encoder", "backbone", "feats")
# Of an encoder's own weights, at least this share must be in a file that is said to hold them.
_LEAST_FOUND = 0.9


def open_drawing(
    config: TrainConfig,
    progress: Callable[[str, int, int], None] | None,
    tables: Sequence[CoarseTable] = (),
    tell: Callable[[str], None] | None = None,
) -> tuple[Drawing, list[Site]]:
    """Open the scenes, count their labels, and return where patches are drawn, and the sites to be judged on.

    Args:
        config: of the training.
        progress: called with a stage, steps done, and steps in all.
        tables: of the coarse labels that are learned from; none where fine labels are.
        tell: called with what the coarse classes that occur can teach.

    Raises:
        ConfigError: patches too large for a scene, or a coarse class without statistics.
        SceneError: a scene that cannot be used.
        LabelsError: labels that cannot be used, or none where there must be some.
    """
    sites, judged = open_sites(config)
    refuse_large_patches(sites, config)
    loop, counts = config.training, []
    names = [*tables[0].names, "another label"] if tables else [item.name for item in config.data.table()]
    for done, site in enumerate(sites):
        if progress is not None:
            progress("counting labels", done, len(sites))
        counts.append(count(site, len(names), loop.patch, coarse=bool(tables)))
    if progress is not None:
        progress("counting labels", len(sites), len(sites))
    if tables:
        names, counts = _occurring(names, counts, tables, tell)
    sampler = Sampler(counts, names, config.sampling, config.augment, loop.seed)
    return Drawing(sites, sampler, loop.patch, config.sampling.min_valid), judged


def _occurring(
    names: list[str], counts: list[Count], tables: Sequence[CoarseTable], tell: Callable[[str], None] | None
) -> tuple[list[str], list[Count]]:
    """Return the coarse classes that occur, and their counts; tell what they can teach."""
    from geoseg.training.coarse_module import told_of

    totals = sum(item.pixels.sum((1, 2)) for item in counts)
    for told in told_of(tables, totals):
        if tell is not None:
            tell(told)
    there = totals > 0
    occurring = [name for name, found in zip(names, there, strict=True) if found]
    return occurring, [replace(item, pixels=item.pixels[there]) for item in counts]


def scaling_of(config: TrainConfig, known: Normalisation | None, sites: Sequence[Site]) -> Normalisation | None:
    """Return the scaling that the bundle will hold, the known one or as measured; None if each scene has its own.

    Raises:
        SceneError: a scene without a valid pixel.
    """
    if config.data.scaling == "scene":
        return None
    return known or measured_scaling(sites)


def first_network(config: TrainConfig, bands: int) -> tuple[nn.Module, NetworkConfig, Normalisation | None]:
    """Return the network, its settings as a bundle will hold them, and the scaling that came with its weights.

    Equal configurations give equal weights; the caller's random numbers are left alone.

    Raises:
        ConfigError: a name or option is refused, or weights do not fit.
        BundleError: a file of weights cannot be used.
    """
    settings, scaling, bundle = config.network, None, None
    if settings.start is not None:
        bundle = start_of(config, settings.start, bands)
        told = {key: bundle.description.settings.get(key) for key in ("name", "encoder", "options")}
        settings = settings.model_copy(update={**told, "options": dict(told["options"] or {})})
        record = bundle.description.normalisation
        scaling = record.build() if record else None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.training.seed)
        network = networks.create(
            settings.name,
            in_channels=bands,
            num_classes=len(config.data.classes),
            encoder=settings.encoder,
            pretrained=settings.pretrained and bundle is None,
            **settings.options,
        )
    if bundle is not None:
        load_tensors(network, bundle.tensors(), bundle.path)
    if settings.encoder_weights is not None:
        path = config.path(settings.encoder_weights)
        load_encoder(encoder_of(network, settings.name), read_checkpoint(path, bundles=True).tensors, path, bands)
    return network, settings, scaling


def start_of(config: TrainConfig, path: str, bands: int, method: str | None = None) -> Bundle:
    """Return the bundle to go on from.

    Args:
        config: of the run.
        path: as the configuration has it.
        bands: of the scenes.
        method: of the bundle, by default ``network``, or ``refiner`` for a network that refines.

    Raises:
        ConfigError: it is for other classes or bands.
        BundleError: it cannot be used, or is of another method.
    """
    bundle, name = read_bundle(config.path(path)), config.network.name
    description = bundle.description
    refines = networks.info(name).needs_prior
    if description.method != (method or ("refiner" if refines else "network")):
        raise BundleError(
            f"{bundle.path} holds a {description.method} model, which is no start for network {name}: set "
            "network.name to what it holds, or start from another."
        )
    names, wanted = [item.name for item in description.classes], [item.name for item in config.data.table()]
    if names != wanted and not refines:
        raise ConfigError(
            f"{bundle.path} has the classes {', '.join(names)} where data.classes are {', '.join(wanted)}: "
            "give the same ones in the same order."
        )
    if len(description.bands) != bands:
        raise ConfigError(f"{bundle.path} is for {len(description.bands)} bands where the scenes give {bands}.")
    return bundle


def encoder_of(network: nn.Module, name: str) -> nn.Module:
    """Return the part of a network that looks first, and that ImageNet weights are for.

    Raises:
        ConfigError: it has none.
    """
    found = find_encoder(network)
    if found is None:
        raise ConfigError(f"network {name} has no encoder: leave out encoder_weights, freeze_steps and encoder_lr.")
    return found


def find_encoder(network: nn.Module) -> nn.Module | None:
    """Return a network's encoder, None if it has none."""
    named = sorted(network.named_modules(), key=lambda item: item[0].count("."))
    return next((module for path, module in named if path.rpartition(".")[2] in _ENCODERS), None)


def load_encoder(encoder: nn.Module, tensors: Mapping[str, torch.Tensor], path: str, bands: int | None = None) -> None:
    """Give an encoder the weights of a file, whatever stands before their names on either side.

    The weights for three bands are averaged where the encoder takes another number, and scaled so that
    the sum over the bands stays.

    Args:
        encoder: of a network.
        tensors: of the file, by name.
        path: of the file, for messages.
        bands: the encoder's first channels so many are an image's, all by default; for others, such as masks, a file
            has no weights, and they stay 0.

    Raises:
        ConfigError: the file lacks more than a tenth of the encoder's weights.
    """
    own = {name: value for name, value in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = max((_named_as(own, tensors, cut) for cut in range(4)), key=lambda each: len(own.keys() & each.keys()))
    if len(own.keys() & given.keys()) < _LEAST_FOUND * len(own):
        given = _in_order(own, tensors) or given
    found = 0
    with torch.no_grad():
        for name, value in own.items():
            weight = given.get(name)
            if weight is not None and weight.shape != value.shape and value.ndim == 4 and weight.ndim == 4:
                weight = _for_bands(weight, value.shape[1], bands)
            if weight is not None and weight.shape == value.shape:
                value.copy_(weight)
                found += 1
    if found < _LEAST_FOUND * len(own):
        raise ConfigError(
            f"{path} holds {found} of the {len(own)} weights of the encoder: it belongs to another; "
            "check network.encoder."
        )


def _named_as(
    own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], cut: int
) -> dict[str, torch.Tensor]:
    """Return tensors by names without their first ``cut`` parts, and with the start that most names in ``own`` have."""
    short = {name.split(".", cut)[-1]: value for name, value in tensors.items() if name.count(".") >= cut}
    before: Counter[str] = Counter()
    for name in own:
        parts = name.split(".")
        before.update(".".join(parts[:i]) for i in range(len(parts)) if ".".join(parts[i:]) in short)
    if not before:
        return {}
    prefix = before.most_common(1)[0][0]
    return {f"{prefix}.{name}" if prefix else name: value for name, value in short.items()}


def _in_order(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors by the names in ``own``, if they have its shapes one after another under names of their own.

    The first may be for another number of bands, and a classifier may follow.
    """
    values = [value for name, value in tensors.items() if not name.endswith("num_batches_tracked")]
    alike = [value.shape == other.shape for value, other in zip(own.values(), values, strict=False)]
    if len(values) < len(own) or not all(alike[1:]):
        return {}
    return dict(zip(own, values, strict=False))


def _for_bands(weight: torch.Tensor, channels: int, bands: int | None) -> torch.Tensor:
    """Return weights of so many input channels, of which the first ``bands`` are an image's and the others get 0."""
    count = channels if bands is None else min(bands, channels)
    if weight.shape[1] != count:
        weight = weight.float().mean(1, keepdim=True).expand(-1, count, -1, -1) * (weight.shape[1] / count)
    others = weight.new_zeros(len(weight), channels - count, *weight.shape[2:])
    return torch.cat([weight, others], 1)


def measured_scaling(sites: Sequence[Site]) -> Normalisation:
    """Return the scaling to mean 0 and deviation 1 over all scenes, each weighted by its pixels.

    Raises:
        SceneError: a scene without a valid pixel.
    """
    found = [site.native.statistics() for site in sites]
    weights = np.array([math.prod(site.scene.shape) for site in sites], float)
    weights /= weights.sum()
    means, deviations = (np.array([getattr(item, name) for item in found]) for name in ("mean", "std"))
    mean = weights @ means
    std = np.sqrt(weights @ (deviations**2 + (means - mean) ** 2))
    low, high = (np.array([getattr(item, name) for item in found]) for name in ("p2", "p98"))
    pooled = (mean, std, weights @ low, weights @ high)
    return Normalisation.of(Statistics(*(tuple(float(v) for v in figure) for figure in pooled)))


def fingerprint(config: TrainConfig) -> str:
    """Return what two runs must share for one to go on from the other's checkpoint."""
    record = config.model_dump(mode="json")
    for name in ("workers", "logs", "checkpoint_every"):
        del record["training"][name]
    return json.dumps(record, sort_keys=True)
