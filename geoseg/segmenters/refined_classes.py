"""Maps of several classes refined: cut into components, each refined as one mask, and put together again.

Source: the scripts for scene parsing released with Cheng et al. 2020, arXiv 2005.02551 (components, and pixels that are
claimed); the shares of classes are this project's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoseg.components import components, extents
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.metrics import IGNORED
from geoseg.morphology import dilated, disk, eroded
from geoseg.segmenters.refinement_settings import MergeSettings

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Component:
    """One rough mask of a map.

    Attributes:
        position: of its class in the class table.
        window: what is to be refined, the component and its surroundings.
        mask: (height, width), the component within the window.
        pixels: size of the component.
    """

    position: int
    window: Window
    mask: NDArray[np.bool_]
    pixels: int


def components_of(labels: Labels, settings: MergeSettings, positions: Sequence[int] | None = None) -> list[Component]:
    """Return the components of a map that are worth refining, class by class, each class in the order of first pixels.

    What a disk joins is one component, although it may be in pieces.

    Args:
        labels: (H, W), positions in the class table, 255 for none.
        settings: how.
        positions: of the classes to be refined, all by default.
    """
    counts = np.bincount(labels.reshape(-1), minlength=IGNORED + 1)
    chosen = range(IGNORED) if positions is None else positions
    return [
        component
        for position in chosen
        if counts[position] > settings.min_component
        for component in _of_class(labels == position, position, settings)
    ]


def _of_class(mask: NDArray[np.bool_], position: int, settings: MergeSettings) -> list[Component]:
    # The authors' disk is lopsided and shifts masks by a pixel, which costs them a row and a column.
    shape = disk(settings.closing if settings.as_authors else settings.closing // 2 * 2 + 1)
    numbers, count = components(dilated(mask, shape), corners=True)
    whole = Window(0, 0, *mask.shape)
    found = []
    for number, (row, row_stop, col, col_stop) in enumerate(extents(numbers, count).tolist(), start=1):
        # With all that erosion sees of the component's surroundings.
        near = Window(row, col, row_stop - row, col_stop - col).padded(settings.closing).intersect(whole)
        here = near.within(whole)
        closed = eroded(numbers[here] == number, shape) & mask[here]
        pixels = int(np.count_nonzero(closed))
        if pixels <= settings.min_component:
            continue
        rows, cols = (np.flatnonzero(closed.any(axis)) for axis in (1, 0))
        box = Window(near.row + int(rows[0]), near.col + int(cols[0]), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1)
        window = grown_box(box, mask.shape, settings)
        piece = np.zeros(window.shape, bool)
        common = window.intersect(near)
        piece[common.within(window)] = closed[common.within(near)]
        found.append(Component(position, window, piece, pixels))
    return found


def grown_box(box: Window, shape_yx: tuple[int, ...], settings: MergeSettings) -> Window:
    """Return the box of a component with its surroundings, cut at the edge of an image of ``shape_yx`` pixels.

    >>> grown_box(Window(8, 40, 16, 8), (100, 100), MergeSettings())
    Window(row=6, col=39, height=20, width=10)
    """
    rows, cols = (
        _grown(start, length, side, settings)
        for start, length, side in zip((box.row, box.col), box.shape, shape_yx, strict=True)
    )
    return Window(rows[0], cols[0], rows[1] - rows[0], cols[1] - cols[0])


def _grown(start: int, length: int, side: int, settings: MergeSettings) -> tuple[int, int]:
    if settings.as_authors:
        # They take the last pixel for the one behind it.
        margin = settings.box_margin / 2 * (length - 1)
        return int(max(start - margin, 0)), int(min(start + length - 1 + margin, side - 1))
    margin = settings.box_margin / 2 * length
    return max(0, math.floor(start - margin)), min(side, math.ceil(start + length + margin))


def claimed(
    labels: Labels, answers: Iterable[tuple[int, Window, NDArray[np.floating]]], settings: MergeSettings
) -> tuple[Labels, NDArray[np.float32]]:
    """Return the refined map (H, W) and how sure it is: every pixel goes to the class that is surest of it.

    A pixel that no class claims keeps its label, at the least confidence, even where its own class gave it up.  Of
    equal claims the first holds, so pass answers in the order of :func:`components_of`.

    Args:
        labels: (H, W), positions in the class table, 255 for none.
        answers: of each component the position of its class, its window, and the refined probabilities there.
        settings: what a claim needs.

    Raises:
        ConfigError: probabilities of another size than their window, or a window beyond the map.
    """
    merged, confidence = labels.copy(), np.full(labels.shape, settings.minimum_confidence, np.float32)
    for position, window, given in answers:
        here = _place(window, given, labels.shape)
        probabilities = given.astype(np.float32, copy=False)
        if position in settings.background_classes:
            probabilities = probabilities * np.float32(settings.background_weight)
        claims = (probabilities > confidence[here]) & (labels[here] != IGNORED)
        merged[here][claims] = position
        confidence[here][claims] = probabilities[claims]
    return merged, confidence


def shares(
    labels: Labels, answers: Iterable[tuple[int, Window, NDArray[np.floating]]], num_classes: int
) -> NDArray[np.float32]:
    """Return what part of each pixel each class has, (K, H, W): its refined probability, divided by the sum of all.

    Where a class was not refined its rough mask stands; of several answers for a class the surest counts.  A pixel that
    no class has anything of keeps its label, and one without a label is 0 in all.  This is for maps in which every
    pixel has a class; the order of answers does not matter.

    Args:
        labels: (H, W), positions in the class table, 255 for none.
        answers: see :func:`claimed`.
        num_classes: K.

    Raises:
        ConfigError: see :func:`claimed`.
    """
    rough = labels == np.arange(num_classes, dtype=np.uint8)[:, None, None]
    found = rough.astype(np.float32)
    seen = np.zeros(found.shape, bool)
    for position, window, given in answers:
        here = (position, *_place(window, given, labels.shape))
        first = ~seen[here]
        found[here] = np.where(first, given, np.maximum(found[here], given))
        seen[here] = True
    total = found.sum(axis=0)
    result: NDArray[np.float32] = np.where(total > 0, found / np.where(total > 0, total, 1), rough).astype(np.float32)
    result[:, labels == IGNORED] = 0
    return result


def _place(window: Window, given: NDArray[np.floating], shape_yx: tuple[int, ...]) -> tuple[slice, slice]:
    """Return where an answer lies in the map.

    Raises:
        ConfigError: it has another size than its window, or lies beyond the map.
    """
    whole = Window(0, 0, *shape_yx)
    if given.shape != window.shape or window.intersect(whole) != window:
        raise ConfigError(
            f"probabilities of {given.shape} cannot be put at {window} of a map of {shape_yx}: give those of a window "
            "within the map."
        )
    return window.within(whole)
