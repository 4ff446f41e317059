"""A folder in S3 storage is one process's at a time, and free again when that process is gone, however it went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager

import pytest

from geoseg.engine.lease import LEASE_S, Lease, leased
from geoseg.errors import GeosegWarning, OutputError, RunError
from geoseg.places import S3Place
from tests.conftest import Storage
from tests.s3_proxy import proxied

HOLD = "from geoseg.engine.lease import leased\nfrom geoseg.places import place_of\nimport sys, time\n" + (
    "with leased(place_of(sys.argv[1]), ''):\n    print('held', flush=True)\n    time.sleep(600)\n"
)


def waiting() -> AbstractContextManager[object]:
    """Return what sees that a wait is told."""
    return pytest.warns(GeosegWarning, match="waiting up to 30 seconds to see whether that run still lives")


def test_a_folder_that_was_let_go_of_is_free_at_once(storage: Storage) -> None:
    folder = S3Place(storage.bucket, "work")
    started = time.time()
    for _ in range(2):
        with leased(folder, "") as lease:
            lease.check()
            record = json.loads(storage.get("work/lock"))
            assert record["holder"].startswith(f"process {os.getpid()} on ")
            assert not record["released"]
        assert json.loads(storage.get("work/lock"))["released"]
    with leased(folder, ""):
        storage.client.delete_object(Bucket=storage.bucket, Key="work/lock")
    assert storage.names() == []
    assert time.time() - started < LEASE_S


@pytest.mark.slow
def test_a_folder_is_held_while_its_holder_lives_and_taken_over_when_it_was_killed(storage: Storage) -> None:
    folder = S3Place(storage.bucket, "work")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    told = rf"^{folder} is in use by process {holder.pid} on .*: wait for that run to end, or go elsewhere\.$"
    with waiting(), pytest.raises(RunError, match=told), leased(folder, "go elsewhere"):
        pass
    holder.kill()
    holder.wait()
    with waiting(), leased(folder, "") as lease:
        lease.check()
        assert f"process {os.getpid()} " in json.loads(storage.get("work/lock"))["holder"]


def check_until(lease: Lease, deadline: float) -> None:
    """Look at a lease again and again."""
    while time.monotonic() < deadline:
        lease.check()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("skew_s", [-7200, 7200])
def test_clocks_do_not_matter(storage: Storage, monkeypatch: pytest.MonkeyPatch, skew_s: int) -> None:
    folder = S3Place(storage.bucket, "work")
    with leased(folder, ""), proxied(storage.url) as proxy:
        proxy.skew_s = skew_s
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with waiting(), pytest.raises(RunError, match="is in use by"), leased(folder, ""):
            pass
        monkeypatch.setenv("AWS_ENDPOINT_URL", storage.url)


def test_a_storage_that_heeds_no_conditions_is_refused(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxied(storage.url) as proxy:
        proxy.fault = lambda method, path: "deaf"
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with (
            pytest.raises(OutputError, match="does not heed If-None-Match: give a path instead"),
            leased(S3Place(storage.bucket, "work"), ""),
        ):
            pass


@pytest.mark.slow
def test_a_holder_learns_that_another_took_over(storage: Storage) -> None:
    with leased(S3Place(storage.bucket, "work"), "") as lease:
        storage.put("work/lock", b"another's")
        deadline = time.monotonic() + LEASE_S
        with pytest.raises(RunError, match="was taken over by another run"):
            check_until(lease, deadline)
    assert storage.get("work/lock") == b"another's"
