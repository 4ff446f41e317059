"""The engine OpenVINO, see :class:`geoseg.segmenters.engines.Library`."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from geoseg.segmenters.engines import Run, told_of


def recorded(network: nn.Module, shape: tuple[int, ...], *, free: bool) -> Any:
    """Return the network as OpenVINO's model, recorded on a picture of ``shape``; it takes any size, ``free`` or not.

    OpenVINO's own ``convert_model`` is left aside: it reports what it converts to its makers.

    Raises:
        ConfigError: it cannot be recorded, or OpenVINO does not know one of its operations.
    """
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad(), told_of("openvino"):
        warnings.simplefilter("ignore")  # of tracing, that it is old, and that it takes sizes for constants
        traced = torch.jit.trace(network, pixels, check_trace=False)
        # It is asked until the conversion ends, and nothing else keeps it.
        decoder = TorchScriptPythonDecoder(traced)
        loaded = _frontend().load(decoder)
        return _frontend().convert(loaded)


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


def compiled(model: Any, shape: tuple[int, ...]) -> Run:
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
    with told_of("openvino"):
        fixed = model.clone()
        fixed.reshape({fixed.inputs[0]: list(shape)})
        request = _core().compile_model(fixed, "CPU", settings).create_infer_request()

    def run(pixels: torch.Tensor) -> torch.Tensor:
        with told_of("openvino"):
            made = request.infer([np.ascontiguousarray(pixels.numpy())], share_inputs=True, share_outputs=True)
        # The next call writes to the same memory.
        return torch.from_numpy(made[0].copy())

    return run
