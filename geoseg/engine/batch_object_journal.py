"""What a batch has done, where its output folder is in S3 storage: a record object for each scene, and the lock."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from geoseg.engine.batch_journal import REPORTS, STATE, Record, record_in
from geoseg.engine.lease import Lease, leased
from geoseg.engine.work_places import batch_workdir
from geoseg.errors import OutputError
from geoseg.object_storage import exists, names, put, read
from geoseg.outputs.staging import check_place
from geoseg.places import Place, S3Place

_FETCHERS = 16


class ObjectJournal:
    """The records of a batch, ``.geoseg/scenes/<name>.json`` below an ``s3://`` address.

    It has the methods of :class:`geoseg.engine.batch_journal.Journal`.
    """

    def __init__(self, folder: S3Place, *, shared: bool) -> None:
        self.folder: Place = folder
        self._folder = folder
        self._state = folder / STATE
        self.work = batch_workdir(folder, shared=shared)
        self._lease: Lease | None = None
        self._found: frozenset[str] | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the output folder for one batch at a time.

        Raises:
            OutputError: nothing can be put there, or it has a report that is of no batch.
            RunError: another batch holds it.
        """
        check_place(self._state / "lock", overwrite=True)
        strange = next((name for name in REPORTS if exists(self._folder / name)), None)
        if strange is not None and next(names(self._state), None) is None:
            raise OutputError(f"{self._folder / strange} is of no batch: move it away, or give another folder.")
        with leased(self._state, "give this one another output folder") as self._lease:
            yield

    def check(self) -> None:
        """Make sure that the folder is still held.

        Raises:
            RunError: another batch took it over.
        """
        if self._lease is not None:
            self._lease.check()

    def records(self) -> dict[str, Record]:
        """Return the records by name.

        Raises:
            RunError: one is damaged.
            OutputError: they cannot be read.
        """
        folder = self._state / "scenes"
        places = [folder / name for name in names(folder) if name.endswith(".json") and "/" not in name]
        with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="geoseg-fetch") as pool:
            found = [record_in(place, data or b"") for place, data in zip(places, pool.map(read, places), strict=True)]
        return {str(record["name"]): record for record in found}

    def write(self, record: Record) -> None:
        """Keep a record.

        Raises:
            OutputError: it cannot be put.
        """
        data = json.dumps(record, indent=1, ensure_ascii=False).encode()
        put(self._state / "scenes" / f"{record['name']}.json", data)

    def has_outputs(self, record: Record) -> bool:
        """Whether all objects that a record names are there, as far as the first look at the folder tells.

        Raises:
            OutputError: they cannot be listed.
        """
        if self._found is None:
            self._found = frozenset(names(self._folder))
        return self._found.issuperset(record["outputs"])

    def make_folder(self, name: str) -> S3Place:
        """Return the folder of a scene, which needs no making."""
        return self._folder / name

    def drop_folder(self, name: str) -> None:
        """Nothing is left of a folder without objects."""

    def read(self, name: str) -> bytes | None:
        """Return what an output holds, None where there is none.

        Raises:
            OutputError: it cannot be read.
        """
        return read(self._folder / name)
