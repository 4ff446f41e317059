"""Docstrings as Markdown: references to other names become links where these have a place on the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`(?P<short>~?)(?P<name>[\w.]+)`")
_LITERAL_BLOCK = re.compile(r"::[ \t]*$", re.M)
# Examples of a session, as doctest reads them, with what they print.
_SESSION = re.compile(r"(?:^|(?<=\n\n))>>> .*?(?=\n\n|\Z)", re.S)


class Roles(griffe.Extension):
    """Rewrite docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Rewrite the docstring of one name."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, obj)


def as_markdown(text: str, owner: griffe.Object) -> str:
    """Return a docstring with links in place of roles; ``owner`` says what short names may mean."""

    def linked(match: re.Match[str]) -> str:
        name = match["name"]
        shown = name.rpartition(".")[2] if match["short"] else name
        path = name if name.startswith("geoseg.") else f"{owner.module.path}.{name}"
        return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'

    text = _SESSION.sub(lambda match: f"```pycon\n{match[0]}\n```", text)
    return _LITERAL_BLOCK.sub(":", _ROLE.sub(linked, text))
