"""How the plugin runs the command: progress, words, errors, and its end; without QGIS."""

from __future__ import annotations

import ast
import os
import signal
import sys
import threading
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import geoseg
from geoseg.errors import OutputError
from geoseg.outputs.plugin_zip import FOLDER, write_plugin
from geoseg.qgis_plugin.command import CommandError, Stages, environment, find_command, run_command

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "geoseg" / "qgis_plugin"
STAGES = Stages([("preparing", 10), ("segmenting", 80), ("polygons", 10)])


class Feedback:
    """What the dialog of an algorithm is to the plugin."""

    def __init__(self) -> None:
        self.percents: list[float] = []
        self.told: list[tuple[str, str]] = []
        self.cancelled = threading.Event()

    def isCanceled(self) -> bool:
        return self.cancelled.is_set()

    def setProgress(self, percent: float) -> None:
        self.percents.append(percent)

    def setProgressText(self, text: str) -> None:
        self.told.append(("text", text))
        if "cancel" in text:
            self.cancelled.set()

    def pushInfo(self, text: str) -> None:
        self.told.append(("info", text))

    def pushWarning(self, text: str) -> None:
        self.told.append(("warning", text))

    def pushConsoleInfo(self, text: str) -> None:
        self.told.append(("console", text))


@pytest.fixture
def program(tmp_path: Path):
    """Return a function that makes a command of Python code."""

    def make(code: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text(f"import os, signal, sys, time\nsay = lambda t: print(t, file=sys.stderr, flush=True)\n{code}")
        return [sys.executable, str(path)]

    return make


def test_progress_notes_and_files_reach_the_dialog(program) -> None:
    feedback = Feedback()
    code = """
say("Note: no model was given.")
say("preparing: 1/1")
say("segmenting: 0/4")
say("segmenting: 2/4")
say("Warning: a band is dark.")
say("something else: 3/4")
say("12 polygons from 4 chunks")
print("out.gpkg")
print("Wäldchen 森.tif")
"""
    assert run_command(program(code), feedback, STAGES) == ["out.gpkg", "Wäldchen 森.tif"]
    assert feedback.percents == [10, 10, 50, 100]
    assert ("info", "no model was given.") in feedback.told
    assert ("warning", "a band is dark.") in feedback.told
    assert ("console", "12 polygons from 4 chunks") in feedback.told
    assert ("text", "segmenting: 2 of 4") in feedback.told
    assert ("text", "something else: 3 of 4") in feedback.told


def test_the_bar_knows_the_stages() -> None:
    assert [STAGES.percent("segmenting", done, 4) for done in (0, 1, 4, 9)] == [10, 30, 90, 90]
    assert STAGES.percent("polygons", 0, 0) == 100
    assert STAGES.percent("dancing", 1, 2) is None


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("say('Usage: geoseg …'); say(''); say('Error: scene.tif has no CRS.'); sys.exit(1)", "scene.tif has no CRS."),
        ("say('killed'); sys.exit(3)", "geoseg ended with exit code 3: killed"),
        ("sys.exit(2)", "geoseg ended with exit code 2 and said nothing."),
        ("os.kill(os.getpid(), signal.SIGKILL)", "geoseg was ended by signal 9, perhaps for want of memory: "),
    ],
)
def test_a_failure_is_the_sentence_that_was_printed(program, code: str, sentence: str) -> None:
    feedback = Feedback()
    with pytest.raises(CommandError) as caught:
        run_command(program(code), feedback, STAGES)
    assert str(caught.value).startswith(sentence)
    assert 100 not in feedback.percents


def test_cancelling_is_as_ctrl_c_and_waits(program, tmp_path: Path) -> None:
    code = f"""
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    say("segmenting: 1/4 and cancel"); say("cancel: 1/2")
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    open({str(tmp_path / "tidy")!r}, "w").close()
    say("Stopped.")
    sys.exit(1)
"""
    feedback = Feedback()
    assert run_command(program(code), feedback, STAGES) is None
    assert (tmp_path / "tidy").exists()
    assert ("console", "Stopped.") in feedback.told
    assert sum(text == "Stopping geoseg …" for _, text in feedback.told) == 1


def test_a_watcher_that_fails_leaves_no_process(program, tmp_path: Path) -> None:
    class Broken(Feedback):
        def setProgressText(self, text: str) -> None:
            raise RuntimeError("the dialog is gone")

    pid = tmp_path / "pid"
    code = f"open({str(pid)!r}, 'w').write(str(os.getpid())); say('segmenting: 1/4'); time.sleep(60)"
    with pytest.raises(RuntimeError, match="dialog"):
        run_command(program(code), Broken(), STAGES)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_the_end_is_not_put_off_by_processes_that_are_left(program, tmp_path: Path) -> None:
    code = f"""
import subprocess
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "pid")!r}, "w").write(str(left.pid))
print("done")
"""
    assert run_command(program(code), Feedback(), STAGES) == ["done"]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # it is there yet


def test_the_command_is_found_or_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match=r"^the command geoseg is not on PATH: install it .* Processing > Providers"):
        find_command(None)
    with pytest.raises(CommandError, match=r"nowhere/geoseg is no program .* Processing > Providers"):
        find_command("nowhere/geoseg")
    made = tmp_path / "geoseg"
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    assert find_command("") == find_command(f" {made} ") == str(made)
    assert find_command("geoseg") == str(made)


def test_a_program_that_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "geoseg"
    broken.write_text("#!/nowhere/python\n")
    broken.chmod(0o755)
    with pytest.raises(CommandError, match="could not be started"):
        run_command([str(broken)], Feedback(), STAGES)


def test_what_qgis_set_for_itself_is_not_passed_on() -> None:
    kept = environment({"PATH": "/bin", "PYTHONHOME": "/qgis", "GDAL_DATA": "/qgis/gdal", "AWS_PROFILE": "me"})
    assert kept == {"PATH": "/bin", "AWS_PROFILE": "me", "GEOSEG_PROGRESS_SECONDS": "0.5", "PYTHONUTF8": "1"}


# What is packed


def test_the_zip_is_a_plugin(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_plugin(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write_plugin(tmp_path / "a.zip")
    write_plugin(tmp_path / "a.zip", overwrite=True)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        metadata = ConfigParser(interpolation=None)
        metadata.read_string(archive.read(f"{FOLDER}/metadata.txt").decode())
        licence = archive.read(f"{FOLDER}/LICENSE")
    assert sorted(names) == sorted(f"{FOLDER}/{path.name}" for path in PLUGIN.iterdir() if path.is_file())
    assert metadata["general"]["version"] == geoseg.__version__
    assert metadata["general"].getboolean("hasProcessingProvider")
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_what_is_packed_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    told = {*settings["package-data"]["geoseg.qgis_plugin"]}
    assert told == {path.name for path in PLUGIN.iterdir() if path.is_file() and path.suffix != ".py"}


@pytest.mark.parametrize("path", sorted(PLUGIN.glob("*.py")), ids=lambda path: path.name)
def test_qgis_own_python_runs_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    tree = ast.parse(text, path.name, feature_version=(3, 9))
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            names = [] if node.level else [node.module]
        else:
            continue
        for name in names:
            assert name.split(".")[0] in {*sys.stdlib_module_names, "qgis", "processing"}, name
