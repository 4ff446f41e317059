"""Progress on a terminal."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from geoseg_cli.progress import shown


def test_a_terminal_gets_a_bar_for_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with shown() as progress:
            assert progress is not None
            for stage, total in (("counting labels", 2), ("training", 5)):
                for done in range(total + 1):
                    progress(stage, done, total)
        terminal.flush()
        told = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert "\x1b[" in told  # drawn in place
    last = told.replace("\r", "\n").split("\n")
    for stage, count in (("counting labels", "2/2"), ("training", "5/5")):
        assert any(stage in line and count in line for line in last)
