"""PyTorch modules written as ONNX graphs, by the exporter that needs no library but onnx."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# Version of the standard operators: the newest that the exporter writes and that all onnxruntimes of the extra read.
_OPSET = 17
# What is changed for the exporter belongs to the process.
_ALONE = threading.Lock()
# Names of the axes that a graph leaves open.
FREE = {0: "n", 2: "height", 3: "width"}


def written(module: nn.Module, shape: tuple[int, ...], given: str, made: str, *, free: bool = False) -> bytes:
    """Return the graph of a module from (N, C, H, W) to (N, K, H, W) as the bytes of an ONNX file.

    Args:
        module: in inference mode, on the CPU.
        shape: of the picture that it is recorded on.
        given: name of its input.
        made: name of its output.
        free: leave all axes but the channels open; whether the module is the same for other sizes is not looked at.

    Raises:
        Exception: of many kinds, which the tracer, the exporter and protobuf have.
    """
    target = io.BytesIO()
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with _ALONE, warnings.catch_warnings(), torch.no_grad(), _hushed(), _pooling_by_products():
        warnings.simplefilter("ignore")  # of tracing, that it is old, and that it takes sizes for constants
        torch.onnx.export(
            module,
            (pixels,),
            target,  # type: ignore[arg-type]
            # The newer exporter needs two libraries more.
            dynamo=False,
            opset_version=_OPSET,
            input_names=[given],
            output_names=[made],
            dynamic_axes={given: FREE, made: FREE} if free else None,
        )
    return target.getvalue()


@contextlib.contextmanager
def _pooling_by_products() -> Iterator[None]:
    """Compute, inside the block, pooling to a number of cells as products of matrices.

    ONNX has no operator for cells that overlap.  The matrices are those of the picture that is recorded.
    """
    plain = functional.adaptive_avg_pool2d

    def pooled(values: torch.Tensor, output_size: Any) -> torch.Tensor:
        both = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        sides = [int(side) for side in values.shape[-2:]]
        parts = [side if part is None else int(part) for side, part in zip(sides, both, strict=True)]
        if parts == [1, 1]:
            return plain(values, output_size)
        rows, cols = (_means(side, part) for side, part in zip(sides, parts, strict=True))
        return rows @ values @ cols.T

    functional.adaptive_avg_pool2d = pooled  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.adaptive_avg_pool2d = plain


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep the exporter, inside the block, from printing on stdout the graph of what it cannot write."""
    plain = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = _say_nothing
    try:
        yield
    finally:
        torch._C._jit_onnx_log = plain


def _say_nothing(*_: object) -> None:
    pass


def _means(side: int, parts: int) -> torch.Tensor:
    """Return the matrix (parts, side) that takes the means of so many overlapping stretches of a line of pixels."""
    matrix = np.zeros((parts, side), np.float32)
    for number in range(parts):
        first, end = number * side // parts, -(-(number + 1) * side // parts)
        matrix[number, first:end] = 1 / (end - first)
    return torch.from_numpy(matrix)
