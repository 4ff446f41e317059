"""Sums of losses as text: ``ce+0.5*aaf[margin=2,sizes=1/2]``.  Reading them imports no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from geoseg.errors import ConfigError, unknown_name
from geoseg.losses.entries import ENTRIES

_TERM = re.compile(r"(?:(?P<weight>[^*\[\]]*)\*)?\s*(?P<name>[^*\[\]]*?)\s*(?:\[(?P<options>[^\[\]]*)\])?")
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}
_EXAMPLE = "write a sum of names with weights, such as ce+0.5*aaf or ce+0.5*aaf[margin=2]"


@dataclass(frozen=True)
class Term:
    """One loss of a sum: its name, its weight (0 or more) and the options in its brackets."""

    name: str
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


def parse(expression: str) -> tuple[Term, ...]:
    """Return the terms of a sum, in its order.

    Weights stand before their loss, options after it in brackets: numbers, ``true``, ``false``, ``none``, words, and
    lists with ``/`` between the values.

    >>> parse("ce + 0.5*aaf[margin=2, sizes=1/2]")[1]
    Term(name='aaf', weight=0.5, options={'margin': 2, 'sizes': (1, 2)})

    Raises:
        ConfigError: an empty or misshapen term, an unknown name or option, or a weight that is no number of 0 or more.
    """
    terms = tuple(_term(part, expression) for part in _parts(expression))
    if not any(term.weight > 0 for term in terms):
        raise ConfigError(f"the loss {expression!r} has no term with a weight above 0; {_EXAMPLE}.")
    return terms


def _parts(expression: str) -> list[str]:
    """Return what stands between the plus signs; those in brackets and exponents are none."""
    return re.split(r"(?<![0-9.][eE])\+(?![^\[]*\])", expression)


def _term(part: str, expression: str) -> Term:
    found = _TERM.fullmatch(part.strip())
    if found is None or not found["name"]:
        raise ConfigError(f"the loss {expression!r} has a part {part.strip()!r} that is no loss; {_EXAMPLE}.")
    name = found["name"]
    if name not in ENTRIES:
        raise ConfigError(unknown_name("loss", name, ENTRIES))
    return Term(name, _weight(found["weight"], name), _options(found["options"], name))


def _weight(text: str | None, name: str) -> float:
    if text is None:
        return 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ConfigError(f"the weight of loss {name} is {text.strip()!r}: give a number of 0 or more.")
    return weight


def _options(text: str | None, name: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ConfigError(f"loss {name} has {part.strip()!r} in its brackets: write option=value.")
        if key not in ENTRIES[name].info.options:
            raise ConfigError(unknown_name(f"option of loss {name}", key, ENTRIES[name].info.options))
        if key in options:
            raise ConfigError(f"loss {name} has {key} twice in its brackets: give it once.")
        options[key] = tuple(map(_value, filter(None, value.split("/")))) if "/" in value else _value(value)
    return options


def _value(text: str) -> Any:
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
