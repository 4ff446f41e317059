"""Coarse labels of a scene on any grid: the cells of a raster, or polygons, with the coarse class of each."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.windows import Window as RasterioWindow

from geoseg.errors import LabelsError
from geoseg.geodesy import projection
from geoseg.scene import Scene
from geoseg.source import OpenPerThread, gdal_environment, open_raster, placeless, reading
from geoseg.training.blocks import Blocks, CellGrid
from geoseg.training.coarse_config import CoarseSourceConfig
from geoseg.training.coarse_tables import CoarseTable, read_table
from geoseg.training.config import VECTOR, TrainConfig
from geoseg.training.polygons import read_polygons

# Blocks of fewer pixels than these say what single pixels are: those are fine labels.
_FEWEST_PIXELS = 4
# What stands for classes that teach nothing: they need no statistics, and their blocks are none.
NOTHING = -1


class CoarseLabels(ABC):
    """What is known of a scene coarsely."""

    @abstractmethod
    def blocks(self, affine: Affine, shape: tuple[int, int]) -> Blocks:
        """Return the blocks of a grid; pixels of none, and of coarse classes that teach nothing, have -1.

        ``affine`` leads from corners of pixels to the scene's CRS; it may turn and flip.

        Raises:
            LabelsError: a coarse class without statistics.
        """

    @abstractmethod
    def areas(self, blocks: Blocks, affine: Affine) -> NDArray[np.float64]:
        """Return the areas (B,) of whole blocks in pixels of the grid."""


@dataclass(frozen=True)
class RasterCells(OpenPerThread, CoarseLabels):
    """The cells of a coarse raster.

    Attributes:
        path: of the raster.
        cells: its grid.
        crs: of the scene.
        rows: row in the table of each code, :data:`NOTHING` for those that teach nothing.
    """

    path: str
    cells: CellGrid
    crs: pyproj.CRS
    rows: Mapping[str, int]
    _open: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    def blocks(self, affine: Affine, shape: tuple[int, int]) -> Blocks:
        """Return the cells that centres of pixels lie in."""
        row, col = self.cells.cells(self.crs, affine, shape)
        ids, numbers = np.unique(self.cells.ids(row, col), return_inverse=True)
        classes = np.full(len(ids), NOTHING, np.int16)
        inside = ids >= 0
        classes[inside] = self._classes(ids[inside])
        return _kept(ids, numbers.reshape(shape), classes)

    def areas(self, blocks: Blocks, affine: Affine) -> NDArray[np.float64]:
        """Return the areas of cells as they lie on the grid."""
        return self.cells.areas(blocks.ids, self.crs, affine)

    def values(self, ids: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the values (B,) of cells, and where they are not nodata, from the part of the raster they are in."""
        rows, cols = np.divmod(ids, self.cells.shape[1])
        top, left = int(rows.min()), int(cols.min())
        window = RasterioWindow(left, top, int(cols.max()) - left + 1, int(rows.max()) - top + 1)
        with gdal_environment(self.path), reading(self.path, "coarse labels"):
            source = getattr(self._open, "dataset", None)
            if source is None:
                source = self._open.dataset = open_raster(self.path)
            values, known = source.read(1, window=window), source.read_masks(1, window=window)
        place = (rows - top, cols - left)
        return values[place], known[place] > 0

    def _classes(self, ids: NDArray[np.int64]) -> NDArray[np.int16]:
        if not len(ids):
            return np.zeros(0, np.int16)
        values, known = self.values(ids)
        different, inverse = np.unique(values, return_inverse=True)
        codes = [code_of(value) for value in different.tolist()]
        _refuse_unknown(self.path, {codes[i] for i in np.unique(inverse[known])}, self.rows)
        rows = np.full(len(codes), NOTHING, np.int16)
        for i in np.unique(inverse[known]):
            rows[i] = self.rows[codes[i]]
        return np.where(known, rows[inverse], NOTHING).astype(np.int16)


@dataclass(frozen=True)
class Polygons(CoarseLabels):
    """Polygons with a coarse class each, in the scene's CRS; where two lie over each other, the later one counts."""

    shapes: NDArray[np.object_]
    classes: NDArray[np.int16]
    tree: shapely.STRtree

    def blocks(self, affine: Affine, shape: tuple[int, int]) -> Blocks:
        """Return the polygons that centres of pixels lie in."""
        height, width = shape
        corners = ((0, 0), (width, 0), (width, height), (0, height))
        near = np.sort(self.tree.query(shapely.Polygon([affine * xy for xy in corners])))
        numbers = np.full(shape, -1, np.int32)
        if len(near):
            pairs = [(self.shapes[i], int(i)) for i in near]
            with placeless():
                numbers = rasterize(pairs, out_shape=shape, transform=affine, fill=-1, dtype="int32")
        ids, inverse = np.unique(numbers.astype(np.int64), return_inverse=True)
        classes = np.where(ids >= 0, self.classes[ids.clip(min=0)], NOTHING).astype(np.int16)
        return _kept(ids, inverse.reshape(shape), classes)

    def areas(self, blocks: Blocks, affine: Affine) -> NDArray[np.float64]:
        """Return the areas of polygons as they lie on the grid."""
        found: NDArray[np.float64] = shapely.area(self.shapes[blocks.ids]) / abs(affine.determinant)
        return found


def _kept(ids: NDArray[np.int64], numbers: NDArray[Any], classes: NDArray[np.int16]) -> Blocks:
    """Return blocks without those that teach nothing."""
    kept = classes >= 0
    places = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    return Blocks(places[numbers], ids[kept], classes[kept])


class AnyCode(dict[str, int]):
    """Rows of a table that is yet to be made: every code that is asked for gets the next one.

    Args:
        ignore: codes that teach nothing.

    Attributes:
        names: the codes in the order of their rows.
    """

    def __init__(self, ignore: Collection[str] = ()) -> None:
        super().__init__(dict.fromkeys(ignore, NOTHING))
        self.names: list[str] = []

    def __missing__(self, code: str) -> int:
        """Give the code a row."""
        self.names.append(code)
        self[code] = len(self.names) - 1
        return self[code]


def open_coarse(path: str, scene: Scene, source: CoarseSourceConfig, table: CoarseTable) -> CoarseLabels:
    """Open coarse labels of a scene: a vector file by its suffix or, failing that, a raster.

    Raises:
        LabelsError: unreadable, elsewhere than the scene, without CRS, as fine as the scene, or with a coarse class
            that has no statistics.
        SceneError: a raster that cannot be opened.
    """
    rows = {code: z if table.weights[z] > 0 else NOTHING for z, code in enumerate(table.codes)}
    rows |= {str(code): NOTHING for code in (*table.unusable, *source.ignore)}
    return open_coarse_codes(path, scene, source, rows)


def open_coarse_codes(path: str, scene: Scene, source: CoarseSourceConfig, rows: Mapping[str, int]) -> CoarseLabels:
    """Do what :func:`open_coarse` does with rows of codes in place of a table.

    Raises:
        LabelsError, SceneError: as there.
    """
    if path.lower().split("?")[0].endswith(VECTOR):
        return _polygons(path, scene, source, rows)
    return _raster(path, scene, rows)


def open_table(source: CoarseSourceConfig, config: TrainConfig) -> CoarseTable:
    """Return the table of a source, with its own weights.

    Raises:
        LabelsError: it cannot be used.
        ConfigError: a weight of a class that it has not.
    """
    from geoseg.training.coarse_tables import SHIPPED

    path = source.table if source.table in SHIPPED else config.path(source.table)
    intervals = source.form != "gaussian"
    table = read_table(path, config.data.table(), means=source.means, intervals=intervals)
    return table.weighted(source.weights)


def _polygons(path: str, scene: Scene, source: CoarseSourceConfig, rows: Mapping[str, int]) -> Polygons:
    if source.class_field is None:
        raise LabelsError(f"{path} holds polygons: name the attribute that says their coarse class as class_field.")
    shapes, told = read_polygons(path, scene, field=source.class_field, repair=True)
    assert told is not None
    codes = [None if value is None or value != value else code_of(value) for value in told.tolist()]
    _refuse_unknown(path, {code for code in codes if code is not None}, rows)
    classes = [NOTHING if code is None else rows[code] for code in codes]
    return Polygons(shapes, np.array(classes, np.int16), shapely.STRtree(shapes))


def _raster(path: str, scene: Scene, rows: Mapping[str, int]) -> RasterCells:
    crs = projection(scene.geobox)
    with gdal_environment(path), open_raster(path) as dataset:
        if dataset.crs is None:
            raise LabelsError(f"{path} has no CRS: assign one, so that it can be laid over the scene.")
        own = pyproj.CRS.from_wkt(dataset.crs.to_wkt())
        cells = CellGrid(own, dataset.transform, (dataset.height, dataset.width))
    place = _footprint_in(cells, crs, scene)
    shared = shapely.intersection(place, shapely.box(0, 0, cells.shape[1], cells.shape[0]))
    if shared.is_empty or not shared.area:
        raise LabelsError(
            f"{path} does not meet the scene {scene.path}: give coarse labels of the same place, and check the CRS of "
            "both."
        )
    inside = shared.representative_point()
    one = cells.ids(np.array([int(inside.y)]), np.array([int(inside.x)]))
    area = float(cells.areas(one, crs, scene.geobox.affine)[0])
    if area < _FEWEST_PIXELS:
        raise LabelsError(
            f"a cell of {path} covers {area:.2g} pixels of {scene.path}, which is no coarse label: give it as "
            "`labels`, or make data.resolution finer."
        )
    return RasterCells(path, cells, crs, rows)


def _footprint_in(cells: CellGrid, crs: pyproj.CRS, scene: Scene) -> shapely.Polygon:
    """Return the outline of a scene in columns and rows of cells, empty where it lies beyond what their CRS reaches."""
    height, width = scene.shape
    ring = shapely.segmentize(shapely.box(0, 0, width, height), max(height, width) / 16).exterior
    cols, rows = shapely.get_coordinates(ring).T
    row, col = cells.places(crs, scene.geobox.affine, rows, cols)
    if not np.isfinite([row, col]).all():
        return shapely.Polygon()
    return shapely.make_valid(shapely.Polygon(np.column_stack([col, row])))


def code_of(value: Any) -> str:
    """Return a coarse class as a table writes it."""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value).strip()


def _refuse_unknown(path: str, codes: set[str], rows: Mapping[str, int]) -> None:
    unknown = [] if isinstance(rows, AnyCode) else sorted(codes - rows.keys())
    if unknown:
        raise LabelsError(
            f"{path} has the coarse class {', '.join(unknown[:8])}, of which the table says nothing (it has "
            f"{', '.join(list(rows)[:24])}): add statistics, or name it in `ignore`."
        )
