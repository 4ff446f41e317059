"""The engine onnxruntime, see :class:`geoseg.segmenters.engines.Library`."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from geoseg.segmenters.engines import Run, told_of
from geoseg.segmenters.onnx import open_model
from geoseg.segmenters.onnx_writing import FREE, written

_INPUT, _OUTPUT = "pixels", "scores"


def recorded(network: nn.Module, shape: tuple[int, ...], *, free: bool) -> bytes:
    """Return the network as an ONNX model, recorded on a picture of ``shape``.

    Raises:
        ConfigError: it cannot be recorded, or ONNX has no operator for one of its operations.
    """
    with told_of("onnxruntime"):
        return written(network, shape, _INPUT, _OUTPUT, free=free)


def compiled(model: bytes, shape: tuple[int, ...]) -> Run:
    """Return what computes a model for pictures of ``shape``, in as many threads as torch uses here.

    Raises:
        ConfigError: it cannot be for that shape.
    """
    with told_of("onnxruntime"):
        # Sizes that are known let the library plan its memory and choose its kernels.
        sizes = {name: shape[axis] for axis, name in FREE.items()}
        session = open_model(model, torch.device("cpu"), "the network", sizes=sizes)

    def run(pixels: torch.Tensor) -> torch.Tensor:
        with told_of("onnxruntime"):
            (scores,) = session.run([_OUTPUT], {_INPUT: np.ascontiguousarray(pixels.numpy())})
        return torch.from_numpy(scores)

    return run
