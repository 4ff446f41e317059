"""Vector files read with a bound on their polygons: the largest are kept."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
from numpy.typing import NDArray

from geoseg.errors import SceneError, one_line
from geoseg.references import refuse_vector_elsewhere

AREA = "area_m2"
_BATCH = 16_384


@dataclass(frozen=True)
class Table:
    """Features of a vector file.

    Attributes:
        wkb: (N,) geometries.
        columns: (N,) values by name.
        crs: None where coordinates are those of pixels.
        left_out: how many features were not read.
        left_out_m2: their area, NaN where it is not known.
    """

    wkb: NDArray[np.object_]
    columns: dict[str, NDArray[Any]]
    crs: pyproj.CRS | None
    left_out: int = 0
    left_out_m2: float = float("nan")


def read_table(path: Path, most: int) -> Table:
    """Read a vector file; where it has more than ``most`` features, those with the largest area.

    Memory is bounded by that number, and by one number for every feature of the file.

    Raises:
        SceneError: it cannot be read, or describes layers that lie elsewhere.
    """
    refuse_vector_elsewhere(str(path))
    source: _Source
    try:
        source = _Parquet(path) if path.suffix.lower() == ".parquet" else _Ogr(path)
        if source.count <= most:
            return Table(*source.read(None, most), source.crs)
        areas = source.areas()
        least, left_out_m2 = None, float("nan")
        if np.isfinite(areas).any():
            sizes = np.where(np.isfinite(areas), areas, -1.0)
            least = float(np.partition(sizes, len(sizes) - most)[len(sizes) - most])
            least = None if least < 0 else least
        wkb, columns = source.read(least, most)
        if AREA in columns and least is not None:
            left_out_m2 = max(0.0, float(np.nansum(areas) - np.nansum(columns[AREA])))
        return Table(wkb, columns, source.crs, source.count - len(wkb), left_out_m2)
    except SceneError:
        raise
    except ImportError as error:
        raise SceneError(f"{path} needs pyarrow: pip install 'geoseg[parquet]'.") from error
    except Exception as error:  # pyogrio and pyarrow raise many kinds; the user needs one sentence
        raise SceneError(f"{path} cannot be read as a vector file ({one_line(error)}).") from error


class _Ogr:
    """A file that GDAL reads."""

    def __init__(self, path: Path) -> None:
        layers = pyogrio.list_layers(path).tolist()
        # A GeoPackage keeps styles in a layer of their own.
        self._path = path
        self._layer = next((name for name, kind in layers if kind is not None), layers[0][0])
        info = pyogrio.read_info(path, layer=self._layer, force_feature_count=True)
        self.count = int(info["features"])
        self._fields = info["fields"].tolist()
        self.crs = pyproj.CRS.from_user_input(info["crs"]) if info["crs"] else None

    def areas(self) -> NDArray[np.float64]:
        if AREA not in self._fields:
            return np.full(self.count, np.nan)
        data = pyogrio.raw.read(self._path, layer=self._layer, columns=[AREA], read_geometry=False)[3]
        return data[0].astype(np.float64)

    def read(self, least: float | None, most: int) -> tuple[NDArray[np.object_], dict[str, NDArray[Any]]]:
        where = None if least is None else f'"{AREA}" >= {least!r}'
        meta, _, wkb, data = pyogrio.raw.read(self._path, layer=self._layer, where=where, max_features=most)
        columns = dict(zip((str(name) for name in meta["fields"]), data, strict=True))
        return np.asarray(wkb if wkb is not None else [], object), columns


class _Parquet:
    """A GeoParquet file, which pyarrow reads."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(os.fspath(path))
        meta = json.loads((self._file.metadata.metadata or {}).get(b"geo", b"{}"))
        self._geometry = str(meta.get("primary_column", "geometry"))
        if self._geometry not in self._file.schema_arrow.names:
            raise SceneError(f"{path} has no column of geometries: give a GeoParquet file.")
        told = meta.get("columns", {}).get(self._geometry, {})
        crs = told.get("crs", "OGC:CRS84")
        self.crs = None if crs is None else pyproj.CRS.from_user_input(crs)
        self.count = int(self._file.metadata.num_rows)

    def areas(self) -> NDArray[np.float64]:
        if AREA not in self._file.schema_arrow.names:
            return np.full(self.count, np.nan)
        return np.asarray(self._file.read([AREA]).column(0).to_numpy(), np.float64)

    def read(self, least: float | None, most: int) -> tuple[NDArray[np.object_], dict[str, NDArray[Any]]]:
        import pyarrow as pa
        import pyarrow.compute as pc

        kept, rows = [], 0
        for batch in self._file.iter_batches(_BATCH):
            part = batch if least is None else batch.filter(pc.greater_equal(batch.column(AREA), least))
            kept.append(part.slice(0, most - rows))
            rows += len(kept[-1])
            if rows >= most:
                break
        table = pa.Table.from_batches(kept, self._file.schema_arrow)
        columns = {name: table.column(name).to_numpy() for name in table.column_names if name != self._geometry}
        return table.column(self._geometry).to_numpy().astype(object), columns


_Source = _Ogr | _Parquet
