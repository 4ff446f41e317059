"""Any network behind the tile interface, and the bundles that hold one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.overrides import TorchFunctionMode

from geoseg import networks
from geoseg.bundle import Bundle, Description
from geoseg.classes import Classes
from geoseg.collector import paused
from geoseg.errors import BundleError, ConfigError, one_line
from geoseg.networks.inference import MainOutput, fold_batch_norm, main_output
from geoseg.normalisation import Normalisation
from geoseg.segmenters.describing import describe, plain_options
from geoseg.segmenters.engines import ENGINES, Compiled, check_engine
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles, normalised

if TYPE_CHECKING:
    from geoseg.scene import Scene

# Counts batches in training; inference does not read it.
_NOT_STORED = "num_batches_tracked"


@dataclass(frozen=True)
class NetworkState(State):
    """The scaling measured on the scene, where the bundle brings none."""

    normalisation: Normalisation | None = None


class PlainNetwork(Segmenter):
    """A network from pixels to scores, applied to each tile alone.

    Args:
        module: from (N, C, H, W) float to scores (N, K, H, W); of a tuple or dict the main output is taken.  One with
            ``layers`` and ``with_layers`` (:mod:`geoseg.networks.any_size`) has further layers.
        spec: what it asks of its tiles; its layers are set to the module's.
    """

    def __init__(self, module: nn.Module, spec: Spec) -> None:
        self.module = module
        self.spec = replace(spec, layers=tuple(getattr(module, "layers", ())) if hasattr(module, "with_layers") else ())
        self._channels_last = False
        self._compiled: Compiled | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what an engine has compiled: it is of this process."""
        return {**self.__dict__, "_compiled": None}

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> PlainNetwork:
        """Build the network a bundle describes and give it the bundle's weights.

        Raises:
            BundleError: this version cannot build the network, or the weights are not its weights.
        """
        return cls(module_of(bundle), spec_of(bundle.description))

    def prepare(self, scene: Scene) -> NetworkState:
        """Measure the scaling of the bands on the scene, unless the spec has one."""
        return NetworkState() if self.spec.normalisation is not None else NetworkState(None, self.scaling_on(scene))

    def scaling_on(self, scene: Scene) -> Normalisation:
        """Return the scaling of the bands: the spec's, or measured on the scene where it has none."""
        return self.spec.normalisation or Normalisation.of(scene.statistics(), "standard")

    def place(self, device: torch.device) -> None:
        """Make an inference copy on ``device``: batch norm folded, channels last; the module given stays as it was."""
        stride = max(1, self.spec.stride)
        side = min(self.spec.tile, -(-128 // stride) * stride)
        with _one_thread():
            module = copy.deepcopy(self.module).eval().requires_grad_(False)
            module = fold_batch_norm(module, (1, len(self.spec.bands), side, side))
            self.module = module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._channels_last, self._compiled = True, None

    @property
    def engines(self) -> tuple[str, ...]:
        """What can compute the scores of a tile."""
        return ENGINES

    def accelerate(self, engine: str) -> None:
        """Let an engine compute the scores; further layers are always computed by torch.

        Raises:
            ConfigError: the engine is not installed, or computes on the CPU only.
        """
        check_engine(engine, _device(self.module))
        self._compiled = None if engine == "torch" else Compiled(MainOutput(self.module), self.spec.stride, engine)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W) float32 for the tiles.

        Raises:
            ConfigError: nothing scales the bands, the network's scores have another shape than they should, or the
                engine cannot compute them.
        """
        pixels = self._input(tiles, state)
        if self._compiled is not None:
            return self._checked(self._compiled(pixels), pixels)
        with torch.no_grad():
            return self._checked(main_output(self.module(pixels)), pixels)

    def segment_with_layers(self, tiles: Tiles, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (N, K, H, W) and the network's further layers (N, L, H, W), both float32.

        Raises:
            ConfigError: as for :meth:`segment`, or the layers have another shape than they should.
        """
        if not self.spec.layers:
            return super().segment_with_layers(tiles, state)
        pixels = self._input(tiles, state)
        with torch.no_grad():
            scores, layers = self.module.with_layers(pixels)  # type: ignore[operator]
        expected = (len(pixels), len(self.spec.layers), *pixels.shape[-2:])
        if tuple(layers.shape) != expected:
            raise ConfigError(f"the network gives layers of shape {tuple(layers.shape)} where {expected} belong.")
        return self._checked(scores, pixels), layers.float()

    def _input(self, tiles: Tiles, state: State) -> torch.Tensor:
        scaling = self.spec.normalisation or getattr(state, "normalisation", None)
        if scaling is None:
            raise ConfigError("the network has no scaling of its bands: pass the state that prepare(scene) returned.")
        pixels = normalised(tiles, scaling)
        return pixels.contiguous(memory_format=torch.channels_last) if self._channels_last else pixels

    def _checked(self, scores: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Return the scores as float32, once their shape is known to be right."""
        count = scores.shape[1] if self.spec.classes is None else len(self.spec.classes)
        expected = (len(pixels), count, *pixels.shape[-2:])
        if tuple(scores.shape) != expected:
            raise ConfigError(f"the network gives scores of shape {tuple(scores.shape)} where {expected} belong.")
        return scores.float()


def module_of(bundle: Bundle) -> nn.Module:
    """Return the network a bundle describes, with the bundle's weights.

    Raises:
        BundleError: this version cannot build the network, or the weights are not its weights.
    """
    description = bundle.description
    settings = dict(description.settings)
    try:
        with undrawn():
            module = networks.create(
                str(settings.get("name", "")),
                in_channels=len(description.bands),
                num_classes=len(description.classes),
                encoder=settings.get("encoder"),
                **dict(settings.get("options") or {}),
            )
    except (ConfigError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path} asks for a network that this version of geoseg does not make: {one_line(error)}"
        ) from error
    with _one_thread():
        load_tensors(module, bundle.tensors(), bundle.path)
    return module


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch work in one thread inside the block.

    For steps this small a second one spends more time waiting than it saves, and waiting counts as processor time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where random numbers would be drawn for them: a bundle has the weights."""

    _DRAWS = frozenset(
        {
            *(torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_),
            *(nn.init.trunc_normal_, nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
            *(nn.init.xavier_normal_, nn.init.xavier_uniform_),
        }
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, unless it fills a tensor with random numbers."""
        kwargs = kwargs or {}
        if func in self._DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Let networks be made inside the block without drawing the weights that a bundle has."""
    with paused(), _one_thread(), _Undrawn():
        yield


def spec_of(description: Description) -> Spec:
    """Return what the described network asks of its tiles."""
    return Spec(
        bands=tuple(description.bands),
        resolution=description.resolution,
        classes=description.class_table(),
        tile=description.tile,
        halo=description.halo,
        stride=description.stride,
        tile_exact=description.tile_exact,
        bounded=description.tiling is not None and description.tiling.halo_exact is not None,
        normalisation=description.normalisation.build() if description.normalisation else None,
    )


def new_bundle(
    name: str,
    *,
    bands: Sequence[str],
    classes: Classes,
    encoder: str | None = None,
    resolution: float | None = None,
    tile: int | None = None,
    halo: int | Literal["auto"] = "auto",
    seed: int = 0,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[Description, dict[str, NDArray[Any]]]:
    """Return the description and the weights of an untrained network, ready for :func:`geoseg.bundle.write_bundle`.

    Equal arguments give equal weights.  The caller's random numbers are left alone.

    Args:
        name: a network of :func:`geoseg.networks.names`.
        bands: names of the input channels in order.
        classes: in the order of the scores' channels.
        encoder: by default the network's own.
        resolution: true ground metres per pixel, None for any.
        tile: side in pixels; by default 1024 or more for a network whose tiles are exact, else 512.
        halo: pixels; ``"auto"`` chooses it, see :func:`geoseg.segmenters.describing.describe`.
        seed: of the random weights.
        pretrained: start the encoder from ImageNet weights, which are downloaded.
        options: what else the network's builder takes; plain JSON values.

    Raises:
        ConfigError: a name, option or size is refused, or weights cannot be downloaded.
    """
    given = plain_options(options or {})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = networks.create(
            name,
            in_channels=len(bands),
            num_classes=len(classes),
            encoder=encoder,
            pretrained=pretrained,
            **given,
        )
    description = describe(
        module,
        name=name,
        encoder=encoder,
        options=given,
        bands=bands,
        classes=classes,
        resolution=resolution,
        tile=tile,
        halo=halo,
    )
    return description, tensors_of(module)


def tensors_of(module: nn.Module) -> dict[str, NDArray[Any]]:
    """Return the weights and statistics of a network as numpy arrays, by their names in the state dict."""
    return {
        name: value.detach().cpu().numpy().copy()
        for name, value in module.state_dict().items()
        if not name.endswith(_NOT_STORED)
    }


def load_tensors(module: nn.Module, tensors: Mapping[str, NDArray[Any]], path: str) -> None:
    """Give ``module`` the weights of ``tensors``, all of them and no others.

    Raises:
        BundleError: some are missing, left over, or of another shape; ``path`` names the file in the message.
    """
    own = {name: value for name, value in module.state_dict().items() if not name.endswith(_NOT_STORED)}
    given = {name: value for name, value in tensors.items() if not name.endswith(_NOT_STORED)}
    faults = []
    if missing := sorted(own.keys() - given.keys()):
        faults.append(f"lacks {_some(missing)}")
    if unexpected := sorted(given.keys() - own.keys()):
        faults.append(f"has {_some(unexpected)}, which the network does not")
    faults += [
        f"has {name} of shape {given[name].shape} where {tuple(own[name].shape)} belongs"
        for name in sorted(own.keys() & given.keys())
        if tuple(own[name].shape) != given[name].shape
    ]
    if faults:
        more = f", and {len(faults) - 3} more faults" if len(faults) > 3 else ""
        raise BundleError(f"{path} {'; '.join(faults[:3])}{more}: its weights belong to another network.")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(torch.from_numpy(np.ascontiguousarray(given[name]).reshape(value.shape)))


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
