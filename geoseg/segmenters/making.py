"""Bundles of any network by its name: untrained, or with weights that another program trained.

Most networks take a tile, and all the same is said of each.  Those that look at more are made by modules of their own,
which are named here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoseg.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoseg.bundle import Description
    from geoseg.segmenters.checkpoints import Match


@dataclass(frozen=True)
class Maker:
    """Who makes the bundles of a network that looks at more than a tile, as ``module:function``.

    Attributes:
        new: takes what :func:`geoseg.segmenters.network.new_bundle` takes but for the name, and returns the same.
        of_weights: likewise of :func:`geoseg.segmenters.checkpoints.import_checkpoint`; None where nobody publishes
            weights.
    """

    new: str
    of_weights: str | None = None


_MAKERS = {
    "glnet": Maker(
        "geoseg.segmenters.global_local_making:new_by_options",
        "geoseg.segmenters.global_local_making:import_by_options",
    ),
    "rstn": Maker(
        "geoseg.segmenters.saliency_making:new_by_options",
        "geoseg.segmenters.saliency_making:import_by_options",
    ),
}


def new_model(network: str, **arguments: Any) -> tuple[Description, dict[str, NDArray[Any]]]:
    """Return description and weights of an untrained bundle of any network.

    Args:
        network: one of :func:`geoseg.networks.every_name`.
        arguments: see :func:`geoseg.segmenters.network.new_bundle`.

    Raises:
        ConfigError: a name, option or size is refused, or weights cannot be downloaded.
    """
    if network in _MAKERS:
        made: tuple[Description, dict[str, NDArray[Any]]] = _named(_MAKERS[network].new)(**arguments)
        return made
    from geoseg.segmenters.network import new_bundle

    return new_bundle(network, **arguments)


def import_model(path: str, network: str, **arguments: Any) -> tuple[Description, dict[str, NDArray[Any]], Match]:
    """Return description and weights of a bundle of any network, made of a file that another program wrote.

    Args:
        path: of the file.
        network: one of :func:`geoseg.networks.every_name`.
        arguments: see :func:`geoseg.segmenters.checkpoints.import_checkpoint`.

    Raises:
        BundleError: the file cannot be used, or its weights are not those of the network.
        ConfigError: a name, option or size is refused.
    """
    if network in _MAKERS:
        maker = _MAKERS[network].of_weights
        if maker is None:
            raise ConfigError(f"no weights of network {network} are known to be published: make it with `geoseg init`.")
        made: tuple[Description, dict[str, NDArray[Any]], Match] = _named(maker)(path, **arguments)
        return made
    from geoseg.segmenters.checkpoints import import_checkpoint

    return import_checkpoint(path, network, **arguments)


def _named(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)
