"""Training a pair of networks: its stages, its patches, and the bundle that comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geoseg
from geoseg.bundle import read_bundle
from geoseg.errors import BundleError, ConfigError
from geoseg.losses.dsc import pair_loss
from geoseg.segmenters.saliency import SaliencyNetwork
from geoseg.training.config import check
from geoseg.training.patches import Drawing
from geoseg.training.saliency import PairLoss, TargetPatches, mode_at
from geoseg.training.sampling import Sampler, count
from geoseg.training.site import open_sites
from tests.training.conftest import same

Settings = Callable[..., dict[str, Any]]
PAIR = {"name": "rstn", "options": {"coarse": "plainconv", "factor": 2, "margin": 4}}


def pairs(settings: Settings, **changed: Any) -> dict[str, Any]:
    return settings(network={**PAIR, **changed.pop("network", {})}, **changed)


@given(
    steps=st.integers(1, 400), shares=st.tuples(*[st.integers(0, 9)] * 3).filter(any), data=st.data()
)  # fmt: skip
def test_stages_follow_one_another(steps: int, shares: tuple[int, int, int], data: st.DataObject) -> None:
    given_ = {
        "data": {"scenes": [{"image": "a", "labels": "b"}], "classes": "background,a"},
        "training": {"steps": steps},
        "saliency": {"shares": shares},
    }
    config = check(given_)
    modes = [mode_at(step, config) for step in range(steps)]
    order = ["separate", "individual", "joint"]
    assert modes == sorted(modes, key=order.index)
    for mode, share in zip(order, shares, strict=True):
        assert abs(modes.count(mode) - steps * share / sum(shares)) <= 1
        assert share or mode not in modes


def test_patches_hold_a_target_until_the_joint_steps(settings: Settings) -> None:
    config = check(pairs(settings, training={"steps": 160, "batch": 2, "patch": 16}, saliency={"empty": 0.5}))
    sites, _ = open_sites(config)
    classes = config.data.table()
    sampler = Sampler([count(sites[0], 2, 16)], classes, config.sampling, config.augment, 0)
    patches = TargetPatches(Drawing(sites, sampler, 16, 0.25), config)
    early, late = range(0, 160, 4), range(200, 320, 2)
    assert all(patches.wanted(number) for number in early)
    assert np.mean([(patches[number].labels == 1).any() for number in early]) > 0.95
    asked = [patches.wanted(number) for number in late]
    assert 0.3 < np.mean(asked) < 0.7
    got = [bool((patches[number].labels == 1).any()) for number in late]
    assert np.mean(np.equal(asked, got)) > 0.9
    assert np.array_equal(patches[7].pixels, patches[7].pixels)


def test_the_fine_network_answers_for_its_box_alone() -> None:
    torch.manual_seed(0)
    coarse, fine = torch.rand(2, 1, 8, 9), torch.rand(2, 1, 8, 9)
    target = torch.rand(2, 1, 8, 9) > 0.7
    target[1] = False
    everywhere = torch.ones(2, 1, 8, 9, dtype=torch.bool)
    loss = PairLoss(0.25)
    expected = pair_loss(coarse, fine, target, coarse_weight=0.25)
    assert loss(coarse, fine, target, everywhere) == pytest.approx(float(expected))
    inside = everywhere.clone()
    inside[..., 4:] = False
    more = target.clone()
    more[..., 4:] = True
    fine = fine * inside
    assert PairLoss(0.0)(coarse, fine, more, inside) == PairLoss(0.0)(coarse, fine, target & inside, inside)


def test_a_pair_learns_and_is_used(settings: Settings, squares: tuple[Path, Path], tmp_path: Path) -> None:
    """It goes through all stages, finds squares it was not trained on, and runs over the scene."""
    out = tmp_path / "pair.safetensors"
    report = geoseg.train(pairs(settings, training={"steps": 160, "lr": 0.02}), out)
    assert report.figures["iou"]["square"] > 0.5
    description = read_bundle(out).description
    assert description.method == "saliency"
    assert description.settings["factor"] == 2
    assert description.settings["fine"]["name"] == "plainconv"
    segmenter = geoseg.load(out)
    assert isinstance(segmenter, SaliencyNetwork)
    assert float(segmenter.pair.saliency2.weight.detach().abs().sum()) > 0
    geoseg.predict(squares[0], tmp_path / "squares.geojson", out)


def test_equal_runs_are_equal_and_go_on(settings: Settings, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "third"))
    given_ = pairs(settings)
    geoseg.train(given_, first)
    geoseg.train(given_, second)
    assert same(first, second)
    start = {"start": str(first), "options": {}}
    geoseg.train(
        pairs(settings, network=start, training={"steps": 1, "lr": 1e-9}, saliency={"shares": [0, 0, 1]}), third
    )
    before, after = (read_bundle(path).tensors() for path in (first, third))
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-3)
    assert read_bundle(third).description.settings == read_bundle(first).description.settings


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"loss": "ce"}, ConfigError, "network rstn has a loss of its own"),
        ({"mixing": {"alpha": 0.4}}, ConfigError, "do not mix"),
        ({"data": {"classes": "road,square"}}, ConfigError, "0 of the 2 classes are marked as background"),
        ({"network": {"options": {"facter": 3}}}, ConfigError, "did you mean factor"),
        ({"network": {"options": {"factor": 0}}}, ConfigError, "factor of a saliency pair is 0"),
        ({"saliency": {"shares": [0, 0, 0]}}, ConfigError, "not all 0"),
    ],
)
def test_refusals(
    changed: dict[str, Any], error: type[Exception], message: str, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        geoseg.train(pairs(settings, **changed), tmp_path / "out.safetensors")


def test_another_model_is_no_start(settings: Settings, tmp_path: Path, plain: Path) -> None:
    with pytest.raises(BundleError, match="holds a network model, which is no start for network rstn"):
        geoseg.train(pairs(settings, network={"start": str(plain)}), tmp_path / "out.safetensors")
