"""Worker processes that the tests of runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package")
def two_workers() -> Iterator[str]:
    """The address of a scheduler with two worker processes, those of ``--workers 2``: they take seconds to start."""
    from geoseg.engine.cluster import connected
    from geoseg.engine.predict import Options

    with connected(Options(workers=2)) as crew:
        yield crew.client.scheduler.address
