"""Segments get names from a table, in a saved model or in a raster of labels; those of one name become one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import rasterio

from geoseg.bundle import read_bundle
from geoseg.classes import Classes, LabelClass
from geoseg.engine.assemble import is_same_file
from geoseg.errors import BundleError, LabelsError, OutputError
from geoseg.source import gdal_environment, open_raster, reading
from geoseg.vector.value_names import read_value_items

_RASTERS = (".tif", ".tiff")


def name(
    source: str | os.PathLike[str],
    names: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Classes:
    """Write ``source`` again with its segments named; returns the classes it has now.

    Args:
        source: a model that :func:`geoseg.cluster` saved, or a label GeoTIFF with classes.
        names: CSV lines ``value,name[,#rrggbb]``, or JSON ``{value: name}``; values left out keep their names.
        out: a bundle, or a label COG.
        overwrite: replace ``out``.

    Raises:
        LabelsError: the table cannot be read, or names a value that is no segment; the raster has no classes.
        SceneError: the raster cannot be read.
        BundleError: the model cannot be read, or has no segments to name.
        OutputError: ``out`` exists, is the source, or cannot be written.
    """
    from geoseg.outputs.staging import check_place

    items = read_value_items(names)
    check_place(out, overwrite)
    if is_same_file(source, out):
        raise OutputError(f"{os.fspath(out)} is {os.fspath(source)} itself: give the output another name.")
    if os.fspath(source).lower().endswith(_RASTERS):
        return _name_labels(os.fspath(source), items, Path(out))
    return _name_model(source, items, out, overwrite)


def _name_model(
    source: str | os.PathLike[str], items: tuple[LabelClass, ...], out: str | os.PathLike[str], overwrite: bool
) -> Classes:
    from geoseg.segmenters.fitted import FittedSegmenter
    from geoseg.segmenters.loading import resolve_bundle, segmenter_of

    bundle = read_bundle(resolve_bundle(source))
    segmenter = segmenter_of(bundle)
    if not isinstance(segmenter, FittedSegmenter) or segmenter.state is None:
        raise BundleError(
            f"{bundle.path} is a model of the method {bundle.description.method}, whose classes were learned from "
            "labels: only segments of `geoseg cluster` are named afterwards."
        )
    state = segmenter.state.named(items)
    state.save(out, overwrite=overwrite)
    assert state.classes is not None
    return state.classes


def _name_labels(source: str, items: tuple[LabelClass, ...], out: Path) -> Classes:
    from geoseg.outputs.cog import read_classes, write_label_cog

    with gdal_environment(source), reading(source, "labels"), open_raster(source) as dataset:
        classes = read_classes(source)
        if classes is None:
            raise LabelsError(
                f"{source} does not say what its values mean: only label rasters of geoseg are named, and of others "
                "`geoseg vectorize --names` makes named polygons."
            )
        renamed, places = classes.renamed(items)
        table = np.full(max(256, max(classes.ids) + 1, classes.nodata + 1), renamed.nodata, np.uint8)
        table[list(classes.ids)] = [renamed.ids[place] for place in places]
        folder = tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent)
        try:
            plain = os.path.join(folder, "labels.tif")
            profile = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
            place = {"crs": dataset.crs, "transform": dataset.transform}
            size = {"width": dataset.width, "height": dataset.height, "count": 1, "dtype": "uint8"}
            with rasterio.open(plain, "w", **profile, **place, **size, nodata=renamed.nodata, bigtiff="if_safer") as to:
                for _, window in to.block_windows(1):
                    to.write(table[dataset.read(1, window=window)], 1, window=window)
            write_label_cog(plain, out, renamed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return renamed
