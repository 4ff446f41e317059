"""Processes that run networks keep the memory that is freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from dask.distributed import Client

GLIBC = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"


def _faults_of_taking_again() -> int:
    """Return how many pages a thread has to be given for 128 MB that it took, wrote and freed just before."""
    import resource
    from concurrent.futures import ThreadPoolExecutor

    def take() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert len(b"x" * (128 << 20)) == 128 << 20
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with ThreadPoolExecutor(1) as pool:
        pool.submit(take).result()
        return pool.submit(take).result()


def test_the_allocator_of_a_process_can_be_told_to_keep_memory() -> None:
    code = (
        "from geoseg.engine.allocator import keep_freed_memory; import sys; "
        "print(keep_freed_memory(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, loaded = done.stdout.split()
    assert told == str(GLIBC)
    assert loaded == "False"


@pytest.mark.skipif(not GLIBC, reason="another C library")
@pytest.mark.dist
@pytest.mark.slow
def test_local_workers_keep_what_they_free(two_workers: str) -> None:
    with Client(two_workers, set_as_default=False) as client:
        faults = client.run(_faults_of_taking_again)
    assert len(faults) == 2
    assert max(faults.values()) < 1000  # of 32768 pages
