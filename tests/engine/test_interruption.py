"""Runs that are killed, stopped or refused: nothing partial appears, nothing finished is lost."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import rasterio

import geoseg
from geoseg.engine.store import ChunkStore, write_atomically
from geoseg.errors import OutputError, RunError, SceneError
from geoseg.grid import ChunkGrid
from tests.engine.conftest import OUTPUTS, predict_command


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that a shell runs in the background are deaf to Ctrl-C, and so would this be.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def _end(process: subprocess.Popen[str], number: int) -> str:
    os.killpg(process.pid, number)
    return process.communicate(timeout=60)[1]


def _wait_for_chunks(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 90
    while len(list(folder.glob(".out.gpkg.geoseg/r*/c*.tif"))) < count and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.dist
@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_byte_for_byte(
    tmp_path: Path, town: Path, slow_model: Path, undisturbed: dict[str, bytes], workers: str
) -> None:
    command = predict_command(tmp_path, town, slow_model, "--workers", workers)
    moments = random.Random(int(workers))
    for wanted in (1, 5, 9):
        process = _start(command)
        _wait_for_chunks(tmp_path, wanted)
        time.sleep(moments.uniform(0, 0.5))
        unfinished = process.poll() is None
        _end(process, signal.SIGKILL)
        if unfinished and not (tmp_path / "out.gpkg").exists():
            assert not any((tmp_path / name).exists() for name in ("labels.tif", "confidence.tif"))
    if not (tmp_path / "confidence.tif").exists():
        again = command + (["--overwrite"] if (tmp_path / "out.gpkg").exists() else [])
        done = subprocess.run(again, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "found done" in done.stderr
    assert {name: (tmp_path / name).read_bytes() for name in OUTPUTS} == undisturbed
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out") and p.suffix != ".partial"] == []


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGINT, "0"),
        pytest.param(signal.SIGTERM, "0", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "2", marks=[pytest.mark.slow, pytest.mark.dist]),
    ],
)
def test_who_is_told_to_end_says_how_to_go_on(
    tmp_path: Path, town: Path, slow_model: Path, undisturbed: dict[str, bytes], number: int, workers: str
) -> None:
    """The signal goes to all processes of the run, as a terminal's Ctrl-C does."""
    # Small chunks, so that many are left.
    command = predict_command(tmp_path, town, slow_model, "--chunk", "64", "--workers", workers)
    process = _start(command)
    _wait_for_chunks(tmp_path, 2)
    assert process.poll() is None
    told = _end(process, number)
    assert process.returncode == 1
    assert "run the same command again" in told
    assert "Traceback" not in told
    assert not (tmp_path / "out.gpkg").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "found done" in done.stderr
    assert (tmp_path / "out.gpkg").read_bytes() == undisturbed["out.gpkg"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_to_end_while_ending_ends_without_a_word(number: int) -> None:
    """A command is done, its process still frees what libraries hold."""
    program = (
        "import atexit, os, sys, time\n"
        "from geoseg_cli.main import main\n"
        f"atexit.register(lambda: (os.kill(os.getpid(), {int(number)}), time.sleep(20)))\n"
        "sys.argv = ['geoseg', '--version']\n"
        "main()\n"
    )
    process = _start([sys.executable, "-c", program])
    out, told = process.communicate(timeout=60)
    assert geoseg.__version__ in out
    assert (process.returncode, told) == (-number, "")


def test_two_runs_on_one_store_are_refused(tmp_path: Path, town: Path, plain: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "holder").write_text("process 1 on elsewhere")
        with pytest.raises(RunError, match="in use by process 1 on elsewhere"):
            geoseg.predict(town, tmp_path / "out.tif", str(plain), workdir=str(folder))
    geoseg.predict(town, tmp_path / "out.tif", str(plain), workdir=str(folder))


@pytest.mark.parametrize(
    "changed", [{"tile": 256}, {"chunk": 256}, {"blend": "hann"}, {"nodata": 7}, {"bands": [3, 2, 1]}, {"tta": True}],
    ids=str,
)  # fmt: skip
def test_a_store_of_another_run_is_told_and_kept(
    tmp_path: Path, town: Path, plain: Path, changed: dict[str, object]
) -> None:
    work = str(tmp_path / "work")
    geoseg.predict(town, tmp_path / "out.tif", str(plain), workdir=work)
    again = geoseg.predict(town, tmp_path / "again.tif", str(plain), workdir=work)
    assert again.resumed == again.chunks
    assert again.tiles == 0
    with pytest.raises(RunError, match=r"another run.*--fresh"):
        geoseg.predict(town, tmp_path / "new.tif", str(plain), workdir=work, **changed)
    assert not (tmp_path / "new.tif").exists()
    report = geoseg.predict(town, tmp_path / "new.tif", str(plain), workdir=work, fresh=True, **changed)
    assert report.resumed == 0


def test_a_folder_of_something_else_is_no_work_folder(tmp_path: Path, town: Path, plain: Path) -> None:
    work = tmp_path / "photos"
    work.mkdir()
    (work / "holiday.jpg").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(RunError, match="not a work folder"):
            geoseg.predict(town, tmp_path / "out.tif", str(plain), workdir=str(work), fresh=fresh)
    assert (work / "holiday.jpg").read_text() == "precious"


def test_a_full_disk_is_one_sentence_and_leaves_nothing_partial(
    tmp_path: Path, piece: Callable[..., Path], plain: Path, small_disk: Path
) -> None:
    town = piece(700, 900, row=200, col=100)  # more than the disk can hold
    with pytest.raises(OutputError, match="disk is full"):
        geoseg.predict(town, tmp_path / "out.tif", str(plain), workdir=str(small_disk / "work"), chunk=256)
    assert not (tmp_path / "out.tif").exists()
    with pytest.raises(OutputError, match="full"):
        geoseg.predict(town, small_disk / "out.gpkg", str(plain), workdir=str(tmp_path / "work"))
    assert not (small_disk / "out.gpkg").exists()
    report = geoseg.predict(town, tmp_path / "out.gpkg", str(plain), workdir=str(tmp_path / "work"))
    assert report.resumed == report.chunks  # the chunks outlived the failure


def test_a_damaged_block_fails_its_chunk_and_keeps_the_others(tmp_path: Path, town: Path, plain: Path) -> None:
    broken = tmp_path / "broken.tif"
    with rasterio.open(town) as file:
        profile = file.profile | {"compress": "deflate", "blockxsize": 128, "blockysize": 128}
        with rasterio.open(broken, "w", **profile) as copy:
            copy.write(file.read())
    with rasterio.open(broken) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_2_2", "TIFF", bidx=1))
        length = int(file.get_tag_item("BLOCK_SIZE_2_2", "TIFF", bidx=1))
    content = bytearray(broken.read_bytes())
    content[offset : offset + length] = os.urandom(length)
    broken.write_bytes(content)
    with pytest.raises((RunError, SceneError), match=r"broken\.tif") as caught:
        geoseg.predict(broken, tmp_path / "out.tif", str(plain), chunk=256)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.tif").exists()


def test_a_chunk_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_store_counts_only_its_own_chunks(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, ChunkGrid((100, 100), 50))
    for name in ("r00000/c00001.tif", "r00001/.c00000.tif.x.part", "r00009/c00000.tif", "rx/c00000.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert store.done() == {1}


def test_what_a_killed_run_left_half_done_is_swept_away(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path / "work", ChunkGrid((100, 100), 50))
    with store.opened("one"):
        pass
    (store.folder / "polygons-abc").mkdir()
    (store.folder / "polygons-abc" / "spool.db").write_text("half")
    (store.folder / "r00000").mkdir()
    for name in (".c00000.tif.x.part", "c00001.tif"):
        (store.folder / "r00000" / name).write_text("")
    with store.opened("one") as done:
        assert done == {1}
    assert sorted(p.name for p in store.folder.rglob("*") if p.name not in {"lock", "holder"}) == [
        "c00001.tif",
        "r00000",
        "run.json",
    ]
