"""Finished polygons, taken in any order and given back in the order of their features' first pixels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType

import numpy as np

from geoseg.errors import OutputError, one_line
from geoseg.vector.pixel_polygons import PixelPolygons

# A batch holds at most so many polygons, and no more bytes of geometry, but for a feature that is larger by itself.
BATCH_POLYGONS = 5000
BATCH_BYTES = 32 * 2**20
# Pixels whose features are sorted together, in memory.
_BAND_PIXELS = 4 * 2**20
# What is held before anything goes to disk.
_MEMORY_BYTES = 64 * 2**20

_FIELDS = tuple(field.name for field in fields(PixelPolygons))


class PolygonSpool:
    """A sorter of polygons with bounded memory: bands of the raster, each a file in a temporary folder once it grows.

    Use it as a context manager: on the way out, by whatever way, its folder is gone.

    Args:
        workdir: folder for the temporary one; made when it is needed.
        raster_width: pixels in a row of the raster.
        memory_bytes: how much is held before it goes to disk.
    """

    def __init__(self, workdir: str | os.PathLike[str], raster_width: int, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._workdir = Path(workdir)
        self._band = max(1, _BAND_PIXELS // max(1, raster_width)) * raster_width
        self._memory_bytes = memory_bytes
        self._held: dict[int, list[PixelPolygons]] = {}
        self._held_bytes = 0
        self._on_disk: set[int] = set()
        self._folder: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> PolygonSpool:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what is on disk."""
        self._stack.close()

    def add(self, batch: PixelPolygons) -> None:
        """Take in a batch.

        Raises:
            OutputError: the folder cannot be written, or the disk is full.
        """
        bands = batch.feature // self._band
        order = np.argsort(bands, kind="stable")
        present, first = np.unique(bands[order], return_index=True)
        for band, members in zip(present.tolist(), np.split(order, first[1:]), strict=True):
            part = batch if len(present) == 1 else batch.taken(members)
            self._held.setdefault(band, []).append(part)
            self._held_bytes += part.nbytes
        if self._held_bytes > self._memory_bytes:
            self._store()

    def ordered(self, polygons: int = BATCH_POLYGONS, geometry_bytes: int = BATCH_BYTES) -> Iterator[PixelPolygons]:
        """Give everything back by feature and then by first pixel; the parts of a feature come in one batch.

        Args:
            polygons: most polygons of a batch, unless one feature has more.
            geometry_bytes: most bytes of corners of a batch, unless one feature has more.

        Raises:
            OutputError: a file can no longer be read.
        """
        for band in sorted({*self._held, *self._on_disk}):
            parts = PixelPolygons.joined([*self._stored(band), *self._held.pop(band, [])])
            order = np.lexsort((parts.first_pixel, parts.feature))
            sizes = (8 * np.diff(parts.ring_starts[parts.polygon_starts]))[order]
            for start, stop in _cuts(parts.feature[order], sizes, polygons, geometry_bytes):
                yield parts.taken(order[start:stop])

    def _store(self) -> None:
        with self._writing():
            if self._folder is None:
                self._workdir.mkdir(parents=True, exist_ok=True)
                folder = tempfile.TemporaryDirectory(prefix="polygons-", dir=self._workdir)
                self._folder = Path(self._stack.enter_context(folder))
            for band, parts in self._held.items():
                with open(self._folder / f"{band}.npy", "ab") as file:
                    part = PixelPolygons.joined(parts)
                    for name in _FIELDS:
                        np.save(file, getattr(part, name), allow_pickle=False)
                self._on_disk.add(band)
        self._held.clear()
        self._held_bytes = 0

    def _stored(self, band: int) -> Iterator[PixelPolygons]:
        if band not in self._on_disk or self._folder is None:
            return
        path = self._folder / f"{band}.npy"
        with self._writing(), open(path, "rb") as file:
            while file.tell() < path.stat().st_size:
                yield PixelPolygons(*(np.load(file, allow_pickle=False) for _ in _FIELDS))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise OutputError(
                f"the temporary files of polygons in {self._workdir} failed ({one_line(error)}): "
                "free some disk space, or choose another --workdir."
            ) from error


def _cuts(feature: np.ndarray, sizes: np.ndarray, most: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of polygons that keep features together and stay within the limits where features let them."""
    begins = np.flatnonzero(np.append(True, feature[1:] != feature[:-1])) if len(feature) else np.empty(0, np.int64)
    ends = np.append(begins[1:], len(feature))
    total = np.concatenate([[0], np.cumsum(sizes)])
    which = 0
    while which < len(begins):
        start = int(begins[which])
        by_count = np.searchsorted(ends, start + most, side="right")
        by_bytes = np.searchsorted(total[ends], total[start] + most_bytes, side="right")
        last = max(int(min(by_count, by_bytes)) - 1, which)
        yield start, int(ends[last])
        which = last + 1
