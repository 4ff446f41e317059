"""From a label raster to a polygon file: the last leg of a run, and a command of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geoseg.classes import Classes
from geoseg.engine.run import Progress
from geoseg.errors import ConfigError, SceneError
from geoseg.geodesy import ground_resolution, projection
from geoseg.source import gdal_environment, open_raster, refuse_truncated, resolve


@dataclass(frozen=True)
class Selection:
    """Which polygons are written: those of at least ``min_area`` m², not of classes to ``drop`` nor background."""

    min_area: float = 0.0
    drop: tuple[str, ...] = ()
    keep_background: bool = False

    def dropped_ids(self, classes: Classes) -> frozenset[int]:
        """Return the label values that are not written.

        Raises:
            LabelsError: a class to drop does not exist.
            ConfigError: ``min_area`` is negative.
        """
        if not self.min_area >= 0:
            raise ConfigError(f"--min-area {self.min_area} is not an area: give square metres, 0 or more.")
        ids = {classes.find(name).id for name in self.drop}
        if not self.keep_background:
            ids |= {item.id for item in classes if item.background}
        return frozenset(ids)


def write_polygons(
    raster: str | os.PathLike[str],
    out: Path,
    classes: Classes,
    *,
    confidence: tuple[str, int] | None,
    selection: Selection,
    workdir: Path,
    progress: Progress | None = None,
) -> int:
    """Write the polygons of a label raster (band 1) and return their number.

    Args:
        raster: labels, in any CRS.
        out: the format follows from the suffix.
        classes: what the label values mean.
        confidence: raster and band of confidence in thousandths, or None.
        selection: which polygons are written.
        workdir: folder for what does not fit in memory.
        progress: called with a stage, blocks done and blocks in all.

    Raises:
        LabelsError: a label value belongs to no class.
        OutputError: ``out`` cannot be written.
        SceneError: the raster has no CRS, or cannot be read.
    """
    from geoseg.outputs.polygons import write_features
    from geoseg.vector.vectorize import Shaping, vectorize_raster

    grid = _grid(os.fspath(raster))
    batches = vectorize_raster(
        raster,
        classes=classes,
        confidence=confidence,
        drop=selection.dropped_ids(classes),
        shaping=Shaping(min_area_m2=selection.min_area),
        workdir=workdir,
        progress=None if progress is None else lambda done, total: progress("polygons", done, total),
    )
    return write_features(
        out,
        batches,
        classes=classes,
        crs=projection(grid),
        pixel_m=min(ground_resolution(grid)),
        has_confidence=confidence is not None,
    )


def vectorize(
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    classes: Classes | None = None,
    min_area: float = 0.0,
    drop: Sequence[str] = (),
    keep_background: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the polygons of any class raster and return their number.

    Args:
        labels: an integer raster with a CRS; band 1 is read.
        out: .geojson, .geojsonl, .gpkg, .fgb or .parquet.
        classes: what the values mean; by default what the raster says of itself (written by geoseg, or a colour table
            with category names), else one class a value.
        min_area: polygons under this many m² are left out.
        drop: classes (names or ids) that are not written.
        keep_background: write background polygons too.
        overwrite: replace ``out``.
        progress: called with a stage, blocks done and blocks in all.

    Raises:
        SceneError, LabelsError, ConfigError, OutputError: bad input, or an output that cannot be written.
    """
    from geoseg.outputs.cog import read_classes
    from geoseg.outputs.polygons import check_output
    from geoseg.vector.vectorize import distinct_values

    target = Path(out)
    check_output(target, overwrite)
    name = resolve(labels)
    with gdal_environment(name), open_raster(name) as dataset:
        refuse_truncated(dataset)
    check_output(target, overwrite, crs=projection(_grid(name)))
    with gdal_environment(name), tempfile.TemporaryDirectory(prefix="geoseg-") as folder:
        if classes is None:
            classes = read_classes(name)
        if classes is None:
            values = distinct_values(name)
            classes = Classes.from_dicts({"id": value, "name": f"class {value}"} for value in values)
        return write_polygons(
            name,
            target,
            classes,
            confidence=None,
            selection=Selection(min_area, tuple(drop), keep_background),
            workdir=Path(folder),
            progress=progress,
        )


def _grid(path: str) -> GeoBox:
    with gdal_environment(path), open_raster(path) as dataset:
        if not dataset.crs:
            raise SceneError(
                f"{path} has no CRS: assign one first, for example with `rio edit-info --crs EPSG:… {path}`."
            )
        return GeoBox(dataset.shape, dataset.transform, CRS(dataset.crs.to_wkt()))
