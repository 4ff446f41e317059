"""The chunk store: one small GeoTIFF per finished chunk, the journal from which an interrupted run goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from geoseg.errors import OutputError, RunError
from geoseg.grid import ChunkGrid
from geoseg.places import S3Place, is_storage
from geoseg.source import RASTER_FAULTS, placeless

RECORD = "run.json"
_LOCK = "lock"
_HOLDER = "holder"


class ChunkStore:
    """A folder of finished chunks, ``r<row>/c<column>.tif``: band 1 labels, then one band a layer, all uint16.

    Where a run has uncertainty layers, they stand in ``u<column>.tif`` beside it, written first.
    The folder belongs to one run at a time (a lock that dies with its process) and to one fingerprint.
    """

    def __init__(self, folder: str | os.PathLike[str], chunks: ChunkGrid) -> None:
        self.folder = Path(folder)
        self.chunks = chunks

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return str(self.folder)

    def path(self, number: int) -> Path:
        """Return the file of chunk ``number``."""
        return self.folder / chunk_name(self.chunks, number)

    def uncertainty_path(self, number: int) -> Path:
        """Return the file of the uncertainty layers of chunk ``number``."""
        return self.folder / uncertainty_name(self.chunks, number)

    def done(self) -> set[int]:
        """Return the numbers of the finished chunks."""
        return chunks_named(self.chunks, (f"{file.parent.name}/{file.name}" for file in self.folder.glob("r*/c*.tif")))

    def write(self, number: int, layers: NDArray[np.uint16], uncertainty: NDArray[np.float32] | None = None) -> None:
        """Store the layers (L, H, W) of a chunk: written beside, synced, then renamed.

        Raises:
            OutputError: the disk is full or the folder cannot be written.
        """
        if uncertainty is not None:
            # Before the labels, which say that the chunk is done.
            write_atomically(self.uncertainty_path(number), tiff_of(uncertainty, predictor=3))
        write_atomically(self.path(number), tiff_of(layers))

    @contextlib.contextmanager
    def opened(self, fingerprint: str, *, fresh: bool = False) -> Iterator[set[int]]:
        """Hold the store for one run; yields the chunks that are done already.

        Args:
            fingerprint: of the run; a store of another run is refused.
            fresh: throw away what the store holds first.

        Raises:
            RunError: another process holds the store, or it belongs to another run.
            OutputError: the folder cannot be made or written.
        """
        with _unwritable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with held(self.folder, "give this one another --workdir"):
            if fresh:
                self._empty()
            self._claim(fingerprint)
            self._sweep()
            yield self.done()

    @contextlib.contextmanager
    def here(self) -> Iterator[ChunkStore]:
        """Yield a folder of this machine that holds the finished chunks: this one."""
        yield self

    @property
    def claimed(self) -> bool:
        """Whether the folder is that of some run."""
        return (self.folder / RECORD).exists()

    def holds(self, fingerprint: str) -> bool:
        """Whether the folder is that of a run, or of none yet."""
        record = self.folder / RECORD
        with contextlib.suppress(OSError):
            return not record.exists() or is_record_of(record.read_bytes(), fingerprint)
        return False

    def remove(self) -> None:
        """Delete the store and all it holds."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _claim(self, fingerprint: str) -> None:
        record = self.folder / RECORD
        if record.exists():
            refuse_other_run(self.place, record.read_bytes(), fingerprint)
            return
        refuse_strangers(self.place, (entry.name for entry in self.folder.iterdir()))
        write_atomically(record, record_of(fingerprint))

    def _sweep(self) -> None:
        """Delete what a killed run left half done; nobody else is at work here while the lock is held."""
        for folder in self.folder.glob("polygons-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for part in self.folder.glob("r*/.[cu]*.part"):
            part.unlink(missing_ok=True)

    def _empty(self) -> None:
        """Throw away a run's chunks, but only in a folder that a run has claimed."""
        if not (self.folder / RECORD).exists():
            return
        for entry in self.folder.iterdir():
            if entry.is_dir() and entry.name[:1] == "r" and entry.name[1:].isdigit():
                shutil.rmtree(entry)
            elif entry.name not in {_LOCK, _HOLDER} and entry.is_file():
                entry.unlink()
            elif entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)


class Store(Protocol):
    """Where the chunks of a run are kept, see :class:`ChunkStore`; ``place`` is where, for messages."""

    @property
    def place(self) -> str: ...  # noqa: D102

    @property
    def claimed(self) -> bool: ...  # noqa: D102

    def done(self) -> set[int]: ...  # noqa: D102

    def write(  # noqa: D102
        self, number: int, layers: NDArray[np.uint16], uncertainty: NDArray[np.float32] | None = None
    ) -> None: ...

    def opened(self, fingerprint: str, *, fresh: bool = False) -> AbstractContextManager[set[int]]: ...  # noqa: D102

    def here(self) -> AbstractContextManager[ChunkStore]: ...  # noqa: D102

    def holds(self, fingerprint: str) -> bool: ...  # noqa: D102

    def remove(self) -> None: ...  # noqa: D102


def store_at(place: str, chunks: ChunkGrid) -> Store:
    """Return the store in a folder, or below an ``s3://`` address.

    Raises:
        OutputError: a damaged address.
    """
    if not is_storage(place):
        return ChunkStore(place, chunks)
    from geoseg.engine.object_store import ObjectStore

    return ObjectStore(S3Place.parse(place), chunks)


def remove_store(place: str) -> None:
    """Delete a store and all it holds, as far as that is possible; one that is not there is none to delete."""
    if not is_storage(place):
        shutil.rmtree(place, ignore_errors=True)
        return
    from geoseg.engine.object_store import remove_objects

    remove_objects(S3Place.parse(place))


def chunk_name(chunks: ChunkGrid, number: int) -> str:
    """Return the path of chunk ``number`` inside its store."""
    row, col = divmod(number, chunks.counts[1])
    return f"r{row:05d}/c{col:05d}.tif"


def uncertainty_name(chunks: ChunkGrid, number: int) -> str:
    """Return the path of the uncertainty layers of chunk ``number``."""
    return chunk_name(chunks, number).replace("/c", "/u")


def chunks_named(chunks: ChunkGrid, names: Iterable[str]) -> set[int]:
    """Return the numbers of the chunks among paths inside their store."""
    rows, cols = chunks.counts
    found = set()
    for name in names:
        match = re.fullmatch(r"r(\d+)/c(\d+)\.tif", name)
        if match and int(match[1]) < rows and int(match[2]) < cols:
            found.add(int(match[1]) * cols + int(match[2]))
    return found


def record_of(fingerprint: str) -> bytes:
    """Return what says that a store is that of a run."""
    return json.dumps({"fingerprint": fingerprint}).encode()


def is_record_of(record: bytes, fingerprint: str) -> bool:
    """Whether a record says so; a damaged one does not."""
    try:
        return bool(json.loads(record)["fingerprint"] == fingerprint)
    except (ValueError, KeyError, TypeError):
        return False


def refuse_other_run(place: str, record: bytes, fingerprint: str) -> None:
    """Refuse a store that is that of another run.

    Raises:
        RunError: it is, or its record is damaged.
    """
    try:
        owner = json.loads(record)["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{place}/{RECORD} is damaged: pass --fresh to start this run anew.") from error
    if owner != fingerprint:
        raise RunError(
            f"{place} holds the chunks of another run (another scene, model, option or version): "
            "pass --fresh to throw them away, or give another --workdir."
        )


def refuse_strangers(place: str, names: Iterable[str]) -> None:
    """Refuse a folder of no run that holds anything besides a lock.

    Raises:
        RunError: it does.
    """
    strangers = sorted(set(names) - {_LOCK, _HOLDER})
    if strangers:
        raise RunError(
            f"{place} is not a work folder of geoseg (it holds {strangers[0]!r}): "
            "give an empty or new folder as --workdir."
        )


@contextlib.contextmanager
def held(folder: Path, way_out: str) -> Iterator[None]:
    """Hold a folder that exists; the system lets go of the lock when the process ends, however it ends.

    Args:
        folder: for one process at a time.
        way_out: what else its user can do than wait, for the message.

    Raises:
        RunError: another process holds it.
        OutputError: it cannot be written.
    """
    lock = FileLock(folder / _LOCK, timeout=0)
    note = folder / _HOLDER
    try:
        lock.acquire()
    except Timeout as error:
        holder = note.read_text().strip() if note.exists() else "another process"
        raise RunError(f"{folder} is in use by {holder}: wait for that run to end, or {way_out}.") from error
    try:
        with _unwritable(note):
            note.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def tiff_of(layers: NDArray[Any], *, tags: dict[str, str] | None = None, **options: int) -> bytes:
    """Return layers (L, H, W) as a GeoTIFF."""
    count, height, width = layers.shape
    profile = {"driver": "GTiff", "dtype": layers.dtype.name, "count": count, "height": height, "width": width}
    with placeless(), MemoryFile() as memory:
        with memory.open(**profile, **_compression(), interleave="band", **options) as file:
            file.write(layers)
            if tags:
                file.update_tags(**tags)
        return bytes(memory.getbuffer())


def _compression() -> dict[str, Any]:
    """Return how chunks are compressed: by Zstandard, in a third of deflate's time, where GDAL was built with it."""
    return {"compress": "zstd", "zstd_level": 1} if has_codec("zstd") else {"compress": "deflate", "zlevel": 1}


@cache
def has_codec(name: str) -> bool:
    """Whether GDAL, as it was built here, can compress GeoTIFFs so."""
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 1, "width": 1}
    with placeless(), contextlib.suppress(*RASTER_FAULTS), MemoryFile() as memory:
        with memory.open(**profile, compress=name) as file:
            file.write(np.zeros((1, 1, 1), np.uint8))
        with memory.open() as file:
            return str(file.profile.get("compress", "")).lower() == name
    return False


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, sync it and rename it: the name holds all of it or does not exist.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    with _unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _unwritable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise OutputError(
                f"the disk is full at {path}: free some space and run the same command again, it goes on from there."
            ) from error
        raise OutputError(f"{path} cannot be written ({error.strerror or error}): choose another --workdir.") from error
