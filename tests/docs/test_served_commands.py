"""Commands of the documents that need a cluster or object storage, run in bash against servers of the test's.

Only ports and the number of parts are others than on the page.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geopandas
import pytest

from tests.conftest import Storage
from tests.docs.pages import ROOT, blocks

pytestmark = [pytest.mark.slow, pytest.mark.dist]
_LIMIT_S = 300


def _block(page: str, part: str) -> str:
    """Return the text of the shell block of a page that has ``part`` in it."""
    (found,) = (block.text for block in blocks(ROOT / "docs" / page) if block.language == "bash" and part in block.text)
    return found


@pytest.fixture
def shell(
    tmp_path: Path, piece: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], str]]:
    """Return a function that runs a text in bash, in a folder with two scenes, until its last line in front ends."""
    (tmp_path / "scenes").mkdir()
    for name in ("east", "west"):
        shutil.copy(piece(256, 288), tmp_path / "scenes" / f"{name}.tif")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    started: list[subprocess.Popen[str]] = []

    def run(text: str) -> str:
        log = tmp_path / f"log{len(started)}"
        with log.open("w") as out:
            process = subprocess.Popen(
                ["bash", "-eo", "pipefail", "-c", text], cwd=tmp_path, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        code = process.wait(timeout=_LIMIT_S)
        assert code == 0, log.read_text()
        return log.read_text()

    yield run
    for process in started:  # with all that they left running
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def test_a_batch_on_this_machine(shell: Callable[[str], str], tmp_path: Path) -> None:
    shell(_block("cluster.md", "--workers 2").splitlines()[0])
    _check_two(tmp_path / "out")


def test_a_cluster_of_ones_own(shell: Callable[[str], str], tmp_path: Path) -> None:
    shell(_block("cluster.md", "--host 127.0.0.1").replace("8786", _free_port()))
    _check_two(tmp_path / "out")


def _check_two(folder: Path) -> None:
    made = sorted(folder.glob("*/*.gpkg"))
    assert [path.stem for path in made] == ["east", "west"]
    assert all(len(geopandas.read_file(path, layer=path.stem)) for path in made)


def test_a_list_in_parts(shell: Callable[[str], str], tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    shutil.copy(make_bundle("plainconv", tile=128), tmp_path / "model.safetensors")
    (tmp_path / "scenes.txt").write_text("".join(f"{path}\n" for path in sorted((tmp_path / "scenes").iterdir())))
    for part in ("000", "001"):
        file = f"scheduler-part-{part}.json"
        shell(
            f"dask scheduler --host 127.0.0.1 --port 0 --no-dashboard --scheduler-file {file} &\n"
            f"dask worker --scheduler-file {file} --nthreads 1 --memory-limit 0 &\n"
            f"until [ -s {file} ]; do sleep 0.2; done"
        )
    shell(_block("scale.md", "split -n").replace("l/100", "l/2"))
    made = sorted((tmp_path / "out").glob("*/*/*.gpkg"))
    assert [str(path.relative_to(tmp_path / "out")) for path in made] == [
        "part-000/east/east.gpkg",
        "part-001/west/west.gpkg",
    ]


def test_object_storage(shell: Callable[[str], str], storage: Storage, s3_client: Any, tmp_path: Path) -> None:
    for name in ("scenes", "maps"):
        s3_client.create_bucket(Bucket=name)
    s3_client.upload_file(str(tmp_path / "scenes" / "east.tif"), "scenes", "town.tif")
    (command,) = (line for line in _block("storage.md", "AWS_ENDPOINT_URL").splitlines() if "geoseg predict" in line)
    shell(command)
    keys = {item["Key"] for item in s3_client.list_objects_v2(Bucket="maps")["Contents"]}
    assert {"town.gpkg", "town.tif"} <= keys
