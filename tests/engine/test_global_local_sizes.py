"""A run with GLNet over scenes of any size, at the sizes of overview, patches and macro-windows that are its own."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st

import geoseg
from geoseg.classes import Classes
from geoseg.networks import glnet, glnet_fpn
from geoseg.networks.glnet import build_glnet
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local import GlobalLocal
from geoseg.segmenters.interface import State, Tiles
from tests.conftest import write_raster

LEAST, MOST = 300, 6000


@pytest.fixture(scope="module")
def tiny() -> GlobalLocal:
    """All three networks with a small encoder and a pyramid of a thirty-second of its channels."""
    with pytest.MonkeyPatch.context() as patched:
        for module, name, value in (
            (glnet_fpn, "WIDTH", 8),
            (glnet_fpn, "SMOOTHED", 4),
            (glnet_fpn, "JOINED", 16),
            (glnet, "JOINED", 16),
        ):
            patched.setattr(module, name, value)
        torch.manual_seed(2)
        network = build_glnet(in_channels=3, num_classes=3, encoder="mobilenetv3_small_050").eval()
    for name, value in network.named_parameters():
        if value.ndim == 4 and ("fpn" in name or "ensemble" in name):
            torch.nn.init.kaiming_normal_(value)
    return GlobalLocal(
        network,
        bands=("red", "green", "blue"),
        classes=Classes.parse("a,b,c"),
        normalisation=Normalisation((100.0,) * 3, (50.0,) * 3),
    )


@pytest.fixture
def few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of channels that the network splits its last convolution at."""
    monkeypatch.setattr(glnet, "JOINED", 16)


@pytest.mark.slow
@pytest.mark.usefixtures("few_channels")
@settings(max_examples=5)
@example(sides=(300, 6000), place=(0.5, 0.99))
@example(sides=(2449, 507), place=(0.99, 0.2))
@example(sides=(1016, 2334), place=(0.3, 0.3))
@given(
    sides=st.tuples(st.integers(LEAST, MOST), st.integers(LEAST, 1200)).flatmap(st.permutations).map(tuple),
    place=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_any_side_from_300_to_6000(
    sides: tuple[int, int], place: tuple[float, float], tiny: GlobalLocal, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every pixel has a label, and any one has that of the macro-window that answers for it."""
    folder = tmp_path_factory.mktemp("sides")
    noise = np.random.default_rng(sides).integers(1, 255, (3, -(-sides[0] // 40), -(-sides[1] // 40)), np.uint8)
    image = noise.repeat(40, 1).repeat(40, 2)[:, : sides[0], : sides[1]]
    path = write_raster(folder / "scene.tif", image, transform=Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000))
    geoseg.predict(path, folder / "out.tif", tiny, blend="crop")
    with rasterio.open(folder / "out.tif") as file:
        labels = file.read(1)
    assert labels.shape == sides
    assert (labels < 3).all()
    row, col = (int(share * side) for share, side in zip(place, sides, strict=True))
    grid = tiny.lattice(sides)
    (position,) = [
        each
        for each in grid
        if (core := grid.core_window(each)).row <= row < core.row_stop and core.col <= col < core.col_stop
    ]
    window, core = grid.tile_window(position), grid.core_window(position)
    with torch.inference_mode():
        pixels = geoseg.open(path).read(window)
        found = tiny.segment(Tiles.of([pixels]), State())[0].argmax(0).numpy()
    own = found[core.within(window)]
    assert (labels[core.row : core.row_stop, core.col : core.col_stop] == own).mean() > 0.9999
    path.unlink()
