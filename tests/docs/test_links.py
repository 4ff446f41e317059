"""Links of the documents and of docstrings lead to files, headings and names.  No address elsewhere is fetched."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links, name, prose, read

_NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The plugin's modules can be imported within QGIS alone.
_PLUGIN = ROOT / "geoseg" / "qgis_plugin"
_CODE = sorted(
    path
    for path in [*(ROOT / "geoseg").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    if not path.is_relative_to(_PLUGIN)
)
_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([\w.]+)`")
# Files that documents speak of by their path from the root, outside of links too.
_PATH = re.compile(r"`((?:docs|geoseg|cli|tests|notebooks)/[\w./-]*\w|(?:README|CONTRIBUTING|SECURITY|CHANGELOG)\.md)`")


def _fault(page: Path, target: str) -> str | None:
    """Return what is wrong with a link, None if it leads somewhere."""
    if re.match(r"(https?|mailto):", target):
        return None
    path, _, anchor = target.partition("#")
    place = (page.parent / path).resolve() if path else page
    if not place.is_relative_to(ROOT):
        return "leads out of the repository"
    if not place.exists():
        return "leads to no file"
    if anchor and place.suffix == ".md" and anchor not in anchors(place):
        return "leads to no heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    faults = {target: fault for target in links(page) if (fault := _fault(page, target))}
    assert faults == {}


def test_links_are_found_and_faults_told(tmp_path: Path) -> None:
    page = ROOT / "docs" / "cluster.md"
    assert "../SECURITY.md" in links(page)
    assert _fault(page, "../SECURITY.md") is None
    assert _fault(page, "#gpus") is None
    assert _fault(page, "#gpu") == "leads to no heading"
    assert _fault(page, "scale.md#nowhere") == "leads to no heading"
    assert _fault(page, "nowhere.md") == "leads to no file"
    assert _fault(page, "../../elsewhere.md") == "leads out of the repository"


@pytest.mark.parametrize("notebook", _NOTEBOOKS, ids=name)
def test_links_of_notebooks_lead_to_files(notebook: Path) -> None:
    cells = json.loads(read(notebook))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert _fault(notebook, target) is None, target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_that_are_told_exist(page: Path) -> None:
    for path in _PATH.findall(prose(page)):
        assert (ROOT / path).exists(), path


def _resolved(reference: str, module: str) -> bool:
    """Whether a name of a docstring is one of ``module``, of a class of it, or a full name."""
    for start in (f"{module}.{reference}", reference):
        parts = start.split(".")
        for count in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:count]))
            except ImportError:
                continue
            for part in parts[count:]:
                annotated = getattr(found, "__annotations__", {})
                found = annotated[part] if part in annotated else getattr(found, part, None)
            if found is not None:
                return True
            break
    owners = [value for value in vars(importlib.import_module(module)).values() if isinstance(value, type)]
    return any(hasattr(owner, reference) or reference in _fields(owner) for owner in owners)


def _fields(owner: type) -> set[str]:
    """Return the fields of a data class or of a model of pydantic's, and what instances are annotated with."""
    return {name for each in owner.__mro__ for name in getattr(each, "__annotations__", {})}


def test_names_that_docstrings_refer_to_exist() -> None:
    faults = []
    for path in _CODE:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        module = re.sub(r"^cli\b", "geoseg_cli", module)
        for node in ast.walk(ast.parse(read(path))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            told = _ROLE.findall(ast.get_docstring(node) or "")
            faults += [f"{name(path)}: {reference}" for reference in told if not _resolved(reference, module)]
    assert faults == []
