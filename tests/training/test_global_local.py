"""Stages of training GLNet: what learns, what stays, and that gradients in parts are those of the whole."""

import pytest
import torch
import torch.nn.functional as F

from geoseg.errors import ConfigError, RunError
from geoseg.losses.global_local import GlobalLocalLoss, labels_at
from geoseg.networks.glnet import MODES, CollaborativeNet, GlobalToLocalNet, build_glnet
from geoseg.networks.glnet_exchange import Merging
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.global_local_window import WindowInput
from geoseg.training.global_local import LabelledScene, add_gradients, begin_training, next_stage, train_stage

SETTINGS = GlobalLocalSettings(overview=64, patch=64, min_overlap=0, extent=128, sub_batch=2)
SCALING = Normalisation((100.0, 110.0), (50.0, 60.0))
CLASSES = 3
TRAINED = {
    "global": {"resnet_global", "fpn_global"},
    "local": {"resnet_local", "fpn_local", "ensemble_conv"},
    "collaborative": {"resnet_global", "fpn_global", "ensemble_conv"},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(mode, seed=0):
    torch.manual_seed(seed)
    network = build_glnet(in_channels=2, num_classes=CLASSES, mode=mode, encoder="mobilenetv3_small_100")
    for name, value in network.named_parameters():
        if value.ndim == 4 and ("fpn" in name or "ensemble" in name):
            torch.nn.init.kaiming_normal_(value)
    return network


def scene(seed=1, size=(100, 90)):
    generator = torch.Generator().manual_seed(seed)
    labels = F.interpolate(torch.rand(1, 1, 5, 6, generator=generator), size, mode="bicubic")[0, 0]
    labels = (labels * CLASSES).clamp(0, CLASSES - 1).to(torch.uint8)
    labels[:7, :9] = 255
    noise = torch.randint(0, 60, (2, *size), generator=generator)
    valid = torch.ones(size, dtype=torch.bool)
    valid[-5:, -8:] = False
    return LabelledScene(((60 * labels.clamp(max=2) + noise) * valid).to(torch.uint8), valid, labels)


def gradients(network):
    return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("mode", MODES)
def test_what_a_stage_trains(mode):
    network = made(mode)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained = begin_training(network)
    assert add_gradients(network, [scene()], GlobalLocalLoss(CLASSES), SETTINGS, SCALING) > 0
    found = gradients(network)
    assert {name.split(".")[0] for name in found} == TRAINED[mode]
    assert len(found) == len(trained)
    assert all(value.isfinite().all() for value in found.values())
    for name, value in network.state_dict().items():
        learns = name.split(".")[0] in TRAINED[mode]
        if name.endswith("running_mean"):
            assert torch.equal(value, before[name]) != learns, name
        elif not name.endswith(("running_var", "num_batches_tracked")):
            assert torch.equal(value, before[name]), name


def test_gradients_of_the_third_stage_are_those_of_one_graph():
    network = made("collaborative")
    begin_training(network)
    network.eval()  # so that two passes give the same
    scenes, loss = [scene(1), scene(2)], GlobalLocalLoss(CLASSES)
    value = add_gradients(network, scenes, loss, SETTINGS, SCALING)
    found = gradients(network)

    network.zero_grad()
    total, merged, inputs, shares = 0.0, [], [], []
    for each in scenes:
        pixels = WindowInput(each.pixels, each.valid, SCALING, SETTINGS)
        overview = network.overview(pixels.overview)
        grid = pixels.grid(overview)
        maps = network.local(pixels.patches(grid.corners), overview, grid, grid.corners)
        merging = Merging(overview.stages, grid)
        merging.add(grid.corners, maps.stages)
        merged.append(merging.maps())
        inputs.append(pixels.overview)
        shares.append((network.local_share(maps), grid))
    stacked = tuple(
        tuple(torch.cat(maps) for maps in zip(*levels, strict=True)) for levels in zip(*merged, strict=True)
    )
    further = network.extended(torch.cat(inputs), stacked)
    known = [each.labels.long().masked_fill(~each.valid, 255) for each in scenes]
    scores = network.extended_scores(further)
    total = loss.scores(scores, torch.cat([labels_at(each[None], (16, 16)) for each in known]))
    for number, (share, grid) in enumerate(shares):
        scores = share + network.global_share(further.joined[number : number + 1], grid, grid.corners, (16, 16))
        labels = [labels_at(known[number][None, r : r + 64, c : c + 64], (16, 16)) for r, c in grid.corners]
        for start in range(0, len(labels), SETTINGS.sub_batch):
            part = slice(start, start + SETTINGS.sub_batch)
            total = total + loss.scores(scores[part], torch.cat(labels[part]))
    total.backward()
    assert value == pytest.approx(total.item(), rel=1e-5)
    for name, expected in gradients(network).items():
        assert float((found[name] - expected).norm() / expected.norm().clamp(min=1e-9)) <= 1e-3, name


def test_nothing_known_teaches_scores_nothing():
    blank = scene()
    blank = LabelledScene(blank.pixels, blank.valid, torch.full_like(blank.labels, 255))
    for mode in MODES:
        network = made(mode)
        begin_training(network)
        assert add_gradients(network, [blank], GlobalLocalLoss(CLASSES, coupling=0), SETTINGS, SCALING) == 0
        assert not any(value.any() for value in gradients(network).values())


def test_stages_follow_each_other():
    first = made("global", seed=1)
    second = next_stage(first)
    assert isinstance(second, GlobalToLocalNet)
    with torch.no_grad():
        for value in second.fpn_local.parameters():
            value.add_(1)
    third = next_stage(second)
    assert isinstance(third, CollaborativeNet)
    weights = third.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(weights[f"fixed.{name}"], value)
        assert name not in weights or torch.equal(weights[name], value)
    for name, value in second.state_dict().items():
        if "local" in name or "ensemble" in name:
            assert torch.equal(weights[name], value)
    with pytest.raises(ConfigError, match="three stages"):
        next_stage(third)


@pytest.mark.parametrize("mode", MODES)
def test_training_learns(mode):
    torch.manual_seed(0)
    network = build_glnet(in_channels=2, num_classes=CLASSES, mode=mode, encoder="mobilenetv3_small_100")
    scenes = [scene(1)] * 2
    steps = []
    found = train_stage(
        network, scenes, SETTINGS, SCALING, epochs=5, rate=3e-4, batch=1, progress=lambda *told: steps.append(told)
    )
    assert [(step, most) for step, most, _ in steps] == [(i, 10) for i in range(1, 11)]
    assert [value for *_, value in steps] == found
    assert min(found[-3:]) < 0.8 * found[0]
    assert not network.training


def test_a_scene_is_turned_as_a_whole():
    plain = scene(size=(40, 40))
    plain = LabelledScene(plain.labels[None].clone(), plain.labels < 2, plain.labels)
    versions = set()
    for seed in range(120):
        turned = plain.turned(torch.Generator().manual_seed(seed))
        assert torch.equal(turned.pixels[0], turned.labels)
        assert torch.equal(turned.valid, turned.labels < 2)
        versions.add(turned.labels.numpy().tobytes())
    assert len(versions) == 8


def test_refusals():
    with pytest.raises(ConfigError, match="no scenes to train"):
        train_stage(made("global"), [], SETTINGS, SCALING)
    network = made("global")
    with torch.no_grad():
        network.fpn_global.classify.bias.fill_(float("nan"))
    with pytest.raises(RunError, match="loss of GLNet is nan in step 1"):
        train_stage(network, [scene()], SETTINGS, SCALING, epochs=1)
