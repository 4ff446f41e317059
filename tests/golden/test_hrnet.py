"""HRNetV2 against the authors' network definition and their losses (golden run in float64)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoseg.losses.ohem import OhemCrossEntropy
from geoseg.networks.hrnet import HRNet, build_hrnet

pytestmark = pytest.mark.golden
FOLDER = Path(os.environ.get("GEOSEG_REFERENCE") or Path(__file__).parents[1] / "data" / "reference") / "hrnet"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
CASES = [pytest.param(case, id=case["id"]) for case in MANIFEST["cases"]]
LOSSES = MANIFEST["loss"]["values"]


@pytest.fixture(scope="module")
def reference(golden):
    return golden("hrnet")


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return getattr(torch, request.param)


def authors_name(name):
    return name.removeprefix("network.").removeprefix("backbone.").removeprefix("head.")


def network_of(case, bands):
    return build_hrnet(
        in_channels=bands,
        num_classes=case["num_classes"],
        encoder=case["timm_name"],
        align_corners=case["align_corners"],
    ).network.eval()


def macs(network, shape):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.coarse(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("case", CASES)
def test_scores(case, reference, weights, monkeypatch):
    name = case["id"]
    shape, seed = tuple(reference[f"{name}.input_shape"].tolist()), int(reference[f"{name}.seed"])
    with torch.device("meta"):
        network = network_of(case, shape[1])
    network = weights.fill_weights(network.to_empty(device="cpu"), seed, authors_name)
    pixels = weights.golden_input(shape, seed)
    expected = torch.from_numpy(reference[f"{name}.logits"]).double()

    def error():
        with torch.no_grad():
            found = network.coarse(pixels.to(next(network.parameters())))["scores"].double()
        assert list(found.shape) == case["output_shape"]
        return float((found - expected).norm() / expected.norm())

    assert error() <= 1e-5
    if all(side % 32 == 0 for side in shape[2:]):
        # The likeliest mistake must not pass: the backbone run as the library runs it, with nearest neighbours.
        with monkeypatch.context() as patch:
            patch.setattr(HRNet, "streams", lambda self, pixels: self.backbone(pixels))
            assert error() > 0.05
    network.double()
    assert error() <= 1e-7


@pytest.mark.parametrize("case", CASES)
def test_names_and_counts(case):
    with torch.device("meta"):
        network = network_of(case, case["input_shape"][1])
    names = sorted(map(authors_name, network.state_dict()))
    assert len(names) == case["state_dict_entries"]
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == case["sha256_of_sorted_names_joined_by_newline"]
    assert sum(parameter.numel() for parameter in network.parameters()) == case["parameters"]
    assert macs(network, case["input_shape"]) == case["macs_at_input"]
    assert macs(network, (1, 3, 1024, 2048)) == case["macs_at_1x3x1024x2048"]


def test_shapes_of_the_weights():
    case = next(case for case in MANIFEST["cases"] if case["id"] == MANIFEST["state_dict_of_case"])
    with torch.device("meta"):
        network = network_of(case, case["input_shape"][1])
    found = {authors_name(name): list(value.shape) for name, value in network.state_dict().items()}
    assert found == {entry["name"]: entry["shape"] for entry in MANIFEST["state_dict"]}


def loss_of(name):
    if name == "cross_entropy":
        return OhemCrossEntropy(None, ignore_index=MANIFEST["loss"]["ignore_label"])
    threshold, _, keep = name.removeprefix("ohem_t").partition("_keep")
    return OhemCrossEntropy(
        float(threshold.replace("_", ".")), int(keep), ignore_index=MANIFEST["loss"]["ignore_label"]
    )


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients(name, reference, dtype):
    scores = torch.from_numpy(reference["loss.scores"]).to(dtype).requires_grad_()
    loss = loss_of(name)(scores, torch.from_numpy(reference["loss.target"]))
    loss.backward()
    assert loss.item() == pytest.approx(LOSSES[name], abs=1e-6)
    expected = torch.from_numpy(reference[f"loss.{name}.grad"]).to(dtype)
    torch.testing.assert_close(scores.grad, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_costs_nothing(name, reference):
    """The authors' losses give NaN or an error here (manifest: authors_behaviour_all_ignored)."""
    scores = torch.from_numpy(reference["loss.scores"]).requires_grad_()
    target = torch.full(reference["loss.target"].shape, MANIFEST["loss"]["ignore_label"])
    loss = loss_of(name)(scores, target)
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()
