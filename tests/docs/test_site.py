"""The site of the documents builds without a warning, shows every page, and its links lead within it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT, name, read

mkdocs = pytest.importorskip("mkdocs", reason="the extra docs is not installed")


def _navigation() -> set[str]:
    """Return the pages that the navigation names."""

    class Loader(yaml.SafeLoader):
        """Reads past the tags of Python objects."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    found: set[str] = set()

    def collect(entries: list) -> None:
        for entry in entries:
            for content in entry.values():
                collect(content) if isinstance(content, list) else found.add(content)

    collect(yaml.load(read(ROOT / "mkdocs.yml"), Loader)["nav"])
    return found


def test_every_page_has_its_place_in_the_navigation() -> None:
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")}
    made = {"index.md", "contributing.md", "security.md", "changelog.md", "commands.md"}
    assert _navigation() == pages | made


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_links_lead_within_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # what the theme's makers tell of their plans
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    site = tmp_path / "site"
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if path.name != "404.html"}
    for path, text in pages.items():
        for target in re.findall(r'(?:href|src)="([^"#:?]+)(?:[#?][^"]*)?"', text):
            assert (path.parent / target).resolve().exists(), f"{path.relative_to(site)}: {target}"
    for phrase in ("geoseg.predict", "geoseg.segmenters.interface.Segmenter", "geoseg.losses.create"):
        assert any(f'id="{phrase}"' in text for text in pages.values()), phrase
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert "Usage: geoseg predict" in commands
    # Nothing is fetched from elsewhere by a reader who opens a page.
    for path, text in pages.items():
        fetched = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', text)
        assert [each for each in fetched if "canonical" not in each] == [], name(ROOT / path.name)
