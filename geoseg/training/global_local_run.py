"""The loop of GLNet's stages: steps, validations, checkpoints from which an interrupted run goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from geoseg.networks.glnet import GlobalNet
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local import GlobalLocal
from geoseg.segmenters.interface import Tiles
from geoseg.segmenters.network import NetworkState
from geoseg.training.callbacks import BEST, LAST, Progress
from geoseg.training.config import TrainConfig
from geoseg.training.global_local import Stage
from geoseg.training.global_local_fit import Preparation, StagePlan, completed
from geoseg.training.lightning import accelerator, hushed, loggers, precision
from geoseg.training.module import confusion_of, figures_of
from geoseg.training.patches import Batch, Loader, batches_from


class GlobalLocalRun:
    """One training of GLNet, a :class:`geoseg.training.fit.Run`.

    Each stage keeps its best or its last weights, as the configuration says, and hands them to the next.

    Args:
        config: of the run.
        target: the bundle.
        folder: of checkpoints.
        progress: told the stage, steps done and steps in all.
        tell: told in words what each validation found.
    """

    leads = True

    def __init__(
        self,
        config: TrainConfig,
        target: Path,
        folder: Path,
        progress: Progress | None,
        tell: Callable[[str], None] | None,
    ) -> None:
        config = completed(config)
        self._ready = Preparation(config, progress)
        self._loop, self._target, self._folder = config.training, target, folder
        self._progress, self._tell = progress, tell
        device = accelerator(self._loop)
        self._device = torch.device(device)
        self._half = precision(self._loop, device) == "bf16-mixed"
        with hushed():
            self._loggers = loggers(config) or []
        # Of the stage that is under way.
        self._best: dict[str, Any] = {}
        self._loss = math.nan
        self.figures: dict[str, Any] = {}
        self.steps = 0

    def fit(self) -> int | None:
        """Train all stages, and return the step from which an interrupted run was taken up."""
        with torch.random.fork_rng(devices=[]):
            return self._fit()

    def _fit(self) -> int | None:
        found = self._saved()
        network: GlobalNet | None = None
        for number, stage in enumerate(self._ready.stages):
            if found is not None and number < found["stage"]:
                continue
            if found is not None and number == found["stage"]:
                network = self._ready.empty(number)
                network.load_state_dict(found["network"])
                begun = found
            else:
                network, begun = self._ready.network(number, network), None
            network = self._trained(network.to(self._device), number, stage, begun)
        assert network is not None
        self._network = network
        for logger in self._loggers:
            logger.finalize("success")
        return None if found is None else int(found["step"])

    def write(self, *, overwrite: bool) -> None:
        """Write the bundle."""
        record: dict[str, Any] = {"steps": self.steps, "loss": self._loss}
        if self.figures:
            record["validation"] = self.figures
        self._ready.write(self._target, self._network.cpu(), record, overwrite=overwrite)

    def _trained(self, network: GlobalNet, number: int, stage: StagePlan, begun: dict[str, Any] | None) -> GlobalNet:
        """Train one stage, from its first step or from where a checkpoint has it."""
        loop, ready = self._loop, self._ready
        bands = len(ready.bands)
        training = Stage(
            network,
            ready.learning,
            Normalisation((0.0,) * bands, (1.0,) * bands),
            ready.loss(),
            lambda trained: ready.optimiser(stage, trained),
        )
        self._best, self.figures, done = {}, {}, 0
        if begun is not None:
            done = max(0, begun["step"] - stage.first)
            self._best, self.figures, self._loss = begun["best"], begun["figures"], begun["loss"]
            if begun["optimiser"] is not None:
                training.optimiser.load_state_dict(begun["optimiser"])
                training.schedule.load_state_dict(begun["schedule"])
        for batch in self._batches(stage, done) if done < stage.steps else ():
            torch.default_generator.manual_seed(int(batch["numbers"][0]))
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
                self._loss = training.step(ready.scenes(batch, self._device), clip=loop.clip)
            done += 1
            self.steps = stage.first + done
            self._told(stage)
            last = done == stage.steps
            if len(ready.squares) and (last or (loop.validate_every and done % loop.validate_every == 0)):
                self._judge(network, stage)
                training.resume()
            if self._impatient():
                break
            if loop.checkpoint_every and self.steps % loop.checkpoint_every == 0 and not last:
                self._save(number, network, training)
        self.steps = stage.first + done
        network.eval().requires_grad_()
        if loop.keep == "best" and self._best:
            self.figures = self._best
            network.load_state_dict(load_file(self._folder / BEST))
        if loop.checkpoint_every and number + 1 < len(ready.stages):
            following = ready.network(number + 1, network)
            self.figures, self._best = {}, {}
            self._save(number + 1, following.to(self._device), None)
        return network

    def _batches(self, stage: StagePlan, done: int) -> Iterator[Batch]:
        """Return the batches of a stage that are left; numbers of patches go on from stage to stage."""
        loop, ready = self._loop, self._ready
        numbers = batches_from(stage.first + done, stage.first + stage.steps, loop.batch, 0, 1)
        return iter(Loader(ready.drawing, numbers, workers=loop.workers, pinned=self._device.type == "cuda"))

    def _told(self, stage: StagePlan) -> None:
        if self._progress is not None:
            self._progress(f"training {stage.mode}", self.steps, self._loop.steps)
        for logger in self._loggers:
            logger.log_metrics({"loss": self._loss}, self.steps)

    def _judge(self, network: GlobalNet, stage: StagePlan) -> None:
        """Find the figures of the network, used as a run would, and keep its weights if they are the best."""
        ready, classes = self._ready, self._ready.config.data.table()
        network.eval()
        made = GlobalLocal(network, bands=ready.bands, classes=classes, settings=ready.settings)
        count = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=self._device)
        numbers = [[number] for number in range(len(ready.squares))]
        for batch in Loader(ready.squares, numbers, workers=self._loop.workers):
            state = NetworkState(None, ready.scaling_of_judged(int(batch["sites"][0])))
            tiles = Tiles(batch["pixels"].to(self._device), batch["valid"].to(self._device), ())
            given = made.segment(tiles, state).argmax(1)
            count += confusion_of(given, batch["labels"].to(self._device).long(), len(classes))
        self.figures = {"step": self.steps, "stage": stage.mode, **figures_of(count, classes)}
        if not self._best or self.figures["mean_iou"] > self._best["mean_iou"]:
            self._best = dict(self.figures)
            partial = (self._folder / BEST).with_suffix(".part")
            save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, partial)
            partial.replace(self._folder / BEST)
        for logger in self._loggers:
            logger.log_metrics({"val_iou": self.figures["mean_iou"]}, self.steps)
        if self._tell is not None:
            each = ", ".join(f"{name} {iou:.3f}" for name, iou in self.figures["iou"].items() if iou is not None)
            self._tell(
                f"step {self.steps} ({stage.mode}): loss {self._loss:.4f}, mean IoU {self.figures['mean_iou']:.3f} "
                f"({each})"
            )

    def _impatient(self) -> bool:
        """Whether the figures of this stage have not risen for too many validations."""
        loop = self._loop
        if not (loop.patience and loop.validate_every and self._best):
            return False
        return bool(self.figures["step"] - self._best["step"] >= loop.patience * loop.validate_every)

    def _save(self, number: int, network: GlobalNet, training: Stage | None) -> None:
        """Write what the run goes on from, whole or not at all; without optimiser before a stage's first step."""
        partial = (self._folder / LAST).with_suffix(".part")
        torch.save(
            {
                "stage": number,
                "step": self.steps,
                "network": network.state_dict(),
                "optimiser": None if training is None else training.optimiser.state_dict(),
                "schedule": None if training is None else training.schedule.state_dict(),
                "best": self._best,
                "figures": self.figures,
                "loss": self._loss,
            },
            partial,
        )
        partial.replace(self._folder / LAST)

    def _saved(self) -> dict[str, Any] | None:
        """Return what an interrupted run left."""
        path = self._folder / LAST
        if not path.exists():
            return None
        found: dict[str, Any] = torch.load(path, map_location=self._device, weights_only=True)
        return found
