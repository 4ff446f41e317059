"""Every public name says what it takes and gives: all arguments by name, shapes of arrays, units of lengths."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import geoseg
from geoseg.losses import names as loss_names
from geoseg.losses.entries import ENTRIES as LOSSES

# Beside what `geoseg`, `geoseg.networks` and `geoseg.losses` export: the modules that the reference shows.
MODULES = (
    "geoseg.bundle",
    "geoseg.classes",
    "geoseg.errors",
    "geoseg.grid",
    "geoseg.losses.loss",
    "geoseg.metrics",
    "geoseg.scene",
    "geoseg.segmenters.interface",
)
RETURNED = (
    "geoseg.engine.predict:Options",
    "geoseg.engine.execute:Report",
    "geoseg.engine.batch:BatchReport",
    "geoseg.engine.evaluation:Evaluation",
    "geoseg.training.fit:Report",
    "geoseg.training.adapt:AdaptReport",
)
_ARRAY = re.compile(r"NDArray|ndarray|Tensor")
_SHAPE = re.compile(
    r"\((?:[A-Z0-9][\w ·+×-]*(?:, |,)?)+\)|\bscalar\b|any shape|`height`|(?:of|one) (?:one )?(?:shape|length)"
)
_LENGTH = re.compile(
    r"^(?:.*_)?(?:tile|halo|stride|core|chunk|crop|size|side|extent|margin|width|height|row|col|overlap|resolution|"
    r"simplify|min_area|fill_holes|erode|distance|seconds|patience|radius|metres)$"
)
_UNIT = re.compile(r"pixel|metre|\bm²|\bm2\b|\bm\b|second|\bpx\b|share|degree", re.I)


def _public() -> Iterator[tuple[str, Any]]:
    """Yield full name and object of all that is public: functions, classes, and the methods of these."""
    tops: list[tuple[str, Any]] = []
    for package in ("geoseg", "geoseg.networks", "geoseg.losses"):
        module = importlib.import_module(package)
        tops += [(f"{package}.{name}", getattr(module, name)) for name in module.__all__ if name[0] != "_"]
    for package in MODULES:
        module = importlib.import_module(package)
        own = [(name, value) for name, value in vars(module).items() if getattr(value, "__module__", "") == package]
        tops += [(f"{package}.{name}", value) for name, value in own if name[0] != "_"]
    for place in RETURNED:
        module, _, name = place.partition(":")
        tops.append((f"{module}.{name}", getattr(importlib.import_module(module), name)))
    for path, value in tops:
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        yield path, value
        if inspect.isclass(value):
            for name, member in vars(value).items():
                function = getattr(member, "__func__", getattr(member, "fget", getattr(member, "func", member)))
                if name[0] != "_" and inspect.isfunction(function):
                    yield f"{path}.{name}", function


PUBLIC = dict(_public())


def _parameters(value: Any) -> dict[str, str]:
    """Return the annotations, as they stand in the code, of what a function takes or a data class holds."""
    if inspect.isclass(value):
        if not dataclasses.is_dataclass(value):
            return {}
        return {item.name: str(item.type) for item in dataclasses.fields(value) if item.name[0] != "_"}
    return {
        name: str(parameter.annotation)
        for name, parameter in inspect.signature(value).parameters.items()
        if name not in ("self", "cls")
    }


def _said(name: str, text: str) -> str:
    """Return what a docstring says of a parameter: its entry, else the whole."""
    entry = re.search(rf"^ *(?:\w+, )*{name}(?:, \w+)*: (.*(?:\n {{12,}}.*)*)", text, re.M)
    return entry[0] if entry else text


@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_name_is_described(path: str) -> None:
    value = PUBLIC[path]
    text = value.__doc__ or ""
    assert text.strip(), "no docstring"
    assert not text.startswith(f"{value.__name__}("), "the docstring that Python makes of a data class"
    for name, kind in _parameters(value).items():
        assert re.search(rf"\b{name}\b", text), f"{name} is not described"
        if _ARRAY.search(kind):
            assert _SHAPE.search(_said(name, text)) or _SHAPE.search(text), f"{name} is an array without a shape"
        elif _LENGTH.match(name) and re.search(r"\b(?:int|float)\b", kind):
            assert _UNIT.search(_said(name, text)), f"{name} is a number without a unit"
    if inspect.isfunction(value) and _ARRAY.search(str(value.__annotations__.get("return", ""))):
        assert _SHAPE.search(text), "an array is returned without its shape"


def test_what_is_looked_at_is_what_there_is() -> None:
    assert {f"geoseg.{name}" for name in geoseg.__all__ if name not in ("__version__", "losses", "networks")} <= set(
        PUBLIC
    )
    assert "geoseg.segmenters.interface.Segmenter.segment" in PUBLIC
    assert "geoseg.grid.Window.intersect" in PUBLIC


@pytest.mark.parametrize("name", loss_names())
def test_a_loss_says_what_its_options_are(name: str) -> None:
    module, _, kind = LOSSES[name].module.partition(":")
    value = getattr(importlib.import_module(module), kind)
    text = f"{value.__doc__ or ''}\n{importlib.import_module(module).__doc__ or ''}"
    missing = [option for option in LOSSES[name].info.options if not re.search(rf"\b{option}\b", text)]
    assert missing == []
