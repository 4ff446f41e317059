"""Python's garbage collector while modules are imported."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Let nothing be collected inside the block.

    Importing PyTorch makes some hundred thousand objects that all stay; the collector looks through them again and
    again as their number grows, which takes a fifth of the processor time of the import.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
