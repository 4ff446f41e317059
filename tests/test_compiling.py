"""Machine code where it cannot be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from geoseg import compiling


def test_without_a_place_for_machine_code_it_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_cache(cache: bool = False, nogil: bool = False) -> Callable[..., Any]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, nogil)

    monkeypatch.setattr(compiling, "njit", refuse_cache)
    assert compiling.compiled(len) == (len, True)
