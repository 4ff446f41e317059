"""What a run reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import geoseg
from geoseg.classes import Classes
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles


class _Counting(Segmenter):
    """Counts the pixels that it is given, in this process."""

    spec = Spec(("red", "green", "blue"), None, Classes.parse("a,b"), 64, 8)
    seen = 0

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        _Counting.seen += tiles.pixels[:, 0].numel()
        return torch.zeros(len(tiles), 2, *tiles.pixels.shape[-2:])


@pytest.mark.parametrize("options", [{}, {"chunk": 96, "blend": "hann"}, {"tile": 128, "output_grid": "scene"}])
def test_the_report_tells_how_many_pixels_were_computed(
    tmp_path: Path, piece: Callable[..., Path], options: dict[str, object]
) -> None:
    scene = piece(200, 310, blank=60)  # tiles without data are not computed
    _Counting.seen = 0
    report = geoseg.predict(scene, tmp_path / "labels.tif", _Counting(), **options)
    assert report.amplification == pytest.approx(_Counting.seen / math.prod(geoseg.open(scene).shape))


def test_where_the_model_sees_another_grid_its_pixels_count(tmp_path: Path, piece: Callable[..., Path]) -> None:
    scene = piece(200, 310)
    resolution = 2 * geoseg.open(scene).resolution[0]
    _Counting.seen = 0
    report = geoseg.predict(scene, tmp_path / "labels.tif", _Counting(), resolution=resolution, output_grid="scene")
    shape = geoseg.open(scene).at_resolution(resolution).shape
    assert report.amplification == pytest.approx(_Counting.seen / math.prod(shape))
