"""The documents as a reader of their source sees them: fenced blocks, code in sentences, headings, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Every document of the repository that a user may read.
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "geoseg" / "data" / "README.md"],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```\s*?$", re.M | re.S)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)
_LINK = re.compile(r"(?<!\\)!?\[(?:[^\]\[]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)", re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: the page it stands on, the line of its first text line, its language and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        """Return how a test shows it."""
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    """Return the path of a page from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    """Return the text of a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    text = read(page)
    found = []
    for match in _FENCE.finditer(text):
        inner = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.M)
        found.append(Block(page, text.count("\n", 0, match.start("text")) + 1, match["language"], inner))
    return found


def prose(page: Path) -> str:
    """Return the text of a page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def spans(page: Path) -> list[str]:
    """Return the code that stands in sentences, each on one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(page))]


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return [match["target"] for match in _LINK.finditer(_SPAN.sub("", prose(page)))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    taken: dict[str, int] = {}
    found = set()
    for heading in _HEADING.findall(prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        count = taken[slug] = taken.get(slug, -1) + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found
