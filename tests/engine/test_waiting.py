"""Threads of a process of our own sleep while they wait: told in time, and never against the user."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, os
{before}
from geoseg.engine.waiting import sleep_soon
told = sleep_soon()
print(json.dumps([told, os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY")]))
"""


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ("", [True, "10000", None]),
        ("os.environ['GOMP_SPINCOUNT'] = '5'", [True, "5", None]),
        ("os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'", [False, None, "ACTIVE"]),
        ("import sys; sys.modules['torch'] = None", [False, None, None]),
    ],
)
def test_it_is_told_before_torch_and_leaves_what_the_user_set(before: str, wanted: list[object]) -> None:
    place = {"PATH": ""}
    script = SCRIPT.format(before=before)
    done = subprocess.run([sys.executable, "-c", script], env=place, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == wanted
