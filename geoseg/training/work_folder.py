"""The folder of a training's checkpoints: whose it is, and what is said when the run cannot go on."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from geoseg.errors import GeosegError, OutputError, RunError, one_line
from geoseg.training.config import LoopConfig, TrainConfig

_RECORD = "config.json"


@contextlib.contextmanager
def held(folder: Path, config: TrainConfig, *, fresh: bool, hidden: bool) -> Iterator[None]:
    """Hold the work folder, once it is known to belong to this run; at the end a hidden one goes if it has nothing."""
    from geoseg.training.callbacks import LAST
    from geoseg.training.starting import fingerprint

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RunError(f"{folder} is in use by another training: wait for it, or write to another model.") from error
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror or error}): choose another folder.") from error
    try:
        record, own = folder / _RECORD, fingerprint(config)
        if fresh:
            for entry in folder.iterdir():
                if entry.suffix in {".ckpt", ".safetensors", ".part", ".json"}:
                    entry.unlink()
        begun = record.exists() and (folder / LAST).exists()
        if begun and record.read_text(encoding="utf-8") != own:
            raise RunError(
                f"{folder} holds the checkpoints of a training with another configuration: pass --fresh to throw them "
                "away, or write to another model."
            )
        record.write_text(own, encoding="utf-8")
        yield
    finally:
        lock.release()
        if hidden and not (folder / LAST).exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def explained(loop: LoopConfig) -> Iterator[None]:
    """Turn a lack of memory into a sentence."""
    try:
        yield
    except GeosegError:
        raise
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and "out of memory" not in text and "allocate memory" not in text:
            raise
        half = max(1, loop.batch // 2)
        raise RunError(
            f"there is not enough memory for batches of {loop.batch} patches of {loop.patch} pixels "
            f"({one_line(error, 80)}): set training.batch to {half} and training.accumulate to {2 * loop.accumulate}, "
            "training.patch smaller, or choose a smaller network."
        ) from error
