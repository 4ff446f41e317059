"""Synthetic class maps of three degrees of difficulty, the same at every run."""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.ndimage
import scipy.sparse
from numpy.typing import NDArray

Kind = Literal["easy", "noisy", "hard"]

CLASSES = 5
# Standard deviation of the noise of a pixel, against smooth fields with a standard deviation of one.
_NOISE: dict[Kind, float] = {"easy": 0.0, "noisy": 0.067, "hard": 0.37}
# The smooth fields are drawn on a coarse grid with nodes this many pixels apart, and blurred by this many nodes.
_NODE_PX = 8
_BLUR_NODES = 2.87
_ROWS = 512


def label_map(kind: Kind, size: int, seed: int) -> NDArray[np.uint8]:
    """Return a map of :data:`CLASSES` classes: at each pixel the number of the largest of as many random fields.

    ``easy`` fields are smooth, which makes blobs.  ``noisy`` adds a little noise to every pixel, which turns the labels
    where two fields are nearly level: speckle along the borders.  ``hard`` adds much.  All three share their smooth
    fields, so that an easy map is the noisy one without its speckle.

    With seed 0 and 4-connectivity, ``easy`` has 4 270 polygons at 4096² and 16 511 at 8192², ``noisy`` 76 427 at 2048²
    and 296 460 at 4096², ``hard`` 143 768 at 1024² and 569 087 at 2048².

    Args:
        kind: ``easy``, ``noisy`` or ``hard``.
        size: rows and columns.
        seed: any other gives another map.

    Returns:
        (size, size) labels from 0 to 4.
    """
    rng = np.random.default_rng(seed)
    nodes = size // _NODE_PX + 2
    coarse = [_smooth(rng, nodes) for _ in range(CLASSES)]
    weights = _linear_weights(size, nodes)
    labels = np.empty((size, size), np.uint8)
    for top in range(0, size, _ROWS):
        rows = slice(top, min(top + _ROWS, size))
        noise = np.random.default_rng([seed, top])
        largest = np.full((rows.stop - top, size), -np.inf, np.float32)
        for number, field in enumerate(coarse):
            values = (weights @ (weights[rows] @ field).T).T
            if _NOISE[kind]:
                values = values + _NOISE[kind] * noise.standard_normal(values.shape, np.float32)
            labels[rows][values > largest] = number
            np.maximum(largest, values, out=largest)
    return labels


def _smooth(rng: np.random.Generator, nodes: int) -> NDArray[np.float32]:
    """Return a blurred random field (nodes, nodes) with a standard deviation of one."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((nodes, nodes), np.float32), _BLUR_NODES)
    # What the blur leaves of white noise, worked out rather than measured, so that small maps look like large ones.
    return field * np.float32(2 * np.sqrt(np.pi) * _BLUR_NODES)


def _linear_weights(size: int, nodes: int) -> scipy.sparse.csr_matrix:
    """Return the (size, nodes) matrix that interpolates linearly from nodes to pixels."""
    place = (np.arange(size) + 0.5) / _NODE_PX
    node = place.astype(int)
    share = (place - node).astype(np.float32)
    pixel = np.arange(size)
    entries = np.concatenate([1 - share, share]), (np.tile(pixel, 2), np.concatenate([node, node + 1]))
    return scipy.sparse.csr_matrix(entries, shape=(size, nodes))
