"""Finished polygons on disk, taken in any order and given back in the order of their first pixels."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import shapely

from geoseg.errors import OutputError, one_line
from geoseg.vector.polygons import PixelPolygons

# A batch holds at most so many polygons, and stops growing after so many bytes of geometry.
BATCH_POLYGONS = 5000
BATCH_BYTES = 32 * 2**20


class PolygonSpool:
    """A sorter of polygons with constant memory: a database file in a temporary folder that leaves with it.

    Use it as a context manager: on the way out, by whatever way, its file and folder are gone.
    """

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        self._workdir = Path(workdir)

    def __enter__(self) -> PolygonSpool:
        """Make the file.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix="polygons-", dir=self._workdir)
        except OSError as error:
            raise OutputError(
                f"{self._workdir} cannot hold temporary files ({one_line(error)}): choose another --workdir."
            ) from error
        with ExitStack() as stack, self._writing():
            path = Path(stack.enter_context(folder)) / "spool.sqlite"
            # A generator may be resumed by another thread; only one at a time uses the connection.
            self._base = stack.enter_context(closing(sqlite3.connect(path, check_same_thread=False)))
            # Nothing here outlives a crash, so neither a journal nor waiting for the disk is of use.
            for setting in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE"):
                self._base.execute(f"PRAGMA {setting}")
            self._base.execute(
                "CREATE TABLE polygon (first_pixel INTEGER PRIMARY KEY, class_id INTEGER, pixels INTEGER, "
                "confidence_sum INTEGER, wkb BLOB)"
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file and its folder."""
        self._stack.close()

    def add(self, batch: PixelPolygons) -> None:
        """Take in a batch.

        Raises:
            OutputError: the disk is full.
        """
        columns = (batch.first_pixel, batch.class_id, batch.pixels, batch.confidence_sum)
        rows = zip(*(column.tolist() for column in columns), shapely.to_wkb(batch.geometry), strict=True)
        with self._writing():
            self._base.executemany("INSERT INTO polygon VALUES (?, ?, ?, ?, ?)", rows)

    def ordered(self, polygons: int = BATCH_POLYGONS, geometry_bytes: int = BATCH_BYTES) -> Iterator[PixelPolygons]:
        """Give everything back by first pixel, in batches of at most ``polygons``, fewer where they are large.

        Raises:
            OutputError: the file can no longer be read.
        """
        rows: list[tuple[int, int, int, int, bytes]] = []
        size = 0
        with self._writing():
            cursor = self._base.execute("SELECT * FROM polygon ORDER BY first_pixel")
        while True:
            with self._writing():
                row = cursor.fetchone()
            if row is not None:
                rows.append(row)
                size += len(row[4])
            if rows and (row is None or len(rows) >= polygons or size >= geometry_bytes):
                yield _batch(rows)
                rows, size = [], 0
            if row is None:
                return

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            raise OutputError(
                f"the temporary file of polygons in {self._workdir} failed ({one_line(error)}): "
                "free some disk space, or choose another --workdir."
            ) from error


def _batch(rows: list[tuple[int, int, int, int, bytes]]) -> PixelPolygons:
    first, label, pixels, confidence, wkb = zip(*rows, strict=True)
    numbers = (np.array(column, np.int64) for column in (first, label, pixels, confidence))
    return PixelPolygons(shapely.from_wkb(np.array(wkb, object)), *numbers)
