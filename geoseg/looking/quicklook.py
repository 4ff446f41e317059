"""A picture of outputs: the scene, the classes laid over it, a legend and a scale bar."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoseg.classes import LabelClass
from geoseg.errors import ConfigError
from geoseg.looking.found import find
from geoseg.looking.frame import Bounds
from geoseg.looking.overlay import Overlay, overlay_of
from geoseg.looking.view import Looked, listed
from geoseg.looking.web_map import Opened, opened
from geoseg.outputs.qgis import ramp_colors
from geoseg.outputs.staging import check_place, staged, writing

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.float64]

_INK, _SOFT, _PAPER, _GROUND = (29, 39, 51), (92, 106, 120), (255, 255, 255), (230.0, 233.0, 236.0)
_MARGIN, _GAP, _SWATCH, _LINE = 24, 12, 16, 26
_TITLE_PX, _TEXT_PX = 20, 15
_OPACITY = 0.5
# Classes are drawn on a finer grid and averaged, so that edges are not ragged.
_FINER = 2
_MOST_LINES = 8
_MOST_NAME = 40


def preview(
    outputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    scene: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    side: int = 900,
    overwrite: bool = False,
) -> Looked:
    """Write a PNG with the scene on the left and its classes over it on the right, a legend and a scale bar.

    Args:
        outputs: as in :func:`geoseg.view`; polygons are shown where there are any, else labels, else the confidence.
        out: the picture, ``.png``; by default beside the first output, under its stem.
        scene: the rasters that the outputs were made of, where no project tells; without, the classes stand alone.
        side: longest side in pixels of each half.
        overwrite: replace a picture that exists.

    Raises:
        ConfigError: nothing to look at, or ``out`` is no PNG.
        SceneError: a file cannot be read, or has no place on a map.
        LabelsError: a label raster is damaged.
        OutputError: the picture exists or cannot be written.
    """
    found = find(listed(outputs), listed(scene))
    path = Path(out) if out is not None else found.first.with_suffix(".png")
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path} is to be a picture: let its name end in .png.")
    check_place(path, overwrite)
    image = _drawn(opened(found), found.first.name, side)
    with staged(path) as temporary, writing(path):
        image.save(temporary, "PNG")
    return Looked(path, tuple(found.notes))


def _drawn(this: Opened, title: str, side: int) -> Image.Image:
    """Return the whole picture."""
    from PIL import Image, ImageDraw

    bounds = _everything(this)
    pixel = max(bounds[2] - bounds[0], bounds[3] - bounds[1]) / side
    below = _scenes(this, bounds, pixel)
    overlay, above = _over(this, bounds, pixel, below)
    halves = [below, above] if this.scenes else [above]
    height, width, _ = above.shape
    full = 2 * _MARGIN + len(halves) * width + (len(halves) - 1) * _GAP
    rows = _rows(overlay, full - 2 * _MARGIN) if overlay else [[]]
    top = _MARGIN + _TITLE_PX + _GAP
    image = Image.new("RGB", (full, top + height + _GAP + len(rows) * _LINE + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN - 4), _shortened(title, 90), _INK, _font(_TITLE_PX))
    for number, half in enumerate(halves):
        part = Image.fromarray(half.round().astype(np.uint8))
        image.paste(part, (_MARGIN + number * (width + _GAP), top))
    if this.frame.centre is not None:
        ground = pixel * this.frame.ground((bounds[1] + bounds[3]) / 2)
        _scale_bar(image, (_MARGIN + 12, top + height - 12), width, ground)
    if overlay:
        _legend(draw, rows, top + height + _GAP)
    else:
        _ramp(image, draw, this, top + height + _GAP)
    return image


def _everything(this: Opened) -> Bounds:
    every = [this.bounds, *(this.frame.bounds(scene.lonlat) for scene in this.scenes)]
    left, bottom, right, top = zip(*every, strict=True)
    return min(left), min(bottom), max(right), max(top)


def _scenes(this: Opened, bounds: Bounds, pixel: float) -> Picture:
    """Return the scenes on a pale ground: (H, W, 3), 0 to 255."""
    grid = this.frame.grid(bounds, pixel)
    picture = np.broadcast_to(np.array(_GROUND), (*(int(n) for n in grid.shape), 3)).copy()
    for scene in this.scenes:
        shown = scene.whole(this.frame, grid)
        visible = shown[..., 3] > 0
        picture[visible] = shown[visible][:, :3]
    return picture


def _over(this: Opened, bounds: Bounds, pixel: float, below: Picture) -> tuple[Overlay | None, Picture]:
    """Return what is shown of the outputs, None where that is no classes, and the picture with it laid over."""
    if not (this.shapes or this.labels):
        layer, kind = this.doubts[0]
        values = layer.hundredths(this.frame, this.frame.grid(bounds, pixel))
        colors = np.array([_rgb(c) for c in ramp_colors("uncertainty" if kind == "uncertainty" else "confidence")])
        steps = np.linspace(0, 1, len(colors))
        table = np.stack([np.interp(np.linspace(0, 1, 101), steps, colors[:, band]) for band in range(3)], -1)
        return None, np.where((values > 0)[..., None], table[np.maximum(values, 1) - 1], below)
    height, width, _ = below.shape
    left, _, _, top = bounds
    exact = (left, top - height * pixel, left + width * pixel, top)
    overlay = overlay_of(this, this.frame.grid(exact, pixel / _FINER))
    index = overlay.index[: height * _FINER, : width * _FINER]
    table = np.array([(0, 0, 0), *(item.rgb for item in overlay.classes)], float)[:256]
    opacity = np.where(index > 0, np.where(_edges(index), 1.0, _OPACITY), 0.0)[..., None]
    mean = (height, _FINER, width, _FINER, -1)
    colour = (table[index] * opacity).reshape(mean).mean(axis=(1, 3))
    return overlay, below * (1 - opacity.reshape(mean).mean(axis=(1, 3))) + colour


def _edges(index: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where a neighbour shows something else, two pixels wide."""
    padded = np.pad(index, 2, mode="edge")
    height, width = index.shape
    here = padded[2 : 2 + height, 2 : 2 + width]
    shifts = [(dr, dc) for dr in (-2, -1, 0, 1, 2) for dc in (-2, -1, 0, 1, 2) if abs(dr) + abs(dc) in (1, 2)]
    edges = np.zeros(index.shape, bool)
    for dr, dc in shifts:
        edges |= padded[2 + dr : 2 + dr + height, 2 + dc : 2 + dc + width] != here
    return edges


def _scale_bar(image: Image.Image, corner: tuple[int, int], width: int, metres_a_pixel: float) -> None:
    """Draw a bar of a round length, its box's lower left corner at ``corner``."""
    from PIL import ImageDraw

    most = max(width / 4 * metres_a_pixel, 1e-9)
    power = 10.0 ** math.floor(math.log10(most))
    length = max(factor * power for factor in (1, 2, 5) if factor * power <= most)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    across = round(length / metres_a_pixel)
    font, draw = _font(_TEXT_PX), ImageDraw.Draw(image, "RGBA")
    x, y = corner
    wide = max(across, round(draw.textlength(text, font)))
    draw.rounded_rectangle((x, y - 40, x + wide + 20, y), 6, (255, 255, 255, 225))
    draw.text((x + 10 + across / 2, y - 26), text, _INK, font, anchor="mm")
    line = [(x + 10, y - 15), (x + 10, y - 9), (x + 10 + across, y - 9), (x + 10 + across, y - 15)]
    draw.line(line, _INK, 2)


def _rows(overlay: Overlay, width: int) -> list[list[tuple[int, LabelClass | None, str]]]:
    """Return the entries of the legend, line by line: where each begins, its class, what it says."""
    font = _font(_TEXT_PX)
    rows: list[list[tuple[int, LabelClass | None, str]]] = [[]]
    x = 0
    for number, item in enumerate(overlay.classes):
        text = _shortened(item.name, _MOST_NAME)
        if overlay.counts is not None:
            text += f" ({overlay.counts[number]:,})"
        length = _SWATCH + 8 + math.ceil(font.getlength(text)) + 24
        if x + length > width + 24 and rows[-1]:
            if len(rows) == _MOST_LINES:
                rows[-1][-1] = (rows[-1][-1][0], None, f"and {len(overlay.classes) - number + 1} more")
                return rows
            rows.append([])
            x = 0
        rows[-1].append((x, item, text))
        x += length
    return rows


def _legend(draw: ImageDraw.ImageDraw, rows: Sequence[Sequence[tuple[int, LabelClass | None, str]]], y: int) -> None:
    font = _font(_TEXT_PX)
    for number, row in enumerate(rows):
        middle = y + number * _LINE + _LINE // 2
        for x, item, text in row:
            box = (_MARGIN + x, middle - _SWATCH // 2, _MARGIN + x + _SWATCH, middle + _SWATCH // 2)
            if item:
                draw.rounded_rectangle(box, 3, item.rgb, outline=_SOFT)
            draw.text((box[2] + 8, middle), text, _INK, font, anchor="lm")
    if not any(rows):
        draw.text((_MARGIN, y + _LINE // 2), "nothing was found", _SOFT, font, anchor="lm")


def _ramp(image: Image.Image, draw: ImageDraw.ImageDraw, this: Opened, y: int) -> None:
    from PIL import Image

    kind = this.doubts[0][1]
    colors = np.array([_rgb(c) for c in ramp_colors("uncertainty" if kind == "uncertainty" else "confidence")], float)
    steps = np.linspace(0, 1, len(colors))
    bar = np.stack([np.interp(np.linspace(0, 1, 160), steps, colors[:, band]) for band in range(3)], -1)
    font, middle = _font(_TEXT_PX), y + _LINE // 2
    draw.text((_MARGIN, middle), f"{kind}  0", _INK, font, anchor="lm")
    x = _MARGIN + math.ceil(font.getlength(f"{kind}  0")) + 8
    image.paste(Image.fromarray(np.broadcast_to(bar.round().astype(np.uint8), (14, 160, 3)).copy()), (x, middle - 7))
    draw.text((x + 168, middle), "1", _INK, font, anchor="lm")


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | Any:
    """Return a font of the system or of matplotlib, which know most alphabets, else Pillow's own, which knows ASCII."""
    from PIL import ImageFont

    names = ["DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf"]
    plotting = importlib.util.find_spec("matplotlib")
    if plotting and plotting.origin:
        names.insert(1, str(Path(plotting.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"))
    for name in names:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
