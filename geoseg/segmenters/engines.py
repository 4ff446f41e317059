"""Engines: libraries that compute a network's scores on the CPU in place of PyTorch, for the same weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import nn

from geoseg.errors import ConfigError, one_line

Engine = Literal["torch", "openvino", "onnxruntime"]
ENGINES: tuple[str, ...] = get_args(Engine)
# The libraries that each needs, and the extra that has them.
_NEEDS = {"openvino": (("openvino",), "openvino"), "onnxruntime": (("onnxruntime", "onnx"), "onnx")}
# What a run may ask for.
Asked = Literal["auto", Engine]

# Of the largest score: other kernels sum in another order, and nothing else may differ.
_TOLERANCE = 1e-3
# A network is recorded on a picture of about this side, for it costs a forward pass.
_RECORDED = 128

Run = Callable[[torch.Tensor], torch.Tensor]


class Library(Protocol):
    """What the module of an engine has: ``geoseg.segmenters.<engine>_engine``."""

    def recorded(self, network: nn.Module, shape: tuple[int, ...], *, free: bool) -> Any:
        """Return what a network does, recorded on a picture of ``shape`` (N, C, H, W).

        Args:
            network: what is recorded.
            shape: of the picture.
            free: whether pictures of other sizes will be given to it.

        Raises:
            ConfigError: it cannot be recorded, or the library does not know one of its operations.
        """

    def compiled(self, model: Any, shape: tuple[int, ...]) -> Run:
        """Return what computes a recorded model for pictures of ``shape``, in as many threads as torch uses here.

        Raises:
            ConfigError: it cannot be for that shape.
        """


@contextmanager
def told_of(engine: str) -> Iterator[None]:
    """Turn what an engine raises inside the block, and what records networks for it, of many kinds, into one sentence.

    Raises:
        ConfigError: the engine cannot compute the network.
    """
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"{engine} cannot compute this network ({one_line(error, 160)}): use --engine torch."
        ) from error


def check_engine(engine: str, device: torch.device) -> None:
    """Refuse an engine that cannot compute here.

    Raises:
        ConfigError: there is no such engine, it is not installed, or it has no use for the device.
    """
    if engine not in ENGINES:
        raise ConfigError(f"there is no engine {engine!r}: use one of {', '.join(ENGINES)}.")
    if engine == "torch":
        return
    libraries, extra = _NEEDS[engine]
    for library in libraries:
        if not _installed(library):
            raise ConfigError(f"--engine {engine} needs the library {library}: pip install 'geoseg[{extra}]'.")
    if device.type != "cpu":
        raise ConfigError(f"--engine {engine} computes on the CPU only: add --device cpu, or use --engine torch.")


def _installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ValueError:  # it was made unavailable on purpose
        return False


class Compiled:
    """A network's scores, computed by a library other than PyTorch in float32.

    What the network does is recorded on a small picture, and used for tiles of any size if it gives what PyTorch gives
    for a second size; else it is recorded for every size that comes, and compared there.

    Args:
        network: from pixels (N, C, H, W) to scores (N, K, H, W); on the CPU, in inference mode.
        stride: multiple of pixels that the sides of tiles are.
        engine: the library.
    """

    def __init__(self, network: nn.Module, stride: int, engine: str) -> None:
        self._network = network
        self._engine = engine
        self._library = cast(Library, importlib.import_module(f"geoseg.segmenters.{engine}_engine"))
        self._stride = max(1, stride)
        self._runs: dict[tuple[int, ...], Run] = {}
        self._general: Any = None
        self._tried = False

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return scores (N, K, H, W) float32 for network input (N, C, H, W) float32.

        Raises:
            ConfigError: the library cannot compute the network, or gives other scores than PyTorch.
        """
        shape = tuple(pixels.shape)
        if shape not in self._runs:
            self._runs[shape] = self._made(shape)
        return self._runs[shape](pixels)

    def _made(self, shape: tuple[int, ...]) -> Run:
        if not self._tried:
            self._tried = True
            self._general = self._recorded_for_all(shape[1])
        if self._general is not None:
            return self._library.compiled(self._general, shape)
        run = self._library.compiled(self._library.recorded(self._network, shape, free=False), shape)
        difference = self._difference(run, shape)
        if not difference <= _TOLERANCE:  # nor is it where scores are not numbers
            raise ConfigError(
                f"{self._engine} gives other scores than torch for this network (by {difference:.2g} of the largest): "
                "use --engine torch."
            )
        return run

    def _recorded_for_all(self, channels: int) -> Any:
        """Return what was recorded, if it holds for pictures of all sizes."""
        side = -(-_RECORDED // self._stride) * self._stride
        shape, other = (1, channels, side, side), (1, channels, side + self._stride, side + 2 * self._stride)
        try:
            model = self._library.recorded(self._network, shape, free=True)
            return model if self._difference(self._library.compiled(model, other), other) <= _TOLERANCE else None
        except (RuntimeError, ValueError):  # it holds for one size only, or the network takes no such picture
            return None

    def _difference(self, run: Run, shape: tuple[int, ...]) -> float:
        """Return by how much scores differ from PyTorch's, as a share of the largest."""
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = self._network(pixels)
        return float((run(pixels) - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
