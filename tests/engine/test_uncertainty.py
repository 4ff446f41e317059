"""Uncertainty layers: what they hold, and that they do not depend on how the work was cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

import geoseg
from geoseg.classes import Classes
from geoseg.errors import ConfigError, OutputError, RunError
from geoseg.grid import Window
from geoseg.normalisation import Normalisation
from geoseg.scene import open_scene
from geoseg.segmenters.ensemble import Ensemble, TestTimeAugmentation
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles
from geoseg.segmenters.network import PlainNetwork

CLASSES = Classes.parse("background,roof,tree")


class _Doubting(nn.Module):
    """Scores from the pixels round each pixel; layers that tell the scene's rows and brightness apart."""

    layers = ("entropy", "brightness")

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3, generator=generator) / 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(pixels, self.weight, padding=1)

    def with_layers(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        brightness = nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 3, 1, 1)
        return self(pixels), torch.cat([pixels[:, :1], brightness], 1)


SPEC = Spec(
    ("red", "green", "blue"), None, CLASSES, tile=96, halo=2,
    normalisation=Normalisation((100.0,) * 3, (50.0,) * 3),
)  # fmt: skip


def _layers(folder: Path, scene: Path, model: object, **options: object) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    out = folder / "uncertainty.tif"
    geoseg.predict(scene, folder / "labels.tif", model, uncertainty=str(out), overwrite=True, **options)
    with rasterio.open(out) as file:
        assert file.nodatavals == (-1.0,) * file.count
        assert set(file.dtypes) == {"float32"}
        return np.asarray(file.read())


def _expected(scene: Path, segmenter: Segmenter) -> tuple[np.ndarray, np.ndarray]:
    """Return entropy and layers of one pass (1 + L, H, W), and where the scene is valid."""
    opened = open_scene(scene)
    halo = segmenter.spec.halo
    pixels = opened.read(opened.window.padded(halo))
    tiles = Tiles(torch.from_numpy(pixels.data)[None], torch.from_numpy(pixels.valid)[None], (pixels.window,))
    scores, layers = segmenter.segment_with_layers(tiles, State())
    probability = scores[0].double().softmax(0)
    entropy = -(probability * probability.log()).sum(0) / math.log(len(probability))
    values = torch.cat([entropy[None], layers[0].double()]).detach().numpy()
    inner = slice(halo, -halo)
    return values[:, inner, inner], pixels.valid[inner, inner]


def test_the_bands_are_entropy_and_what_the_network_names(tmp_path: Path, part: Path) -> None:
    segmenter = PlainNetwork(_Doubting(), SPEC)
    made = _layers(tmp_path, part, segmenter, confidence=str(tmp_path / "c.tif"))
    expected, valid = _expected(part, segmenter)
    assert not valid.all()
    assert made.shape == (3, 240, 300)
    assert (made[:, ~valid] == -1).all()
    np.testing.assert_allclose(made[:, valid], expected[:, valid], atol=2e-6)
    assert made[0, valid].min() >= 0
    assert 0.3 < np.ptp(made[0, valid]) <= 1
    with rasterio.open(tmp_path / "uncertainty.tif") as file:
        assert file.descriptions == ("entropy", "network entropy", "brightness")
        assert file.crs == open_scene(part).geobox.crs
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert (tmp_path / "uncertainty.qml").exists()
    definition = (tmp_path / "labels.qlr").read_text()
    assert "./uncertainty.tif" in definition
    assert "./c.tif" in definition


@pytest.mark.parametrize("blend", ["crop", "hann"])
@pytest.mark.parametrize("resolution", [None, 0.21])
def test_chunks_and_batches_change_nothing(tmp_path: Path, part: Path, blend: str, resolution: float | None) -> None:
    segmenter = PlainNetwork(_Doubting(), SPEC)
    grid = {"blend": blend, "resolution": resolution, "output_grid": "scene", "halo": 8}
    seen = [
        _layers(tmp_path / str(i), part, segmenter, chunk=chunk, batch=batch, **grid)
        for i, (chunk, batch) in enumerate(((2000, 1), (90, 3), (133, 2)))
    ]
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    assert (seen[0][0] >= 0).any()


def test_an_exact_network_says_the_same_blended(tmp_path: Path, part: Path) -> None:
    segmenter = PlainNetwork(_Doubting(), SPEC)
    crop, hann = (_layers(tmp_path / blend, part, segmenter, blend=blend, halo=24) for blend in ("crop", "hann"))
    # The outermost pixels of a tile lack context, and weigh little.
    assert np.abs(crop - hann).max() < 0.01


@pytest.mark.dist
def test_worker_processes_change_nothing(tmp_path: Path, part: Path, plain: Path) -> None:
    alone = _layers(tmp_path / "alone", part, str(plain))
    together = _layers(tmp_path / "together", part, str(plain), chunk=128, workers=2)
    np.testing.assert_array_equal(alone, together)
    assert alone.shape[0] == 1


def test_labels_are_the_same_with_and_without(tmp_path: Path, part: Path) -> None:
    segmenter = PlainNetwork(_Doubting(), SPEC)
    _layers(tmp_path, part, segmenter)
    geoseg.predict(part, tmp_path / "plain.tif", segmenter)
    assert (tmp_path / "plain.tif").read_bytes() == (tmp_path / "labels.tif").read_bytes()


def test_an_interrupted_run_goes_on_with_its_layers_and_only_with_them(tmp_path: Path, part: Path, plain: Path) -> None:
    whole = _layers(tmp_path / "whole", part, str(plain), chunk=128)
    work = {"chunk": 128, "workdir": str(tmp_path / "work")}
    _layers(tmp_path / "again", part, str(plain), **work)
    (next((tmp_path / "work").glob("r*/c00001.tif"))).unlink()
    np.testing.assert_array_equal(_layers(tmp_path / "again", part, str(plain), **work), whole)
    with pytest.raises(RunError, match="another run"):
        geoseg.predict(part, tmp_path / "without.tif", str(plain), **work)


def _tiles(side: int = 32) -> Tiles:
    pixels = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    valid = torch.ones(2, side, side, dtype=torch.bool)
    valid[0, :4] = False
    return Tiles(pixels * valid[:, None], valid, (Window(0, 0, side, side),) * 2)


def test_augmentation_averages_the_layers_in_place() -> None:
    segmenter = PlainNetwork(_Doubting(), SPEC)
    tiles, wrapped = _tiles(), TestTimeAugmentation(segmenter)
    scores, layers = wrapped.segment_with_layers(tiles, State())
    torch.testing.assert_close(scores, wrapped.segment(tiles, State()))
    # Both layers turn with the tile, so that their mean over the turns is what they are.
    _, expected = segmenter.segment_with_layers(tiles, State())
    torch.testing.assert_close(layers, expected * tiles.valid[:, None], atol=1e-5, rtol=1e-5)


def test_ensembles_average_the_layers_that_all_members_have() -> None:
    one, other = (PlainNetwork(_Doubting(), SPEC) for _ in range(2))
    other.module.layers = ("brightness", "entropy")
    other = PlainNetwork(other.module, SPEC)
    ensemble = Ensemble([one, other], [3, 1])
    assert ensemble.spec.layers == ("entropy", "brightness")
    tiles = _tiles()
    scores, layers = ensemble.segment_with_layers(tiles, ensemble.prepare(None))  # type: ignore[arg-type]
    torch.testing.assert_close(scores, ensemble.segment(tiles, ensemble.prepare(None)))  # type: ignore[arg-type]
    _, own = one.segment_with_layers(tiles, State())
    expected = (0.75 * own + 0.25 * own.flip(1)) * tiles.valid[:, None]
    torch.testing.assert_close(layers, expected)
    bare = nn.Conv2d(3, 3, 1)
    assert Ensemble([one, PlainNetwork(bare, SPEC)]).spec.layers == ()


def test_layers_of_another_shape_are_refused() -> None:
    module = _Doubting()
    module.layers = ("one", "two", "three")
    with pytest.raises(ConfigError, match=r"layers of shape \(2, 2, 32, 32\) where \(2, 3, 32, 32\) belong"):
        PlainNetwork(module, SPEC).segment_with_layers(_tiles(), State())


def test_a_segmenter_without_layers_has_none() -> None:
    segmenter = PlainNetwork(nn.Conv2d(3, 3, 1), SPEC)
    scores, layers = segmenter.segment_with_layers(_tiles(), State())
    assert layers.shape == (2, 0, 32, 32)
    assert torch.equal(scores, segmenter.segment(_tiles(), State()))


def test_one_class_leaves_no_doubt(tmp_path: Path, part: Path, make_bundle: Callable[..., Path]) -> None:
    model = make_bundle("plainconv", classes=Classes.parse("all"), tile=128)
    for blend in ("crop", "hann"):
        made = _layers(tmp_path / blend, part, str(model), blend=blend)
        assert set(np.unique(made)) == {-1, 0}


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path, part: Path, plain: Path) -> None:
    with pytest.raises(ConfigError, match=r"--uncertainty .*u\.png is written as GeoTIFF"):
        geoseg.predict(part, tmp_path / "a.tif", str(plain), uncertainty=str(tmp_path / "u.png"))
    with pytest.raises(ConfigError, match="two outputs share"):
        geoseg.predict(part, tmp_path / "a.tif", str(plain), uncertainty=str(tmp_path / "a.tif"))
    (tmp_path / "there.tif").write_bytes(b"")
    with pytest.raises(OutputError, match="exists"):
        geoseg.predict(part, tmp_path / "a.tif", str(plain), uncertainty=str(tmp_path / "there.tif"))
    unsure = PlainNetwork(nn.Conv2d(3, 3, 1), replace(SPEC, probabilistic=False))
    with pytest.raises(ConfigError, match="no uncertainty to write: leave --uncertainty out"):
        geoseg.predict(part, tmp_path / "a.tif", unsure, uncertainty=str(tmp_path / "u.tif"))
