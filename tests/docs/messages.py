"""The messages of the code: of every error that is raised, its class and its sentence, with … for what varies."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from tests.docs.pages import ROOT, read

GAP = "…"


@cache
def messages() -> frozenset[tuple[str, str]]:
    """Return the class and the sentence of every error that is raised with a text of its own."""
    found = set()
    for node in _nodes():
        if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name | ast.Attribute):
            kind = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if kind.endswith("Error") and (text := _text(node.args[0])):
                found.add((kind, text))
    return frozenset(found)


@cache
def texts() -> frozenset[str]:
    """Return every text of the code, whoever says it."""
    return frozenset(_text(node) for node in _nodes() if isinstance(node, ast.Constant | ast.JoinedStr))


def _nodes() -> Iterator[ast.AST]:
    for path in sorted([*(ROOT / "geoseg").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]):
        yield from ast.walk(ast.parse(read(path)))


def _text(node: ast.expr) -> str:
    """Return what a message says, empty for one that is made elsewhere."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text(node.left) or GAP) + (_text(node.right) or GAP)
    return ""
