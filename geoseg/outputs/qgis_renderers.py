"""How QGIS draws layers, as the elements of its styles."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from geoseg.classes import Classes

# Values, rising, and their colours.
Ramp = tuple[tuple[float, str], ...]

# From doubtful to sure, after the sequential scheme YlGnBu; light ends stay visible on white.
CONFIDENCE_RAMP: Ramp = ((0.0, "#ffffcc"), (0.25, "#a1dab4"), (0.5, "#41b6c4"), (0.75, "#2c7fb8"), (1.0, "#253494"))
# From sure to doubtful, after the sequential scheme YlOrRd.
UNCERTAINTY_RAMP: Ramp = ((0.0, "#ffffb2"), (0.25, "#fecc5c"), (0.5, "#fd8d3c"), (0.75, "#f03b20"), (1.0, "#bd0026"))
# In standard deviations, alike on both sides: what is too much of one class is too little of another.
RESIDUAL_RAMP: Ramp = ((-4.0, "#b2182b"), (-2.0, "#f4a582"), (0.0, "#f7f7f7"), (2.0, "#f4a582"), (4.0, "#b2182b"))
# Ranges that go on without end have bounds in QGIS too.
_FARTHEST = 1e9


@dataclass(frozen=True)
class Colors:
    """How an image is shown.

    Attributes:
        bands: that give red, green and blue, or one that gives grey (from 1).
        limits: the values of each of them that are darkest and brightest; none to show values as they are.
        alpha: the band of transparency, None without.
    """

    bands: tuple[int, ...]
    limits: tuple[tuple[float, float], ...] = ()
    alpha: int | None = None


def vector_renderer(classes: Classes) -> ET.Element:
    """Return the renderer of class polygons: one colour a class, without outlines."""
    renderer = _symbols("categorizedSymbol", "class_id", [item.color for item in classes])
    categories = ET.SubElement(renderer, "categories")
    for position, item in enumerate(classes):
        told = {"value": str(item.id), "type": "integer", "symbol": str(position), "label": item.name}
        ET.SubElement(categories, "category", {**told, "render": "true"})
    return renderer


def ranges_renderer(ramp: Ramp, attribute: str) -> ET.Element:
    """Return the renderer of polygons by a number: in the colour of the value of ``ramp`` that is nearest to it."""
    between = [(low + high) / 2 for (low, _), (high, _) in pairwise(ramp)]
    labels = [f"{low:g} to {high:g}" for low, high in pairwise(between)]
    labels = [f"below {between[0]:g}", *labels, f"above {between[-1]:g}"]
    renderer = _symbols("graduatedSymbol", attribute, [color for _, color in ramp])
    renderer.set("graduatedMethod", "GraduatedColor")
    ranges = ET.SubElement(renderer, "ranges")
    bounds = pairwise([-_FARTHEST, *between, _FARTHEST])
    for position, ((low, high), label) in enumerate(zip(bounds, labels, strict=True)):
        told = {"lower": f"{low:f}", "upper": f"{high:f}", "symbol": str(position), "label": label}
        ET.SubElement(ranges, "range", {**told, "render": "true"})
    return renderer


def _symbols(kind: str, attribute: str, colors: Sequence[str]) -> ET.Element:
    """Return a renderer of polygons by an attribute, with a symbol for each colour, named by its position."""
    renderer = ET.Element(
        "renderer-v2", type=kind, attr=attribute, enableorderby="0", forceraster="0", symbollevels="0"
    )
    symbols = ET.SubElement(renderer, "symbols")
    symbols.extend(_fill(str(position), color) for position, color in enumerate(colors))
    return renderer


def _fill(name: str, color: str) -> ET.Element:
    """Return the symbol of polygons that are filled with a colour, ``#rrggbb``."""
    symbol = ET.Element("symbol", type="fill", name=name, alpha="1", clip_to_extent="1", force_rhr="0")
    layer = ET.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"})
    options = ET.SubElement(layer, "Option", type="Map")
    numbers = ",".join(map(str, (*bytes.fromhex(color[1:]), 255)))
    for key, value in (
        ("color", numbers),
        ("style", "solid"),
        ("outline_style", "no"),
        ("outline_color", numbers),
        ("outline_width", "0"),
        ("outline_width_unit", "MM"),
        ("joinstyle", "bevel"),
    ):
        ET.SubElement(options, "Option", type="QString", name=key, value=value)
    return symbol


def pipe(renderer: ET.Element) -> ET.Element:
    """Return the renderer of a raster in the element that a style has it in."""
    result = ET.Element("pipe")
    result.append(renderer)
    return result


def label_renderer(classes: Classes, band: int) -> ET.Element:
    """Return the renderer of a band of labels: class names and colours, background see-through."""
    renderer = ET.Element(
        "rasterrenderer", type="paletted", band=str(band), opacity="1", alphaBand="-1", nodataColor=""
    )
    palette = ET.SubElement(renderer, "colorPalette")
    for item in sorted(classes, key=lambda c: c.id):
        alpha = "0" if item.background else "255"
        ET.SubElement(palette, "paletteEntry", value=str(item.id), label=item.name, color=item.color, alpha=alpha)
    return renderer


def ramp_renderer(ramp: Ramp, band: int) -> ET.Element:
    """Return the renderer of a band of numbers, in colours that change evenly between the values of ``ramp``."""
    low, high = f"{ramp[0][0]:g}", f"{ramp[-1][0]:g}"
    renderer = ET.Element(
        "rasterrenderer",
        type="singlebandpseudocolor",
        band=str(band),
        opacity="1",
        alphaBand="-1",
        nodataColor="",
        classificationMin=low,
        classificationMax=high,
    )
    shader = ET.SubElement(ET.SubElement(renderer, "rastershader"), "colorrampshader")
    shader.attrib.update(
        colorRampType="INTERPOLATED", classificationMode="1", clip="0", minimumValue=low, maximumValue=high
    )
    for value, color in ramp:
        ET.SubElement(shader, "item", value=f"{value:g}", label=f"{value:.2f}", color=color, alpha="255")
    return renderer


def image_renderer(colors: Colors) -> ET.Element:
    """Return the renderer of an image in its own colours."""
    alpha = str(colors.alpha or -1)
    if len(colors.bands) == 1:
        renderer = ET.Element("rasterrenderer", type="singlebandgray", grayBand=str(colors.bands[0]))
        renderer.set("gradient", "BlackToWhite")
        names = ["contrastEnhancement"]
    else:
        keys = ("redBand", "greenBand", "blueBand")
        renderer = ET.Element("rasterrenderer", type="multibandcolor")
        renderer.attrib.update(zip(keys, map(str, colors.bands), strict=True))
        names = [key.replace("Band", "ContrastEnhancement") for key in keys]
    renderer.attrib.update(opacity="1", alphaBand=alpha, nodataColor="")
    for name, (low, high) in zip(names, colors.limits, strict=False):
        element = ET.SubElement(renderer, name)
        for tag, text in (
            ("minValue", f"{low:g}"),
            ("maxValue", f"{high:g}"),
            ("algorithm", "StretchToMinimumMaximum"),
        ):
            ET.SubElement(element, tag).text = text
    return renderer
