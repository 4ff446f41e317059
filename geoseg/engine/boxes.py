"""The answers of candidate boxes: the tasks that find them, the files that keep them, the chunks made of them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from geoseg.engine.canvas import Canvas, Outcome
from geoseg.engine.plan import Plan, Recipe
from geoseg.engine.store import ChunkStore, tiff_of, write_atomically
from geoseg.errors import RunError, SceneError, one_line
from geoseg.grid import Window
from geoseg.segmenters.interface import Tiles, normalised
from geoseg.segmenters.recurrence import Answer, Round, combined, reach
from geoseg.segmenters.saliency import SaliencyNetwork, background_of, scaling_of, shares, unseen_in
from geoseg.segmenters.saliency_settings import SaliencySettings
from geoseg.source import placeless

if TYPE_CHECKING:
    from geoseg.grid import ChunkGrid
    from geoseg.scene import Scene

# Files in a folder.
_FOLDER = 1000
_RECORD = "GEOSEG_BOX"


@dataclass(frozen=True)
class Boxes:
    """Candidates of a scene, numbered by position."""

    windows: tuple[Window, ...]

    def __len__(self) -> int:
        """Return their number."""
        return len(self.windows)

    def window(self, number: int) -> Window:
        """Return box ``number``, in pixels of the model's grid."""
        return self.windows[number]

    def near(self, window: Window, shape_yx: tuple[int, int], settings: SaliencySettings) -> list[int]:
        """Return the numbers of those whose rounds may have come into a window, in order."""
        rows, cols, row_stops, col_stops = self._reaches(shape_yx, settings)
        meets = (
            (rows < window.row_stop) & (row_stops > window.row) & (cols < window.col_stop) & (col_stops > window.col)
        )
        found: list[int] = np.flatnonzero(meets).tolist()
        return found

    def _reaches(self, shape_yx: tuple[int, int], settings: SaliencySettings) -> NDArray[np.int64]:
        if "reaches" not in self.__dict__:
            seen = (reach(box, shape_yx, settings) for box in self.windows)
            edges = [(each.row, each.col, each.row_stop, each.col_stop) for each in seen]
            self.__dict__["reaches"] = np.array(edges, np.int64).reshape(-1, 4).T
        found: NDArray[np.int64] = self.__dict__["reaches"]
        return found


class BoxStore:
    """A folder of answers, ``<thousands>/<rest>.tif``: probabilities as float32, and the rounds as JSON in a tag."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, number: int) -> Path:
        """Return the file of box ``number``."""
        return self.folder / f"{number // _FOLDER:05d}" / f"{number % _FOLDER:03d}.tif"

    def done(self) -> set[int]:
        """Return the numbers of the finished boxes."""
        return {int(file.parent.name) * _FOLDER + int(file.stem) for file in self.folder.glob("[0-9]*/[0-9]*.tif")}

    def write(self, number: int, answer: Answer) -> None:
        """Keep an answer, whole or not at all.

        Raises:
            OutputError: the disk is full or the folder cannot be written.
        """
        record = {
            "window": asdict(answer.window),
            "box": asdict(answer.box),
            "rounds": [asdict(each) for each in answer.rounds],
            "end": answer.end,
        }
        tags = {_RECORD: json.dumps(record)}
        write_atomically(
            self.path(number), tiff_of(np.asarray(answer.probabilities, np.float32), tags=tags, predictor=3)
        )

    def read(self, number: int, *, pixels: bool = True) -> Answer:
        """Return an answer; without ``pixels`` its probabilities are empty.

        Raises:
            RunError: the file is missing or damaged.
        """
        path = self.path(number)
        try:
            with placeless(), rasterio.open(path) as file:
                record = json.loads(file.tags()[_RECORD])
                data = file.read() if pixels else np.zeros((file.count, 0, 0), np.float32)
            rounds = [Round(Window(**each["box"]), each["pixels"], each["dsc"]) for each in record["rounds"]]
            return Answer(Window(**record["window"]), Window(**record["box"]), data, tuple(rounds), record["end"])
        except (OSError, rasterio.RasterioIOError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is damaged ({one_line(error)}): pass --fresh to start this run anew.") from error


@dataclass(frozen=True)
class BoxPlan:
    """All that a worker needs to look at any candidate.

    Attributes:
        plan: of the run.
        overview: raster of the coarse network's probabilities, one band a target, behind one that is not read.
        chunks: the candidates.
        folder: of their answers.
    """

    plan: Plan
    overview: str
    chunks: Boxes
    folder: str

    @property
    def source(self) -> Scene:
        """The scene whose pixels boxes are counted in."""
        return self.plan.model_scene

    def task(self, workers: int) -> BoxTask:
        """Return what looks at a box."""
        return BoxTask(self, workers)


class BoxTask:
    """Looks at boxes, with the networks loaded on first use and kept for all of them."""

    def __init__(self, work: BoxPlan, workers: int) -> None:
        self.stopped = threading.Event()
        self._work, self._workers = work, workers
        self._loading, self._computing = threading.Lock(), threading.Lock()
        self._network: SaliencyNetwork | None = None
        self._store = BoxStore(work.folder)

    def segment(self, number: int) -> Outcome:
        """Look at box ``number`` and keep the answer.

        Raises:
            SceneError: scene or overview cannot be read.
            RunError: the run was stopped.
        """
        from geoseg.engine.device import autocast_of, choose_precision, share_cores

        if self.stopped.is_set():
            raise RunError("the run was stopped.")
        share_cores(self._workers)
        plan, box = self._work.plan, self._work.chunks.window(number)
        network, device = self._loaded()
        scaling = scaling_of(network.spec, plan.state)

        def read(window: Window) -> tuple[torch.Tensor, torch.Tensor]:
            tiles = Tiles.of([plan.model_scene.read(window)]).to(device)
            return normalised(tiles, scaling)[0], tiles.valid[0]

        shape = plan.model_scene.shape
        part = network.needs(box, shape)
        overview = read_overview(self._work.overview, part, network.pair.targets)
        with self._computing, autocast_of(device, choose_precision(plan.precision, device)):
            answer = network.answer(box, overview, part, shape, read)
        self._store.write(number, answer)
        return Outcome(number, answer.rounds[-1].pixels, len(answer.rounds))

    def _loaded(self) -> tuple[SaliencyNetwork, torch.device]:
        from geoseg.engine.cluster import worker_number
        from geoseg.engine.device import choose_device

        method, device = self._work.plan.method, choose_device(self._work.plan.device, worker_number())
        with self._loading:
            if self._network is None:
                network = method.build() if isinstance(method, Recipe) else method
                assert isinstance(network, SaliencyNetwork)
                network.place(device)
                self._network = network
            return self._network, device


@dataclass(frozen=True)
class MosaicPlan:
    """All that a worker needs to put any chunk together of the answers of boxes.

    Attributes:
        plan: of the run.
        boxes: the candidates.
        folder: of their answers.
        settings: how they were looked at.
    """

    plan: Plan
    boxes: Boxes
    folder: str
    settings: SaliencySettings

    @property
    def source(self) -> Scene:
        """The scene on the grid of the outputs."""
        return self.plan.source

    @property
    def chunks(self) -> ChunkGrid:
        """The chunks of the outputs."""
        return self.plan.chunks

    def task(self, workers: int) -> MosaicTask:
        """Return what puts a chunk together."""
        return MosaicTask(self)


class MosaicTask:
    """Puts chunks together; no network is needed for that."""

    def __init__(self, work: MosaicPlan) -> None:
        self.stopped = threading.Event()
        self._work = work
        self._answers = BoxStore(work.folder)
        self._store = ChunkStore(work.plan.store, work.plan.chunks)

    def segment(self, number: int) -> Outcome:
        """Put chunk ``number`` together and keep it.

        Raises:
            SceneError: the scene cannot be read.
            RunError: an answer cannot be read, or the run was stopped.
        """
        if self.stopped.is_set():
            raise RunError("the run was stopped.")
        plan, work = self._work.plan, self._work
        canvas = Canvas.begun(plan, number)
        if canvas.wanted.any():
            inner, scene = canvas.inner, plan.model_scene
            near = work.boxes.near(inner, scene.shape, work.settings)
            answers = [self._answers.read(each) for each in near]
            found = torch.from_numpy(combined(answers, inner, len(plan.classes) - 1))
            total = shares(found, background_of(plan.classes)).numpy()
            if plan.uncertainty:
                total = np.concatenate([total, unseen_in(answers, inner)])
            valid = np.ones(inner.shape, bool) if scene.full else scene.read(inner).valid
            weight = valid.astype(np.float32)
            canvas.settle(total * weight, weight)
        filled, outcome = canvas.finished(0)
        self._store.write(number, filled.layers, filled.uncertainty)
        return outcome


def read_overview(path: str, window: Window, targets: int) -> NDArray[np.float32]:
    """Return the coarse network's probabilities (K, height, width) in a window of the overview; 0 without data.

    Raises:
        SceneError: they cannot be read.
    """
    place = RasterioWindow(window.col, window.row, window.width, window.height)
    try:
        with rasterio.open(path) as file:
            found: NDArray[np.float32] = file.read(list(range(2, targets + 2)), window=place)
    except rasterio.RasterioIOError as error:
        raise SceneError(f"{path} cannot be read ({one_line(error)}): start the run again with --fresh.") from error
    return np.maximum(found, 0)


def records(store: BoxStore, count: int) -> Iterator[Answer]:
    """Yield the answers of ``count`` boxes in order, without their probabilities."""
    return (store.read(number, pixels=False) for number in range(count))
