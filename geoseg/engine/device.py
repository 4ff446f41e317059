"""The device runner: batches of tiles through a segmenter on the CPU or a GPU."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geoseg.classes import Classes
from geoseg.engine.context import Context
from geoseg.engine.plan import CONFIDENCE_SCALE, Precision
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.scene import Pixels
from geoseg.segmenters.interface import Segmenter, State, Tiles

# A GPU takes this many pixels at a time unless told otherwise; a CPU is served best by one tile.
_GPU_BATCH_PIXELS = 8 << 20


def choose_device(asked: str, number: int = 0) -> torch.device:
    """Return the device for worker ``number``: ``auto`` takes a GPU where there is one, workers share them in turn.

    Raises:
        ConfigError: a GPU was asked for and there is none, or torch knows no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        asked = "cuda" if gpus else "cpu"
    if asked.startswith("cuda") and not gpus:
        raise ConfigError("--device cuda was asked for, but torch sees no GPU here: use --device cpu or auto.")
    try:
        return torch.device(f"cuda:{number % gpus}") if asked == "cuda" else torch.device(asked)
    except RuntimeError as error:
        raise ConfigError(f"--device {asked} is unknown: use auto, cpu or cuda.") from error


def choose_precision(asked: Precision, device: torch.device) -> torch.dtype:
    """Return the number format of a forward pass; ``auto`` is float32 on a CPU and the fastest safe one on a GPU.

    On CPUs without matrix units for bfloat16, autocast costs more than it saves; so it is never automatic there.
    """
    if asked == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[asked]


def autocast_of(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context in which forward passes on a device use a number format."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def default_batch(tile: tuple[int, int], device: torch.device) -> int:
    """Return how many tiles of so many rows and columns go through the network at once where the user does not say."""
    return 1 if device.type == "cpu" else max(1, min(32, _GPU_BATCH_PIXELS // math.prod(tile)))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def share_cores(workers: int = 1) -> None:
    """Let torch, in the calling thread, use this process's share of the cores that ``workers`` processes divide.

    Never fewer than two threads: with one, torch takes other kernels for 1 × 1 convolutions, whose sums round
    differently, and the outcome of a run would depend on the number of workers.
    """
    threads = max(2, cores() // max(1, workers))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Scores:
    """What came out for one batch of tiles, on the host.

    ``labels`` (N, H, W) label values, ``confidence`` (N, H, W) thousandths of the winner's probability; or
    ``probabilities`` (N, K, H, W) float32 where tiles are to be blended.  Where layers were asked for, ``layers``
    (N, L, H, W) float32: those of the segmenter, before them the entropy of the classes unless tiles are blended.
    """

    windows: tuple[Window, ...]
    labels: NDArray[np.uint16] | None = None
    confidence: NDArray[np.uint16] | None = None
    probabilities: NDArray[np.float32] | None = None
    layers: NDArray[np.float32] | None = None


class Runner:
    """A segmenter placed on its device, fed with batches of pixels by any number of threads.

    Forward passes take turns in a thread of their own: two at once would need twice the memory and be no quicker, while
    one thread reads the next tile, decides on the last one or stores it.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        state: State,
        classes: Classes,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batch: int,
        context: Context | None = None,
        engine: str = "torch",
    ) -> None:
        self.segmenter = segmenter
        self.context = context
        self.state = state
        self.device = device
        self.dtype = dtype
        self.batch = batch
        self.one_by_one = device.type == "cpu"
        self._values = np.array(classes.ids, np.uint16)
        self._ids = torch.tensor(classes.ids, dtype=torch.int32, device=device)
        segmenter.place(device)
        if engine != "torch":
            segmenter.accelerate(engine)
        # The number of threads that torch uses is one of the thread that asks for it.
        self._turns = ThreadPoolExecutor(1, "geoseg-network", torch.set_num_threads, (torch.get_num_threads(),))

    def tiles(self, pixels: Sequence[Pixels]) -> Tiles:
        """Return a batch on the host, with its context: uint8 stays, all else is float32; pinned if a GPU takes it."""
        tiles = Tiles.of(pixels)
        if self.context is not None:
            tiles = self.context.added(tiles)
        return tiles.pinned() if self.device.type == "cuda" else tiles

    def run(self, batches: Iterable[Tiles], *, probabilities: bool, layers: bool = False) -> Iterator[Scores]:
        """Yield what the segmenter says of each batch.

        Args:
            batches: on the host, as :meth:`tiles` makes them.
            probabilities: yield the probabilities of all classes instead of labels and confidence.
            layers: yield the further layers too.
        """
        for tiles in batches:
            scores, further = self.scores_with_layers(tiles) if layers else (self.scores(tiles), None)
            if probabilities:
                made = Scores(tiles.windows, probabilities=_host(torch.softmax(scores, 1)))
            else:
                made = Scores(tiles.windows, *self._decide(scores))
                if further is not None:
                    further = torch.cat([_entropy(scores), further], 1)
            yield made if further is None else replace(made, layers=_host(further))

    def scores(self, tiles: Tiles) -> torch.Tensor:
        """Return the scores (N, K, H, W), float32, on the device."""
        return self._forward(tiles, lambda part: (self.segmenter.segment(part, self.state),))[0]

    def scores_with_layers(self, tiles: Tiles) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores (N, K, H, W) and the segmenter's layers (N, L, H, W), float32, on the device."""
        scores, layers = self._forward(tiles, lambda part: self.segmenter.segment_with_layers(part, self.state))
        return scores, layers

    def _forward(self, tiles: Tiles, segment: Callable[[Tiles], tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
        """Return what ``segment`` says of the tiles, as float32.

        Kernels are chosen by shape and may round differently, so every forward pass has the same shape: on a CPU,
        where batches gain nothing, one tile; on a GPU a full batch, the last one filled up with copies.
        """

        def scores() -> list[torch.Tensor]:
            with torch.inference_mode(), autocast_of(self.device, self.dtype):
                if self.one_by_one:
                    singles = [segment(one) for one in tiles.singles()]
                    return [torch.cat([value.float() for value in values]) for values in zip(*singles, strict=True)]
                filled = tiles.to(self.device).filled(self.batch)
                return [value[: len(tiles)].float() for value in segment(filled)]

        return self._turns.submit(scores).result()

    def _decide(self, scores: torch.Tensor) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Return label values and confidence (N, H, W), on the host."""
        if scores.device.type == "cpu":
            from geoseg.engine.deciding import decide  # takes a while to import

            return decide(scores.numpy(), self._values)
        with torch.inference_mode():
            best, channel = scores.max(1)
            # Summed class by class: the order of a library's own sum depends on the shape of the batch.
            total = torch.zeros_like(best)
            for one in scores.unbind(1):
                total += (one - best).exp_()
            confidence = total.reciprocal_().mul_(CONFIDENCE_SCALE).round_().to(torch.int16)
            return _host(self._ids[channel].to(torch.int16)), _host(confidence)


def _entropy(scores: torch.Tensor) -> torch.Tensor:
    """Return the entropy of the classes' probabilities over that of all being equal: (N, 1, H, W), 0 to 1."""
    with torch.inference_mode():
        logarithms = torch.log_softmax(scores, 1)
        total = torch.zeros_like(scores[:, :1])
        # Class by class, for the same reason as in the runner.
        for one in logarithms.split(1, 1):
            total -= one.exp() * one
        return total.div_(max(math.log(scores.shape[1]), 1e-12)).clamp_(0, 1)


def _host(tensor: torch.Tensor) -> NDArray[Any]:
    array = tensor.cpu().numpy()
    return array.view(np.uint16) if array.dtype == np.int16 else array
