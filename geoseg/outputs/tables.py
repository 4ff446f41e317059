"""GeoPackage, FlatGeobuf and GeoParquet: polygons in the scene's own CRS, written group by group."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray

from geoseg.errors import OutputError
from geoseg.outputs.attributes import Attributes
from geoseg.outputs.qgis import add_layer_style, layer_name
from geoseg.vector.features import Features

if TYPE_CHECKING:
    import pyarrow

# GeoPackages carry times of writing; a fixed one keeps the bytes of two runs alike.
TIMESTAMP = "2000-01-01T00:00:00.000Z"
# Readers with GDAL 3.6, such as QGIS 3.22, warn about 1.4.
_GPKG_VERSION = "1.3"


class _Rows:
    """A GeoPackage table that grows by groups."""

    def __init__(self, path: Path, attributes: Attributes, crs: pyproj.CRS | None, *, layer: str, index: bool) -> None:
        self.path, self.layer, self.rows = path, layer, 0
        self._attributes, self._crs, self._index = attributes, None if crs is None else crs.to_wkt(), index
        self._create()

    def _create(self) -> None:
        none = np.empty(0)
        extra = {name: none.astype(kind) for name, kind in self._attributes.extra}
        empty = Features(np.empty(0, object), none.astype(int), none.astype(int), none, none, none, extra)
        self._write(empty, dataset_options={"VERSION": _GPKG_VERSION}, append=False)

    def add(self, features: Features) -> int:
        """Append polygons."""
        self._write(features, append=True)
        self.rows += len(features)
        return len(features)

    def _write(self, features: Features, *, append: bool, dataset_options: dict[str, str] | None = None) -> None:
        columns = self._attributes.columns(features)
        names = [name for name, _ in self._attributes.schema]
        with _no_crs_is_meant():
            pyogrio.raw.write(
                self.path,
                shapely.to_wkb(_of_one_type(features.geometry, self._attributes), byte_order=1),
                [columns[name] for name in names],
                names,
                layer=self.layer,
                driver="GPKG",
                geometry_type=_geometry_type(self._attributes),
                crs=self._crs,
                promote_to_multi=False,
                append=append,
                dataset_options=dataset_options,
                layer_options=None if append else {"SPATIAL_INDEX": "YES" if self._index else "NO"},
            )


class GeoPackage:
    """A GeoPackage under construction: one layer with a spatial index and, for QGIS, its style."""

    def __init__(self, path: Path, attributes: Attributes, crs: pyproj.CRS | None) -> None:
        """Create the file and its empty layer."""
        self._rows = _Rows(path, attributes, crs, layer=layer_name(path), index=True)
        self._attributes = attributes

    def add(self, features: Features) -> int:
        """Append one group and return how many polygons it had."""
        return self._rows.add(features)

    def finish(self) -> None:
        """Add the style, pin the times, and make sure that every row arrived.

        Raises:
            OutputError: rows are missing (GDAL did not say that a write failed).
        """
        connection = sqlite3.connect(self._rows.path)
        try:
            add_layer_style(connection, self._rows.layer, self._attributes.classes, TIMESTAMP)
            connection.execute("UPDATE gpkg_contents SET last_change = ?", (TIMESTAMP,))
            (found,) = connection.execute(f'SELECT count(*) FROM "{self._rows.layer}"').fetchone()
            connection.commit()
        finally:
            connection.close()
        _expect(found, self._rows.rows)

    def abandon(self) -> None:
        """Nothing is open between groups."""


class FlatGeobuf:
    """A FlatGeobuf under construction.

    Its index comes before its rows, so the rows wait in a table beside it and are streamed from there in the end.  GDAL
    holds that index in memory: about 200 bytes a polygon.
    """

    def __init__(self, path: Path, attributes: Attributes, crs: pyproj.CRS | None) -> None:
        """Create the waiting table."""
        self._path, self._crs = path, None if crs is None else crs.to_wkt()
        self._type = _geometry_type(attributes)
        self._rows = _Rows(path.with_name("rows.gpkg"), attributes, crs, layer=layer_name(path), index=False)

    def add(self, features: Features) -> int:
        """Take one group and return how many polygons it had."""
        return self._rows.add(features)

    def finish(self) -> None:
        """Stream the rows into the file.

        Raises:
            OutputError: rows are missing (GDAL did not say that a write failed).
        """
        with _no_crs_is_meant(), pyogrio.open_arrow(self._rows.path, use_pyarrow=False) as (meta, stream):
            pyogrio.write_arrow(
                stream,
                self._path,
                driver="FlatGeobuf",
                layer=self._rows.layer,
                geometry_name=meta["geometry_name"],
                geometry_type=self._type,
                crs=self._crs,
            )
        self._rows.path.unlink()
        _expect(pyogrio.read_info(self._path, force_feature_count=True)["features"], self._rows.rows)

    def abandon(self) -> None:
        """Nothing is open between groups."""


class GeoParquet:
    """A GeoParquet 1.1 file under construction, one row group per group."""

    def __init__(self, path: Path, attributes: Attributes, crs: pyproj.CRS | None) -> None:
        """Open the file.

        Raises:
            OutputError: pyarrow is not installed.
        """
        check_parquet(path.name)
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._attributes, self._crs = attributes, crs
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self._schema = pa.schema(
            [*((name, _arrow_type(pa, kind)) for name, kind in attributes.schema), ("geometry", pa.binary())]
        )
        self._writer = pq.ParquetWriter(path, self._schema)

    def add(self, features: Features) -> int:
        """Write one group and return how many polygons it had."""
        import pyarrow as pa

        columns: dict[str, Any] = self._attributes.columns(features)
        arrays = [pa.array(columns[f.name], f.type, from_pandas=True) for f in self._schema if f.name in columns]
        arrays.append(pa.array(shapely.to_wkb(features.geometry, byte_order=1), pa.binary()))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=len(features))
        bounds = shapely.total_bounds(features.geometry)
        self._bounds[:2] = np.fmin(self._bounds[:2], bounds[:2])
        self._bounds[2:] = np.fmax(self._bounds[2:], bounds[2:])
        return len(features)

    def finish(self) -> None:
        """Write the metadata that makes it GeoParquet and close the file."""
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon", "MultiPolygon"] if self._attributes.multipart else ["Polygon"],
            "crs": None if self._crs is None else self._crs.to_json_dict(),
            "edges": "planar",
        }
        if np.isfinite(self._bounds).all():
            column["bbox"] = self._bounds.tolist()
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        self._writer.add_key_value_metadata({"geo": json.dumps(geo)})
        self._writer.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(OSError):  # a full disk, and what it does not take was going to be thrown away
            self._writer.close()


def check_parquet(path: str | os.PathLike[str]) -> None:
    """Refuse a Parquet output where pyarrow is missing.

    Raises:
        OutputError: it is.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise OutputError(
            f"{path} needs pyarrow, which is not installed: run `pip install geoseg[parquet]`, or use .gpkg."
        )


def _geometry_type(attributes: Attributes) -> str:
    return "MultiPolygon" if attributes.multipart else "Polygon"


def _of_one_type(geometry: NDArray[Any], attributes: Attributes) -> NDArray[Any]:
    """Return geometries of the type of the layer: polygons become multipolygons of one part where some have more."""
    single = shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON
    if not attributes.multipart or not single.any():
        return geometry
    result = geometry.copy()
    result[single] = shapely.multipolygons(geometry[single], indices=np.arange(int(single.sum())))
    return result


@contextlib.contextmanager
def _no_crs_is_meant() -> Iterator[None]:
    """Silence the library where it warns of a layer without a CRS: the user asked for pixel coordinates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        yield


def _arrow_type(pa: Any, kind: str) -> pyarrow.DataType:
    return pa.string() if kind == "object" else pa.from_numpy_dtype(np.dtype(kind))


def _expect(found: int, wanted: int) -> None:
    if found != wanted:
        raise OSError(f"{found} of {wanted} polygons arrived in the file")
