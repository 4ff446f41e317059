"""Areas of interest: polygons of a vector file, brought to the CRS of a scene."""

from __future__ import annotations

import os

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from geoseg.errors import SceneError, one_line
from geoseg.geodesy import projection
from geoseg.mending import refuse_tangled
from geoseg.references import refuse_vector_elsewhere
from geoseg.scene import Scene

# Edges of an area are cut to this share of its extent before they are warped, for a straight edge need not stay one.
_EDGE_SHARE = 1 / 200


def read_aoi(path: str | os.PathLike[str], scene: Scene) -> bytes:
    """Return the union of the polygons in ``path`` as WKB in the CRS of ``scene``.

    Raises:
        SceneError: the file cannot be read, holds no polygon, has no CRS, or misses the scene.
    """
    import geopandas

    name = os.fspath(path)
    if not os.path.exists(name):
        raise SceneError(f"{name} does not exist: check the path of the area of interest.")
    refuse_vector_elsewhere(name)
    try:
        frame = geopandas.read_file(name)
    except Exception as error:  # pyogrio raises many kinds; the user needs one sentence
        raise SceneError(f"{name} cannot be read as a vector file ({one_line(error)}).") from error
    shapes = frame.geometry.to_numpy()
    shapes = shapes[
        np.isin(shapely.get_type_id(shapes), [shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON])
    ]
    if len(shapes) == 0:
        raise SceneError(f"{name} holds no polygon: an area of interest is made of polygons.")
    if frame.crs is None:
        raise SceneError(f"{name} has no CRS: assign one, so that it can be laid over the scene.")
    refuse_tangled(name, shapes)
    area = shapely.union_all(shapely.make_valid(shapes))
    west, south, east, north = shapely.bounds(area)
    area = shapely.segmentize(area, max(east - west, north - south) * _EDGE_SHARE)
    turn = pyproj.Transformer.from_crs(frame.crs, projection(scene.geobox), always_xy=True)
    area = shapely.transform(area, lambda xy: _columns(turn, xy))
    refuse_tangled(name, np.array([area]))
    area = shapely.make_valid(area)
    if not shapely.intersects(area, footprint(scene)):
        raise SceneError(f"{name} does not meet the scene {scene.path}: give an area that overlaps it.")
    return bytes(shapely.to_wkb(area))


def footprint(scene: Scene) -> shapely.Polygon:
    """Return the outline of the scene's grid in its CRS."""
    height, width = scene.shape
    return shapely.Polygon([scene.geobox.affine * xy for xy in ((0, 0), (width, 0), (width, height), (0, height))])


def _columns(turn: pyproj.Transformer, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack(turn.transform(xy[:, 0], xy[:, 1]))
