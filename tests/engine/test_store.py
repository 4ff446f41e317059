"""The files of the chunk store."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.io import MemoryFile

from geoseg.engine.store import has_codec, tiff_of
from geoseg.source import placeless


@given(arrays(np.uint16, st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))))
def test_a_chunk_comes_back_as_it_was(layers: np.ndarray) -> None:
    with placeless(), MemoryFile(tiff_of(layers)) as memory, memory.open() as file:
        np.testing.assert_array_equal(file.read(), layers)


def test_floats_come_back_too() -> None:
    layers = np.random.default_rng(0).normal(0, 1, (2, 300, 200)).astype(np.float32)
    with placeless(), MemoryFile(tiff_of(layers, predictor=3, tags={"a": "b"})) as memory, memory.open() as file:
        np.testing.assert_array_equal(file.read(), layers)
        assert file.tags()["a"] == "b"


@pytest.mark.parametrize(("name", "there"), [("deflate", True), ("no_such_codec", False)])
def test_what_gdal_can_compress_with(name: str, there: bool) -> None:
    assert has_codec(name) is there
