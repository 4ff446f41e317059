"""What became of the scenes of a batch: as JSON, as a CSV table, and as one HTML page."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from geoseg.outputs.html_page import page, table, text
from geoseg.outputs.staging import staged, writing
from geoseg.places import S3Place, as_place

NAMES = ("report.json", "report.csv", "report.html")
# In the order of the page: what needs a look comes first.
_STATES = {
    "failed": "failed",
    "holes": "done, with holes",
    "waiting": "not reached",
    "done": "done",
    "kept": "done before",
}
_COLUMNS = (
    *("name", "source", "status", "seconds", "worker_seconds", "pixels", "pixels_per_worker_second", "chunks"),
    *("chunks_found_done", "tiles", "polygons", "error", "way_out", "outputs"),
)


def write_reports(folder: str | os.PathLike[str] | S3Place, record: Mapping[str, Any]) -> tuple[str, ...]:
    """Write ``report.json``, ``report.csv`` and ``report.html`` into ``folder``, replacing them; returns their paths.

    Args:
        folder: of the batch.
        record: ``title``, ``model``, ``seconds``, ``totals`` (scenes by status, pixels, …), ``classes`` (name and
            colour), ``error`` of the batch as a whole or None, and ``scenes``: one record each.

    Raises:
        OutputError: they cannot be written.
    """
    made = {
        "report.json": json.dumps(record, indent=2, ensure_ascii=False) + "\n",
        "report.csv": _csv(record),
        "report.html": _html(record),
    }
    place = as_place(folder)
    paths = []
    for name, content in made.items():
        path = place / name
        with staged(path) as temporary, writing(path):
            temporary.write_text(content, encoding="utf-8", newline="")
        paths.append(str(path))
    return tuple(paths)


def _csv(record: Mapping[str, Any]) -> str:
    classes = [item["name"] for item in record["classes"]]
    made = io.StringIO()
    writer = csv.writer(made)
    writer.writerow([*_COLUMNS, *(f"{name} m2" for name in classes)])
    for scene in record["scenes"]:
        cells = [scene.get(name) for name in _COLUMNS]
        cells[-1] = " ".join(scene.get("outputs") or ())
        areas = scene.get("areas_m2") or {}
        writer.writerow([_plain(cell) for cell in (*cells, *(areas.get(name) for name in classes))])
    return made.getvalue()


def _plain(cell: Any) -> Any:
    """Return a cell that a spreadsheet does not take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(tuple("=+-@\t\r")) else cell


def _html(record: Mapping[str, Any]) -> str:
    totals = record["totals"]
    counts = ", ".join(f"{totals[name]} {told}" for name, told in _STATES.items() if totals.get(name))
    rate = totals["pixels"] / record["seconds"] if record["seconds"] else 0
    parts = [
        f"<h1>{text(record['title'])}</h1>",
        f'<p class="what">Model {text(record["model"])}. {totals["scenes"]} scenes: {text(counts) or "none"}. '
        f"{totals['pixels']:,} pixels computed in {record['seconds']:,.0f} s ({rate / 1e6:.2f} million a second, of "
        f"all workers together).</p>",
    ]
    if record["error"]:
        parts.append(f"<p><b>The batch ended early:</b> {text(record['error'])}</p>")
    failed = [scene for scene in record["scenes"] if scene["status"] in ("failed", "holes")]
    if failed:
        parts += ["<h2>What needs a look</h2>", _faults(failed)]
    parts += ["<h2>Scenes</h2>", _scenes(record)]
    if record["classes"]:
        parts += [
            "<h2>Areas in hectares</h2>",
            '<p class="what">Ground covered by each class in the labels, before polygons are merged or dropped.</p>',
            _areas(record),
        ]
    return page(record["title"], parts)


def _faults(scenes: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for scene in scenes:
        causes = [scene["error"]] if scene.get("error") else []
        causes += [f"{hole['window']}: {hole['cause']}" for hole in scene.get("holes") or ()]
        rows.append([text(scene["name"]), _left("<br>".join(map(text, causes))), _left(text(scene["way_out"] or ""))])
    return table(("scene", "what went wrong", "the way out"), rows)


def _left(cell: str) -> str:
    return f'<div style="text-align:left">{cell}</div>'


def _scenes(record: Mapping[str, Any]) -> str:
    head = ("scene", "status", "seconds", "worker seconds", "million pixels", "million a worker second", "polygons")
    order = list(_STATES)
    rows = []
    for scene in sorted(record["scenes"], key=lambda each: order.index(each["status"])):
        name = text(scene["name"])
        if scene.get("outputs"):
            name = f'<a href="{quote(scene["outputs"][0])}">{name}</a>'
        rows.append(
            [
                f'{name}<br><span class="what">{text(scene["source"])}</span>',
                text(_STATES[scene["status"]]),
                _number(scene.get("seconds"), 1),
                _number(scene.get("worker_seconds"), 1),
                _number(scene.get("pixels"), 2, 1e-6),
                _number(scene.get("pixels_per_worker_second"), 2, 1e-6),
                "–" if scene.get("polygons") is None else f"{scene['polygons']:,}",
            ]
        )
    return table(head, rows)


def _areas(record: Mapping[str, Any]) -> str:
    classes = record["classes"]
    head = ["scene"]
    head += [
        f'<span class="swatch" style="background:{text(item["color"])}"></span>{text(item["name"])}' for item in classes
    ]
    known = [scene for scene in record["scenes"] if scene.get("areas_m2")]
    rows = [
        [text(scene["name"]), *(_number(scene["areas_m2"].get(item["name"]), 2, 1e-4) for item in classes)]
        for scene in known
    ]
    sums = [sum(scene["areas_m2"].get(item["name"], 0.0) for scene in known) for item in classes]
    return table(head, [*rows, ["all", *(_number(value, 2, 1e-4) for value in sums)]])


def _number(value: float | None, decimals: int, factor: float = 1.0) -> str:
    return "–" if value is None else f"{value * factor:,.{decimals}f}"
