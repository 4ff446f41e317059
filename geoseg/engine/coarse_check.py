"""Where a prediction contradicts a coarse map: how far the shares of classes in each block are off its coarse class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from geoseg.classes import Classes
from geoseg.errors import ConfigError, LabelsError
from geoseg.geodesy import projection
from geoseg.outputs.cog import read_classes
from geoseg.outputs.qgis import write_residual_style
from geoseg.outputs.staging import check_place, staged, writing
from geoseg.scene import Scene, open_scene
from geoseg.training.coarse_config import CoarseSourceConfig
from geoseg.training.coarse_labels import Polygons, RasterCells, open_coarse
from geoseg.training.coarse_stats import count_blocks
from geoseg.training.coarse_tables import CoarseTable, read_table
from geoseg.training.config import DataConfig
from geoseg.training.labels import open_labels

# As in the loss: what smaller deviations are raised to, and what is added to variances.
_LEAST_DEVIATION, _EPS = 0.01, 1e-6
# The name of what is largest in size, beside those of classes.
_LARGEST = "largest"
# Standard deviations beyond which a block is said to contradict the prediction.
FAR = 4.0

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CoarseCheck:
    """What was found.

    Attributes:
        table: of the coarse classes.
        rows: (B,), row in the table of each block.
        shares: (B, K), of the predicted classes.
        residuals: (B, K), (share − mean) / deviation.
    """

    table: CoarseTable
    rows: NDArray[np.int64]
    shares: NDArray[np.float64]
    residuals: NDArray[np.float64]

    @property
    def far(self) -> NDArray[np.bool_]:
        """Blocks that are more than :data:`FAR` deviations off in a class, (B,)."""
        result: NDArray[np.bool_] = np.abs(self.residuals).max(1) > FAR
        return result


def coarse_check(
    prediction: str | os.PathLike[str],
    coarse: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    table: str,
    classes: Classes | str | None = None,
    coarse_field: str | None = None,
    ignore: Sequence[int | str] = (),
    min_block_fraction: float = 0.5,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CoarseCheck:
    """Compare the shares of classes in blocks with what is known of their coarse class, and map the difference.

    A raster of coarse classes gives a GeoTIFF of its cells: a band of residuals for each class, in standard deviations,
    and a last one of the largest in size, NaN where the prediction does not show enough of a cell.  Polygons give a
    GeoPackage with the same as attributes.  A style beside it shows the last one in QGIS.

    Args:
        prediction: a label raster, as ``predict`` writes it.
        coarse: raster of coarse classes or polygons, in any CRS.
        output: a ``.tif`` for a raster, a ``.gpkg`` for polygons.
        table: what coarse classes are made of.
        classes: of the prediction, where the file does not say them.
        coarse_field: attribute of polygons that says their coarse class.
        ignore: coarse classes that are left out.
        min_block_fraction: least share of a block that must have been predicted.
        overwrite: replace an existing file.
        progress: told the stage, steps done, and steps in all.

    Raises:
        SceneError, LabelsError: files that cannot be used or do not overlap.
        ConfigError: an output of another kind.
        OutputError: it cannot be written.
    """
    target = Path(output)
    check_place(target, overwrite)
    path = os.fspath(prediction)
    scene = open_scene(path, bands=[1])
    known = Classes.parse(classes) if isinstance(classes, str) else classes or read_classes(path)
    if known is None:
        raise LabelsError(f"{path} does not say what its classes are: name them with `classes`.")
    told = read_table(table, known)
    source = CoarseSourceConfig(table=table, class_field=coarse_field, ignore=list(ignore))
    blocks = open_coarse(os.fspath(coarse), scene, source, told)
    suffix = ".tif" if isinstance(blocks, RasterCells) else ".gpkg"
    if target.suffix.lower() != suffix:
        raise ConfigError(f"{target} is to hold a check of {os.fspath(coarse)}: let its name end in {suffix}.")
    data = DataConfig.model_validate({"scenes": [{"image": path, "labels": path}], "classes": known.as_dicts()})
    counts, areas = count_blocks(scene, blocks, open_labels(path, scene, data), len(known), progress=progress)
    pixels = counts.counts[:, :-1].sum(1)
    kept = (pixels > 0) & (pixels >= min_block_fraction * areas)
    if not kept.any():
        raise LabelsError(f"{path} does not show {min_block_fraction:.0%} of any block of {os.fspath(coarse)}.")
    rows, shares = counts.codes[kept], counts.counts[kept, :-1] / pixels[kept, None]
    deviation = np.sqrt(told.deviations.clip(min=_LEAST_DEVIATION) ** 2 + _EPS)
    found = CoarseCheck(told, rows, shares, (shares - told.means[rows]) / deviation[rows])
    with staged(target) as temporary, writing(target):
        if isinstance(blocks, RasterCells):
            _write_cells(temporary, blocks, counts.ids[kept], found)
            write_residual_style(temporary, target, band=len(_columns(found)))
        elif isinstance(blocks, Polygons):
            _write_polygons(temporary, blocks, scene, counts.ids[kept], found)
            write_residual_style(temporary, target, attribute=f"residual_{_LARGEST}")
    return found


def _columns(found: CoarseCheck) -> dict[str, NDArray[Any]]:
    """Return residuals by name, the one that is largest in size last."""
    largest = np.abs(found.residuals).argmax(1)
    columns = dict(zip(found.table.classes, found.residuals.T, strict=True))
    return columns | {_LARGEST: found.residuals[np.arange(len(largest)), largest]}


def _write_cells(path: Path, blocks: RasterCells, ids: NDArray[np.int64], found: CoarseCheck) -> None:
    rows, cols = np.divmod(ids, blocks.cells.shape[1])
    top, left = int(rows.min()), int(cols.min())
    columns = _columns(found)
    values = np.full((len(columns), int(rows.max()) - top + 1, int(cols.max()) - left + 1), np.nan, np.float32)
    for layer, residuals in zip(values, columns.values(), strict=True):
        layer[rows - top, cols - left] = residuals
    with rasterio.open(
        path, "w", driver="GTiff", dtype="float32", count=len(values), height=values.shape[1], width=values.shape[2],
        crs=rasterio.crs.CRS.from_wkt(blocks.cells.crs.to_wkt()), nodata=np.nan, compress="deflate", predictor=3,
        transform=blocks.cells.affine * Affine.translation(left, top),
    ) as file:  # fmt: skip
        file.write(values)
        for band, name in enumerate(columns, 1):
            file.set_band_description(band, name)


def _write_polygons(path: Path, blocks: Polygons, scene: Scene, ids: NDArray[np.int64], found: CoarseCheck) -> None:
    codes = [found.table.codes[row] for row in found.rows]
    columns = {"coarse_class": codes, **{f"residual_{name}": values for name, values in _columns(found).items()}}
    frame = geopandas.GeoDataFrame(columns, geometry=blocks.shapes[ids], crs=projection(scene.geobox))
    frame.to_file(path, driver="GPKG")
