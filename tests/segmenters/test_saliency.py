"""A pair of networks behind the tile interface and in bundles: scores, settings, weights from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geoseg.bundle import write_bundle
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError
from geoseg.grid import Window
from geoseg.networks import create
from geoseg.networks.rstn import SaliencyPair
from geoseg.networks.rstn_fcn8s import authors_pair
from geoseg.normalisation import Normalisation
from geoseg.segmenters import saliency_pair
from geoseg.segmenters.ensemble import TestTimeAugmentation
from geoseg.segmenters.interface import Spec, State, Tiles
from geoseg.segmenters.loading import load
from geoseg.segmenters.making import import_model, new_model
from geoseg.segmenters.saliency import SaliencyNetwork, shares
from geoseg.segmenters.saliency_pair import AUTHORS_NETWORK, PairSettings
from geoseg.segmenters.saliency_settings import SaliencySettings

BANDS = ["red", "green", "blue"]
SHIPS = Classes.parse("sea,ship:#d55e00,background,buoy")
SMALL: dict[str, Any] = {"coarse": "plainconv", "factor": 2}


class Bright(nn.Module):
    """One target a band: what is brighter than one half."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 30 * (values - 0.5)


def bright(classes: Classes, **options: Any) -> SaliencyNetwork:
    settings = SaliencySettings(**{"factor": 2, "margin": 4, **options})
    count = len(classes) - 1
    pair = SaliencyPair(Bright(), Bright(), targets=count, bands=count, factor=settings.factor).eval()
    bands = tuple(map(str, range(count)))
    scaling = Normalisation((0.0,) * count, (1.0,) * count)
    return SaliencyNetwork(pair, classes, settings, Spec(bands, None, classes, 512, 8, normalisation=scaling))


def tiles(pixels: np.ndarray, valid: np.ndarray | None = None) -> Tiles:
    known = np.ones(pixels.shape[1:], bool) if valid is None else valid
    array = np.where(known, pixels, 0).astype(np.float32)
    return Tiles(torch.from_numpy(array)[None], torch.from_numpy(known)[None], (Window(0, 0, *known.shape),))


@given(targets=st.integers(1, 4), background=st.integers(0, 4), seed=st.integers(0, 99))
def test_shares(targets: int, background: int, seed: int) -> None:
    background = min(background, targets)
    chances = torch.from_numpy(np.random.default_rng(seed).random((2, targets, 3, 5), np.float32))
    found = shares(chances, background)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 3, 5))
    order = [i for i in range(targets + 1) if i != background]
    best, which = chances.max(1)
    given_ = found.argmax(1)
    clear = (best - 0.5).abs() > 1e-6
    expected = torch.where(best > 0.5, torch.tensor(order)[which], background)
    assert torch.equal(given_[clear], expected[clear])
    if targets == 1:
        torch.testing.assert_close(found[:, order[0]], chances[:, 0])


def test_a_tile_is_a_small_scene() -> None:
    """Each target has a class; pixels without data are never a target; the layer says where no fine look was."""
    classes = Classes.parse("ship,background,buoy")
    pixels = np.zeros((2, 90, 110))
    pixels[0, 20:30, 30:44] = 1
    pixels[1, 60:70, 80:92] = 1
    valid = np.ones((90, 110), bool)
    valid[62:65, 78:86] = False
    network = bright(classes)
    scores, layers = network.segment_with_layers(tiles(pixels, valid), State())
    assert scores.shape == (1, 3, 90, 110)
    assert torch.equal(scores, network.segment(tiles(pixels, valid), State()))
    expected = np.full((90, 110), 1)
    expected[20:30, 30:44] = 0
    expected[60:70, 80:92] = 2
    assert np.array_equal(scores[0].argmax(0).numpy()[valid], expected[valid])
    assert (scores[0].argmax(0).numpy()[~valid] == 1).all()
    unseen = layers[0, 0].numpy()
    assert set(np.unique(unseen)) == {0.0, 1.0}
    assert (unseen[expected != 1] == 0).all()
    assert unseen.mean() > 0.8


def test_it_is_turned_as_any_other() -> None:
    pixels = np.zeros((1, 64, 64))
    pixels[0, 20:30, 30:44] = 1
    network = bright(Classes.parse("background,ship"))
    once = network.segment(tiles(pixels), State()).softmax(1)
    turned = TestTimeAugmentation(network).segment(tiles(pixels), State()).softmax(1)
    assert torch.equal(once.argmax(1), turned.argmax(1))


@pytest.mark.parametrize("classes", ["ship,buoy", "background"])
def test_there_must_be_a_background_and_a_target(classes: str) -> None:
    with pytest.raises(ConfigError, match="needs exactly one, and a target beside it"):
        new_model("rstn", bands=BANDS, classes=Classes.parse(classes), options=SMALL)


def test_a_bundle_holds_the_pair(tmp_path: Path) -> None:
    options = {**SMALL, "fine": "unet", "fine_encoder": "resnet10t", "margin": 7, "stop_dsc": 0.9}
    made = new_model("rstn", bands=BANDS, classes=SHIPS, resolution=0.5, seed=3, options=options)
    write_bundle(tmp_path / "pair.safetensors", *made)
    found = load(tmp_path / "pair.safetensors")
    assert isinstance(found, SaliencyNetwork)
    assert found.settings == SaliencySettings(factor=2, margin=7, stop_dsc=0.9)
    assert (found.spec.bands, found.spec.resolution, found.spec.classes) == (tuple(BANDS), 0.5, SHIPS)
    assert found.spec.tile == 1024
    assert (found.coarse_pass().spec.halo, found.coarse_pass().spec.layers) == (3, ("sea", "ship", "buoy"))
    names = {name.split(".")[0] for name in made[1]}
    assert names == {"coarse_model", "fine_model", "saliency1", "saliency2"}
    again = new_model("rstn", bands=BANDS, classes=SHIPS, resolution=0.5, seed=3, options=options)
    assert all(np.array_equal(made[1][name], value) for name, value in again[1].items())


def test_settings_by_options() -> None:
    found = PairSettings.of_options({"coarse": "plainconv", "factor": 3})
    assert found.coarse == found.fine
    found = PairSettings.of_options({"coarse_options": {"depth": 3}}, encoder="resnet10t")
    assert (found.fine.name, found.fine.encoder, found.fine.options) == ("unet", "resnet10t", {"depth": 3})
    found = PairSettings.of_options({"coarse_options": {"depth": 3}, "fine": "plainconv"}, encoder="resnet10t")
    assert (found.fine.name, found.fine.encoder, dict(found.fine.options)) == ("plainconv", None, {})
    assert PairSettings.of_record(found.record()) == found
    with pytest.raises(ConfigError, match="no option of a saliency pair named 'treshold'; did you mean threshold"):
        PairSettings.of_options({"treshold": 0.5})
    with pytest.raises(ConfigError, match="fine_options of a saliency pair is 3: give names with values"):
        PairSettings.of_options({"fine_options": 3})


def test_the_registry_makes_pairs() -> None:
    pair = create("rstn", in_channels=2, num_classes=3, coarse="plainconv", fine="plainconv", factor=2)
    assert (pair.targets, pair.bands, pair.factor) == (2, 2, 2)
    with pytest.raises(ConfigError, match="asked for 1 class: give the background and a target"):
        create("rstn", in_channels=2, num_classes=1)


def test_weights_of_any_pair_come_in(tmp_path: Path) -> None:
    made = new_model("rstn", bands=BANDS, classes=SHIPS, seed=3, options=SMALL)[1]
    file = {f"module.{name}": torch.from_numpy(value) for name, value in made.items()}
    torch.save({"state_dict": file}, tmp_path / "pair.pth")
    description, tensors, match = import_model(
        str(tmp_path / "pair.pth"), "rstn", bands=BANDS, classes=SHIPS, options=SMALL
    )
    assert match.taken == len(made)
    assert all(np.array_equal(tensors[name], value) for name, value in made.items())
    assert description.training == {"imported_from": "pair.pth"}
    with pytest.raises(BundleError, match="does not fit"):
        import_model(str(tmp_path / "pair.pth"), "rstn", bands=BANDS, classes=SHIPS, options={"coarse": "unet"})
    with pytest.raises(ConfigError, match="does not name its classes: say them, the background too"):
        import_model(str(tmp_path / "pair.pth"), "rstn", bands=BANDS)


def test_the_authors_files_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With layers made narrow, for the real ones are a gigabyte; their names and shapes are golden tests' matter."""
    for name, value in (("_BLOCKS", ((4, 2), (4, 2), (4, 3), (4, 3), (4, 3))), ("_HIDDEN", 8)):
        monkeypatch.setattr(f"geoseg.networks.rstn_fcn8s.{name}", value)
    torch.manual_seed(0)
    state = authors_pair(3).state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "FD0_X.pth")
    given_: dict[str, Any] = {"bands": BANDS, "classes": SHIPS, "options": {"factor": 1, "rounds": 10}}
    made = import_model(str(tmp_path / "FD0_X.pth"), "rstn", **given_)
    write_bundle(tmp_path / "pair.safetensors", *made[:2])
    found = load(tmp_path / "pair.safetensors")
    assert isinstance(found, SaliencyNetwork)
    assert made[0].settings["coarse"]["name"] == AUTHORS_NETWORK
    assert all(torch.equal(state[name], value) for name, value in found.pair.state_dict().items())
    assert found.settings.rounds == 10
    with pytest.raises(ConfigError, match="is a pair of FCN-8s for 3 bands and as many targets"):
        import_model(str(tmp_path / "FD0_X.pth"), "rstn", **{**given_, "bands": ["one"]})
    del state["saliency1.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(BundleError, match=r"less.pth: the checkpoint has no saliency1.bias"):
        import_model(str(tmp_path / "less.pth"), "rstn", **given_)


def test_the_authors_network_goes_with_its_like_alone() -> None:
    settings = PairSettings.of_options({"coarse": AUTHORS_NETWORK, "fine": "unet"})
    with pytest.raises(ConfigError, match="goes with its like alone"):
        saliency_pair.build(settings, bands=3, targets=3)


def test_a_pair_and_its_settings_must_agree() -> None:
    pair = SaliencyPair(Bright(), Bright(), targets=1, bands=1, factor=2)
    classes = Classes.parse("background,ship")
    with pytest.raises(ConfigError, match="an overview 2 times smaller: give these, not 1, 1 and 4"):
        SaliencyNetwork(pair, classes, SaliencySettings(), Spec(("grey",), None, classes, 512, 8))
