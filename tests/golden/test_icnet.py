"""ICNet against the authors' deployed graph, the port on a ResNet, and the cascade loss (golden run in float64)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoseg.losses.cascade import CascadeLoss
from geoseg.networks.icnet import AUXILIARY, build_icnet

pytestmark = pytest.mark.golden
FOLDER = Path(os.environ.get("GEOSEG_REFERENCE") or Path(__file__).parents[1] / "data" / "reference") / "icnet"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
LARGE = 1_000_000  # pixels
STRIDES = tuple(AUXILIARY.values())
# Names of coarse maps in the references.
MAPS = {"cls4": "scores_4", "aux8": "scores_8", "aux16": "scores_16"}


def cases():
    return [
        pytest.param(
            case,
            id=case["id"],
            marks=pytest.mark.slow if case["input_shape"][2] * case["input_shape"][3] > LARGE else (),
        )
        for case in MANIFEST["cases"]
    ]


@pytest.fixture(scope="module")
def reference(golden):
    return golden("icnet")


def authors_name(name):
    return name.replace("_bn.", "/bn.").replace("backbone.", "pretrained.")


def network_of(case):
    options = {"encoder": case["timm_backbone"]} if "timm_backbone" in case else {}
    if case.get("pool") == "caffe":
        options["pool"] = "authors"
    return build_icnet(in_channels=case["input_shape"][1], num_classes=case["num_classes"], **options).network.eval()


def outputs(network, pixels):
    """Everything a network says in training, with batch norm as in evaluation."""
    network.training = True
    with torch.no_grad():
        return network(pixels)


@pytest.mark.parametrize("case", cases())
def test_scores(case, reference, weights):
    name = case["id"]
    shape, seed = tuple(reference[f"{name}.input_shape"].tolist()), int(reference[f"{name}.seed"])
    with torch.device("meta"):
        network = network_of(case)
    network = weights.fill_weights(network.to_empty(device="cpu"), seed, authors_name)
    found = outputs(network, weights.golden_input(shape, seed))
    bound = 1e-4 if case.get("computed") == "float32" else 1e-5
    compared = 0
    for array in reference.arrays:
        kind = array.removeprefix(f"{name}.")
        if thinned := re.fullmatch(r"logits_rows(\d+)_cols(\d+)", kind):
            rows, cols = map(int, thinned.groups())
            maps = found["scores"][..., ::rows, ::cols]
        elif array.startswith(f"{name}.") and kind in MAPS:
            maps = found[MAPS[kind]]
        else:
            continue
        expected = torch.from_numpy(reference[array])
        assert float((maps - expected).norm() / expected.norm()) <= bound, array
        compared += 1
    assert compared

    for kind, facts in case["outputs"].items():
        maps = found[MAPS.get(kind, "scores")].double()
        assert list(maps.shape) == facts["shape"]
        found_facts = [float(value) for value in (maps.mean(), maps.std(), maps.min(), maps.max())]
        expected_facts = [facts[key] for key in ("mean", "std", "min", "max")]
        assert found_facts == pytest.approx(expected_facts, rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_the_authors_pooling_differs_from_adaptive_pooling(reference, weights):
    by_pool = {case["pool"]: case for case in MANIFEST["cases"] if case.get("computed") == "float32"}
    scores = {}
    for pool, case in by_pool.items():
        shape, seed = tuple(case["input_shape"]), int(reference[f"{case['id']}.seed"])
        with torch.no_grad():
            scores[pool] = weights.fill_weights(network_of(case), seed, authors_name)(weights.golden_input(shape, seed))
    error = (scores["adaptive"] - scores["caffe"]).norm() / scores["caffe"].norm()
    other = (scores["adaptive"].argmax(1) != scores["caffe"].argmax(1)).double().mean()
    assert float(error) == pytest.approx(MANIFEST["full_size_relative_difference_adaptive_vs_caffe_pool"], rel=1e-3)
    assert float(other) == pytest.approx(MANIFEST["full_size_argmax_disagreement"], rel=1e-2)


@pytest.mark.parametrize("case", [p.values[0] for p in cases()], ids=lambda case: case["id"])
def test_parameters_and_multiplications(case):
    with torch.device("meta"):
        network = network_of(case)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == case.get("parameters_with_aux", case.get("parameters", count))
    heads = sum(value.numel() for name, value in network.named_parameters() if name.startswith("conv6_sub"))
    assert count - heads == case.get("parameters_without_aux", count - heads)
    if "macs_without_aux" in case:
        assert macs(network, case["input_shape"]) == case["macs_without_aux"]
    if "macs" in case:
        # The port runs the halved image to the end of the backbone and throws that away, and the heads of training.
        assert macs(network, case["input_shape"]) + unneeded(network, case["input_shape"]) == case["macs"]


def macs(run, *shapes):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*(torch.empty(tuple(shape), device="meta") for shape in shapes))
    return counter.get_total_flops() // 2


def unneeded(network, shape):
    batch, _, height, width = shape
    stages = list(network.backbone.values())
    after = 1 + list(network.backbone).index("layer2")
    half = (batch, 512, height // 16, width // 16)
    whole = macs(lambda maps: [maps := stage(maps) for stage in stages[after:]], half)
    heads = sum(
        macs(head, (batch, head.in_channels, height // stride, width // stride))
        for head, stride in ((network.head.cff_24.conv_low_cls, 16), (network.head.cff_12.conv_low_cls, 8))
    )
    return whole + heads


@pytest.mark.parametrize(
    ("key", "graph"), [("state_dict_pruned", "pruned"), ("state_dict_resnet50", "resnet")], ids=["pruned", "resnet"]
)
def test_names_and_shapes_of_the_weights(key, graph):
    with torch.device("meta"):
        network = build_icnet(in_channels=3, num_classes=19, graph=graph).network
    expected = {entry["name"]: tuple(entry["shape"]) for entry in MANIFEST[key]}
    found = {authors_name(name): tuple(value.shape) for name, value in network.state_dict().items()}
    # Caffe counts no batches.
    found = {name: shape for name, shape in found.items() if name in expected or "num_batches" not in name}
    assert found == expected


@pytest.fixture
def maps(reference):
    return {f"scores_{s}": torch.from_numpy(reference[f"loss.scores_{s}"]).requires_grad_() for s in STRIDES}


@pytest.fixture
def labels(reference):
    return torch.from_numpy(reference["loss.labels"])


@pytest.mark.parametrize("stride", STRIDES)
def test_loss_at_each_stride(stride, maps, labels, reference):
    loss = CascadeLoss({stride: 1.0}, ignore_index=MANIFEST["loss"]["ignore_label"])(maps, labels)
    loss.backward()
    assert loss.item() == pytest.approx(MANIFEST["loss"]["unweighted"][f"stride{stride}"], abs=1e-6)
    expected = torch.from_numpy(reference[f"loss.grad_{stride}_unweighted"])
    torch.testing.assert_close(maps[f"scores_{stride}"].grad, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", MANIFEST["loss"]["total_weights_stride16_8_4"])
def test_weighted_loss(weights, maps, labels, reference):
    by_stride = dict(zip((16, 8, 4), map(float, weights.split(",")), strict=True))
    loss = CascadeLoss(by_stride, ignore_index=MANIFEST["loss"]["ignore_label"])(maps, labels)
    loss.backward()
    expected = MANIFEST["loss"]["total_weights_stride16_8_4"][weights]
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    for stride, weight in by_stride.items():
        gradient = weight * torch.from_numpy(reference[f"loss.grad_{stride}_unweighted"])
        torch.testing.assert_close(maps[f"scores_{stride}"].grad, gradient, rtol=0, atol=1e-6)
