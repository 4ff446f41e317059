"""Label and confidence rasters as Cloud Optimized GeoTIFFs that tell what their values mean."""

from __future__ import annotations

import json
import math
import os
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from geoseg.classes import Classes, LabelClass, default_color
from geoseg.errors import LabelsError
from geoseg.outputs.pam import read_category_names, write_category_names
from geoseg.outputs.qgis import (
    write_confidence_style,
    write_label_style,
    write_structure_style,
    write_uncertainty_style,
)
from geoseg.outputs.staging import staged, writing
from geoseg.parsing import read_json
from geoseg.places import S3Place
from geoseg.source import gdal_environment

# Outside 0 to 1, exact in float32 and equal to itself: every reader can mask it, which NaN cannot claim.
CONFIDENCE_NODATA = -1.0
# Confidences arrive as thousandths.
CONFIDENCE_SCALE = 0.001
STORED_CONFIDENCE_NODATA = 65535
# As for confidences.
UNCERTAINTY_NODATA = -1.0
CLASSES_TAG = "CLASSES"
STRUCTURE_BANDS = ("S1", "S2", "D2")

_CACHE_BYTES = 128 << 20
_BLOCK_PX = 512
_OPTIONS: dict[str, Any] = {
    "COMPRESS": "DEFLATE",
    "BLOCKSIZE": _BLOCK_PX,
    "BIGTIFF": "IF_SAFER",
    "OVERVIEWS": "IGNORE_EXISTING",
}


def write_label_cog(
    source: str | os.PathLike[str], path: str | os.PathLike[str] | S3Place, classes: Classes, *, band: int = 1
) -> None:
    """Write a band of labels as a COG with colours and class names, a PAM file and a QGIS style; replaces ``path``.

    The grid (also a rotated or south-up one) and the CRS stay as they are.  Memory is bounded by GDAL's cache (128 MB).
    Overviews hold each block's most frequent label.

    Args:
        source: what GDAL opens; labels of any integer type, ``classes.nodata`` where there is no answer.
        path: the GeoTIFF to be.
        classes: what the labels mean; kept in the file's ``CLASSES`` tag as JSON.
        band: band of ``source`` (from 1).

    Raises:
        OutputError: ``source`` cannot be read, ``path`` cannot be written, or the disk is full.
    """
    dtype = "Byte" if classes.nodata <= np.iinfo(np.uint8).max else "UInt16"
    with staged(path) as temporary, writing(path):
        view = _View(source, band, dtype, classes.nodata)
        view.tag(CLASSES_TAG, json.dumps(classes.as_dicts(), ensure_ascii=False))
        view.color(classes)
        _copy(view, temporary, RESAMPLING="MODE")
        write_category_names(temporary, classes)
        write_label_style(temporary, classes, beside=path)


def write_confidence_cog(
    source: str | os.PathLike[str], path: str | os.PathLike[str] | S3Place, *, band: int = 1
) -> None:
    """Write a band of confidences as a float32 COG from 0 to 1 with a QGIS style; replaces ``path``.

    Pixels without an answer are −1, the file's nodata value.  Overviews hold means.

    Args:
        source: what GDAL opens; confidences in thousandths, 65535 where there is none.
        path: the GeoTIFF to be.
        band: band of ``source`` (from 1).

    Raises:
        OutputError: ``source`` cannot be read, ``path`` cannot be written, or the disk is full.
    """
    with staged(path) as temporary, writing(path):
        view = _View(source, band, "Float32", CONFIDENCE_NODATA)
        view.scale(CONFIDENCE_SCALE, STORED_CONFIDENCE_NODATA)
        # Only a thousand values occur: their repeated bytes pack better as they are than as differences, and fast.
        _copy(view, temporary, RESAMPLING="AVERAGE", PREDICTOR="NO", LEVEL="1")
        write_confidence_style(temporary, beside=path)


def write_uncertainty_cog(
    source: str | os.PathLike[str], path: str | os.PathLike[str] | S3Place, names: Sequence[str]
) -> None:
    """Write bands of uncertainty as a float32 COG whose bands have names, with a QGIS style; replaces ``path``.

    Pixels without an answer are −1, the file's nodata value.  Overviews hold means.

    Args:
        source: what GDAL opens: the first bands hold the layers, −1 where there is no answer.
        path: the GeoTIFF to be.
        names: of the layers; the first runs from 0 to 1, as the style shows it.

    Raises:
        OutputError: ``source`` cannot be read, ``path`` cannot be written, or the disk is full.
    """
    with staged(path) as temporary, writing(path):
        view = _View(source, 1, "Float32", UNCERTAINTY_NODATA)
        view.name(names[0])
        for band, name in enumerate(names[1:], 2):
            view.add(band, "Float32", UNCERTAINTY_NODATA)
            view.name(name)
        _copy(view, temporary, RESAMPLING="AVERAGE", PREDICTOR="YES", LEVEL="1")
        write_uncertainty_style(temporary, beside=path)


def write_structure_cog(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Write the bands S1, S2 and D2 of a structural comparison as a float32 COG with a QGIS style; replaces ``path``.

    Pixels without a value are NaN: S2 and D2 leave no number free that all readers could mask.  Overviews hold means.

    Args:
        source: what GDAL opens: the three bands.
        path: the GeoTIFF to be.

    Raises:
        OutputError: ``source`` cannot be read, ``path`` cannot be written, or the disk is full.
    """
    with staged(path) as temporary, writing(path):
        view = _View(source, 1, "Float32", math.nan)
        view.name(STRUCTURE_BANDS[0])
        for band, name in enumerate(STRUCTURE_BANDS[1:], 2):
            view.add(band, "Float32", math.nan)
            view.name(name)
        _copy(view, temporary, RESAMPLING="AVERAGE", PREDICTOR="YES", LEVEL="1")
        write_structure_style(temporary, beside=path)


def read_classes(path: str | os.PathLike[str]) -> Classes | None:
    """Return the classes that a label raster tells: from its ``CLASSES`` tag, else from category names and colours.

    Returns:
        None where the file tells neither.

    Raises:
        LabelsError: the ``CLASSES`` tag is damaged.
        rasterio.errors.RasterioIOError: the file is no raster.
    """
    with gdal_environment(os.fspath(path)), rasterio.open(path) as dataset:
        tag = dataset.tags().get(CLASSES_TAG)
        nodata = dataset.nodatavals[0]
        try:
            colors = dataset.colormap(1)
        except ValueError:
            colors = {}
    whole = nodata is not None and float(nodata).is_integer() and nodata >= 0
    nodata = int(nodata) if whole else Classes.nodata
    if tag is not None:
        try:
            return Classes(Classes.from_dicts(read_json(tag)).items, nodata)
        except (ValueError, TypeError, AttributeError) as error:
            raise LabelsError(f"{path} has a damaged {CLASSES_TAG} tag ({error}): write the raster again.") from error
    names = read_category_names(path)
    if not names:
        return None
    items = []
    for value, name in enumerate(names):
        if name.strip() and value != nodata:
            color = "#{:02x}{:02x}{:02x}".format(*colors[value][:3]) if value in colors else default_color(value)
            items.append(LabelClass(value, name, color, name.strip().lower() == "background"))
    return Classes(tuple(items), nodata) if items else None


class _View:
    """A virtual raster over some bands, with the types, nodata values, colours and tags that the file is to have."""

    def __init__(self, source: str | os.PathLike[str], band: int, dtype: str, nodata: float) -> None:
        """Describe ``band`` of ``source`` on its own grid."""
        name = os.fspath(source)
        name = os.path.abspath(name) if os.path.exists(name) else name
        with rasterio.open(name) as dataset, MemoryFile(ext=".vrt") as memory:
            # GDAL's own words for the place of the raster, so that nothing is lost in between.
            rasterio.shutil.copy(dataset, memory.name, driver="VRT")
            described = ET.fromstring(bytes(memory.getbuffer()))
        self._root = ET.Element("VRTDataset", described.attrib)
        self._root.extend(e for tag in ("SRS", "GeoTransform") for e in described.findall(tag))
        self._metadata = ET.SubElement(self._root, "Metadata")
        self._source = name
        self._count = 0
        self.add(band, dtype, nodata)

    def add(self, band: int, dtype: str, nodata: float) -> None:
        """Show another band of the source; what follows (:meth:`name`, :meth:`color`, :meth:`scale`) is about it."""
        self._count += 1
        self._band = ET.SubElement(self._root, "VRTRasterBand", dataType=dtype, band=str(self._count))
        ET.SubElement(self._band, "NoDataValue").text = repr(nodata)
        self._part = ET.SubElement(self._band, "SimpleSource")
        ET.SubElement(self._part, "SourceFilename", relativeToVRT="0").text = self._source
        ET.SubElement(self._part, "SourceBand").text = str(band)

    def name(self, text: str) -> None:
        """Describe the band."""
        ET.SubElement(self._band, "Description").text = text

    def tag(self, name: str, value: str) -> None:
        """Add a metadata item."""
        ET.SubElement(self._metadata, "MDI", key=name).text = value

    def color(self, classes: Classes) -> None:
        """Give the band a colour table (GeoTIFF keeps no transparency; the styles do)."""
        colors = {item.id: item.rgb for item in classes}
        ET.SubElement(self._band, "ColorInterp").text = "Palette"
        table = ET.SubElement(self._band, "ColorTable")
        for value in range(max(colors) + 1):
            red, green, blue = colors.get(value, (0, 0, 0))
            ET.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4="255")

    def scale(self, factor: float, nodata: float) -> None:
        """Multiply the values by ``factor``, all but ``nodata``, which becomes the band's nodata value."""
        self._part.tag = "ComplexSource"
        for tag, value in (("ScaleOffset", 0.0), ("ScaleRatio", factor), ("NODATA", nodata)):
            ET.SubElement(self._part, tag).text = repr(value)

    def xml(self) -> str:
        """Return the view as GDAL opens it."""
        return ET.tostring(self._root, encoding="unicode")


def _copy(view: _View, path: Path, **options: str) -> None:
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(view.xml()) as source:
            rasterio.shutil.copy(source, path, driver="COG", **_OPTIONS, **options)
