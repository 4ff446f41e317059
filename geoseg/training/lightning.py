"""What Lightning is told of a run: device, number format, logs, and to keep its remarks to itself."""

from __future__ import annotations

import contextlib
import logging
import signal
import warnings
from collections.abc import Iterator
from typing import Any

from geoseg.errors import ConfigError
from geoseg.training.config import LoopConfig, TrainConfig


def accelerator(loop: LoopConfig) -> str:
    """Return ``cpu`` or ``cuda``.

    Raises:
        ConfigError: GPUs were asked for that are not here.
    """
    import torch

    gpu = torch.cuda.is_available()
    if loop.device == "cuda" and not gpu:
        raise ConfigError("training.device is cuda, but torch sees no GPU here: use cpu or auto.")
    device = "cpu" if loop.device == "cpu" or not gpu else "cuda"
    if device == "cuda" and loop.devices > torch.cuda.device_count():
        raise ConfigError(f"training.devices is {loop.devices}, but there are {torch.cuda.device_count()} GPUs.")
    return device


def precision(loop: LoopConfig, device: str) -> str:
    """Return Lightning's name of the number format on a device.

    Raises:
        ConfigError: one that the device does not train in.
    """
    import torch

    if loop.precision == "auto":
        return "bf16-mixed" if device == "cuda" and torch.cuda.is_bf16_supported() else "32-true"
    if loop.precision == "float16" and device == "cpu":
        raise ConfigError("training.precision is float16, which a CPU does not train in: use bfloat16 or float32.")
    return {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}[loop.precision]


def loggers(config: TrainConfig) -> Any:
    """Return the logs that are wanted, False if none are."""
    if config.training.logs is None:
        return False
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

    folder = config.training.logs
    csv = CSVLogger(folder, name="")
    return [csv, TensorBoardLogger(folder, name="", version=csv.version)]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C come out as what it is: Lightning ends the process in its place, and leaves it deaf to another.

    Raises:
        KeyboardInterrupt: it came meanwhile.
    """
    listening = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, listening)
        raise end.__context__ from None


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep Lightning's own remarks from the terminal."""
    told = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in told]
    for logger in told:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch\.utils\.tensorboard)")
            warnings.filterwarnings("ignore", message=r".*(Lightning|val_dataloader|dataloader|lr_scheduler).*")
            yield
    finally:
        for logger, level in zip(told, levels, strict=True):
            logger.setLevel(level)
