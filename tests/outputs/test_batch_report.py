"""The report of a batch: the same facts in three forms, none of which runs what a name says."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from geoseg.outputs.batch_report import write_reports

EVIL = "=cmd|'/c calc'!A1<script>alert(1)</script>"


def _record() -> dict[str, Any]:
    done = {
        "name": "a b",
        "source": "/in/a.tif",
        "status": "done",
        "seconds": 2.5,
        "worker_seconds": 2.0,
        "pixels": 4_000_000,
        "pixels_per_worker_second": 2_000_000,
        "polygons": 1234,
        "outputs": ["a b/a b.gpkg", "a b/a b.json"],
        "areas_m2": {"roof": 20_000.0, "road": 0.0},
    }
    failed = {"name": EVIL, "source": EVIL, "status": "failed", "error": "it\nfailed: <b>", "way_out": "mend it"}
    hole = {"window": "Window(0, 0, 1, 1)", "cause": "a & b"}
    holes = {"name": "h", "source": "h", "status": "holes", "holes": [hole], "way_out": "again"}
    return {
        "title": "Batch <out>",
        "model": "m",
        "seconds": 4.0,
        "error": None,
        "totals": {"scenes": 4, "done": 1, "failed": 1, "holes": 1, "waiting": 1, "pixels": 4_000_000},
        "classes": [{"name": "roof", "color": "#d55e00"}, {"name": "road", "color": "#999999"}],
        "scenes": [done, failed, holes, {"name": "w", "source": "w", "status": "waiting"}],
    }


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"href", "src"} and tag != "link"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_tells_what_needs_a_look_first_and_runs_nothing(tmp_path: Path) -> None:
    files = write_reports(tmp_path, _record())
    assert [Path(file).name for file in files] == ["report.json", "report.csv", "report.html"]
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.links == ["a%20b/a%20b.gpkg"]
    text = page.text
    assert "1 failed, 1 done, with holes, 1 not reached, 1 done" in text
    assert text.index("What needs a look") < text.index("Areas in hectares")
    assert EVIL in text
    assert "Window(0, 0, 1, 1): a & b" in text
    assert "2.00" in text  # hectares of roof
    assert "1.00 million a second" in text


def test_the_table_is_no_formula_and_keeps_lines(tmp_path: Path) -> None:
    write_reports(tmp_path, _record())
    rows = list(csv.DictReader((tmp_path / "report.csv").open(newline="", encoding="utf-8")))
    assert [row["status"] for row in rows] == ["done", "failed", "holes", "waiting"]
    assert rows[1]["name"] == f"'{EVIL}"
    assert rows[1]["error"] == "it\nfailed: <b>"
    assert rows[0]["roof m2"] == "20000.0"
    assert rows[0]["outputs"] == "a b/a b.gpkg a b/a b.json"
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == _record()


def test_what_ended_a_batch_is_on_the_page(tmp_path: Path) -> None:
    write_reports(tmp_path, {**_record(), "error": "no Dask worker", "scenes": [], "classes": []})
    assert "no Dask worker" in (tmp_path / "report.html").read_text(encoding="utf-8")
