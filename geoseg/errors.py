"""Faults a caller may want to catch, one class per kind.

Every message is one sentence or two that name the file, the value that was wrong, and the way out: the command
line prints it as it stands.  Children also inherit the builtin that a caller would expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GeosegError(Exception):
    """Root of every error that geoseg raises on purpose."""


class SceneError(GeosegError, ValueError):
    """A raster that cannot be used: unreadable, without a CRS, of a refused type, or with the wrong bands."""


class BundleError(GeosegError, ValueError):
    """A model file that is not a bundle, is damaged, or does not fit this version or this scene."""


class LabelsError(GeosegError, ValueError):
    """Classes or label values that do not make sense."""


class ConfigError(GeosegError, ValueError):
    """An option whose value is refused."""


class OutputError(GeosegError, OSError):
    """An output that cannot be written: it exists, its folder does not, or the disk is full."""

    def __str__(self) -> str:
        """Return the sentence alone (OSError would add an errno it does not have)."""
        return str(self.args[0]) if self.args else ""


class RunError(GeosegError, RuntimeError):
    """A run that could not go on; what was finished is kept and a rerun continues from it."""


class GeosegWarning(UserWarning):
    """Something a user should know although the work goes on."""


def one_line(cause: BaseException, limit: int = 200) -> str:
    """Return what ``cause`` says as one line of at most ``limit`` characters (its class name if it says nothing)."""
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return a sentence for a ``name`` that is not among ``known``, with the closest matches or the whole list.

    ``kind`` says of what it is to be the name: ``network``, ``loss``.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names) or 'none'}."
    return f"there is no {kind} named {name!r}; {hint}"
