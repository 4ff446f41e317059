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
from geoseg.places import Place, S3Place
from geoseg.references import parts

if TYPE_CHECKING:
    from geoseg.engine.batch_object_journal import ObjectJournal
    from geoseg.engine.predict import Options
    from geoseg.engine.scene_list import Entry
    from geoseg.segmenters.interface import Segmenter

Record = dict[str, Any]
DONE, HOLES, FAILED, WAITING, KEPT, RUNNING = "done", "holes", "failed", "waiting", "kept", "running"
# Names in the output folder that are no scene's.
REPORTS = (*NAMES, COLLECTION)
STATE = ".geoseg"
# What decides how a run is done, not what comes out.
_IDLE = {
    *("workers", "scheduler", "resource", "patience", "allow_holes", "allow_vrt_elsewhere", "batch", "device"),
    *("workdir", "fresh", "overwrite"),
}


class Journal:
    """The records of a batch, ``.geoseg/scenes/<name>.json`` in its output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder: Place = folder
        self._folder = folder
        self._state = folder / STATE
        self.work: Place = self._state / "work"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the output folder, made if it is not there, for one batch at a time.

        Raises:
            OutputError: it cannot be made or written, or has a report that is of no batch.
            RunError: another batch holds it.
        """
        if self._folder.exists() and not self._folder.is_dir():
            raise OutputError(f"{self.folder} is a file: give the batch a folder.")
        strange = [name for name in REPORTS if (self._folder / name).exists() and not self._state.exists()]
        if strange:
            raise OutputError(f"{self.folder / strange[0]} is of no batch: move it away, or give another folder.")
        with writing(self.folder):
            (self._state / "scenes").mkdir(parents=True, exist_ok=True)
        with held(self._state, "give this one another output folder"):
            yield

    def check(self) -> None:
        """Make sure that the folder is still held: the system sees to that."""

    def records(self) -> dict[str, Record]:
        """Return the records by name.

        Raises:
            RunError: one is damaged.
        """
        found = {}
        for path in sorted((self._state / "scenes").glob("*.json")):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise RunError(f"{path} cannot be read ({one_line(error)}): delete it to do its scene anew.") from error
            record = record_in(path, data)
            found[str(record["name"])] = record
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
        return all((self._folder / name).exists() for name in record["outputs"])

    def make_folder(self, name: str) -> Path:
        """Return the folder of a scene, made if it is not there.

        Raises:
            OutputError: it cannot be made.
        """
        folder = self._folder / name
        with writing(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def drop_folder(self, name: str) -> None:
        """Delete the folder of a scene if nothing was written into it."""
        with contextlib.suppress(OSError):
            (self._folder / name).rmdir()

    def read(self, name: str) -> bytes | None:
        """Return what an output holds, None where there is none."""
        with contextlib.suppress(OSError):
            return (self._folder / name).read_bytes()
        return None


def journal_at(folder: Place, *, shared: bool) -> Journal | ObjectJournal:
    """Return the journal of an output folder.

    Args:
        folder: a path, or a place in object storage.
        shared: whether workers may be on other machines.
    """
    if not isinstance(folder, S3Place):
        return Journal(folder)
    from geoseg.engine.batch_object_journal import ObjectJournal

    return ObjectJournal(folder, shared=shared)


def record_in(place: Path | S3Place, data: bytes) -> Record:
    """Return the record that a file or object holds.

    Raises:
        RunError: it is damaged.
    """
    try:
        record: Record = json.loads(data)
        str(record["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{place} is damaged ({one_line(error)}): delete it to do its scene anew.") from error
    return record


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


def refuse_other_batch(records: Mapping[str, Record], recipe: str, folder: Place) -> None:
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
