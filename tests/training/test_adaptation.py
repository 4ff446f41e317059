"""The steps of adaptation: what learns, what stays, what counts, and what is cut into what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from geoseg import losses, networks
from geoseg.errors import ConfigError
from geoseg.losses.supervision import Supervision
from geoseg.normalisation import Normalisation
from geoseg.training.adaptation import (
    SOURCE,
    TARGET,
    AdversarialModule,
    SelfTrainingModule,
    belief,
    cut_into,
    running_statistics,
)
from geoseg.training.adaptation_run import auxiliary_maps
from geoseg.training.config import check
from geoseg.training.labels import IGNORE

NAME, OPTIONS = "unet-lext", {"width": 4, "depth": 2, "auxiliary": True}
PLAIN = Normalisation((0.0,) * 3, (1.0,) * 3)


def made(kind: type[Any], *, average: float = 0.0, mixing: float = 0.0, **adaptation: Any) -> Any:
    """A module with a small network that has an auxiliary head."""
    config = check(
        {
            "data": {"scenes": [{"image": "a", "labels": "b"}], "classes": "background,a,b"},
            "network": {"name": NAME, "start": "c"},
            "training": {"average": average, "patch": 32, "device": "cpu"},
            "mixing": {"alpha": mixing},
            "adaptation": {"targets": [{"image": "d"}], **adaptation},
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.create(NAME, in_channels=3, num_classes=3, **OPTIONS)
    loss = Supervision(losses.create("ce", num_classes=3), {"scores": 1.0, "aux": 0.1})
    return kind([PLAIN], network, None, loss, ([PLAIN], [PLAIN]), config, None, None).train()


def batch(seed: int = 0, empty: int | None = None) -> dict[str, Any]:
    """Two labelled patches, and two of a target, of which one may hold no data."""
    random = torch.Generator().manual_seed(seed)
    pixels, aims = (torch.randn(2, 3, 32, 32, generator=random) for _ in range(2))
    seen = torch.ones(2, 32, 32, dtype=torch.bool)
    if empty is not None:
        seen[empty] = False
    return {
        "pixels": pixels,
        "labels": torch.randint(3, (2, 32, 32), generator=random),
        "valid": torch.ones(2, 32, 32, dtype=torch.bool),
        "numbers": torch.tensor([4, 5]),
        "target": {"pixels": aims, "seen": seen},
    }


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def shares_of(module: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    with running_statistics(module.network):
        return {name: scores.softmax(1) for name, scores in module.network(pixels).items()}


@pytest.mark.parametrize("maps", [["scores"], ["scores", "aux"]])
def test_each_step_teaches_one_side_alone(maps: list[str]) -> None:
    module, given_ = made(AdversarialModule, method="features").oppose(maps), batch()
    seen = given_["target"]["seen"]
    known, aims = (shares_of(module, pixels) for pixels in (given_["pixels"], given_["target"]["pixels"]))
    network, opponents = state(module.network), state(module.discriminators)
    module.discriminate(known, given_["valid"], aims, seen)
    assert changed(module.network, network) == set()
    assert all(p.grad is None for p in module.network.parameters())
    assert changed(module.discriminators, opponents) == set(opponents)
    module.discriminators.zero_grad()
    opponents = state(module.discriminators)
    module.adversarial(aims, seen).backward()
    assert changed(module.discriminators, opponents) == set()
    assert all(p.grad is None for p in module.discriminators.parameters())
    assert module.network.network.mixer.weight.grad.abs().sum() > 0
    assert (module.network.network.aux.layers[0].weight.grad is not None) == ("aux" in maps)


def test_the_step_sums_the_published_terms() -> None:
    module, given_ = made(AdversarialModule, method="features").oppose(["scores", "aux"]), batch()
    twin = made(AdversarialModule, method="features").oppose(["scores", "aux"])
    found = module._loss_of(given_)
    outputs = twin.network(given_["pixels"])
    expected = F.cross_entropy(outputs["scores"], given_["labels"])
    expected = expected + 0.1 * F.cross_entropy(outputs["aux"], given_["labels"])
    aims = shares_of(twin, given_["target"]["pixels"])
    known = {name: scores.softmax(1) for name, scores in outputs.items()}
    twin.discriminate(known, given_["valid"], aims, given_["target"]["seen"])
    for name, weight in (("scores", 1e-3), ("aux", 2e-4)):
        logits = twin.discriminators[name](aims[name])
        expected = expected + weight * F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mixing", [0.0, 0.7])
def test_statistics_follow_the_sources_alone(mixing: float) -> None:
    """Once a step, as in plain training, with mixing as well."""
    module = made(AdversarialModule, method="outputs", mixing=mixing).oppose(["scores"])
    plain = made(AdversarialModule, method="outputs", mixing=mixing, adv_weight=0).oppose(["scores"])
    for each in (module, plain):
        each._loss_of(batch())
    buffers = dict(plain.network.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in module.network.named_buffers())
    own = made(AdversarialModule, method="outputs", target_bn="batch_stats").oppose(["scores"])
    own._loss_of(batch())
    assert not torch.equal(
        own.network.network.down1.layers[0][0][1].running_mean,
        buffers["network.down1.layers.conv_3x3_0.0.1.running_mean"],
    )


def test_nothing_is_opposed_before_the_warm_up_is_over() -> None:
    module = made(AdversarialModule, method="outputs", warm_up=1).oppose(["scores"])
    opponents = state(module.discriminators)
    assert torch.equal(
        module._loss_of(batch()), made(AdversarialModule, method="outputs", adv_weight=0)._loss_of(batch())
    )
    assert changed(module.discriminators, opponents) == set()


class Pointwise(nn.Module):
    """A discriminator that looks at one pixel, and notes how many patches it saw."""

    seen = 0

    def forward(self, shares: torch.Tensor) -> torch.Tensor:
        self.seen += len(shares)
        return 3 * shares[:, :1] - 1


@given(data=st.data(), place=st.sampled_from([SOURCE, TARGET]))
def test_only_pixels_with_data_count(data: st.DataObject, place: float) -> None:
    count = data.draw(st.integers(1, 4))
    held = [data.draw(st.integers(0, 16)) for _ in range(count)]
    random = torch.Generator().manual_seed(count)
    shares = torch.rand(count, 2, 4, 4, generator=random).requires_grad_()
    seen = torch.stack([torch.arange(16) < each for each in held]).view(count, 4, 4)
    discriminator = Pointwise()
    found = belief(discriminator, shares, seen, place)
    assert discriminator.seen == sum(each > 0 for each in held)
    if not any(held):
        assert found.item() == 0
        return
    logits = (3 * shares[:, 0] - 1)[seen]
    expected = F.softplus(-logits if place == TARGET else logits).mean()
    torch.testing.assert_close(found, expected)


def test_patches_without_data_have_no_part() -> None:
    for kind, told in ((AdversarialModule, {"method": "outputs"}), (SelfTrainingModule, {"average": 0.9})):
        module = made(kind, **told)
        if kind is AdversarialModule:
            module.oppose(["scores"])
        given_ = batch(empty=0)
        given_["target"]["seen"][1] = False
        assert torch.isfinite(module._loss_of(given_))


def test_layers_alone_stop_training() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Sequential(nn.BatchNorm2d(2).eval())).train()
    network[2][0].eval()
    before, pixels = state(network), torch.randn(4, 2, 3, 3) + 5
    with running_statistics(network):
        assert network.training
        assert torch.equal(network(pixels), network(pixels))
    assert changed(network, before) == set()
    assert [layer.training for layer in network.modules()] == [True, True, True, True, False]


def test_auxiliary_maps_are_those_with_a_channel_for_each_class() -> None:
    network = networks.create(NAME, in_channels=3, num_classes=3, **OPTIONS)
    before = state(network)
    assert auxiliary_maps(network, 3, 3) == ["aux"]
    assert auxiliary_maps(network, 3, 4) == []
    assert changed(network, before) == set()


@given(seed=st.integers(0, 2**32), height=st.integers(1, 12), width=st.integers(1, 12))
def test_a_rectangle_comes_with_its_labels_from_the_patch_before(seed: int, height: int, width: int) -> None:
    pixels = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, height, width)
    labels = torch.arange(3).view(3, 1, 1).expand(3, height, width)
    varied, known = cut_into(pixels, labels, np.random.default_rng(seed))
    assert torch.equal(varied[:, 0], known.float())
    assert torch.equal(varied[:, 0], varied[:, 1])
    inside = known != labels
    assert torch.equal(known[inside], labels.roll(1, 0)[inside])
    rows, cols = inside[0].any(1), inside[0].any(0)
    assert inside[0].sum() == rows.sum() * cols.sum()


def test_rectangles_take_half_on_average() -> None:
    labels = torch.arange(2).view(2, 1, 1).expand(2, 64, 64)
    taken = [
        float((cut_into(labels[:, None].float(), labels, np.random.default_rng(seed))[1] != labels).float().mean())
        for seed in range(400)
    ]
    assert abs(np.mean(taken) - 0.5) < 0.05


class Given(nn.Module):
    """A teacher with known scores, which must not be in training."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return self.scores


def test_what_the_teacher_is_not_sure_of_does_not_count() -> None:
    module = made(SelfTrainingModule, average=0.9, confidence=0.8)
    shares = torch.tensor([[0.85, 0.1, 0.05], [0.1, 0.75, 0.15], [0.05, 0.05, 0.9], [0.0, 1.0, 0.0]])
    module.average = Given(shares.log().clamp(min=-50).T.view(1, 3, 1, 4)).train()
    seen = torch.tensor([True, True, True, False]).view(1, 1, 4)
    labels, trust = module.believed(torch.zeros(1, 3, 1, 4), seen)
    assert labels.tolist() == [[[0, IGNORE, 2, IGNORE]]]
    assert trust == pytest.approx(2 / 3)


def test_the_network_learns_on_the_targets_and_the_teacher_does_not() -> None:
    module = made(SelfTrainingModule, average=0.9, confidence=0.0, cut=0.0)
    before = state(module.average)
    loss = module._loss_of(batch())
    alone = made(SelfTrainingModule, average=0.9, target_weight=0.0)._loss_of(batch())
    assert loss > alone
    loss.backward()
    assert changed(module.average, before) == set()
    assert all(p.grad is None for p in module.average.parameters())
    with torch.no_grad():
        module.network.network.mixer.bias += 1.0
    module.move_average()
    moved = module.average.network.mixer.bias - before["network.mixer.bias"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1))


def test_without_weight_on_the_targets_only_the_sources_teach() -> None:
    still = {name: 0.0 for name in ("brightness", "contrast", "gamma", "mixing", "noise", "blur")}
    modules: list[Callable[[], Any]] = [
        lambda: made(AdversarialModule, method="outputs", adv_weight=0.0).oppose(["scores"]),
        lambda: made(SelfTrainingModule, average=0.9, target_weight=0.0, strong=still),
        lambda: made(SelfTrainingModule, average=0.9, warm_up=1, strong=still),
        lambda: made(SelfTrainingModule, average=0.9, warm_up=1),
    ]
    found = []
    for make in modules:
        module = make()
        module._loss_of(batch()).backward()
        gradients = [p.grad for p in module.network.parameters() if p.grad is not None]
        found.append([*gradients, *module.network.buffers()])
    for other in found[1:3]:
        assert all(torch.equal(first, second) for first, second in zip(found[0], other, strict=True))
    assert not torch.equal(found[0][0], found[3][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {}}, "network.start is missing"),
        ({"adaptation": {"method": "outputs"}}, "adaptation.targets is missing"),
        ({"targets": "coarse", "coarse": {"sources": [{"table": "nlcd"}]}}, "adaptation learns from fine labels"),
    ],
)
def test_settings_that_do_not_go_with_adaptation(change: dict[str, Any], message: str) -> None:
    scene = {"image": "a", "labels": "b", **({"coarse": ["c"]} if "coarse" in change else {})}
    told = {
        "data": {"scenes": [scene], "classes": "background,a"},
        "network": {"start": "c"},
        "training": {"average": 0.9},
        "adaptation": {"targets": [{"image": "d"}]},
    }
    with pytest.raises(ConfigError, match=message):
        check({**told, **change})
