"""PAM files (``name.tif.aux.xml``): class names of a label raster where GDAL and its readers look for them."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

from geoseg.classes import Classes
from geoseg.outputs.staging import staged, writing

# Name, type (0 integer, 2 text) and usage code of the columns of a raster attribute table.
_COLUMNS = (
    ("Value", 0, 5),
    ("Class", 2, 2),
    ("Red", 0, 6),
    ("Green", 0, 7),
    ("Blue", 0, 8),
    ("Alpha", 0, 9),
)


def pam_path(path: str | os.PathLike[str]) -> Path:
    """Return where GDAL keeps what the format of ``path`` cannot hold."""
    path = Path(path)
    return path.with_name(path.name + ".aux.xml")


def write_category_names(path: str | os.PathLike[str], classes: Classes, band: int = 1) -> None:
    """Write class names and an attribute table beside a raster; what the PAM file already says otherwise stays.

    Args:
        path: the raster, closed.
        classes: names and colours.
        band: which band they belong to (from 1).

    Raises:
        OutputError: the PAM file cannot be written.
    """
    target = pam_path(path)
    root = _read(target)
    if root is None:
        root = ET.Element("PAMDataset")
    element = next((e for e in root.findall("PAMRasterBand") if e.get("band") == str(band)), None)
    if element is None:
        element = ET.SubElement(root, "PAMRasterBand", band=str(band))
    for tag in ("CategoryNames", "GDALRasterAttributeTable"):
        for old in element.findall(tag):
            element.remove(old)
    element.append(_category_names(classes))
    element.append(_attribute_table(classes))
    ET.indent(root, " ")
    with staged(target) as temporary, writing(target):
        temporary.write_text(ET.tostring(root, encoding="unicode") + "\n", encoding="utf-8", newline="\n")


def read_category_names(path: str | os.PathLike[str], band: int = 1) -> list[str] | None:
    """Return the names in the PAM file beside a raster, from value 0 on ("" where there is none), or None."""
    root = _read(pam_path(path))
    if root is None:
        return None
    for element in root.findall("PAMRasterBand"):
        names = element.find("CategoryNames")
        if element.get("band") == str(band) and names is not None:
            return [category.text or "" for category in names.findall("Category")]
    return None


def _read(path: Path) -> ET.Element | None:
    try:
        return ET.parse(path).getroot()
    except (OSError, ET.ParseError):
        return None


def _category_names(classes: Classes) -> ET.Element:
    names = {item.id: item.name for item in classes}
    element = ET.Element("CategoryNames")
    for value in range(max(names) + 1):
        ET.SubElement(element, "Category").text = names.get(value, "")
    return element


def _attribute_table(classes: Classes) -> ET.Element:
    table = ET.Element("GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(_COLUMNS):
        column = ET.SubElement(table, "FieldDefn", index=str(index))
        for tag, text in (("Name", name), ("Type", kind), ("Usage", usage)):
            ET.SubElement(column, tag).text = str(text)
    for index, item in enumerate(sorted(classes, key=lambda c: c.id)):
        row = ET.SubElement(table, "Row", index=str(index))
        for value in (item.id, item.name, *item.rgb, 0 if item.background else 255):
            ET.SubElement(row, "F").text = str(value)
    return table
