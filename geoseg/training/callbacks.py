"""What happens beside the training: checkpoints, the best weights, and telling how far it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from geoseg.training.module import TrainingModule

Progress = Callable[[str, int, int], None]
LAST, BEST = "last.ckpt", "best.safetensors"


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it, so that a killed run leaves the last one as it was.

    Lightning's own way goes through the system's folder for temporary files, and where that is another file system, the
    last step is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``, whole or not at all."""
        partial = Path(path).with_suffix(".part")
        torch.save(checkpoint, partial)
        partial.replace(path)


class Checkpoints(pl.Callback):
    """Moves the running average; keeps the state of the run every ``every`` steps, and the best weights, in ``folder``.

    The average is moved here because a checkpoint must hold what it became, and Lightning calls callbacks before the
    module.  A checkpoint that is due together with a validation comes one step later, so that a run that goes on from
    it neither repeats the validation nor leaves it out.
    """

    def __init__(self, folder: Path, every: int, validate_every: int) -> None:
        self._folder, self._every, self._validate_every = folder, every, validate_every
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Note where the run begins."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the average and write a checkpoint where one is due, once a step of the optimiser has been done."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        module.move_average()
        if not self._every:
            return
        late = step - 1 if self._validate_every and (step - 1) % self._validate_every == 0 else step
        judged_now = self._validate_every and step % self._validate_every == 0
        if (step % self._every == 0 and not judged_now) or (late != step and late % self._every == 0 and late):
            trainer.save_checkpoint(self._folder / LAST)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Write the weights if they are the best so far."""
        if trainer.is_global_zero and module.best.get("step") == trainer.global_step:
            write_weights(self._folder / BEST, module)


def write_weights(path: Path, module: TrainingModule) -> None:
    """Write the weights that are judged, whole or not at all."""
    partial = path.with_suffix(".part")
    save_file({name: value.detach().cpu().contiguous() for name, value in module.judged.state_dict().items()}, partial)
    partial.replace(path)


def take_weights(path: Path, module: TrainingModule) -> None:
    """Give the network the weights in a file that :func:`write_weights` wrote."""
    module.judged.load_state_dict(load_file(path))


class Teller(pl.Callback):
    """Tells how many steps are done, and what a validation found."""

    def __init__(self, steps: int, progress: Progress | None, tell: Callable[[str], None] | None) -> None:
        self._steps, self._progress, self._tell = steps, progress, tell

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell the step."""
        if self._progress is not None and trainer.is_global_zero:
            self._progress("training", trainer.global_step, self._steps)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Tell the figures."""
        if self._tell is not None and trainer.is_global_zero:
            found = module.figures
            each = ", ".join(f"{name} {value:.3f}" for name, value in found["iou"].items() if value is not None)
            self._tell(
                f"step {found['step']}: loss {module.trained_loss:.4f}, mean IoU {found['mean_iou']:.3f} ({each})"
            )
