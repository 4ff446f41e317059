"""What the tests of runs share: worker processes, and a run of the command line with all its outputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

OUTPUTS = ("out.gpkg", "labels.tif", "confidence.tif")


def predict_command(folder: Path, scene: Path, model: Path, *more: str) -> list[str]:
    """Return the command that writes ``OUTPUTS`` into a folder."""
    return [
        *(sys.executable, "-m", "geoseg_cli", "predict", str(scene), str(folder / "out.gpkg"), "-m", str(model)),
        *("--labels", str(folder / "labels.tif"), "--confidence", str(folder / "confidence.tif")),
        *("--chunk", "128", *more),
    ]


@pytest.fixture(scope="package")
def slow_model(make_bundle: Callable[..., Path]) -> Path:
    """A network wide enough for a run to last some seconds."""
    return make_bundle("plainconv", tile=128, options={"width": 96, "depth": 5})


@pytest.fixture(scope="package")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, town: Path, slow_model: Path) -> dict[str, bytes]:
    """The outputs of one run of that network over the town, from beginning to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run(predict_command(folder, town, slow_model), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="package")
def two_workers() -> Iterator[str]:
    """The address of a scheduler with two worker processes, those of ``--workers 2``: they take seconds to start."""
    from geoseg.engine.cluster import connected
    from geoseg.engine.predict import Options

    with connected(Options(workers=2)) as crew:
        yield crew.client.scheduler.address
