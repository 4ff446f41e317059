"""Engines: the scores of any network, computed by another library than PyTorch."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from geoseg import networks
from geoseg.classes import Classes
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.networks.inference import MainOutput, fold_batch_norm
from geoseg.normalisation import Normalisation
from geoseg.segmenters.engines import ENGINES, Compiled, check_engine
from geoseg.segmenters.ensemble import Ensemble, TestTimeAugmentation
from geoseg.segmenters.interface import Spec, State, Tiles
from geoseg.segmenters.network import PlainNetwork

for library in ("openvino", "onnxruntime", "onnx"):
    pytest.importorskip(library)

LIBRARIES = [engine for engine in ENGINES if engine != "torch"]
each = pytest.mark.parametrize("engine", LIBRARIES)

CPU = torch.device("cpu")
SPEC = Spec(
    ("red", "green", "blue"), 0.5, Classes.parse("background,road,roof"), 128, 32, stride=32,
    normalisation=Normalisation((100.0,) * 3, (50.0,) * 3),
)  # fmt: skip


def _network(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    module = networks.create(name, in_channels=3, num_classes=3, **options).eval().requires_grad_(False)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):  # fresh ones do nothing
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return module


def _tiles(side: int = 128, seed: int = 0) -> Tiles:
    pixels = torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    return Tiles(pixels, torch.ones(1, side, side, dtype=torch.bool), (Window(0, 0, side, side),))


@each
@pytest.mark.parametrize("name", ["unet", "icnet", "segformer"])
def test_scores_are_those_of_torch_to_rounding(name: str, engine: str) -> None:
    """Also of sizes it was not recorded for, whether the recording holds for all sizes or not."""
    network = MainOutput(fold_batch_norm(_network(name), (1, 3, 128, 128))).eval()
    compiled = Compiled(network, 32, engine)
    for height, width in ((160, 224), (256, 192)):
        pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        expected, found = network(pixels), compiled(pixels)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (found.argmax(1) != expected.argmax(1)).float().mean() <= 1e-4


@each
def test_what_depends_on_the_size_of_a_tile_is_recorded_for_each(engine: str) -> None:
    class Corner(nn.Module):
        """A network whose scores depend on the width of the picture, as a number that recording makes constant."""

        def forward(self, pixels):
            return pixels * float(pixels.shape[-1])

    compiled = Compiled(Corner(), 32, engine)
    for side in (64, 128, 192):
        assert torch.equal(compiled(torch.ones(1, 2, side, side)), torch.full((1, 2, side, side), float(side)))


@each
def test_other_scores_than_torch_gives_are_refused(engine: str) -> None:
    class Fickle(nn.Module):
        """A network that is another at every call."""

        calls = 0

        def forward(self, pixels):
            self.calls += 1
            return pixels * float(self.calls)

    with pytest.raises(ConfigError, match=r"other scores than torch.*--engine torch"):
        Compiled(Fickle(), 32, engine)(torch.ones(1, 2, 64, 64))


@each
def test_scores_that_are_no_numbers_are_refused(engine: str) -> None:
    class Broken(nn.Module):
        """A network whose weights are spoilt."""

        def forward(self, pixels):
            return pixels * float("nan")

    with pytest.raises(ConfigError, match="other scores than torch"):
        Compiled(Broken(), 32, engine)(torch.ones(1, 2, 64, 64))


@each
def test_a_network_that_cannot_be_recorded_is_told_in_one_sentence(engine: str) -> None:
    class Strange(nn.Module):
        """A network that answers with what no tracer takes."""

        def forward(self, pixels):
            return {1: pixels, "two": 2}

    with pytest.raises(ConfigError, match=f"{engine} cannot compute this network"):
        Compiled(Strange(), 32, engine)(torch.ones(1, 2, 64, 64))


@each
def test_scores_that_were_given_stay_as_they_were(engine: str) -> None:
    segmenter = PlainNetwork(_network("unet"), SPEC)
    segmenter.place(CPU)
    segmenter.accelerate(engine)
    first = segmenter.segment(_tiles(seed=1), State())
    kept = first.clone()
    assert not torch.equal(segmenter.segment(_tiles(seed=2), State()), kept)
    assert torch.equal(first, kept)


@each
def test_segmenters_hand_the_engine_on(engine: str) -> None:
    tiles = _tiles()
    for wrapped in (TestTimeAugmentation, lambda one: Ensemble([one, one])):
        scores = {}
        for used in ("torch", engine):
            segmenter = wrapped(PlainNetwork(_network("unet"), SPEC))
            segmenter.place(CPU)
            segmenter.accelerate(used)
            scores[used] = segmenter.segment(tiles, segmenter.prepare(None))
        # Not bit for bit, or the engine was not used.
        assert not torch.equal(scores["torch"], scores[engine])
        torch.testing.assert_close(scores["torch"], scores[engine], rtol=1e-3, atol=1e-4)


@each
def test_the_number_of_threads_does_not_matter(engine: str) -> None:
    before, found = torch.get_num_threads(), []
    network = MainOutput(_network("unet")).eval()
    pixels = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(Compiled(network, 32, engine)(pixels))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@each
def test_a_segmenter_at_work_can_be_sent_to_others(engine: str) -> None:
    segmenter = PlainNetwork(_network("plainconv"), SPEC)
    segmenter.place(CPU)
    segmenter.accelerate(engine)
    segmenter.segment(_tiles(), State())
    again = copy.deepcopy(segmenter)  # by the same way as pickling
    torch.testing.assert_close(again.segment(_tiles(), State()), segmenter.segment(_tiles(), State()))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="no engine 'tensorrt': use one of torch, openvino, onnxruntime"):
        check_engine("tensorrt", CPU)
    with pytest.raises(ConfigError, match="on the CPU only: add --device cpu"):
        check_engine("openvino", torch.device("cuda"))


def test_without_the_library_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="pip install 'geoseg\\[openvino\\]'"):
        check_engine("openvino", CPU)
