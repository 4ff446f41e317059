"""The pixels of a chunk while it is computed: which are wanted, and how scores become what the chunk store keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from geoseg.engine.plan import CONFIDENCE_NODATA, CONFIDENCE_SCALE, UNCERTAINTY_NODATA, Plan
from geoseg.geodesy import pixel_size
from geoseg.grid import Window
from geoseg.source import placeless


@dataclass(frozen=True)
class Outcome:
    """What a task tells the client.

    Its number, how many pixels got a label, how many tiles or boxes were computed, and the seconds that it took.
    """

    number: int
    labelled: int
    tiles: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Filled:
    """What the pixels of a chunk hold.

    ``layers`` (2, H, W) uint16, labels and confidence; ``uncertainty`` (L, H, W) float32, or None if not asked for.
    """

    layers: NDArray[np.uint16]
    uncertainty: NDArray[np.float32] | None


@dataclass(frozen=True)
class Canvas:
    """A chunk at work: which of its pixels are wanted, and the arrays (H, W) to be filled.

    ``uncertainty`` is (L, H, W), with L = 0 where it is not asked for.
    """

    plan: Plan
    number: int
    window: Window
    wanted: NDArray[np.bool_]
    labels: NDArray[np.uint16]
    confidence: NDArray[np.uint16]
    uncertainty: NDArray[np.float32]

    @classmethod
    def begun(cls, plan: Plan, number: int) -> Canvas:
        """Return chunk ``number`` of a plan, empty."""
        window = plan.chunks.window(number)
        return cls(
            plan,
            number,
            window,
            wanted=_wanted(plan, window),
            labels=np.full(window.shape, plan.classes.nodata, np.uint16),
            confidence=np.full(window.shape, CONFIDENCE_NODATA, np.uint16),
            uncertainty=np.full((len(plan.uncertainty), *window.shape), UNCERTAINTY_NODATA, np.float32),
        )

    @property
    def inner(self) -> Window:
        """The part of the model's grid that decides the chunk."""
        return self.window if self.plan.same_grid else _model_window(self.plan, self.window)

    def settle(self, total: NDArray[np.float32], weight: NDArray[np.float32]) -> None:
        """Fill the chunk from weighted, and if need be interpolated, probabilities.

        Args:
            total: sums over tiles of the weighted probabilities of the classes, and behind them of the layers that
                follow the entropy, (C, h, w) on :attr:`inner`.
            weight: sums of the weights (h, w); 0 where there are no data.
        """
        plan, wanted = self.plan, self.wanted
        if not plan.same_grid:
            total, weight = _interpolated(plan, total, weight, self.inner, self.window)
            wanted = wanted & plan.source.read(self.window).valid
        known = wanted & (weight > 1e-6)
        total, further = total[: len(plan.classes)], total[len(plan.classes) :]
        ids = np.array(plan.classes.ids, np.uint16)
        channel = total.argmax(0)
        best = np.take_along_axis(total, channel[None], 0)[0] / np.where(known, weight, 1)
        self.labels[known] = ids[channel[known]]
        thousandths = np.clip(np.rint(best[known] * CONFIDENCE_SCALE), 0, CONFIDENCE_SCALE)
        self.confidence[known] = thousandths.astype(np.uint16)
        if plan.uncertainty:
            self.uncertainty[0, known] = _entropy(total[:, known] / weight[known])
            self.uncertainty[1:, known] = further[:, known] / weight[known]

    def finished(self, computed: int) -> tuple[Filled, Outcome]:
        """Return what the chunk holds, and what to report of it."""
        if not self.plan.probabilistic:
            self.confidence[:] = CONFIDENCE_NODATA
        labelled = int(np.count_nonzero(self.labels != self.plan.classes.nodata))
        uncertainty = self.uncertainty if self.plan.uncertainty else None
        filled = Filled(np.stack([self.labels, self.confidence]), uncertainty)
        return filled, Outcome(self.number, labelled, computed)


def _wanted(plan: Plan, window: Window) -> NDArray[np.bool_]:
    """Return which pixels of the chunk (H, W) lie in the area of interest; validity comes with the tiles."""
    if plan.aoi is None:
        return np.ones(window.shape, bool)
    transform = plan.source.geobox.affine * rasterio.Affine.translation(window.col, window.row)
    shape = shapely.from_wkb(plan.aoi)
    if not shapely.intersects(shape, shapely.Polygon([transform * xy for xy in _corners(window)])):
        return np.zeros(window.shape, bool)
    with placeless():
        return rasterio.features.geometry_mask([shape], window.shape, transform, invert=True)


def _corners(window: Window) -> list[tuple[int, int]]:
    return [(0, 0), (window.width, 0), (window.width, window.height), (0, window.height)]


def _entropy(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the entropy of probabilities (K, N) over that of all classes being equal: (N,) from 0 to 1."""
    total = np.zeros(probabilities.shape[1:], np.float32)
    for one in probabilities:
        total -= one * np.log(np.maximum(one, np.finfo(np.float32).tiny))
    return np.clip(total / np.float32(max(np.log(len(probabilities)), 1e-12)), 0, 1)


def _model_coordinates(plan: Plan, start: int, stop: int, axis: int) -> NDArray[np.float64]:
    """Return where the centres of output pixels fall among the model grid's, along axis 0 (rows) or 1 (columns)."""
    outer, inner = (pixel_size(scene.geobox.affine)[1 - axis] for scene in (plan.source, plan.model_scene))
    return np.asarray((np.arange(start, stop) + 0.5) * (outer / inner) - 0.5, np.float64)


def _model_window(plan: Plan, window: Window) -> Window:
    """Return the part of the model's grid from which a chunk of the outputs' grid is interpolated."""
    ends = []
    for axis, (start, stop) in enumerate(((window.row, window.row_stop), (window.col, window.col_stop))):
        place = _model_coordinates(plan, start, stop, axis)
        size = plan.model_scene.shape[axis]
        ends.append((max(0, int(np.floor(place[0]))), min(size, int(np.floor(place[-1])) + 2)))
    (top, bottom), (left, right) = ends
    return Window(min(top, bottom - 1), min(left, right - 1), max(1, bottom - top), max(1, right - left))


def _interpolated(
    plan: Plan, total: NDArray[np.float32], weight: NDArray[np.float32], inner: Window, window: Window
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scores and weights interpolated bilinearly from the model's grid to the outputs'."""
    stack = np.concatenate([total, weight[None]])
    for axis, (start, stop, low) in enumerate(
        ((window.row, window.row_stop, inner.row), (window.col, window.col_stop, inner.col))
    ):
        place = _model_coordinates(plan, start, stop, axis) - low
        size = stack.shape[axis + 1]
        before = np.clip(np.floor(place), 0, size - 1).astype(np.intp)
        after = np.minimum(before + 1, size - 1)
        share = np.clip(place - before, 0, 1).astype(np.float32)
        share = share[:, None] if axis == 0 else share
        stack = np.take(stack, before, axis + 1) * (1 - share) + np.take(stack, after, axis + 1) * share
    return stack[:-1], stack[-1]
