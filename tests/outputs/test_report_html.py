"""The report: everything in one page, nothing fetched, names as they are."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rasterio.io import MemoryFile

from geoseg.classes import Classes
from geoseg.engine.evaluation import Boundaries, Evaluation, ObjectScores
from geoseg.engine.structure import Structure
from geoseg.metrics import Calibration, Confusion, ObjectCounts, Overlap
from geoseg.outputs.report_html import write_report

CLASSES = Classes.parse('background:#010203,<b>"roof" & co:#ff8000')
REFERENCE = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
PREDICTION = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
WRONG = np.array([[0, 0.5, np.nan], [0, 1, 0]])


class _Page(HTMLParser):
    """Collects what a page shows and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in {"src", "href", "action", "data", "srcset"}]
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    """A page with everything that it can hold."""
    counts = np.array([2, 1])
    result = Evaluation(
        prediction="/a/p <1>.tif", reference="/a/r.gpkg", classes=CLASSES,
        grid={"crs": "EPSG:32645", "transform": [1.0] * 6, "shape": [2, 3], "pixel_m": [0.5, 0.5]},
        pixels={"all": 6, "evaluated": 5, "outside_area": 0, "reference_ignored": 1, "prediction_ignored": 0},
        scores=Confusion(np.array([[2, 0], [1, 2]])), eroded=Confusion(np.array([[1, 0], [0, 0]])), erode_px=3,
        boundaries=Boundaries(Overlap(counts, counts, counts * 2), "3px"),
        objects=ObjectScores(ObjectCounts(np.array([0, 4]), np.array([0, 1]), np.array([0, 2])), 0.8),
        calibration=Calibration(np.array([0, 5]), np.array([0, 4]), np.array([0, 5 * 2**23])),
        structure=Structure(
            ("background", '<b>"roof" & co'), 1.0, 4, np.array([0.5, 1]), np.array([1.0, 2]), np.array([3.0, 1])
        ),
        pictures=None, notes=("A note & more.",),
    )  # fmt: skip
    write_report(tmp_path / "report.html", result.as_dict(), CLASSES, (REFERENCE, PREDICTION, WRONG))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def _parsed(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_nothing_is_fetched(page):
    assert all(source.startswith("data:") for source in _parsed(page).sources)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script", page)


def test_names_are_shown_as_they_are(page):
    assert '<b>"roof" & co' in _parsed(page).cells
    assert "<b>" not in page
    assert "A note &amp; more." in page


def test_figures_are_those_of_the_record(page):
    cells = _parsed(page).cells
    structure = (1 - 0.75 / 4, 1 - 1.5 / 4, 2 / 4, (2.25 / 4) ** 0.5, 1 - 0.5 / 4, 1 - 2 / 4, 3 / 4, (3 / 4) ** 0.5)
    for figure in (0.8, 2 / 3, 0.5, 0.7273, *structure):
        assert f"{figure:.4f}" in cells
    assert "2 66.7 %" in cells  # two of three pixels of the second class
    assert "–" in cells  # the second class has no pixels away from boundaries


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # a picture has no place
def test_maps_have_the_colours_of_their_classes(page):
    pictures = []
    for source in _parsed(page).sources:
        if source.startswith("data:image/png;base64,"):
            with MemoryFile(base64.b64decode(source.partition(",")[2])) as memory, memory.open() as file:
                pictures.append(np.moveaxis(file.read(), 0, -1))
    table = np.full((256, 3), 255)
    table[:2] = [(1, 2, 3), (255, 128, 0)]
    assert np.array_equal(pictures[0], table[PREDICTION])
    assert np.array_equal(pictures[1], table[REFERENCE])
    errors = pictures[2].astype(int)
    assert errors[0, 2].tolist() == [255, 255, 255]
    assert errors[0, 0].tolist() == errors[1, 2].tolist() == [222, 235, 222]
    assert errors[1, 1].tolist() == [190, 20, 20]
    assert 20 < errors[0, 1, 1] < 235
