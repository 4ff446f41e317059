"""Python and settings of the documents are run, or checked as far as they go without what only a reader has."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import geoseg
from geoseg.data import sample_labels
from geoseg.training.config import check
from tests.docs.pages import PAGES, ROOT, Block, blocks, name

BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
# What a block imports that only a reader's cluster or QGIS has, and what such a block is about.  It is parsed; its
# calls are looked at by tests/test_cluster_recipes.py, and run by tests/qgis_plugin.
ELSEWHERE = {
    "coiled": "geoseg.batch(",
    "dask_jobqueue": "geoseg.batch(",
    "processing": 'processing.run("geoseg:predict"',
}
# What the commands above the code of a page have written.
WRITTEN = {"docs/looking.md": "buildings.gpkg", "docs/outputs.md": "houses.gpkg"}
# A block is saved under this name where the page says so, and the blocks below import it.
SAVED = re.compile(r"Save it as `(\w+\.py)`")


def _modules(text: str) -> set[str]:
    """Return the first names of what a text imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.fixture
def place(
    tmp_path: Path, piece: Callable[..., Path], make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder with what the pages speak of: a scene, its labels, a model, and what a run has written."""
    shutil.copy(piece(256, 288), tmp_path / "scene.tif")
    shutil.copy(sample_labels(), tmp_path / "roofs.geojson")
    shutil.copy(make_bundle("plainconv", tile=128), tmp_path / "land.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


@pytest.mark.parametrize("page", sorted({name(block.page) for block in PYTHON}))
def test_python_of_a_page_runs(page: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [block for block in PYTHON if name(block.page) == page]
    saved = SAVED.findall((ROOT / page).read_text(encoding="utf-8"))
    if page in WRITTEN:
        geoseg.predict("scene.tif", WRITTEN[page], "land.safetensors", labels="labels.tif")
    for block in own:
        elsewhere = _modules(block.text) & ELSEWHERE.keys()
        if elsewhere:
            assert all(ELSEWHERE[module] in block.text for module in elsewhere)
            continue
        if saved:
            Path(saved.pop(0)).write_text(block.text)
        exec(compile(block.text, f"{page}:{block.line}", "exec"), {"__name__": "docs"})  # our own page
    assert not saved
    if page == "README.md":
        assert "polygons in" in capsys.readouterr().out


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=str)
def test_settings_are_those_of_a_training_or_of_a_cluster(block: Block) -> None:
    record = yaml.safe_load(block.text)
    if record.get("kind") == "DaskCluster":  # tests/test_cluster_recipes.py
        return
    check(record)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.yaml")), ids=name)
def test_recipes_are_settings_of_a_training(path: Path) -> None:
    check(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_json_is_json() -> None:
    for block in BLOCKS:
        if block.language == "json":
            assert isinstance(json.loads(block.text), dict | list)
