"""What the benchmarks' command line takes; they themselves are run on purpose."""

from __future__ import annotations

import pytest

from tests.benchmarks.__main__ import asked


def test_without_a_name_the_suite_is_run() -> None:
    assert asked([]).name[:2] == ["startup", "engines"]


def test_some_can_be_named_and_others_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(["memory", "seasons"]).name == ["memory", "seasons"]
    with pytest.raises(SystemExit):
        asked(["memory", "colours"])
    assert "colours" in capsys.readouterr().err
