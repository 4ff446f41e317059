"""One scene of a batch: its files, its run among the others, its record and its STAC item."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.bundle import read_bundle
from geoseg.engine.assemble import Outputs
from geoseg.engine.batch_journal import DONE, FAILED, HOLES, RUNNING, WAITING, Journal, Record, source_stamp
from geoseg.engine.execute import Among, Report, execute, two_passes
from geoseg.engine.plan import Plan, Recipe
from geoseg.engine.predict import Options, make_plan
from geoseg.engine.run import Progress
from geoseg.engine.scene_list import Entry
from geoseg.engine.store import remove_store, store_at
from geoseg.engine.work_places import workdir_of
from geoseg.errors import (
    BundleError,
    ConfigError,
    GeosegError,
    LabelsError,
    OutputError,
    RunError,
    SceneError,
    one_line,
)
from geoseg.outputs.stac import ItemNote, ModelNote, write_item
from geoseg.places import Place, below, place_of
from geoseg.source import gdal_environment, open_raster

if TYPE_CHECKING:
    from geoseg.engine.batch_object_journal import ObjectJournal
    from geoseg.scene import Scene
    from geoseg.segmenters.interface import Segmenter

# Scenes looked at side by side before their chunks are sent out.
_LOOKERS = 2
# Items read side by side: from object storage each takes a while.
_READERS = 16
_WAYS_OUT: tuple[tuple[type[Exception], str], ...] = (
    (SceneError, "mend the scene or take it out of the list, then run the same command again."),
    (OutputError, "make room or free the name, then run the same command again."),
    (RunError, "run the same command again: it goes on from the chunks that are done."),
    (ConfigError, "do this scene with other options, in a batch of its own or with `geoseg predict`."),
    (LabelsError, "do this scene with other options, in a batch of its own or with `geoseg predict`."),
    (BundleError, "bring the model back as it was, then run the same command again."),
)
_UNEXPECTED = "run `geoseg predict` on this scene with --debug, and report what it prints."
_WITH_HOLES = "run the same command again: it tries only the missing chunks."


@dataclass(frozen=True)
class BatchScenes:
    """How each scene of a batch is done.

    Attributes:
        journal: of the output folder.
        options: of every run.
        method, segmenter: see :func:`geoseg.engine.predict.make_plan`.
        note: what is said of the model.
        suffix: of the polygons.
        layers: what is written besides.
        recipe: digest of all this.
    """

    journal: Journal | ObjectJournal
    options: Options
    method: Recipe | Segmenter
    segmenter: Segmenter
    note: ModelNote
    suffix: str
    layers: tuple[str, ...]
    recipe: str
    _looking: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(_LOOKERS))

    def blank(self, entry: Entry, status: str) -> Record:
        """Return the record of a scene of which nothing is known yet."""
        return {
            "name": entry.name,
            "source": entry.shown,
            "identity": entry.identity,
            "status": status,
            "recipe": self.recipe,
            "stamp": source_stamp(entry),
            "ours": False,
            **dict.fromkeys(("seconds", "worker_seconds", "pixels", "pixels_per_worker_second", "chunks")),
            **dict.fromkeys(("chunks_found_done", "tiles", "polygons", "error", "way_out")),
            "areas_m2": {},
            "classes": [],
            "outputs": [],
            "notes": [],
            "holes": [],
        }

    def run(self, entry: Entry, among: Among, progress: Progress | None, *, ours: bool) -> Record:
        """Do a scene, and keep and return its record; what goes wrong with it is in there.

        Args:
            entry: the scene.
            among: the other scenes.
            progress: of this scene.
            ours: whether files under its names may be replaced, for they come from this batch.
        """
        started = time.monotonic()
        try:
            outputs, options = self._place(entry, ours)
            ours = True
            self.journal.write({**self.blank(entry, RUNNING), "ours": True})
            record = self._done(entry, among, progress, outputs, options)
        except Exception as error:
            if among.crew.broken is not None:
                return self.blank(entry, WAITING)  # what ended the batch is no fault of this scene
            record = {**self.blank(entry, FAILED), **_fault(error, entry)}
            self.journal.drop_folder(entry.name)
        record["ours"] = ours
        record["seconds"] = round(time.monotonic() - started, 3)
        with contextlib.suppress(OutputError):  # on a full disk the report says it
            self.journal.write(record)
        if record["status"] == DONE:
            remove_store(str(self._work(entry)))
        return record

    def _place(self, entry: Entry, ours: bool) -> tuple[Outputs, Options]:
        """Return where the outputs of a scene go, and its options, having made its folder."""
        if entry.fault is not None:
            raise SceneError(entry.fault)
        folder = self.journal.make_folder(entry.name)
        options = self._options(entry, folder, ours)
        return Outputs.check(folder / f"{entry.name}{self.suffix}", options), options

    def _done(
        self, entry: Entry, among: Among, progress: Progress | None, outputs: Outputs, options: Options
    ) -> Record:
        with self._looking:
            plan, notes = make_plan(entry.source, outputs, self.method, self.segmenter, options)
            passes = two_passes(plan, self.segmenter, options)
        store = store_at(plan.store, plan.chunks)
        if self.options.workdir is None and not store.claimed:
            store.remove()  # what a worker wrote after its run was over
        # Chunks of another day's source or options are of no use; the batch has made sure that none else is lost.
        options = replace(options, fresh=options.fresh or not store.holds(plan.fingerprint()))
        report = execute(plan, outputs, options, notes, progress, passes, among)
        areas = {name: round(value, 2) for name, value in report.areas_m2.items()}
        item = self.journal.folder / entry.name / f"{entry.name}.json"
        write_item(item, self._item_note(entry, plan, outputs, areas))
        files = [*report.files, str(item)]
        return {
            **self.blank(entry, HOLES if report.holes else DONE),
            **_figures(report, plan),
            "areas_m2": areas,
            "classes": [{"name": each.name, "color": each.color} for each in plan.classes],
            "outputs": [below(place_of(file), self.journal.folder) for file in files],
            "way_out": _WITH_HOLES if report.holes else None,
        }

    def _options(self, entry: Entry, folder: Place, ours: bool) -> Options:
        def path(layer: str, suffix: str) -> str | None:
            return str(folder / f"{entry.name}_{layer}{suffix}") if layer in self.layers else None

        vector = ".gpkg" if self.suffix == ".tif" else self.suffix
        return replace(
            self.options,
            labels=None if self.suffix == ".tif" else path("labels", ".tif"),
            confidence=path("confidence", ".tif"),
            uncertainty=path("uncertainty", ".tif"),
            candidates=path("candidates", vector),
            workdir=str(self._work(entry)),
            overwrite=self.options.overwrite or ours,
        )

    def _work(self, entry: Entry) -> Place:
        return (workdir_of(self.options.workdir) if self.options.workdir else self.journal.work) / entry.name

    def _item_note(self, entry: Entry, plan: Plan, outputs: Outputs, areas: dict[str, float]) -> ItemNote:
        files: dict[str, Place] = {kind: path for path, kind in outputs.kinds()}
        if outputs.candidates is not None:
            files["candidates"] = outputs.candidates
        return ItemNote(
            name=entry.name,
            geobox=plan.source.geobox,
            pixel_m=min(plan.source.resolution),
            classes=plan.classes,
            files=files,
            model=self.note,
            source=entry.shown,
            item=entry.item,
            properties=entry.properties,
            when=_taken(plan.source),
            areas_m2=areas,
        )

    def items(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Return the STAC items of the scenes that are done, as they stand in their files."""
        found: list[dict[str, Any]] = []
        names = [f"{record['name']}/{record['name']}.json" for record in records if record["outputs"]]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="geoseg-items") as pool:
            contents = list(pool.map(self.journal.read, names))
        for data in contents:
            with contextlib.suppress(ValueError):  # spoilt since, or deleted, by its user
                found += [] if data is None else [json.loads(data)]
        return found


def model_note(method: Recipe | Segmenter, names: Sequence[str | os.PathLike[str]]) -> ModelNote:
    """Return what is said of the model: several bundles are named together."""
    if not isinstance(method, Recipe):
        return ModelNote(type(method).__name__, type(method).__name__)
    bundles = [read_bundle(path) for path, _ in method.bundles]
    kinds = [str(each.description.settings.get("name") or each.description.method) for each in bundles]
    told = " + ".join(Path(os.fspath(name)).stem for name in names)
    first = bundles[0].description
    return ModelNote(
        told or "model",
        " + ".join(kinds),
        tuple(each.path for each in bundles),
        tuple(first.bands),
        first.tile,
        first.class_table(),
        sum(each.parameters for each in bundles),
    )


def _figures(report: Report, plan: Plan) -> Record:
    """Return what a run took."""
    return {
        "worker_seconds": round(report.busy_s, 3),
        "pixels": report.pixels,
        "pixels_per_worker_second": round(report.pixels / report.busy_s) if report.busy_s else None,
        "chunks": report.chunks,
        "chunks_found_done": report.resumed,
        "tiles": report.tiles,
        "polygons": report.polygons,
        "notes": list(report.notes),
        "holes": [
            {"chunk": number, "window": str(plan.chunks.window(number)), "cause": cause}
            for number, cause in report.holes
        ],
    }


def _fault(error: Exception, entry: Entry) -> Record:
    """Return what went wrong with a scene and the way out, without what may be secret in its address."""
    told = str(error) if isinstance(error, GeosegError) else f"{type(error).__name__}: {one_line(error)}"
    way = next((way for kind, way in _WAYS_OUT if isinstance(error, kind)), _UNEXPECTED)
    return {"error": told.replace(entry.source, entry.shown) if entry.source else told, "way_out": way}


def _taken(scene: Scene) -> str | None:
    """Return when a TIFF says that it was taken, as STAC writes times; None if it does not."""
    path = scene.path
    with (
        contextlib.suppress(SceneError, ValueError),
        gdal_environment(path),
        open_raster(path, elsewhere=scene.elsewhere) as file,
    ):
        text = file.tags().get("TIFFTAG_DATETIME", "")
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").strftime("%Y-%m-%dT%H:%M:%SZ")
    return None
