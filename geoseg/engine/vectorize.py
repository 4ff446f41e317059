"""From a label raster to a polygon file: the last leg of a run, and a command of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from geoseg.classes import Classes, default_color
from geoseg.engine.selection import Selection
from geoseg.geodesy import ground_lengths, pixel_size
from geoseg.places import Place, place_of
from geoseg.source import gdal_environment, open_raster, placeless, refuse_truncated, resolve

if TYPE_CHECKING:
    from geoseg.engine.run import Progress
    from geoseg.vector.features import Features
    from geoseg.vector.labels import LabelRaster
    from geoseg.vector.zonal_spool import Statistic


@dataclass(frozen=True)
class Written:
    """What was written: the number of polygons, of those regularised, and the mean IoU of these with the raw ones."""

    polygons: int
    regularized: int = 0
    mean_iou: float = float("nan")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        if not self.regularized:
            return ()
        outlines = "1 outline was" if self.regularized == 1 else f"{self.regularized} outlines were"
        return (
            f"{outlines} regularised (mean IoU with the raw ones {self.mean_iou:.3f}); they may overlap other classes "
            "or leave gaps beside them.",
        )


def write_polygons(
    raster: str | os.PathLike[str],
    out: Place,
    classes: Classes,
    *,
    confidence: tuple[str, int] | None,
    selection: Selection,
    band: int = 1,
    statistics: Sequence[Statistic] = (),
    pixel_coordinates: bool = False,
    workers: int = 1,
    block: int = 2048,
    workdir: Path,
    progress: Progress | None = None,
) -> Written:
    """Write the polygons of a label raster.

    Args:
        raster: labels, in any CRS.
        out: the format follows from the suffix.
        classes: what the label values mean.
        confidence: raster and band of confidence in thousandths, or None.
        selection: which polygons are written, and how they are shaped.
        band: band of the labels, from 1.
        statistics: rasters whose values are summed up over each polygon.
        pixel_coordinates: take a raster without a CRS.
        workers: threads that work on blocks; the result does not depend on them.
        block: side of the blocks in pixels; nor on it.
        workdir: folder for what does not fit in memory.
        progress: called with a stage, blocks done and blocks in all.

    Raises:
        LabelsError: a label value belongs to no class.
        ConfigError: a value of the selection is refused.
        OutputError: ``out`` cannot be written.
        SceneError: the raster has no CRS, or cannot be read.
    """
    from geoseg.outputs.polygons import write_features
    from geoseg.vector.labels import open_labels
    from geoseg.vector.vectorize import extra_columns, vectorize_raster

    shaping = selection.shaping(classes)
    batches = vectorize_raster(
        raster,
        classes=classes,
        band=band,
        confidence=confidence,
        drop=selection.dropped_ids(classes),
        shaping=shaping,
        statistics=statistics,
        pixel_coordinates=pixel_coordinates,
        block=block,
        workers=workers,
        workdir=workdir,
        progress=None if progress is None else lambda done, total: progress("polygons", done, total),
    )
    labels = open_labels(raster, band, pixel_coordinates=pixel_coordinates)
    ious: list[np.ndarray] = []
    count = write_features(
        out,
        _noting_agreement(batches, ious),
        classes=classes,
        crs=labels.crs,
        pixel_m=min(_pixel_m(labels)),
        has_confidence=confidence is not None,
        extra=extra_columns(shaping, statistics),
        multipart=shaping.connectivity == 8,
    )
    every = np.concatenate([np.empty(0), *ious])
    return Written(count, len(every), float(every.mean()) if len(every) else float("nan"))


def vectorize(
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    classes: Classes | None = None,
    names: str | os.PathLike[str] | None = None,
    band: int = 1,
    confidence: str | os.PathLike[str] | None = None,
    statistics: Sequence[str | Statistic] = (),
    min_area: float = 0.0,
    small: Literal["merge", "drop"] = "merge",
    fill_holes: float = 0.0,
    simplify: float | None = None,
    smooth: bool = False,
    connectivity: int = 4,
    regularize: bool = False,
    regularize_class: Sequence[str] = (),
    drop: Sequence[str] = (),
    only: Sequence[str] = (),
    keep_background: bool = False,
    pixel_coordinates: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> int:
    """Write the polygons of any class raster and return their number.

    Args:
        labels: an integer raster.
        out: .geojson, .geojsonl, .gpkg, .fgb or .parquet.
        classes: what the values mean; by default what the raster says of itself (written by geoseg, or a colour table
            with category names), else one class a value.
        names: a CSV or JSON file that says it: see :func:`geoseg.vector.value_names.read_value_names`.
        band: band of the labels, from 1.
        confidence: a raster on the same grid with the probability of each pixel's class.
        statistics: rasters whose mean, least, largest value, standard deviation and number of pixels are written for
            each polygon: ``F.tif``, ``F.tif:BAND`` or ``NAME=F.tif:BAND``; any grid and CRS.
        min_area: m², regions under it are not kept; see :class:`geoseg.engine.selection.Selection`, and so for all
            that follow up to ``keep_background``.
        small: there.
        fill_holes: m², there.
        simplify: metres, there.
        smooth: there.
        connectivity: there.
        regularize: there.
        regularize_class: there.
        drop: there.
        only: there.
        keep_background: there.
        pixel_coordinates: take a raster without a CRS: polygons come in its own coordinates (columns and rows, which
            count downwards, if it has no transform), areas and lengths are null.
        workers: threads that work on blocks; the result does not depend on them.
        overwrite: replace ``out``.
        progress: called with a stage, blocks done and blocks in all.
        tell: called with sentences that a user should read.

    Raises:
        SceneError, LabelsError, ConfigError, OutputError: bad input, or an output that cannot be written.
    """
    from geoseg.outputs.polygons import check_output
    from geoseg.vector.labels import open_labels
    from geoseg.vector.vectorize import extra_columns
    from geoseg.vector.zonal_spool import Statistic, refuse_same_columns

    target = place_of(out, new=not overwrite)
    check_output(target, overwrite)
    wanted = [item if isinstance(item, Statistic) else Statistic.parse(item) for item in statistics]
    selection = Selection(
        min_area,
        small,
        fill_holes,
        simplify,
        smooth,
        connectivity,
        regularize,
        tuple(regularize_class),
        tuple(drop),
        tuple(only),
        keep_background,
    )
    name = resolve(labels)
    with gdal_environment(name), open_raster(name) as dataset:
        refuse_truncated(dataset)
    sure = None if confidence is None else (resolve(confidence), 1)
    raster = open_labels(name, band, sure, pixel_coordinates=pixel_coordinates)
    check_output(target, overwrite, crs=raster.crs, placeless=raster.crs is None)
    with gdal_environment(name), tempfile.TemporaryDirectory(prefix="geoseg-") as folder:
        if classes is None:
            classes = _classes_of(raster, names)
        shaping = selection.shaping(classes)
        refuse_same_columns(wanted, [column for column, _ in (*_own_columns(), *extra_columns(shaping))])
        written = write_polygons(
            name,
            target,
            classes,
            confidence=sure,
            selection=selection,
            band=band,
            statistics=wanted,
            pixel_coordinates=pixel_coordinates,
            workers=workers,
            workdir=Path(folder),
            progress=progress,
        )
    for note in written.notes if tell is not None else ():
        tell(note)  # type: ignore[misc]
    return written.polygons


def _classes_of(raster: LabelRaster, value_names: str | os.PathLike[str] | None) -> Classes:
    """Return what the values of a raster mean: by a file, by what it says of itself, or one class a value."""
    from geoseg.outputs.cog import read_classes
    from geoseg.vector.value_names import read_value_names
    from geoseg.vector.vectorize import distinct_values

    if value_names is not None:
        return read_value_names(value_names, raster.nodata)
    with placeless():
        # Names are kept for the first band only.
        classes = read_classes(raster.path) if raster.band == 1 else None
    if classes is not None:
        return classes
    values = distinct_values(raster.path, band=raster.band, pixel_coordinates=raster.crs is None)
    colors = _color_table(raster)
    return Classes.from_dicts(
        {"id": value, "name": f"class {value}", "color": colors.get(value, default_color(position))}
        for position, value in enumerate(values)
    )


def _color_table(raster: LabelRaster) -> dict[int, str]:
    with open_raster(raster.path) as dataset:
        try:
            table = dataset.colormap(raster.band)
        except ValueError:  # it has none
            return {}
    return {value: "#{:02x}{:02x}{:02x}".format(*color[:3]) for value, color in table.items()}


def _own_columns() -> tuple[tuple[str, str], ...]:
    from geoseg.outputs.attributes import COLUMNS

    # Tables have a row number and a geometry besides.
    return (*COLUMNS, ("fid", "int64"), ("geom", "object"), ("geometry", "object"))


def _pixel_m(labels: LabelRaster) -> tuple[float, float]:
    """Return the size of a pixel in metres, or in its own unit where there is no CRS."""
    if labels.crs is None:
        return pixel_size(labels.affine)
    return ground_lengths(labels.shape, labels.affine, labels.crs)


def _noting_agreement(batches: Iterable[Features], ious: list[np.ndarray]) -> Iterator[Features]:
    """Pass batches on, and note how well regularised outlines agree with the raw ones."""
    from geoseg.vector.vectorize import REGULARIZED_IOU

    for batch in batches:
        agreement = batch.extra.get(REGULARIZED_IOU)
        if agreement is not None:
            ious.append(agreement[~np.isnan(agreement)])
        yield batch
