"""Statistics of other rasters' values as columns of features, with bounded memory."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.errors import ConfigError, OutputError, one_line
from geoseg.grid import Window
from geoseg.vector.zonal import Ints, ZonalBand, ZonalSums

# Suffix of a column, attribute of ZonalStatistics, numpy type.
_COLUMNS = (
    ("mean", "mean", "float64"),
    ("min", "minimum", "float64"),
    ("max", "maximum", "float64"),
    ("std", "std", "float64"),
    ("count", "count", "int64"),
)
# Pixels whose features are worked out together, in memory, and what is held before anything goes to disk.
_BAND_PIXELS = 4 * 2**20
_MEMORY_BYTES = 64 * 2**20
_WRITTEN = re.compile(r"(?:(?P<name>[^\W\d]\w*)=)?(?P<path>.+?)(?::(?P<band>\d+))?", re.DOTALL)


@dataclass(frozen=True)
class Statistic:
    """One band of a raster whose values are summed up over each feature.

    Attributes:
        name: what its columns begin with.
        path: what GDAL opens; on any grid, in any CRS.
        band: index of the band, from 1.
    """

    name: str
    path: str
    band: int = 1

    @classmethod
    def parse(cls, text: str) -> Statistic:
        """Read ``[NAME=]PATH[:BAND]``; without a name, the file's stem is one.

        >>> Statistic.parse("height=relief/dem 30m.tif:2")
        Statistic(name='height', path='relief/dem 30m.tif', band=2)
        >>> Statistic.parse("relief/dem 30m.tif").columns[0]
        ('dem_30m_mean', 'float64')

        Raises:
            ConfigError: there is no path, or no name can be made of it.
        """
        found = _WRITTEN.fullmatch(text)
        name = "" if found is None else found["name"] or re.sub(r"\W+", "_", Path(found["path"]).stem).strip("_")
        if found is None or not name:
            raise ConfigError(f"--statistics {text!r} names no raster: write F.tif, F.tif:BAND or NAME=F.tif:BAND.")
        return cls(name, found["path"], int(found["band"] or 1))

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Names and numpy types of its columns."""
        return tuple((f"{self.name}_{suffix}", kind) for suffix, _, kind in _COLUMNS)


def refuse_same_columns(statistics: Sequence[Statistic], taken: Sequence[str]) -> None:
    """Refuse columns that occur twice; as in most tables, case makes no difference.

    Raises:
        ConfigError: one does.
    """
    seen = {name.lower() for name in taken}
    for statistic in statistics:
        for column, _ in statistic.columns:
            if column.lower() in seen:
                raise ConfigError(
                    f"--statistics {statistic.path} would give a second column {column!r}: "
                    f"give its columns another name, as in --statistics NAME={statistic.path}:{statistic.band}."
                )
            seen.add(column.lower())


class ZonalSpool:
    """Gathers sums block by block, in any order, and gives back the statistics of features in theirs.

    Sums of a stretch of the raster go to a file in a temporary folder once there are many.  Use it as a context
    manager: on the way out its folder is gone.

    Args:
        statistics: the rasters.
        geobox: the grid of the labels.
        workdir: folder for the temporary one; made when it is needed.
        memory_bytes: how much is held before it goes to disk.

    Raises:
        SceneError: a raster cannot be read, or lies nowhere near the grid.
    """

    def __init__(
        self,
        statistics: Sequence[Statistic],
        geobox: GeoBox,
        workdir: str | os.PathLike[str],
        memory_bytes: int = _MEMORY_BYTES,
    ) -> None:
        self._bands = [(item, ZonalBand.open(item.path, item.band, geobox)) for item in statistics]
        width = int(geobox.shape[1])
        self._stretch = max(1, _BAND_PIXELS // max(1, width)) * width
        self._workdir, self._memory_bytes = Path(workdir), memory_bytes
        self._held: dict[tuple[int, int], list[ZonalSums]] = {}
        self._held_bytes = 0
        self._on_disk: set[tuple[int, int]] = set()
        self._folder: Path | None = None
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._ready: tuple[int, Ints, dict[str, NDArray[np.generic]]] | None = None

    def __enter__(self) -> ZonalSpool:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what is on disk."""
        self._stack.close()

    def observe(self, window: Window, regions: NDArray[np.int32], feature: NDArray[np.int64]) -> None:
        """Take in a block: see :func:`geoseg.vector.polygons.polygonize`.  Threads may do so at the same time.

        Raises:
            SceneError: a raster cannot be read there.
            OutputError: the folder cannot be written, or the disk is full.
        """
        for number, (_, band) in enumerate(self._bands):
            # Region 0 is none; negative numbers are left out.
            sums = band.sums(regions - np.int32(1), window)
            if not len(sums):
                continue
            sums = sums.renumbered(feature[sums.regions + 1])
            stretches = sums.regions // self._stretch
            with self._lock:
                for stretch in np.unique(stretches).tolist():
                    part = sums.chosen(stretches == stretch)
                    self._held.setdefault((stretch, number), []).append(part)
                    self._held_bytes += part.nbytes
                if self._held_bytes > self._memory_bytes:
                    self._store()

    def columns(self, feature: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """Return the columns of features (N,), ascending, all of which have been seen; all blocks have been.

        Raises:
            OutputError: a temporary file can no longer be read.
        """
        stretches = feature // self._stretch
        found: list[dict[str, NDArray[np.generic]]] = []
        for stretch in np.unique(stretches).tolist():
            numbers, columns = self._statistics(stretch)
            place = np.searchsorted(numbers, feature[stretches == stretch])
            found.append({name: values[place] for name, values in columns.items()})
        names = [(name, kind) for item, _ in self._bands for name, kind in item.columns]
        return {name: np.concatenate([np.empty(0, kind), *(part[name] for part in found)]) for name, kind in names}

    def _statistics(self, stretch: int) -> tuple[Ints, dict[str, NDArray[np.generic]]]:
        """Return the features of a stretch and their columns; they stay at hand until another stretch is asked for."""
        if self._ready is None or self._ready[0] != stretch:
            numbers: Ints = np.empty(0, np.int64)
            columns: dict[str, NDArray[np.generic]] = {}
            for number, (item, _) in enumerate(self._bands):
                key = (stretch, number)
                found = ZonalSums.joined([*self._stored(key), *self._held.pop(key, [])]).statistics()
                numbers = found.regions
                columns |= {f"{item.name}_{suffix}": getattr(found, name) for suffix, name, _ in _COLUMNS}
            self._ready = (stretch, numbers, columns)
        return self._ready[1], self._ready[2]

    def _store(self) -> None:
        with self._writing():
            if self._folder is None:
                self._workdir.mkdir(parents=True, exist_ok=True)
                folder = tempfile.TemporaryDirectory(prefix="statistics-", dir=self._workdir)
                self._folder = Path(self._stack.enter_context(folder))
            for key, parts in self._held.items():
                with open(self._file(key), "ab") as file:
                    for array in ZonalSums.joined(parts).arrays():
                        np.save(file, array, allow_pickle=False)
                self._on_disk.add(key)
        self._held.clear()
        self._held_bytes = 0

    def _stored(self, key: tuple[int, int]) -> Iterator[ZonalSums]:
        if key not in self._on_disk:
            return
        path = self._file(key)
        with self._writing(), open(path, "rb") as file:
            while file.tell() < path.stat().st_size:
                yield ZonalSums.of_arrays([np.load(file, allow_pickle=False) for _ in range(ZonalSums.ARRAYS)])

    def _file(self, key: tuple[int, int]) -> Path:
        assert self._folder is not None  # made before anything is stored
        return self._folder / f"{key[0]}-{key[1]}.npy"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise OutputError(
                f"the temporary files of statistics in {self._workdir} failed ({one_line(error)}): "
                "free some disk space, or choose another folder for them."
            ) from error
