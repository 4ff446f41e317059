"""Deep supervision: each map of a network with its weight, against the labels at its own size or its own stride."""

import math

import pytest
import torch
import torch.nn.functional as F

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.losses import create
from geoseg.losses.supervision import DEFAULT_WEIGHTS, Supervision
from tests.losses.batches import IGNORED, batch
from tests.losses.test_weighted_sum import Contrast


def mean(scores, labels):
    return F.cross_entropy(scores, labels, ignore_index=IGNORED)


def enlarged(scores, labels):
    return F.interpolate(scores, labels.shape[-2:], mode="bilinear", align_corners=False)


def test_weights_are_the_published_ones():
    assert DEFAULT_WEIGHTS["gsn"] == {"scores": 1, "ecm4": 0.4, "ecm3": 0.4, "ecm2": 0.4, "ecm1": 0.4}
    assert DEFAULT_WEIGHTS["icnet"] == {"scores": 0, "scores_4": 1, "scores_8": 0.4, "scores_16": 0.4}
    assert DEFAULT_WEIGHTS["hrnet"] == {"scores": 1, "regions": 0.4}
    assert DEFAULT_WEIGHTS["torchvision-fcn"] == DEFAULT_WEIGHTS["torchvision-deeplabv3"] == {"scores": 1, "aux": 0.5}


def test_every_network_with_auxiliary_maps_has_weights_for_them():
    told = {name: networks.info(name).auxiliary for name in networks.names()}
    assert {name for name, maps in told.items() if maps} <= set(DEFAULT_WEIGHTS) <= set(told)
    for name, maps in told.items():
        assert set(maps) <= set(DEFAULT_WEIGHTS.get(name, ()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gsn", {"encoder": "resnet18"}),
        ("icnet", {}),
        ("hrnet", {"ocr": True, "width": 18}),
        pytest.param("torchvision-fcn", {"auxiliary": True}, marks=pytest.mark.slow),
        pytest.param("torchvision-deeplabv3", {"auxiliary": True}, marks=pytest.mark.slow),
    ],
)
def test_real_networks(name, options):
    torch.manual_seed(1)
    network = networks.create(name, in_channels=3, num_classes=4, **options).train()
    _, labels = batch(size=(64, 96))
    outputs = network(torch.rand(3, 3, 64, 96))
    weights = DEFAULT_WEIGHTS[name]
    assert set(outputs) == set(weights)
    expected = torch.zeros(())
    for key, scores in outputs.items():
        at_stride = key.removeprefix("scores_")
        if at_stride.isdigit():
            stride = int(at_stride)
            expected = expected + weights[key] * mean(scores, labels[:, ::stride, ::stride])
        else:
            expected = expected + weights[key] * mean(enlarged(scores, labels), labels)
    found = Supervision(create("ce", num_classes=4), name)(outputs, labels)
    torch.testing.assert_close(found, expected)
    found.backward()
    missing = [key for key, each in network.named_parameters() if each.grad is None]
    assert not missing
    network.eval()
    with torch.no_grad():
        scores = network(torch.rand(3, 3, 64, 96))
        torch.testing.assert_close(Supervision(create("ce", num_classes=4), name)(scores, labels), mean(scores, labels))


def test_maps_that_are_missing_or_weigh_nothing_are_left_out():
    scores, labels = batch()
    without = Supervision(create("ce", num_classes=4), "hrnet")
    torch.testing.assert_close(without({"scores": scores}, labels), mean(scores, labels))
    nothing = torch.full_like(scores, math.nan)
    found = Supervision(create("ce", num_classes=4), {"scores": 2.0, "b": 0.0})
    torch.testing.assert_close(found({"scores": scores, "b": nothing, "c": nothing}, labels), 2 * mean(scores, labels))


def test_a_network_of_no_weights_of_its_own_is_judged_by_its_scores():
    scores, labels = batch()
    found = Supervision(create("ce", num_classes=4), "unet")
    assert found.weights == {"scores": 1.0}
    torch.testing.assert_close(found(scores, labels), mean(scores, labels))


def test_another_loss_for_auxiliary_maps():
    scores, labels = batch()
    small = torch.randn(3, 4, 6, 5)
    found = Supervision(
        create("ce", num_classes=4), {"scores": 1.0, "low": 0.5}, auxiliary=create("dice", num_classes=4)
    )
    assert not found.takes_soft
    expected = mean(scores, labels) + 0.5 * create("dice", num_classes=4)(enlarged(small, labels), labels)
    torch.testing.assert_close(found({"scores": scores, "low": small}, labels), expected)


def test_half_precision_maps_are_enlarged_in_single():
    _, labels = batch()
    small = torch.randn(3, 4, 6, 5).bfloat16()
    found = Supervision(create("ce", num_classes=4), {"low": 1.0})({"low": small}, labels)
    torch.testing.assert_close(found, mean(enlarged(small.float(), labels), labels))


def test_shares_and_pixels_are_picked_like_labels():
    scores, labels = batch(ignored=False)
    shares = F.one_hot(labels, 4).movedim(-1, 1).float()
    coarse = scores[..., ::4, ::4]
    soft = Supervision(create("ce", num_classes=4), {"scores_4": 1.0})
    assert soft.takes_soft
    torch.testing.assert_close(soft({"scores_4": coarse}, shares), soft({"scores_4": coarse}, labels))
    pixels = torch.rand(scores.shape)
    found = Supervision(Contrast(4), {"scores": 1.0, "scores_4": 2.0})(
        {"scores": scores, "scores_4": coarse}, labels, pixels
    )
    expected = (scores - pixels).abs().mean() + 2 * (coarse - pixels[..., ::4, ::4]).abs().mean()
    torch.testing.assert_close(found, expected)


def test_refusals():
    scores, labels = batch()
    loss = create("ce", num_classes=4)
    for weights in ({}, {"scores": 0.0}, {"scores": -1.0}, {"scores": math.inf}, {"scores": math.nan}):
        with pytest.raises(
            ConfigError, match=r"the weights of a network's maps are .*: give 0 or more, one of them above"
        ):
            Supervision(loss, weights)
    with pytest.raises(ConfigError, match=r"the network gives a, b: give one of these a weight, not \{'scores': 1.0\}"):
        Supervision(loss)({"a": scores, "b": scores}, labels)
    with pytest.raises(ConfigError, match=r"the target is \(3, 6, 7\), scores are \(3, 4, 24, 27\)"):
        Supervision(loss, {"scores_4": 1.0})({"scores_4": scores}, labels)
