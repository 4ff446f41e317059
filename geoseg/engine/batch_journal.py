"""What a batch has done: a record for each scene in its output folder, and the lock that keeps others out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from geoseg import __version__
from geoseg.engine.plan import Recipe
from geoseg.engine.store import held, write_atomically
from geoseg.errors import OutputError, RunError, SceneError, one_line
from geoseg.outputs.batch_report import NAMES
from geoseg.outputs.stac import COLLECTION
from geoseg.outputs.staging import writing
from geoseg.references import parts

if TYPE_CHECKING:
    from geoseg.engine.predict import Options
    from geoseg.engine.scene_list import Entry
    from geoseg.segmenters.interface import Segmenter

Record = dict[str, Any]
DONE, HOLES, FAILED, WAITING, KEPT, RUNNING = "done", "holes", "failed", "waiting", "kept", "running"
# Names in the output folder that are no scene's.
REPORTS = (*NAMES, COLLECTION)
_STATE = ".geoseg"
# What decides how a run is done, not what comes out.
_IDLE = {
    *("workers", "scheduler", "resource", "patience", "allow_holes", "allow_vrt_elsewhere", "batch", "device"),
    *("workdir", "fresh", "overwrite"),
}


class Journal:
    """The records of a batch, ``.geoseg/scenes/<name>.json`` in its output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / _STATE
        self.work = self._state / "work"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the output folder, made if it is not there, for one batch at a time.

        Raises:
            OutputError: it cannot be made or written, or has a report that is of no batch.
            RunError: another batch holds it.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{self.folder} is a file: give the batch a folder.")
        strange = [name for name in REPORTS if (self.folder / name).exists() and not self._state.exists()]
        if strange:
            raise OutputError(f"{self.folder / strange[0]} is of no batch: move it away, or give another folder.")
        with writing(self.folder):
            (self._state / "scenes").mkdir(parents=True, exist_ok=True)
        with held(self._state, "give this one another output folder"):
            yield

    def records(self) -> dict[str, Record]:
        """Return the records by name.

        Raises:
            RunError: one is damaged.
        """
        found = {}
        for path in sorted((self._state / "scenes").glob("*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                found[str(record["name"])] = record
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise RunError(f"{path} is damaged ({one_line(error)}): delete it to do its scene anew.") from error
        return found

    def write(self, record: Record) -> None:
        """Keep a record.

        Raises:
            OutputError: it cannot be written.
        """
        path = self._state / "scenes" / f"{record['name']}.json"
        write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False).encode())

    def has_outputs(self, record: Record) -> bool:
        """Whether all files that a record names are there."""
        return all((self.folder / name).exists() for name in record["outputs"])


def recipe_digest(options: Options, method: Recipe | Segmenter, suffix: str, layers: tuple[str, ...]) -> str:
    """Return a digest of all that decides what comes out of a scene, apart from the scene."""
    if isinstance(method, Recipe):
        refiner = None if method.refiner is None else method.refiner[1]
        made: Any = [[digest for _, digest in method.bundles], refiner]
    else:
        made = hashlib.sha256(cloudpickle.dumps(method)).hexdigest()
    chosen = {item.name: getattr(options, item.name) for item in fields(options) if item.name not in _IDLE}
    for name, value in chosen.items():
        chosen[name] = list(value) if isinstance(value, tuple) else value
    chosen["aoi"] = [options.aoi, *_stamp(options.aoi)] if options.aoi else None
    record = {"version": __version__, "model": made, "options": chosen, "suffix": suffix, "layers": sorted(layers)}
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=repr).encode()).hexdigest()


def source_stamp(entry: Entry) -> list[int]:
    """Return what changes when a local scene or a part of it does: sizes and times; nothing for one elsewhere."""
    stamp = _stamp(entry.source)
    # A VRT that leads elsewhere has no parts to be told here: it fails, or the user vouches for it.
    with contextlib.suppress(SceneError, OSError):
        made_of = [(path, _stamp(path)) for path in parts(entry.source)] if stamp else []
        if made_of:
            # A mosaic may have a million parts: one number stands for all.
            stamp.append(int.from_bytes(hashlib.sha256(repr(made_of).encode()).digest()[:6]))
    return stamp


def _stamp(path: str) -> list[int]:
    if not os.path.isfile(path):
        return []
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns]


def refuse_other_batch(records: Mapping[str, Record], recipe: str, folder: Path) -> None:
    """Refuse a folder whose outputs were made in another way.

    Raises:
        OutputError: some were.
    """
    others = [
        name for name, record in records.items() if record["status"] in (DONE, HOLES) and record["recipe"] != recipe
    ]
    if others:
        raise OutputError(
            f"{folder} holds {len(others)} scenes made with another model or other options, {others[0]} among "
            "them: pass --overwrite to make them anew, or give another folder."
        )
