"""``geoseg train``: from a configuration to a bundle, through a loop that can be stopped and taken up again."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from geoseg.errors import ConfigError
from geoseg.outputs.staging import check_place
from geoseg.training.config import TrainConfig, check, read_config
from geoseg.training.lightning import accelerator, hushed, interruptible, loggers, precision
from geoseg.training.work_folder import explained, held

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from numpy.typing import NDArray
    from torch import nn

    from geoseg.bundle import Description
    from geoseg.normalisation import Normalisation
    from geoseg.training.config import NetworkConfig
    from geoseg.training.module import TrainingModule
    from geoseg.training.patches import Judging, Source, Squares
    from geoseg.training.site import Site

Progress = Callable[[str, int, int], None]

# Networks whose training has a course of its own, and the :class:`Run` of each, as ``module:class``.
_COURSES = {
    "glnet": "geoseg.training.global_local_run:GlobalLocalRun",
    "rstn": "geoseg.training.saliency_run:SaliencyRun",
}


class Run(Protocol):
    """One training, from open scenes to the bundle; made of what :class:`LoopRun` is made of.

    Attributes:
        steps: done once :meth:`fit` has returned.
        figures: of the validation.
    """

    steps: int
    figures: dict[str, Any]

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""

    def fit(self) -> int | None:
        """Train to the end, and return the step from which an interrupted run was taken up."""

    def write(self, *, overwrite: bool) -> None:
        """Write the bundle."""


@dataclass(frozen=True)
class Report:
    """What a training came to.

    Attributes:
        model: the bundle.
        steps: how many were done, those before an interruption included.
        resumed: the step from which an interrupted run was taken up; None for a new run.
        figures: IoU by class, their mean and accuracy on what the network was judged on; empty if on nothing.
        seconds: of this run.
        notes: what the user should know.
    """

    model: str
    steps: int
    resumed: int | None
    figures: dict[str, Any]
    seconds: float
    notes: list[str] = field(default_factory=list)


def train(
    config: TrainConfig | Mapping[str, Any] | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    fresh: bool = False,
    workdir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Train a network on scenes with labels and write it as a bundle.

    The same call after an interruption goes on from the last checkpoint; on a CPU it ends with the same weights.  With
    more than one device each further one gets a process that runs the caller's script up to here, and ends here.

    Args:
        config: a checked configuration, its settings, or a YAML file with them.
        output: of the bundle.
        overwrite: replace an existing one.
        fresh: throw away what an interrupted run left.
        workdir: folder of the checkpoints; by default a hidden one beside the output, removed at the end.
        progress: told the stage, steps done, and steps in all.
        tell: told in words what each validation found.

    Raises:
        ConfigError: the configuration has faults; the message lists all.
        SceneError: a scene that cannot be used.
        LabelsError: labels that cannot be used, or none where there must be some.
        OutputError: the bundle cannot be written.
        RunError: no memory, a loss that is no number, or the checkpoints of another run.
    """
    started = time.monotonic()
    if isinstance(config, str | os.PathLike):
        config = read_config(config)
    if not isinstance(config, TrainConfig):
        config = check(config)
    target = Path(output)
    folder = Path(workdir) if workdir is not None else target.with_name(f".{target.name}.training")
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if first:
        check_place(target, overwrite)
    else:
        progress = tell = None
    holding = held(folder, config, fresh=fresh, hidden=workdir is None) if first else contextlib.nullcontext()
    with holding, explained(config.training):
        run = _course(config)(config, target, folder, progress, tell)
        resumed = run.fit()
        if run.leads:
            run.write(overwrite=overwrite or resumed is not None)
    if not first:
        raise SystemExit(0)
    if workdir is None:
        shutil.rmtree(folder, ignore_errors=True)
    notes = ["training stopped early: the mean IoU no longer rose"] if run.steps < config.training.steps else []
    if "rough" in run.figures:
        before, after = (each["iou"]["mask"] or 0.0 for each in (run.figures["rough"], run.figures))
        notes.append(f"rough masks agreed with the truth to {before:.3f} (IoU), refined ones to {after:.3f}")
    return Report(str(target), run.steps, resumed, run.figures, time.monotonic() - started, notes)


def _course(config: TrainConfig) -> Callable[..., Run]:
    """Return what makes the run of a configuration."""
    if config.adaptation.targets:
        from geoseg.training.adaptation_run import course

        return course(config)
    if config.network.name not in _COURSES:
        return LoopRun
    if config.targets == "coarse":
        raise ConfigError(
            f"targets is coarse, but network {config.network.name} learns from fine labels alone: choose another."
        )
    module, _, name = _COURSES[config.network.name].partition(":")
    made: Callable[..., Run] = getattr(import_module(module), name)
    return made


class LoopRun:
    """One training, from open scenes to the bundle."""

    def __init__(
        self,
        config: TrainConfig,
        target: Path,
        folder: Path,
        progress: Progress | None,
        tell: Callable[[str], None] | None,
    ) -> None:
        from geoseg import losses, networks
        from geoseg.training.coarse_module import opened_tables
        from geoseg.training.patches import Judging
        from geoseg.training.priors import SpoiltMasks, SpoiltSquares, refuse_unfit
        from geoseg.training.starting import measured_scaling, open_drawing, scaling_of

        self.config, self.target, self.folder = config, target, folder
        loop, classes = config.training, config.data.table()
        # A slip in a name is told before scenes are read.
        self.refines = networks.info(config.network.name).needs_prior
        if self.refines:
            refuse_unfit(config)
        self.loss = None if self.refines else losses.create(config.loss, num_classes=len(classes))
        self.tables = opened_tables(config) if config.targets == "coarse" else []
        self.drawing, judged = open_drawing(config, progress, self.tables, tell)
        self.sites = sites = self.drawing.sites
        self.judging: Judging = Judging.of(judged, loop.patch)
        self.source: Source = self.drawing
        self.squares: Squares = self.judging
        if self.refines:
            self.source = SpoiltMasks(self.drawing, classes, config.damage, loop.seed)
            self.squares = SpoiltSquares(self.judging, classes, config.damage, loop.seed)
        network, self.settings, scaling = self._first(len(sites[0].scene.bands))
        # What the bundle will hold: None where every scene is scaled by itself.
        self.scaling: Normalisation | None = scaling_of(config, scaling, sites)

        def scalings(of: Sequence[Site]) -> list[Normalisation]:
            return [self.scaling] if self.scaling is not None else [measured_scaling([site]) for site in of]

        self._scalings = scalings(sites), scalings(judged)
        self.module = self._module(network)
        self.trainer = self._trainer(progress, tell)

    def _first(self, bands: int) -> tuple[nn.Module, NetworkConfig, Normalisation | None]:
        """Return what :func:`geoseg.training.starting.first_network` does."""
        from geoseg.training.starting import first_network

        return first_network(self.config, bands)

    def _module(self, network: Any) -> TrainingModule:
        from geoseg.losses.refinement import RefinementLoss
        from geoseg.losses.supervision import Supervision
        from geoseg.training.coarse_module import CoarseModule, loss_of
        from geoseg.training.module import TrainingModule
        from geoseg.training.refiner import RefinerModule
        from geoseg.training.starting import encoder_of, find_encoder
        from geoseg.training.teacher import open_teacher, taught_by

        config = self.config
        encoder = find_encoder(network)
        if config.network.freeze_steps or config.training.encoder_lr != 1:
            encoder = encoder_of(network, self.settings.name)
        made = (self._scalings, config, self._batches, self._where)
        if self.loss is None:
            return RefinerModule(network, encoder, RefinementLoss(), *made)
        supervision = Supervision(self.loss, self.settings.name)
        if self.tables:
            told, sites = config.coarse, self.sites
            given = [loss_of(*each) for each in zip(self.tables, told.sources, strict=True)]
            if told.teacher is not None:
                bands, device = len(sites[0].scene.bands), lambda: self.trainer.strategy.root_device
                teacher = open_teacher(config, told.teacher, bands, sites, given, device)
                self.source = taught_by(teacher, self.drawing)
            return CoarseModule(network, encoder, supervision, *made).learn_from(given)
        return TrainingModule(network, encoder, supervision, *made)

    def _batches(self, step: int, rank: int, world: int) -> Any:
        from geoseg.training.patches import Loader, batches_from

        loop = self.config.training
        numbers = batches_from(step * loop.accumulate, loop.steps * loop.accumulate, loop.batch, rank, world)
        return Loader(self.source, numbers, workers=loop.workers, pinned=self._pinned)

    def _squares(self) -> Any:
        """Return the batches of a validation, this process's share of them."""
        from geoseg.training.patches import Judged

        loop, trainer = self.config.training, self.trainer
        return Judged(self.squares, loop.batch, loop.workers, self._pinned, trainer.global_rank, trainer.world_size)

    @property
    def _pinned(self) -> bool:
        return self.trainer.strategy.root_device.type == "cuda"

    def _where(self, numbers: list[int]) -> str:
        """Say where patches lie, for messages."""
        told = []
        for number in numbers[:4]:
            place = self.drawing.place(number)
            site = self.sites[place.site].scene
            x, y = site.geobox.affine * (place.centre[1], place.centre[0])
            told.append(f"({x:.1f}, {y:.1f}) in {site.path}")
        more = f" and {len(numbers) - 4} more" if len(numbers) > 4 else ""
        return ", ".join(told) + more

    def _trainer(self, progress: Progress | None, tell: Callable[[str], None] | None) -> pl.Trainer:
        import pytorch_lightning as pl
        from pytorch_lightning.callbacks import EarlyStopping

        from geoseg.training.callbacks import Checkpoints, Teller, WholeFiles

        loop = self.config.training
        validate = loop.validate_every if len(self.judging) else 0
        callbacks: list[pl.Callback] = [
            Teller(loop.steps, progress, tell),
            Checkpoints(self.folder, loop.checkpoint_every, validate),
        ]
        if loop.patience and validate:
            callbacks.append(EarlyStopping("val_iou", mode="max", patience=loop.patience))
        device = accelerator(loop)
        with hushed():
            return pl.Trainer(
                accelerator=device,
                devices=loop.devices,
                strategy="ddp" if loop.devices > 1 else "auto",
                precision=precision(loop, device),  # type: ignore[arg-type]
                max_steps=loop.steps,
                max_epochs=-1,
                accumulate_grad_batches=loop.accumulate,
                gradient_clip_val=loop.clip or None,
                val_check_interval=(validate or loop.steps + 1) * loop.accumulate,
                check_val_every_n_epoch=None,
                limit_val_batches=1.0 if validate else 0,
                num_sanity_val_steps=0,
                callbacks=callbacks,
                plugins=[WholeFiles()],
                logger=loggers(self.config),
                log_every_n_steps=10,
                default_root_dir=str(self.folder),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.trainer.is_global_zero)

    def fit(self) -> int | None:
        """Train to the end, and return the step from which an interrupted run was taken up."""
        import torch

        from geoseg.training.callbacks import BEST, LAST, take_weights

        checkpoint = self.folder / LAST
        known = checkpoint.exists()
        loop = self.config.training
        squares = self._squares() if len(self.judging) else None
        starts: list[int] = []
        self.module.begins = starts.append
        with torch.random.fork_rng(), hushed(), interruptible():
            self.trainer.fit(
                self.module,
                val_dataloaders=squares,
                ckpt_path=str(checkpoint) if known else None,
                weights_only=True,
            )
            self.steps = self.trainer.global_step
            if squares is not None and self.module.figures.get("step") != self.steps:
                self.trainer.limit_val_batches = 1.0
                self.trainer.validate(self.module, squares, verbose=False)
        self.figures = self.module.figures
        if loop.keep == "best" and self.module.best:
            self.figures = self.module.best
            if self.trainer.is_global_zero:
                take_weights(self.folder / BEST, self.module)
        return starts[0] if known and starts else None

    def write(self, *, overwrite: bool) -> None:
        """Write the bundle."""
        from geoseg.bundle import NormalisationRecord, write_bundle

        config, scene = self.config, self.sites[0].scene
        network = self.module.judged.cpu().float().eval()
        tensors = _rounded(network, config.weights)
        record: dict[str, Any] = {"config": config.record(), "steps": self.steps, "loss": self.module.trained_loss}
        if self.figures:
            record["validation"] = self.figures
        description = self._described(
            network,
            bands=scene.band_names,
            classes=config.data.table(),
            resolution=config.data.resolution or min(scene.resolution),
            normalisation=None if self.scaling is None else NormalisationRecord(**self.scaling.as_dict()),
            licence=config.licence,
            training=record,
            card=config.card,
        )
        write_bundle(self.target, description, tensors, overwrite=overwrite)

    def _described(self, network: Any, **told: Any) -> Description:
        """Return what the bundle says of the network."""
        from geoseg.segmenters.describing import describe
        from geoseg.training.pictures import pictures_of

        settings = self.settings
        # Crops of the size it learned from, with as much again round them.
        tile = 2 * self.config.training.patch if self.refines else None
        name, encoder, options = settings.name, settings.encoder, settings.options
        stride = int(getattr(network, "stride", 1))
        pictures = [] if self.refines else pictures_of(self.sites, self._scalings[0], stride)
        return describe(network, name=name, encoder=encoder, options=options, tile=tile, pictures=pictures, **told)


def _rounded(network: nn.Module, kind: str) -> dict[str, NDArray[Any]]:
    """Return the weights in the format of the bundle, and round the network's own to them: that is what is measured."""
    import numpy as np

    from geoseg.segmenters.network import load_tensors, tensors_of

    tensors = {
        name: value.astype(kind) if np.issubdtype(value.dtype, np.floating) else value
        for name, value in tensors_of(network).items()
    }
    load_tensors(network, tensors, "the trained network")
    return tensors
