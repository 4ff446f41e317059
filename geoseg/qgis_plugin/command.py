"""The ``geoseg`` command as another process: found, run, watched, and ended.

Nothing of QGIS is imported here.  A *feedback* is an object with the methods of ``QgsProcessingFeedback``.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import threading
import time
from typing import IO, Any, Dict, List, Mapping, Optional, Sequence, Tuple

# How often a run is asked whether it is to end, in seconds.
_POLL_S = 0.1
# What a process printed is read within this time after its end.
_GRACE_S = 2.0
# A run that is to end finishes what it is computing; after so many seconds it is told again, then ended by force.
_PATIENCE_S = (30.0, 10.0)
_STEP = re.compile(r"(?P<stage>[a-z][a-z ]*): (?P<done>\d+)/(?P<total>\d+)$")
_SETTINGS = "Settings > Options > Processing > Providers > geoseg"
# What QGIS tells its own Python and libraries; another Python with libraries of its own would go by it, and fail.
_OF_QGIS = ("PYTHONHOME", "PYTHONPATH", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_LIB", "PROJ_DATA", "QT_PLUGIN_PATH")


class CommandError(Exception):
    """The command is not there, or ended in failure; the message is a sentence for the user."""


class Stages:
    """The share of a run that is done, from the stages that it passes through.

    A stage that is left out, for there was nothing to do, counts as done when a later one begins.
    """

    def __init__(self, weights: Sequence[Tuple[str, float]]) -> None:
        """Take the stages in their order, with what each takes of the whole; units do not matter."""
        self._before: Dict[str, float] = {}
        self._weights = dict(weights)
        self._whole = 0.0
        for stage, weight in weights:
            self._before[stage] = self._whole
            self._whole += weight

    def percent(self, stage: str, done: int, total: int) -> Optional[float]:
        """Return how much is done when ``done`` of ``total`` steps of a stage are; None for a stage not known."""
        if stage not in self._before:
            return None
        share = min(done / total, 1.0) if total else 1.0
        return 100 * (self._before[stage] + share * self._weights[stage]) / self._whole


def find_command(setting: Optional[str]) -> str:
    """Return the path of the command.

    Args:
        setting: a path, or empty for what is found on PATH.

    Raises:
        CommandError: there is no such program.
    """
    wanted = os.path.expanduser((setting or "").strip())
    found = shutil.which(wanted or "geoseg")
    if found:
        return os.path.abspath(found)
    if wanted:
        raise CommandError(
            f"{wanted} is no program that can be run: set the path of the geoseg command in {_SETTINGS}."
        )
    raise CommandError(
        f"the command geoseg is not on PATH: install it (pip install geoseg), or set its path in {_SETTINGS}."
    )


def environment(given: Mapping[str, str]) -> Dict[str, str]:
    """Return the environment of the command: without what QGIS set for itself, with frequent progress, in UTF-8."""
    kept = {name: value for name, value in given.items() if name not in _OF_QGIS}
    kept.update(GEOSEG_PROGRESS_SECONDS="0.5", PYTHONUTF8="1")
    return kept


def run_command(arguments: Sequence[str], feedback: Any, stages: Stages) -> Optional[List[str]]:
    """Run a command to its end, with its progress in the feedback's bar and its words in the log.

    When the feedback is cancelled, the command is told to stop, as by Ctrl-C, and waited for.

    Args:
        arguments: the program and its arguments.
        feedback: of the algorithm.
        stages: what the command passes through.

    Returns:
        The lines that it printed on stdout; None if it was cancelled.

    Raises:
        CommandError: it could not be started, or failed; with the sentence that it printed.
    """
    try:
        process = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(os.environ),
            encoding="utf-8",
            errors="replace",
            # Without it, Windows opens a console for the command.
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise CommandError(f"{arguments[0]} could not be started: {error.strerror or error}.") from error
    stopping = _Stopping(process)
    out: List[str] = []
    err: List[str] = []
    try:
        for name, line in _lines(process):
            if feedback.isCanceled():
                stopping.go_on(feedback)
            if name == "out":
                out.append(line)
                feedback.pushInfo(line)
            elif name == "err":
                err.append(line)
                _tell(line, feedback, stages)
        code = process.wait()
    finally:
        stopping.by_force()
    if feedback.isCanceled():
        return None
    if code:
        raise CommandError(_sentence(code, err))
    feedback.setProgress(100)
    return out


class _Stopping:
    """Ends a process: kindly, then less so."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._told = 0
        self._next = 0.0

    def go_on(self, feedback: Any) -> None:
        """Tell the process to end, if it is time to; called again and again until it does."""
        if self._told > len(_PATIENCE_S) or time.monotonic() < self._next:
            return
        if self._told == 0:
            feedback.pushInfo("Stopping geoseg …")
        if self._told < len(_PATIENCE_S):
            # The command takes it for Ctrl-C, which it would not hear where a shell runs QGIS in the background.
            self._process.terminate()
        else:
            self._process.kill()
        if self._told < len(_PATIENCE_S):
            self._next = time.monotonic() + _PATIENCE_S[self._told]
        self._told += 1

    def by_force(self) -> None:
        """End a process that is still there, for its watcher failed."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _lines(process: subprocess.Popen[str]) -> Any:
    """Yield what the process prints, as ``(out or err, line)``, and ``("", "")`` now and then, until it ends."""
    told: queue.Queue[Tuple[str, Optional[str]]] = queue.Queue()

    def read(name: str, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                told.put((name, line.rstrip()))
        told.put((name, None))

    open_pipes, ended = 0, None
    for name, pipe in (("out", process.stdout), ("err", process.stderr)):
        if pipe is not None:
            threading.Thread(target=read, args=(name, pipe), daemon=True).start()
            open_pipes += 1
    while open_pipes:
        try:
            name, line = told.get(timeout=_POLL_S)
        except queue.Empty:
            # Processes that the command started may hold its pipes open after its end.
            if process.poll() is not None:
                ended = ended or time.monotonic()
                if time.monotonic() - ended > _GRACE_S:
                    return
            yield "", ""
            continue
        if line is None:
            open_pipes -= 1
        elif line:
            yield name, line


def _tell(line: str, feedback: Any, stages: Stages) -> None:
    """Show a line of stderr: as progress, a note, a warning, or as it is."""
    step = _STEP.match(line)
    if step:
        done, total = int(step["done"]), int(step["total"])
        percent = stages.percent(step["stage"], done, total)
        if percent is not None:
            feedback.setProgress(percent)
        feedback.setProgressText(f"{step['stage']}: {done} of {total}")
    elif line.startswith("Warning: "):
        feedback.pushWarning(line[len("Warning: ") :])
    elif line.startswith("Note: "):
        feedback.pushInfo(line[len("Note: ") :])
    elif not line.startswith("Error: "):
        feedback.pushConsoleInfo(line)


def _sentence(code: int, lines: Sequence[str]) -> str:
    """Return what a command that failed said of the cause."""
    told = [line[len("Error: ") :] for line in lines if line.startswith("Error: ")]
    if told:
        return told[-1]
    if code < 0:
        return f"geoseg was ended by signal {-code}, perhaps for want of memory: try smaller chunks or fewer workers."
    return f"geoseg ended with exit code {code}" + (f": {lines[-1]}" if lines else " and said nothing.")
