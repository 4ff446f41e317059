"""A network made ready for inference: its scores alone, and its batch norms merged into convolutions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from geoseg.errors import ConfigError

# Of the largest score: folding changes the order of a few roundings, nothing else.
_FOLDED_TOLERANCE = 1e-4

logger = logging.getLogger(__name__)


def main_output(output: Any) -> torch.Tensor:
    """Return the scores among what a network returned: a tensor, the first of a tuple, or ``out`` of a dict."""
    if isinstance(output, Mapping):
        output = output["out"] if "out" in output else next(iter(output.values()))
    while isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, torch.Tensor):
        raise ConfigError(f"the network returns {type(output).__name__} where scores (N, K, H, W) belong.")
    return output


class MainOutput(nn.Module):
    """A network that gives its scores alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return scores (N, K, H, W)."""
        return main_output(self.module(pixels))


def fold_batch_norm(module: nn.Module, shape: tuple[int, int, int, int]) -> nn.Module:
    """Merge every batch norm into the convolution whose output it takes, in place, and return the module.

    The pairs are found by watching one pass over random input of ``shape`` (N, C, H, W): a batch norm whose input is
    the very tensor a convolution returned, each of them called once.  A second pass checks the result; where the
    scores are not the same to rounding, or the network cannot take the input, the module is put back as it was.
    """
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(
        next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    )
    replaced: list[tuple[nn.Module, str, Any]] = []
    try:
        with torch.inference_mode(False), torch.no_grad():
            expected, pairs = _convolutions_before_norms(module, pixels)
            if not pairs:
                return module
            for convolution, norm in pairs:
                replaced += [(convolution, name, getattr(convolution, name)) for name in ("weight", "bias")]
                _merge(convolution, norm)
            merged = {norm for _, norm in pairs}
            for parent in list(module.modules()):
                for name, child in parent.named_children():
                    if child in merged:
                        replaced.append((parent, name, child))
                        setattr(parent, name, _remainder(child))
            difference = (main_output(module(pixels)) - expected).abs().max()
            if difference <= _FOLDED_TOLERANCE * expected.abs().max():
                return module
            logger.debug("batch norm is not folded: scores would differ by %g", float(difference))
    except Exception:  # a network that is odd enough to break here works unfolded
        logger.debug("batch norm is not folded", exc_info=True)
    for owner, name, value in replaced:
        setattr(owner, name, value)
    return module


def _convolutions_before_norms(
    module: nn.Module, pixels: torch.Tensor
) -> tuple[torch.Tensor, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """Return the scores for ``pixels``, and the convolutions with the batch norm that alone takes their output."""
    calls: Counter[nn.Module] = Counter()
    outputs: dict[int, tuple[nn.Conv2d, torch.Tensor, int]] = {}
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def watch(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[layer] += 1
        if isinstance(layer, nn.Conv2d):
            # Holding the tensor keeps its id from being given to another.
            outputs[id(output)] = (layer, output, output._version)
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and inputs:
            convolution, tensor, version = outputs.get(id(inputs[0]), (None, None, 0))
            # Another version is the same tensor after an operation in place, such as ReLU.
            if convolution is not None and tensor is not None and tensor._version == version:
                found.append((convolution, layer))

    watched = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    handles = [layer.register_forward_hook(watch) for layer in watched]
    try:
        scores = main_output(module(pixels))
    finally:
        for handle in handles:
            handle.remove()
    return scores, [pair for pair in found if all(calls[layer] == 1 for layer in pair)]


def _merge(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _remainder(norm: nn.Module) -> nn.Module:
    """Return what a merged batch norm still has to do: nothing, or in timm's variant its dropout and activation."""
    kept = [layer for name in ("drop", "act") if isinstance(layer := getattr(norm, name, None), nn.Module)]
    kept = [layer for layer in kept if not isinstance(layer, nn.Identity)]
    return nn.Identity() if not kept else kept[0] if len(kept) == 1 else nn.Sequential(*kept)
