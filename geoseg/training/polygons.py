"""Polygons of vector files, brought to the CRS of a scene: labels, and the areas that patches are drawn from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

from geoseg.errors import GeosegWarning, LabelsError, one_line, unknown_name
from geoseg.geodesy import pixel_size, projection
from geoseg.mending import refuse_tangled
from geoseg.references import refuse_vector_elsewhere
from geoseg.scene import Scene
from geoseg.source import placeless

if TYPE_CHECKING:
    import geopandas

_POLYGONS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)


def read_polygons(
    path: str, scene: Scene, *, field: str | None = None, repair: bool = False
) -> tuple[NDArray[np.object_], NDArray[np.object_] | None]:
    """Return the polygons of a vector file in the CRS of ``scene`` and, where asked for, one attribute of each.

    Heights are dropped, with a warning; features without a geometry are left out.

    Args:
        path: of the file.
        scene: whose CRS is wanted, and which the polygons must meet.
        field: name of the attribute.
        repair: mend invalid polygons instead of refusing them.

    Raises:
        LabelsError: unreadable, no CRS, no such attribute, lines or points, no polygon, an invalid one, or none that
            meets the scene.
    """
    frame = _read(path)
    if field is not None and field not in frame.columns:
        known = [str(name) for name in frame.columns if name != frame.geometry.name]
        raise LabelsError(f"{path}: {unknown_name('attribute', field, known)}")
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    shapes = frame.geometry.to_numpy()
    _refuse_kinds(path, shapes)
    if frame.crs is None:
        raise LabelsError(f"{path} has no CRS: assign one, so that it can be laid over the scene.")
    if shapely.has_z(shapes).any():
        warnings.warn(f"{path} has polygons with heights, which are left out.", GeosegWarning, stacklevel=2)
        shapes = shapely.force_2d(shapes)
    shapes = _valid(path, shapes, repair)
    turn = pyproj.Transformer.from_crs(frame.crs, projection(scene.geobox), always_xy=True)
    shapes = shapely.transform(shapes, lambda xy: np.column_stack(turn.transform(xy[:, 0], xy[:, 1])))
    if not np.isfinite(shapely.bounds(shapes)).all() or not shapely.intersects(shapes, footprint(scene)).any():
        raise LabelsError(
            f"{path} does not meet the scene {scene.path}: give labels of the same place, and check the CRS of both."
        )
    return shapes, None if field is None else frame[field].to_numpy(dtype=object)


def footprint(scene: Scene) -> shapely.Polygon:
    """Return the outline of the scene's grid in its CRS."""
    height, width = scene.shape
    return shapely.Polygon([scene.geobox.affine * xy for xy in ((0, 0), (width, 0), (width, height), (0, height))])


def burn(
    shapes: NDArray[np.object_],
    values: NDArray[np.uint8],
    affine: Affine,
    shape: tuple[int, int],
    *,
    fill: int,
    all_touched: bool = False,
) -> NDArray[np.uint8]:
    """Return ``values`` of polygons on a grid, the last one on top: (H, W) uint8, ``fill`` where there is none.

    ``affine`` leads from corners of pixels to the CRS of ``shapes``; it may turn and flip.
    """
    if len(shapes) == 0:
        return np.full(shape, fill, np.uint8)
    if all_touched:
        from geoseg.training.touched import mark_touched

        # The polygons by their numbers, so that of two the later one is on top wherever either is met.
        numbers = range(1, len(shapes) + 1)
        index = _burnt(zip(shapes, numbers, strict=True), affine, shape, 0, "int32")
        mark_touched(index, shapes, affine)
        found: NDArray[np.uint8] = np.concatenate([[fill], values]).astype(np.uint8)[index]
        return found
    return _burnt(zip(shapes, values.tolist(), strict=True), affine, shape, fill, "uint8")


def _burnt(
    pairs: Iterable[tuple[Any, int]], affine: Affine, shape: tuple[int, int], fill: int, dtype: str
) -> NDArray[Any]:
    """Return the values of the last polygons that hold the centres of pixels."""
    with placeless():
        return rasterize(list(pairs), out_shape=shape, transform=affine, fill=fill, dtype=dtype)


def borders(shapes: NDArray[np.object_], width_m: float, scene: Scene) -> NDArray[np.object_]:
    """Return what lies between polygons that are nearer than ``width_m`` metres of ground: one shape a pair.

    Around the place where two polygons meet, the border takes half the width from either.
    """
    reach = width_m * pixel_size(scene.geobox.affine)[0] / scene.resolution[0] / 2
    left, right = shapely.STRtree(shapes).query(shapes, predicate="dwithin", distance=2 * reach)
    left, right = left[left < right], right[left < right]
    grown = shapely.buffer(shapes, reach)
    between = shapely.intersection(grown[left], grown[right])
    kept = ~shapely.is_empty(between) & (shapely.area(between) > 0)
    result: NDArray[np.object_] = between[kept]
    return result


def _read(path: str) -> geopandas.GeoDataFrame:
    import geopandas

    if "://" not in path and not path.startswith("/vsi") and not os.path.exists(path):
        raise LabelsError(f"{path} does not exist: check the path of the polygons.")
    refuse_vector_elsewhere(path)
    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # pyogrio raises many kinds; the user needs one sentence
        raise LabelsError(
            f"{path} cannot be read as a vector file ({one_line(error)}): give GeoJSON or GeoPackage."
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise LabelsError(f"{path} holds a table without shapes: labels are polygons.")
    return frame


def _refuse_kinds(path: str, shapes: NDArray[Any]) -> None:
    others = shapes[~np.isin(shapely.get_type_id(shapes), _POLYGONS)]
    if len(others):
        raise LabelsError(
            f"{path} holds {others[0].geom_type} shapes ({len(others)} of {len(shapes)} are no polygons): labels are "
            "polygons; buffer lines and points, or leave them out."
        )
    if len(shapes) == 0:
        raise LabelsError(f"{path} holds no polygon: labels are polygons.")


def _valid(path: str, shapes: NDArray[Any], repair: bool) -> NDArray[Any]:
    bad = np.flatnonzero(~shapely.is_valid(shapes))
    if len(bad) == 0:
        return shapes
    if not repair:
        raise LabelsError(
            f"{path} has {len(bad)} invalid polygons, the first is feature {bad[0] + 1} "
            f"({shapely.is_valid_reason(shapes[bad[0]])}): mend them, or set data.repair to true."
        )
    refuse_tangled(path, shapes)
    shapes = shapes.copy()
    for i in bad:
        mended = shapely.make_valid(shapes[i], method="structure", keep_collapsed=False)
        shapes[i] = mended if mended.geom_type.endswith("Polygon") else shapely.Polygon()
    return shapes
