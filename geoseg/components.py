"""Connected components of masks of any dimension: pixels that touch, numbered by where they begin."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.compiling import compiled


def components(mask: NDArray[np.bool_], *, corners: bool) -> tuple[NDArray[np.int32], int]:
    """Number the connected components of a mask from 1, in the order of their first pixels; 0 is outside.

    Args:
        mask: of one dimension or more.
        corners: whether pixels that touch in a corner (or an edge, in three dimensions) are connected, or faces only.

    Returns:
        The numbers, in the mask's shape, and how many components there are.

    >>> components(np.array([[True, False], [False, True]]), corners=True)[1]
    1
    """
    padded = np.pad(mask, 1)
    strides = np.cumprod((1, *padded.shape[:0:-1]))[::-1]
    steps = [step for step in product((-1, 0, 1), repeat=mask.ndim) if corners or sum(map(abs, step)) == 1]
    # Of each pair of opposite neighbours the one that comes first in the array.
    earlier = np.array([back for step in steps if (back := int(np.dot(step, strides))) < 0], np.int64)
    labels, count = _numbered(padded.ravel(), earlier)
    inner = (slice(1, -1),) * mask.ndim
    return labels.reshape(padded.shape)[inner], int(count)


def keep_large(mask: NDArray[np.bool_], share: float = 0.5) -> NDArray[np.bool_]:
    """Return the components (faces only) that are at least ``share`` as large as the largest.

    This is for a single target.  A mask that is empty or covers half of the array or more is left as it is.

    Source: the code released with Yu et al. 2018, arXiv 1709.04518.
    """
    if not mask.any() or 2 * np.count_nonzero(mask) >= mask.size:
        return mask
    labels, count = components(mask, corners=False)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = sizes >= share * sizes[1:].max()
    kept[0] = False
    return kept[labels]


def drop_small(mask: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """Return the components (corners connect) of at least so many pixels."""
    labels, count = components(mask, corners=True)
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= pixels
    kept[0] = False
    return kept[labels]


def component_boxes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the box of each component of (H, W), (n, 4): first row, row behind the last, and columns likewise.

    Corners connect.
    """
    return extents(*components(mask, corners=True))


def extents(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Return the box of each of ``count`` numbered components of (H, W), (n, 4), see :func:`component_boxes`."""
    boxes: NDArray[np.int64] = _extents(labels, count)
    return boxes


@compiled
def _find(parent: Any, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def _numbered(mask: Any, earlier: Any) -> Any:
    """Return the numbers of a flat mask that has a frame of one pixel, and how many there are."""
    labels = np.zeros(mask.size, np.int32)
    # A number is first given where no earlier neighbour has one, so there are at most half as many as pixels, and one.
    parent = np.zeros(mask.size // 2 + 2, np.int32)
    count = 0
    for place in range(mask.size):
        if not mask[place]:
            continue
        number = 0
        for step in earlier:
            other = labels[place + step]
            if other == 0:
                continue
            if number == 0:
                number = _find(parent, other)
            else:
                one, other = _find(parent, number), _find(parent, other)
                number = min(one, other)
                parent[max(one, other)] = number
        if number == 0:
            count += 1
            number = count
            parent[count] = count
        labels[place] = number
    # The smallest number of a component is its root, and comes first.
    final = 0
    for number in range(1, count + 1):
        if parent[number] == number:
            final += 1
            parent[number] = final
        else:
            parent[number] = parent[parent[number]]
    for place in range(mask.size):
        labels[place] = parent[labels[place]]
    return labels, final


@compiled
def _extents(labels: Any, count: int) -> Any:
    boxes = np.zeros((count, 4), np.int64)
    for row in range(labels.shape[0]):
        for col in range(labels.shape[1]):
            number = labels[row, col]
            if number == 0:
                continue
            box = boxes[number - 1]
            if box[1] == 0:
                box[0], box[1], box[2], box[3] = row, row + 1, col, col + 1
            else:
                box[1] = row + 1
                box[2] = min(box[2], col)
                box[3] = max(box[3], col + 1)
    return boxes
