"""What mkdocs is told while it builds the site: pages made of files outside of ``docs``, links, the commands' help.

Links in the documents are those of the repository, so that they work where the sources are read; a link to a file that
has no page goes to the site of the repository, where ``repo_url`` in ``mkdocs.yml`` says which; else its words remain.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Documents in the root of the repository, and the pages that they become.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
_COMMANDS = "commands.md"
_LINK = re.compile(r"\[(?P<words>[^\]\[]*)\]\((?P<target>[^)\s#]+)(?P<rest>(?:#[^)\s]*)?)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of files outside of ``docs``, and that of the commands."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, _COMMANDS, content="\n".join(_help())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    uri = page.file.src_uri
    source = next((name for name, made in OUTSIDE.items() if made == uri), f"docs/{uri}")
    return relinked(markdown, source, uri, config.repo_url)


def relinked(text: str, source: str, uri: str, repository: str | None) -> str:
    """Return the text of the page ``uri``, made of the file ``source`` of the repository, with its links as pages.

    Args:
        text: Markdown.
        source: path from the root of the repository, ``docs/data.md``.
        uri: path of the page in the site's sources, ``data.md``.
        repository: address of the repository, if it has one.
    """

    def replaced(match: re.Match[str]) -> str:
        target = match["target"]
        if ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in OUTSIDE or (path.startswith("docs/") and not path.startswith("docs/making/")):
            place = OUTSIDE.get(path) or path.removeprefix("docs/")
            place = posixpath.relpath(place, posixpath.dirname(uri) or ".")
        elif (ROOT / path).exists() and not repository:
            return match["words"]
        elif (ROOT / path).exists():
            place = f"{repository}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"
        else:
            return match[0]
        return f"[{match['words']}]({place}{match['rest']})"

    return _LINK.sub(replaced, text)


def _help() -> Iterator[str]:
    """Yield the lines of the page of commands: what each says of itself with --help."""
    from geoseg_cli.main import geoseg

    yield "# Commands"
    yield ""
    yield "What each command says with `--help`. Names mean the same in all of them, and in Python."
    width = {"max_content_width": 100, "terminal_width": 100}
    outer = click.Context(geoseg, info_name="geoseg", **geoseg.context_settings, **width)
    for name in geoseg.list_commands(outer):
        command = geoseg.get_command(outer, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=outer, **width)
        yield from ("", f"## geoseg {name}", "", "```text", command.get_help(inner), "```")
