"""From a plan to its outputs: the chunks computed, then put together, by a crew of its own or one shared by scenes."""

from __future__ import annotations

import contextlib
import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from geoseg.engine.assemble import Outputs, assemble
from geoseg.engine.class_areas import class_areas
from geoseg.engine.cluster import connected
from geoseg.engine.crew import Crew
from geoseg.engine.plan import Plan
from geoseg.engine.run import Progress, Tally, run_chunks
from geoseg.engine.store import Store, store_at
from geoseg.errors import ConfigError, RunError, SceneError
from geoseg.grid import TileGrid
from geoseg.places import is_storage

if TYPE_CHECKING:
    from geoseg.engine.predict import Options
    from geoseg.engine.saliency import TwoPasses
    from geoseg.segmenters.interface import Segmenter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a run made.

    Attributes:
        files: their names, as the command line prints them.
        polygons: how many were written; None where none were to be.
        chunks: how many the scene has.
        resumed: how many of them were found done.
        tiles: how many were computed.
        seconds: that passed on the clock.
        notes: what a user should know.
        holes: the chunks that failed and are left without data, by number, with the cause.
        pixels: how many were computed.
        busy_s: seconds of workers that they took.
        amplification: how many times as many pixels their tiles held, for they overlap and reach over the scene's
            edges, and those without data are left out; None for a method that does not compute tiles.
        areas_m2: m² of each class, by its name, as the labels have it before polygons are merged, smoothed or left out.
    """

    files: tuple[str, ...]
    polygons: int | None
    chunks: int
    resumed: int
    tiles: int
    seconds: float
    notes: tuple[str, ...] = field(default=())
    holes: tuple[tuple[int, str], ...] = field(default=())
    pixels: int = 0
    busy_s: float = 0.0
    amplification: float | None = None
    areas_m2: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what scripts may want to know, as a plain record of stable names; files and notes are left out."""
        return {
            "polygons": self.polygons,
            "areas_m2": {name: round(area, 3) for name, area in self.areas_m2.items()},
            "chunks": self.chunks,
            "chunks_resumed": self.resumed,
            "holes": [{"chunk": number, "error": cause} for number, cause in self.holes],
            "tiles": self.tiles,
            "pixels": self.pixels,
            "amplification": self.amplification,
            "computing_s": round(self.seconds, 3),
            "pixels_per_s": round(self.pixels / self.seconds, 1) if self.seconds else None,
        }


@dataclass(frozen=True)
class Among:
    """How a run takes part in a crew that other runs share.

    Attributes:
        crew: the workers.
        rank: the run's place among the others.
        publishing: held while outputs are put together, which takes this process's own cores.
    """

    crew: Crew
    rank: int
    publishing: AbstractContextManager[object]


def two_passes(plan: Plan, segmenter: Segmenter, options: Options) -> TwoPasses | None:
    """Return how a plan is run by a method that looks at an overview first, None for the others.

    Raises:
        ConfigError: candidates are asked for from one of the others; a work folder in object storage for this one.
    """
    from geoseg.segmenters.saliency import SaliencyNetwork

    if isinstance(segmenter, SaliencyNetwork):
        from geoseg.engine.saliency import TwoPasses

        if is_storage(plan.store):
            raise ConfigError(
                f"a model that works in two passes does not keep its chunks in {plan.store}: give it a folder that all "
                "workers share as --workdir."
            )
        return TwoPasses(plan, segmenter)
    if options.candidates is not None:
        raise ConfigError("this model looks everywhere and has no candidates to write: leave --candidates out.")
    return None


def execute(
    plan: Plan,
    outputs: Outputs,
    options: Options,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
    passes: TwoPasses | None = None,
    among: Among | None = None,
) -> Report:
    """Run a plan, in two passes where these are given, and write its outputs.

    Args:
        plan: the run.
        outputs: what is written.
        options: of the run.
        notes: what a user should know already.
        progress: called with a stage, steps done, and steps in all.
        passes: how a method in two passes runs.
        among: the other runs it takes its turn with; None gets workers for this run alone.

    Raises:
        RunError: see :func:`geoseg.engine.run.run_chunks`.
        OutputError: an output cannot be written.
        SceneError: no pixel of the scene got a label.
    """
    logger.info("%s", _told(plan))
    store = store_at(plan.store, plan.chunks)
    with store.opened(plan.fingerprint(), fresh=options.fresh) as done:
        with connected(options) if among is None else contextlib.nullcontext(among.crew) as crew:
            compute = run_chunks if passes is None else passes.run
            # Another client may have the same scene, model and scheduler, but another store.
            key = uuid.uuid4().hex[:16]
            rank = 0 if among is None else among.rank
            tally = compute(plan, crew, key, done, progress, rank=rank, holes=options.allow_holes)
        if not tally.labelled and not tally.resumed:
            where = "inside the area of interest " if plan.aoi else ""
            store.remove()
            raise SceneError(f"{plan.source.path} has no valid pixel {where}to segment: nothing was written.")
        _refuse_unseen(store, tally)
        with contextlib.nullcontext() if among is None else among.publishing, store.here() as chunks:
            files, written = assemble(plan, chunks, outputs, options, progress)
            if passes is not None:
                notes = (*notes, *passes.notes)
                if outputs.candidates is not None:
                    passes.write_candidates(outputs.candidates)
            areas = class_areas(plan, chunks)
        if options.workdir is None and not tally.failures:
            store.remove()
    polygons, told = (None, ()) if written is None else (written.polygons, written.notes)
    return Report(
        files,
        polygons,
        tally.chunks,
        tally.resumed,
        tally.tiles,
        tally.seconds,
        (*notes, *told, *_told_holes(plan, tally)),
        tuple(sorted(tally.failures.items())),
        tally.pixels,
        tally.busy_s,
        _amplification(plan, tally) if passes is None else None,
        areas,
    )


def _told(plan: Plan) -> str:
    """Return in a line how a plan is carried out."""
    height, width = plan.source.shape
    tiles = plan.tiles
    rows, columns = tiles.shape
    size = str(rows) if rows == columns else f"{columns} × {rows}"
    halo = f" with a halo of {tiles.halo}" if isinstance(tiles, TileGrid) else ""
    return (
        f"{plan.source.path}: {width} × {height} pixels in {len(plan.chunks)} chunks, tiles of {size} pixels"
        f"{halo}, {plan.blend}, by {plan.engine} on {plan.device} in {plan.precision}; chunks are kept in {plan.store}."
    )


def _amplification(plan: Plan, tally: Tally) -> float | None:
    if not tally.pixels:
        return None
    model, own = (math.prod(scene.shape) for scene in (plan.model_scene, plan.source))
    return tally.tiles * math.prod(plan.tiles.shape) / (tally.pixels * model / own)


def _refuse_unseen(store: Store, tally: Tally) -> None:
    """Refuse to go on where workers wrote their chunks to a place that is not seen from here.

    Raises:
        RunError: chunks are missing.
    """
    missing = tally.chunks - len(tally.failures) - len(store.done())
    if missing > 0:
        raise RunError(
            f"{missing} of {tally.chunks} chunks that workers wrote to {store.place} are not seen from here: give a "
            "--workdir that all machines share under one path."
        )


def _told_holes(plan: Plan, tally: Tally) -> tuple[str, ...]:
    if not tally.failures:
        return ()
    number, cause = min(tally.failures.items())
    chunks = "1 chunk has" if len(tally.failures) == 1 else f"{len(tally.failures)} chunks have"
    return (
        f"{chunks} no labels because computing failed; the first is {plan.chunks.window(number)}: {cause.rstrip('.')}. "
        "What is finished is kept: the same command with --overwrite tries only them again.",
    )
