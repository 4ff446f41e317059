"""Engines: libraries that compute a network's scores on the CPU in place of PyTorch, for the same weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from geoseg.errors import ConfigError, one_line

Engine = Literal["torch", "openvino"]
ENGINES: tuple[str, ...] = get_args(Engine)
# What a run may ask for.
Asked = Literal["auto", Engine]

# Of the largest score: other kernels sum in another order, and nothing else may differ.
_TOLERANCE = 1e-3
# A network is recorded on a picture of about this side, for it costs a forward pass.
_RECORDED = 128

Run = Callable[[torch.Tensor], torch.Tensor]


def check_engine(engine: str, device: torch.device) -> None:
    """Refuse an engine that cannot compute here.

    Raises:
        ConfigError: there is no such engine, it is not installed, or it has no use for the device.
    """
    if engine not in ENGINES:
        raise ConfigError(f"there is no engine {engine!r}: use one of {', '.join(ENGINES)}.")
    if engine == "torch":
        return
    if not _installed(engine):
        raise ConfigError(f"--engine {engine} needs the library {engine}: pip install 'geoseg[{engine}]'.")
    if device.type != "cpu":
        raise ConfigError(f"--engine {engine} computes on the CPU only: add --device cpu, or use --engine torch.")


def _installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ValueError:  # it was made unavailable on purpose
        return False


class Compiled:
    """A network's scores, computed by OpenVINO in float32.

    What the network does is recorded on a small picture, and used for tiles of any size if it gives what PyTorch gives
    for a second size; else it is recorded for every size that comes, and compared there.

    Args:
        network: from pixels (N, C, H, W) to scores (N, K, H, W); on the CPU, in inference mode.
        stride: multiple of pixels that the sides of tiles are.
    """

    def __init__(self, network: nn.Module, stride: int) -> None:
        self._network = network
        self._stride = max(1, stride)
        self._runs: dict[tuple[int, ...], Run] = {}
        self._general: Any = None
        self._tried = False

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return scores (N, K, H, W) float32 for network input (N, C, H, W) float32.

        Raises:
            ConfigError: OpenVINO cannot compute the network, or gives other scores than PyTorch.
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
            return _compiled(self._general, shape)
        run = _compiled(_recorded(self._network, shape), shape)
        difference = self._difference(run, shape)
        if not difference <= _TOLERANCE:  # nor is it where scores are not numbers
            raise ConfigError(
                f"openvino gives other scores than torch for this network (by {difference:.2g} of the largest): use "
                "--engine torch."
            )
        return run

    def _recorded_for_all(self, channels: int) -> Any:
        """Return what was recorded, if it holds for pictures of all sizes."""
        side = -(-_RECORDED // self._stride) * self._stride
        shape, other = (1, channels, side, side), (1, channels, side + self._stride, side + 2 * self._stride)
        try:
            model = _recorded(self._network, shape)
            return model if self._difference(_compiled(model, other), other) <= _TOLERANCE else None
        except (RuntimeError, ValueError):  # it holds for one size only, or the network takes no such picture
            return None

    def _difference(self, run: Run, shape: tuple[int, ...]) -> float:
        """Return by how much scores differ from PyTorch's, as a share of the largest."""
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = self._network(pixels)
        return float((run(pixels) - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _recorded(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """Return the network as OpenVINO's model, recorded on a picture of ``shape``.

    OpenVINO's own ``convert_model`` is left aside: it reports what it converts to its makers.

    Raises:
        ConfigError: it cannot be recorded, or OpenVINO does not know one of its operations.
    """
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad(), _told():
        warnings.simplefilter("ignore")  # of tracing, that it is old, and that it takes sizes for constants
        traced = torch.jit.trace(network, pixels, check_trace=False)
        # It is asked until the conversion ends, and nothing else keeps it.
        decoder = TorchScriptPythonDecoder(traced)
        loaded = _frontend().load(decoder)
        return _frontend().convert(loaded)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what PyTorch's tracer and OpenVINO raise inside the block, of many kinds, into one sentence.

    Raises:
        ConfigError: the engine cannot compute the network.
    """
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"openvino cannot compute this network ({one_line(error, 160)}): use --engine torch."
        ) from error


# These live as long as the process: with them would go libraries that threads of OpenVINO's may still be in.
@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


@cache
def _manager() -> Any:
    from openvino.frontend import FrontEndManager

    return FrontEndManager()


@cache
def _frontend() -> Any:
    return _manager().load_by_framework("pytorch")


def _compiled(model: Any, shape: tuple[int, ...]) -> Run:
    """Return what computes a model for pictures of ``shape``, in as many threads as torch uses here.

    Raises:
        ConfigError: it cannot be for that shape.
    """
    settings = {
        # The library's own choice may be bfloat16.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    with _told():
        fixed = model.clone()
        fixed.reshape({fixed.inputs[0]: list(shape)})
        request = _core().compile_model(fixed, "CPU", settings).create_infer_request()

    def run(pixels: torch.Tensor) -> torch.Tensor:
        with _told():
            made = request.infer([np.ascontiguousarray(pixels.numpy())], share_inputs=True, share_outputs=True)
        # The next call writes to the same memory.
        return torch.from_numpy(made[0].copy())

    return run
