"""Progress on a terminal."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from geoseg.errors import ConfigError
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


@pytest.mark.parametrize(("seconds", "lines"), [(None, ["a: 0/9", "a: 9/9"]), ("0", [f"a: {i}/9" for i in range(10)])])
def test_lines_come_as_often_as_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: str | None, lines: list[str]
) -> None:
    monkeypatch.delenv("GEOSEG_PROGRESS_SECONDS", raising=False)
    if seconds is not None:
        monkeypatch.setenv("GEOSEG_PROGRESS_SECONDS", seconds)
    with shown() as progress:
        assert progress is not None
        for done in range(10):
            progress("a", done, 9)
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize("seconds", ["often", "-1", "nan", "inf"])
def test_what_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("GEOSEG_PROGRESS_SECONDS", seconds)
    with pytest.raises(ConfigError, match="GEOSEG_PROGRESS_SECONDS is"), shown():
        pass
