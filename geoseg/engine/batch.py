"""Many scenes through one model on one set of workers, each published as soon as it is done, and one report."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from geoseg.engine.batch_journal import (
    DONE,
    KEPT,
    REPORTS,
    WAITING,
    Record,
    journal_at,
    recipe_digest,
    refuse_other_batch,
    source_stamp,
)
from geoseg.engine.batch_scene import BatchScenes, model_note
from geoseg.engine.cluster import KeepPlugin, connected
from geoseg.engine.crew import Crew
from geoseg.engine.device import cores
from geoseg.engine.execute import Among
from geoseg.engine.predict import Options, method_of
from geoseg.engine.run import Progress
from geoseg.engine.scene_list import Entry, list_scenes
from geoseg.engine.selection import Selection
from geoseg.errors import ConfigError, RunError
from geoseg.outputs.batch_report import write_reports
from geoseg.outputs.stac import COLLECTION, write_collection
from geoseg.places import place_of

if TYPE_CHECKING:
    from geoseg.segmenters.interface import Segmenter

Layer = Literal["labels", "confidence", "uncertainty", "candidates"]
LAYERS: tuple[Layer, ...] = ("labels", "confidence", "uncertainty", "candidates")
# Scenes opened ahead of the workers; each costs a thread that waits, and its plan.
_MOST_AT_A_TIME = 64
_REPORT_EVERY_S = 10.0


@dataclass(frozen=True)
class BatchReport:
    """What a batch made.

    Attributes:
        folder: of the outputs.
        scenes: a record each: name, source, status (``done``, ``kept`` from an earlier run, ``failed``, ``holes``),
            seconds, pixels, polygons, areas, outputs (relative to the folder), error and the way out.
        files: the reports, and the STAC collection.
        seconds: on the clock.
    """

    folder: str
    scenes: tuple[Record, ...]
    files: tuple[str, ...]
    seconds: float

    def of(self, *statuses: str) -> tuple[Record, ...]:
        """Return the scenes of some statuses."""
        return tuple(scene for scene in self.scenes if scene["status"] in statuses)

    @property
    def areas_m2(self) -> dict[str, float]:
        """Ground area of each class in square metres, by name, over all scenes that have outputs."""
        areas: dict[str, float] = {}
        for scene in self.scenes:
            for name, area in (scene.get("areas_m2") or {}).items():
                areas[name] = areas.get(name, 0.0) + area
        return areas

    def as_dict(self) -> dict[str, Any]:
        """Return a plain record: the folder, what became of each scene, and areas; times in seconds."""
        names = ("name", "source", "status", "outputs", "polygons", "pixels", "areas_m2", "error")
        return {
            "folder": self.folder,
            "scenes": [{name: scene.get(name) for name in names} for scene in self.scenes],
            "areas_m2": self.areas_m2,
            "batch_s": round(self.seconds, 3),
        }


def batch(
    scenes: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str] | Sequence[str] | Segmenter = "buildings",
    options: Options | None = None,
    *,
    suffix: str = ".gpkg",
    layers: Sequence[Layer] = (),
    asset: str | None = None,
    progress: Progress | None = None,
    **changes: object,
) -> BatchReport:
    """Segment many scenes and write, for each, what :func:`geoseg.predict` writes, into a folder of its own.

    The workers take the chunks of the first scene first, and those of the next where it leaves them idle.  A scene
    that fails is noted, and the others go on.  The same call again does only what is missing.

    Args:
        scenes: see :func:`geoseg.engine.scene_list.list_scenes`.
        folder: a path or an ``s3://`` address; gets ``<name>/<name>.gpkg`` and so on, ``report.json``, ``.csv`` and
            ``.html``, and a STAC collection.
        model: path, URL or name of a bundle, several for an ensemble, or any segmenter.
        options: see :class:`Options`; what is written is said by ``suffix`` and ``layers``.
        suffix: of the polygons; .tif for labels alone.
        layers: what to write besides.
        asset: the asset of STAC items that is the scene.
        progress: called with a stage, steps done, and steps in all, from several threads in turn.
        changes: single fields of the options.

    Raises:
        SceneError, BundleError, ConfigError, OutputError: bad input, before any work.
        RunError: the folder is in use, or no worker was left; the same call goes on from there.
    """
    options = replace(options or Options(), **changes)  # type: ignore[arg-type]
    suffix = suffix if suffix.startswith(".") else f".{suffix}"
    _refuse(options, suffix, layers)
    place = place_of(folder).absolute()
    method, segmenter = method_of(model, options)
    if segmenter.spec.classes is not None:
        Selection.of(options).shaping(segmenter.spec.classes)
    journal = journal_at(place, shared=bool(options.scheduler))
    given = [scenes] if isinstance(scenes, str | os.PathLike) else list(scenes)
    names = [model] if isinstance(model, str | os.PathLike) else model
    note = model_note(method, names if isinstance(names, list | tuple) else ())
    with journal.held():
        recipe = recipe_digest(options, method, suffix, tuple(layers))
        records = journal.records()
        if not options.overwrite:
            refuse_other_batch(records, recipe, place)
        known = {record["identity"]: name for name, record in records.items()}
        entries = list_scenes(given, asset=asset, known=known, reserved=REPORTS)
        each = BatchScenes(journal, options, method, segmenter, note, suffix, tuple(layers), recipe)
        return _Batch(each, entries, records, _Told(progress, len(entries))).run()


def _refuse(options: Options, suffix: str, layers: Sequence[str]) -> None:
    """Refuse what makes no sense for a batch, before any work."""
    from geoseg.engine.device import choose_device
    from geoseg.outputs.polygons import suffixes

    if any((options.labels, options.confidence, options.uncertainty, options.candidates)):
        raise ConfigError("a batch names its files itself: say with layers what to write besides the polygons.")
    if suffix.lower() not in (*suffixes(), ".tif"):
        raise ConfigError(f"{suffix} is no format of polygons: use one of {', '.join((*suffixes(), '.tif'))}.")
    unknown = [name for name in layers if name not in LAYERS]
    if unknown:
        raise ConfigError(f"there is no layer {unknown[0]!r}: use some of {', '.join(LAYERS)}.")
    if not options.scheduler:
        choose_device(options.device)


class _Batch:
    """A batch at work."""

    def __init__(self, each: BatchScenes, entries: list[Entry], records: dict[str, Record], told: _Told) -> None:
        self._each, self._entries, self._told = each, entries, told
        self._started = time.monotonic()
        self._scenes: dict[str, Record] = {}
        self._missing: list[Entry] = []
        for entry in entries:
            record = records.get(entry.name)
            if record is not None and self._is_done(entry, record):
                self._scenes[entry.name] = {**record, "status": KEPT}
            else:
                self._missing.append(entry)
        self._ours = {name for name, record in records.items() if record["ours"]}

    def _is_done(self, entry: Entry, record: Record) -> bool:
        each = self._each
        return (
            not each.options.overwrite
            and record["status"] == DONE
            and record["recipe"] == each.recipe
            and record["stamp"] == source_stamp(entry)
            and each.journal.has_outputs(record)
        )

    def run(self) -> BatchReport:
        """Do what is missing, and report."""
        error: RunError | None = None
        try:
            if self._missing:
                with connected(self._each.options) as crew:
                    self._go(crew)
                    error = crew.broken
        except BaseException as stop:
            error = stop if isinstance(stop, RunError) else RunError("the run was stopped.")
            raise
        finally:
            # What is done is told, however the batch ends.
            files = self._report(error, last=True)
        if error is not None:
            raise error
        return BatchReport(
            str(self._each.journal.folder),
            tuple(self._scenes[entry.name] for entry in self._entries),
            files,
            time.monotonic() - self._started,
        )

    def _go(self, crew: Crew) -> None:
        """Run the missing scenes, in order but for what fills idle workers."""
        kept = KeepPlugin(uuid.uuid4().hex)
        crew.register(kept)
        # Workers elsewhere leave this machine's cores to the outputs; those here share them.
        free = cores() if self._each.options.scheduler else 1
        publishing = threading.BoundedSemaphore(max(1, free // 2))
        at_a_time = min(len(self._missing), max(2, 2 * crew.threads), _MOST_AT_A_TIME)
        pool = ThreadPoolExecutor(at_a_time, thread_name_prefix="geoseg-scene")
        told = time.monotonic()
        futures: dict[Future[Record], Entry] = {}
        try:
            futures |= {
                pool.submit(self._one, entry, Among(crew, rank, publishing)): entry
                for rank, entry in enumerate(self._missing)
            }
            self._told.scenes(len(self._scenes))
            for future in as_completed(futures):
                self._each.journal.check()
                self._scenes[futures[future].name] = future.result()
                self._told.scenes(len(self._scenes))
                if time.monotonic() - told >= _REPORT_EVERY_S:
                    self._report(None)
                    told = time.monotonic()
        except BaseException:
            crew.close(RunError("the run was stopped."))
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            for future, entry in futures.items():
                if not future.cancelled() and future.exception() is None:
                    self._scenes[entry.name] = future.result()
            crew.unregister(kept.name)

    def _one(self, entry: Entry, among: Among) -> Record:
        if among.crew.broken is not None:
            return self._each.blank(entry, WAITING)
        return self._each.run(entry, among, self._told.chunks_of(entry.name), ours=entry.name in self._ours)

    def _report(self, error: RunError | None, last: bool = False) -> tuple[str, ...]:
        """Write reports and collection; returns their paths."""
        each = self._each
        rows = [self._scenes.get(entry.name) or each.blank(entry, WAITING) for entry in self._entries]
        seconds = time.monotonic() - self._started
        counts = {status: sum(row["status"] == status for row in rows) for status in {row["status"] for row in rows}}
        pixels = sum(row["pixels"] or 0 for row in rows if row["status"] != KEPT)
        classes = {item["name"]: item for row in rows for item in row["classes"]}
        record: dict[str, Any] = {
            "title": f"Batch {each.journal.folder.name}",
            "model": each.note.name,
            "seconds": round(seconds, 3),
            "error": None if error is None else str(error),
            "totals": {"scenes": len(rows), **dict(sorted(counts.items())), "pixels": pixels},
            "classes": list(classes.values()),
            "scenes": [{name: value for name, value in row.items() if name not in _INTERNAL} for row in rows],
        }
        files = write_reports(each.journal.folder, record)
        items = each.items(rows) if last else []
        if items:
            write_collection(each.journal.folder, items, each.note)
            files = (*files, str(each.journal.folder / COLLECTION))
        return files


_INTERNAL = {"recipe", "stamp", "identity", "classes", "ours"}


class _Told:
    """Progress of all scenes as that of two stages: scenes, and chunks of those begun."""

    def __init__(self, progress: Progress | None, scenes: int) -> None:
        self._progress, self._scenes = progress, scenes
        self._lock = threading.Lock()
        self._chunks: dict[str, tuple[int, int]] = {}

    def scenes(self, done: int) -> None:
        """Tell how many scenes are settled."""
        if self._progress:
            with self._lock:
                self._progress("scenes", done, self._scenes)

    def chunks_of(self, name: str) -> Progress | None:
        """Return what is called with the progress of one scene."""
        progress = self._progress
        if progress is None:
            return None

        def tell(stage: str, done: int, total: int) -> None:
            if stage == "segmenting":
                with self._lock:
                    self._chunks[name] = (done, total)
                    settled, known = map(sum, zip(*self._chunks.values(), strict=True))
                    progress("chunks", settled, known)

        return tell
