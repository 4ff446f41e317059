"""Clusters that cannot be reached."""

from __future__ import annotations

import threading

import pytest

from geoseg.engine.cluster import connected
from geoseg.engine.predict import Options
from geoseg.errors import RunError


def test_a_cluster_that_cannot_be_reached_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left behind, the loop of such a client is closed by the collector, at a moment that may be the wrong one."""
    monkeypatch.setattr("geoseg.engine.cluster._REACH_TIMEOUT", 1)
    before = set(threading.enumerate())
    for _ in range(2):
        with pytest.raises(RunError, match="cannot be reached"), connected(Options(scheduler="tcp://127.0.0.1:9")):
            pass
    assert not [each.name for each in set(threading.enumerate()) - before if each.name == "IO loop"]
