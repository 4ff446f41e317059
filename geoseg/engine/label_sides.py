"""The two sides of a comparison: a label raster or a vector file of class polygons, brought to one grid."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.classes import MAX_CLASSES, Classes
from geoseg.engine.class_matching import Entry, Table, entries_of
from geoseg.engine.nearest import Place
from geoseg.errors import LabelsError, SceneError, one_line
from geoseg.mending import refuse_tangled
from geoseg.references import refuse_vector_elsewhere
from geoseg.source import gdal_environment, is_remote, open_raster, resolve
from geoseg.vector.labels import LabelRaster, open_labels
from geoseg.vector.vectorize import distinct_values

if TYPE_CHECKING:
    import geopandas

_VECTORS = {
    *(".geojson", ".json", ".geojsonl", ".geojsons", ".ndjson", ".gpkg", ".fgb", ".parquet", ".shp", ".gml", ".kml"),
}
# A class of its own is what a feature has whose attribute is empty or 255: its pixels are left out.
NO_CLASS: Hashable = ("no class",)
_BLOCK = 2048
# Edges of polygons are cut to this many pixels before they are warped, for a straight edge need not stay one.
_EDGE_PX = 64.0
# Edges are cut at each step of that many pixels: so many vertices take a gigabyte.
_MOST_VERTICES = 20_000_000


@dataclass(frozen=True)
class RasterSide:
    """A label raster.

    Attributes:
        raster: what is read.
        place: where it lies.
        classes: what its values are, for reading.
        table: its classes, for matching.
    """

    raster: LabelRaster
    place: Place
    classes: Classes
    table: Table


@dataclass(frozen=True)
class VectorSide:
    """Class polygons.

    Attributes:
        path: the file.
        geometry: (N,) valid polygons and multipolygons in pixel coordinates of the grid, whole.
        keys: (N,) what stands for the class of each, as in ``table``; :data:`NO_CLASS` where it has none.
        table: the classes.
        attributes: what the features have, by name.
    """

    path: str
    geometry: NDArray[np.object_]
    keys: list[Hashable]
    table: Table
    attributes: tuple[str, ...]


def is_vector(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` looks like a vector file: by its suffix."""
    return Path(path).suffix.lower() in _VECTORS


def open_raster_side(path: str | os.PathLike[str], *, numbered: Classes | None = None) -> RasterSide:
    """Open a label raster and find its classes: those it tells, else ``numbered``, else one a value.

    Raises:
        SceneError: unreadable, or without a CRS.
        LabelsError: no integers, no labels at all, or too many values.
    """
    from geoseg.outputs.cog import read_classes

    name = resolve(path)
    with gdal_environment(name), open_raster(name) as dataset:
        if not dataset.crs:
            raise SceneError(
                f"{name} has no CRS: assign one first, for example with `rio edit-info --crs EPSG:… FILE`."
            )
        crs = pyproj.CRS.from_wkt(dataset.crs.to_wkt())
    raster = open_labels(name)
    place = Place(raster.shape, raster.affine, crs)
    classes = read_classes(raster.path) or numbered
    if classes is not None:
        return RasterSide(raster, place, classes, Table(raster.path, entries_of(classes)))
    values = distinct_values(raster.path, block=_BLOCK)
    classes = Classes.from_dicts({"id": value, "name": f"class {value}"} for value in values)
    return RasterSide(raster, place, classes, Table(raster.path, tuple(Entry(value, value) for value in values)))


def read_vector_side(
    path: str | os.PathLike[str],
    grid: GeoBox,
    *,
    attribute: str | None,
    one_class: str | None,
    class_first: bool,
    fills: bool,
    other: str,
) -> VectorSide:
    """Read the polygons of a vector file that meet ``grid``.

    Args:
        path: the file.
        grid: where they are wanted.
        attribute: the attribute that tells classes; ``class_id`` with ``class_name``, or ``class``, if None or if the
            file does not have it.
        one_class: name or number of the one class of all features.
        class_first: whether that holds although the file tells classes.
        fills: whether pixels in no polygon are background.
        other: the file on the other side, for messages.

    Raises:
        SceneError: unreadable, without a CRS, without polygons, or nowhere near the grid.
        LabelsError: an attribute that does not tell classes.
    """
    name = os.fspath(path)
    frame = read_frame(name, grid)
    shapes, kept = polygons_on_grid(name, frame, grid, other)
    frame = frame[kept]
    entries, keys = _classes_of(name, frame, attribute, one_class, class_first)
    table = Table(name, entries, fills, empty=len(shapes) == 0)
    return VectorSide(name, shapes, keys, table, tuple(str(column) for column in frame.columns))


def read_frame(path: str, grid: GeoBox | None = None) -> geopandas.GeoDataFrame:
    """Read the features of a vector file, of those of a grid where one is given and the format allows it.

    Raises:
        SceneError: missing, unreadable, or without a CRS.
    """
    import geopandas

    if not is_remote(path) and not path.startswith("/vsi") and not os.path.exists(path):
        raise SceneError(f"{path} does not exist: check the path.")
    near = None
    if grid is not None:
        height, width = Place.of(grid).shape
        margin = 0.05 * max(height, width) + 8
        corners = [(-margin, -margin), (width + margin, -margin), (width + margin, height + margin), (-margin, height)]
        near = geopandas.GeoSeries([shapely.Polygon([grid.affine * xy for xy in corners])], crs=Place.of(grid).crs)
    refuse_vector_elsewhere(path)
    try:
        if path.lower().endswith(".parquet"):
            frame = geopandas.read_parquet(path)
        else:
            layer = _layer(path)
            frame = geopandas.read_file(path, layer=layer, bbox=near)
            if near is not None and len(frame) == 0:
                # Whether the file is empty or lies elsewhere is for the caller to tell.
                frame = geopandas.read_file(path, layer=layer)
    except ImportError as error:
        raise SceneError(f"{path} needs pyarrow: pip install 'geoseg[parquet]'.") from error
    except Exception as error:  # pyogrio and pyarrow raise many kinds; the user needs one sentence
        raise SceneError(f"{path} cannot be read as a vector file ({one_line(error)}).") from error
    if not isinstance(frame, geopandas.GeoDataFrame) or frame.crs is None:
        raise SceneError(f"{path} has no geometries with a CRS: give it one, so that it can be laid over a grid.")
    return frame


def _layer(path: str) -> str:
    """Return the first layer with geometries, else the first (a GeoPackage keeps styles in a layer of their own)."""
    import pyogrio

    layers = pyogrio.list_layers(path).tolist()
    return str(next((name for name, kind in layers if kind is not None), layers[0][0]))


def polygons_on_grid(
    path: str, frame: geopandas.GeoDataFrame, grid: GeoBox, other: str
) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Return the polygons of ``frame`` that meet the grid, in its pixel coordinates, and which features they are.

    Invalid polygons are mended, heights dropped; points and lines are passed over.

    Raises:
        SceneError: there are features, but none is a polygon, or none lies on the grid.
    """
    shapes = shapely.force_2d(frame.geometry.to_numpy())
    kept = np.isin(shapely.get_type_id(shapes), [3, 6]) & ~shapely.is_empty(shapes)
    if len(shapes) and not kept.any():
        raise SceneError(f"{path} holds no polygon: only polygons can be compared.")
    place = Place.of(grid)
    refuse_tangled(path, shapes[kept])
    placed = _in_pixels(path, _valid(shapes[kept]), frame.crs, place)
    height, width = place.shape
    meets = shapely.intersects(placed, shapely.box(0, 0, width, height)) & (shapely.area(placed) > 0)
    if len(placed) and not meets.any():
        raise SceneError(f"{path} does not overlap {other}: give files of the same place.")
    kept[kept] = meets
    return placed[meets], kept


def _in_pixels(path: str, shapes: NDArray[np.object_], crs: Any, place: Place) -> NDArray[np.object_]:
    """Return polygons in the pixel coordinates of a grid."""
    back = ~place.affine
    own = pyproj.CRS.from_user_input(crs)
    if own.equals(place.crs, ignore_axis_order=True):
        return shapely.transform(shapes, lambda xy: np.column_stack(back * (xy[:, 0], xy[:, 1])))
    turn = pyproj.Transformer.from_crs(own, place.crs, always_xy=True)

    def placed(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = turn.transform(xy[:, 0], xy[:, 1])
        pixels: NDArray[np.float64] = np.column_stack(back * (x, y))
        return np.where(np.isfinite(pixels), pixels, 1e9)

    height, width = place.shape
    x, y = zip(*(place.affine * xy for xy in ((0, 0), (width, 0), (0, height), (width, height))), strict=True)
    west, south, east, north = turn.transform_bounds(min(x), min(y), max(x), max(y), direction="INVERSE")
    step = max(abs(east - west) / width, abs(north - south) / height) * _EDGE_PX
    if np.isfinite(step) and step > 0:
        if not shapely.length(shapes).sum() / step < _MOST_VERTICES:
            raise SceneError(f"{path} has outlines too long for the pixels of the other side: cut it to the place.")
        shapes = shapely.segmentize(shapes, step)
    return _valid(shapely.transform(shapes, placed))


def _valid(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Return the shapes with invalid ones mended; what is left of a mended one are its polygons."""
    bad = np.flatnonzero(~shapely.is_valid(shapes))
    if len(bad) == 0:
        return shapes
    shapes = shapes.copy()
    for index in bad:
        parts = shapely.get_parts(shapely.make_valid(shapes[index]))
        parts = shapely.get_parts(parts[np.isin(shapely.get_type_id(parts), [3, 6])])
        shapes[index] = shapely.multipolygons(parts)
    return shapes


def _classes_of(
    path: str, frame: geopandas.GeoDataFrame, attribute: str | None, one_class: str | None, class_first: bool
) -> tuple[tuple[Entry, ...], list[Hashable]]:
    """Return the classes of features and, for each, the key of its class."""
    columns = [str(c) for c in frame.columns if c != frame.geometry.name]
    if attribute is not None and attribute in columns:
        return _told_by(path, attribute, frame[attribute].tolist())
    own = next((c for c in ("class_id", "class_name", "class") if c in columns), None)
    if one_class is not None and (class_first or own is None):
        key = one_class.strip()
        entry = Entry(key, id=int(key)) if key.isdigit() else Entry(key, name=key)
        return (entry,), [key] * len(frame)
    if own == "class_id" and "class_name" in columns:
        entries, keys = _told_by(path, own, frame[own].tolist())
        names = dict(zip(keys, frame["class_name"].tolist(), strict=True))
        named = (Entry(e.key, e.id, str(names[e.key]) if names[e.key] is not None else None) for e in entries)
        return tuple(named), keys
    if own is not None:
        return _told_by(path, own, frame[own].tolist())
    if attribute is not None:
        raise LabelsError(f"{path} has no attribute {attribute!r}: its attributes are {', '.join(columns) or 'none'}.")
    return (), [None] * len(frame)


def _told_by(path: str, attribute: str, values: list[Any]) -> tuple[tuple[Entry, ...], list[Hashable]]:
    """Return the classes that an attribute tells: numbers, or names if any value is no number."""
    keys: list[Hashable] = [_key(value) for value in values]
    texts = [key for key in keys if isinstance(key, str)]
    if texts and all(text.isdigit() for text in texts):
        keys = [_key(int(key)) if isinstance(key, str) else key for key in keys]
        texts = []
    found = sorted({key for key in keys if key != NO_CLASS}, key=str)
    if len(found) > MAX_CLASSES:
        raise LabelsError(
            f"the attribute {attribute!r} of {path} has more than {MAX_CLASSES} values: it does not look like a class; "
            "name another with --class-field."
        )
    if texts:
        return tuple(Entry(key, name=str(key)) for key in found), keys
    numbers = [key for key in found if isinstance(key, int)]
    strange = next((key for key in found if not isinstance(key, int) or not 0 <= key < MAX_CLASSES), None)
    if strange is not None:
        raise LabelsError(
            f"the attribute {attribute!r} of {path} has the value {strange}: classes are names, or whole numbers "
            f"from 0 to {MAX_CLASSES - 1}; name another attribute with --class-field."
        )
    return tuple(Entry(key, id=key) for key in sorted(numbers)), keys


def _key(value: Any) -> Hashable:
    if value is None or value != value or value is np.ma.masked:
        return NO_CLASS
    if isinstance(value, str):
        return value.strip() or NO_CLASS
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not number.is_integer():
        return number
    return NO_CLASS if number == MAX_CLASSES else int(number)
