"""A comparison as one HTML page that needs nothing else: no file beside it, no network, no script."""

from __future__ import annotations

import base64
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from geoseg.classes import Classes
from geoseg.outputs.html_page import page as html_page
from geoseg.outputs.html_page import table as _table
from geoseg.outputs.html_page import text as _text
from geoseg.outputs.staging import staged, writing

_NOTHING = (255, 255, 255)
_RIGHT, _WRONG = np.array((222.0, 235.0, 222.0)), np.array((190.0, 20.0, 20.0))


def write_report(
    path: str | os.PathLike[str],
    record: dict[str, Any],
    classes: Classes,
    maps: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]],
) -> None:
    """Write the page; replaces ``path``.

    Args:
        path: the page.
        record: what :meth:`geoseg.engine.evaluation.Evaluation.as_dict` returns.
        classes: the classes in the order of the class indices.
        maps: reference and prediction as class indices (h, w), 255 where there is nothing, and the share of wrong
            pixels (h, w), NaN where there is nothing.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    page = _page(record, classes, maps)
    with staged(path) as temporary, writing(path):
        Path(temporary).write_text(page, encoding="utf-8")


def _page(
    record: dict[str, Any],
    classes: Classes,
    maps: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]],
) -> str:
    names = [os.path.basename(record[side]) or record[side] for side in ("prediction", "reference")]
    title = f"{names[0]} against {names[1]}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        _what(record),
        _overview(record),
        "<h2>Classes</h2>",
        _classes(record),
        "<h2>Maps</h2>",
        _maps(classes, maps),
        "<h2>Confusion matrix</h2>",
        '<p class="what">Pixels; rows are the reference, columns the prediction.</p>',
        _matrix(record["matrix"], classes),
    ]
    if "eroded" in record:
        eroded = record["eroded"]
        parts += [
            "<h2>Away from class boundaries</h2>",
            f'<p class="what">Without the reference pixels within {_text(eroded["distance"])} of another class: '
            f"overall accuracy {_number(eroded['overall_accuracy'])}, kappa {_number(eroded['kappa'])}, "
            f"mean IoU {_number(eroded['mean_iou'])}, mean F1 {_number(eroded['mean_f1'])}.</p>",
            _table(
                ("class", "IoU", "F1", "precision", "recall"),
                [(_text(c["name"]), *_numbers(c, "iou", "f1", "precision", "recall")) for c in eroded["classes"]],
            ),
        ]
    if "structure" in record:
        parts += ["<h2>Structural similarity</h2>", _structure(record["structure"])]
    if "calibration" in record:
        parts += ["<h2>Confidence</h2>", _reliability(record["calibration"])]
    parts += [f'<p class="what">{_text(note)}</p>' for note in record["notes"]]
    return html_page(title, parts)


def _what(record: dict[str, Any]) -> str:
    grid, pixels = record["grid"], record["pixels"]
    height, width = grid["shape"]
    across, down = grid["pixel_m"]
    return (
        f'<p class="what">{width} × {height} pixels of {across:.3g} × {down:.3g} m in {_text(grid["crs"])}. '
        f"{pixels['evaluated']:,} were compared; {pixels['reference_ignored']:,} have no label in the reference, "
        f"{pixels['prediction_ignored']:,} none in the prediction, {pixels['outside_area']:,} lie outside of the area."
        "</p>"
    )


def _overview(record: dict[str, Any]) -> str:
    rows = [
        ("Overall accuracy", record["overall_accuracy"]),
        ("Kappa", record["kappa"]),
        ("Mean IoU of the classes present", record["mean_iou"]),
        ("Mean F1 of the classes present", record["mean_f1"]),
        (f"Mean boundary IoU ({record['boundary']['distance']})", record["boundary"]["mean_iou"]),
    ]
    if "objects" in record:
        rows += [(f"Objects at IoU 0.5: {name}", record["objects"][name]) for name in ("precision", "recall", "f1")]
    if "calibration" in record:
        rows.append(("Expected calibration error", record["calibration"]["expected_error"]))
    return _table(("score", "value"), [(_text(name), _number(value)) for name, value in rows])


def _classes(record: dict[str, Any]) -> str:
    head = ["class", "pixels in reference", "in prediction", "IoU", "F1", "precision", "recall", "boundary IoU"]
    with_objects = "objects" in record
    if with_objects:
        head += ["objects found", "wrong", "missed", "object F1"]
    rows = []
    for item in record["classes"]:
        swatch = f'<span class="swatch" style="background:{_text(item["color"])}"></span>'
        row = [
            swatch + _text(item["name"]),
            f"{item['reference_pixels']:,}",
            f"{item['prediction_pixels']:,}",
            *_numbers(item, "iou", "f1", "precision", "recall", "boundary_iou"),
        ]
        if with_objects:
            found = item.get("objects")
            counts = [f"{found[name]:,}" for name in ("found", "wrong", "missed")] if found else [""] * 3
            row += [*counts, _number(found["f1"]) if found else ""]
        rows.append(row)
    return _table(head, rows)


def _matrix(matrix: Sequence[Sequence[int]], classes: Classes) -> str:
    names = [_text(item.name) for item in classes]
    rows = []
    for name, line in zip(names, matrix, strict=True):
        total = sum(line)
        cells = [
            f"{count:,}" + (f' <span class="what">{100 * count / total:.1f} %</span>' if total else "")
            for count in line
        ]
        rows.append([name, *cells])
    return _table(["", *names], rows)


def _structure(structure: dict[str, Any]) -> str:
    side, windows = structure["window"], structure["windows"]
    told = (
        f"Over the {windows:,} windows of {side} × {side} pixels without an unlabelled one; a class is 1 inside and 0 "
        "outside. S1 compares areas, S2 shapes; both are 1 where the maps agree. D2 is a distance, 0 where they agree."
    )
    rows = [(_text(each["name"]), *_numbers(each, "s1", "s2", "ssim", "d2")) for each in structure["planes"]]
    rows.append(("mean of the classes present", *_numbers(structure, "s1", "s2", "ssim", "d2")))
    return f'<p class="what">{told}</p>' + _table(("class", "mean S1", "mean S2", "mean SSIM", "D2"), rows)


def _reliability(calibration: dict[str, Any]) -> str:
    rows = [
        (f"{b['from']:.2g} to {b['to']:.2g}", f"{b['pixels']:,}", _number(b["confidence"]), _number(b["accuracy"]))
        for b in calibration["bins"]
    ]
    told = f"Expected error {_number(calibration['expected_error'])}, largest {_number(calibration['largest_error'])}."
    return f'<p class="what">{told}</p>' + _table(("confidence", "pixels", "mean confidence", "share right"), rows)


def _maps(classes: Classes, maps: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]) -> str:
    reference, prediction, wrong = maps
    table = np.full((256, 3), _NOTHING, np.uint8)
    table[: len(classes)] = [item.rgb for item in classes]
    known = ~np.isnan(wrong)
    share = np.where(known, wrong, 0.0)[..., None]
    errors = np.where(known[..., None], _RIGHT + (_WRONG - _RIGHT) * share, _NOTHING).round().astype(np.uint8)
    shown = (
        ("Prediction", table[prediction]),
        ("Reference", table[reference]),
        ("Errors: the redder, the more pixels are wrong", errors),
    )
    figures = (
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{_png(picture)}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
        for caption, picture in shown
    )
    return f'<div class="maps">{"".join(figures)}</div>'


def _png(picture: NDArray[np.uint8]) -> str:
    """Return a picture (h, w, 3) as the base64 of a PNG."""
    height, width, _ = picture.shape
    with warnings.catch_warnings(), MemoryFile(ext=".png") as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="PNG", dtype="uint8", count=3, height=height, width=width) as file:
            file.write(np.moveaxis(picture, -1, 0))
        return base64.b64encode(memory.read()).decode("ascii")


def _numbers(record: dict[str, Any], *names: str) -> list[str]:
    return [_number(record[name]) for name in names]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
