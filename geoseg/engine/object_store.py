"""The chunk store in S3 storage: an object for each finished chunk, put by the worker that computed it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoseg.engine.lease import LOCK, Lease, leased
from geoseg.engine.store import (
    RECORD,
    ChunkStore,
    chunk_name,
    chunks_named,
    is_record_of,
    record_of,
    refuse_other_run,
    refuse_strangers,
    tiff_of,
    uncertainty_name,
)
from geoseg.errors import OutputError, RunError
from geoseg.grid import ChunkGrid
from geoseg.object_storage import delete, exists, names, put, read
from geoseg.outputs.staging import writing
from geoseg.places import S3Place
from geoseg.storage_faults import UnansweredError

_FETCHERS = 8
_CHUNK = re.compile(r"r\d+/[cu]\d+\.tif")


class ObjectStore:
    """Finished chunks below an ``s3://`` address, under the names that :class:`ChunkStore` gives them in a folder.

    It belongs to one run at a time, by a lock that its holder renews, and to one fingerprint.
    """

    def __init__(self, folder: S3Place, chunks: ChunkGrid) -> None:
        self.folder = folder
        self.chunks = chunks
        self._lease: Lease | None = None

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return str(self.folder)

    def done(self) -> set[int]:
        """Return the numbers of the finished chunks.

        Raises:
            OutputError: they cannot be listed.
        """
        return chunks_named(self.chunks, names(self.folder, "r"))

    def write(self, number: int, layers: NDArray[np.uint16], uncertainty: NDArray[np.float32] | None = None) -> None:
        """Store the layers (L, H, W) of a chunk, the uncertainty first: the labels say that the chunk is done.

        Raises:
            RunError: the storage does not answer.
            OutputError: it refuses.
        """
        try:
            if uncertainty is not None:
                put(self.folder / uncertainty_name(self.chunks, number), tiff_of(uncertainty, predictor=3))
            put(self.folder / chunk_name(self.chunks, number), tiff_of(layers))
        except UnansweredError as error:
            raise RunError(str(error)) from error  # of this chunk alone: another worker may reach it

    @contextmanager
    def opened(self, fingerprint: str, *, fresh: bool = False) -> Iterator[set[int]]:
        """Hold the store for one run; yields the chunks that are done already.  See :meth:`ChunkStore.opened`.

        Raises:
            RunError: another process holds the store, or it belongs to another run.
            OutputError: nothing can be put there.
        """
        with leased(self.folder, "give this one another --workdir") as self._lease:
            if fresh and self.claimed:
                delete(self.folder, [name for name in names(self.folder) if name != LOCK])
            self._claim(fingerprint)
            yield self.done()

    @contextmanager
    def here(self) -> Iterator[ChunkStore]:
        """Yield a folder of this machine that holds the finished chunks while the block runs.

        Raises:
            RunError: another run took the store over.
            OutputError: the storage does not answer, or the disk is full.
        """
        if self._lease is not None:
            self._lease.check()
        with tempfile.TemporaryDirectory(prefix="geoseg-", ignore_cleanup_errors=True) as folder:
            local = ChunkStore(folder, self.chunks)
            pool = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="geoseg-fetch")
            try:
                # A key may hold anything, a path that leads elsewhere too: only the names of chunks are followed.
                chunks = [name for name in names(self.folder, "r") if _CHUNK.fullmatch(name)]
                list(pool.map(lambda name: self._fetch(name, Path(folder)), chunks))
            finally:
                pool.shutdown(cancel_futures=True)
            yield local

    @property
    def claimed(self) -> bool:
        """Whether it is that of some run.

        Raises:
            OutputError: the storage does not answer, or refuses.
        """
        return exists(self.folder / RECORD)

    def holds(self, fingerprint: str) -> bool:
        """Whether it is that of a run, or of none yet.

        Raises:
            OutputError: the storage does not answer, or refuses.
        """
        record = read(self.folder / RECORD)
        return record is None or is_record_of(record, fingerprint)

    def remove(self) -> None:
        """Delete the store and all it holds, as far as the storage lets it."""
        remove_objects(self.folder)

    def _claim(self, fingerprint: str) -> None:
        record = read(self.folder / RECORD)
        if record is None:
            refuse_strangers(self.place, names(self.folder))
            put(self.folder / RECORD, record_of(fingerprint), new=True)
        else:
            refuse_other_run(self.place, record, fingerprint)

    def _fetch(self, name: str, folder: Path) -> None:
        target = folder / name
        data = read(self.folder / name)
        if data is None:
            raise OutputError(f"{self.folder / name} was deleted while its run went on: run the same command again.")
        with writing(target):
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)


def remove_objects(folder: S3Place) -> None:
    """Delete all below a folder, as far as the storage lets it."""
    with suppress(OutputError):  # what was to be done is done; what is left is in nobody's way
        delete(folder, names(folder))
