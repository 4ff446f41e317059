"""JSON and YAML of strangers, read with limits that their own readers lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

# Settings have four levels; the readers call themselves for each level and end with the stack.
MOST_DEEP = 64
# A few lines of aliases can stand for more values than a machine has bytes.
MOST_VALUES = 100_000
MOST_YAML_BYTES = 4 << 20


def read_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return what a JSON text holds.

    Args:
        text: the text.
        pairs: what makes an object of its members, in place of a dict.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_yaml(text: str) -> Any:
    """Return what a YAML text holds, which no reader but the safe one sees.

    Raises:
        ValueError: it is too long, nested too deep, goes in circles, or holds too many values with aliases followed.
        yaml.YAMLError: it is no YAML.
    """
    import yaml

    if len(text.encode(errors="replace")) > MOST_YAML_BYTES:
        raise ValueError(f"it is longer than {MOST_YAML_BYTES >> 20} MiB")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEEP:
                raise ValueError(f"it is nested more than {MOST_DEEP} deep")
        found = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except (TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        # What the reader's makers of numbers and dates raise for such as !!int [].
        raise ValueError(f"it has a value that cannot be read ({type(error).__name__})") from error
    _count(found)
    return found


def read_yaml_file(path: str) -> Any:
    """Return what :func:`read_yaml` makes of a file (UTF-8), of which no more is read than it takes.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read, or is no text.
        ValueError, yaml.YAMLError: as there.
    """
    with open(path, encoding="utf-8") as file:
        return read_yaml(file.read(MOST_YAML_BYTES + 1))


def _count(value: Any) -> None:
    """Refuse what holds too many values or itself."""
    count, stack = 0, [(value, 0)]
    while stack:
        item, depth = stack.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values")
        if depth > MOST_DEEP:
            raise ValueError(f"it is nested more than {MOST_DEEP} deep, or in itself")
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple | set) else ()
        stack.extend((each, depth + 1) for each in inner)
