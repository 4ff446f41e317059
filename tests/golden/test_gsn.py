"""GSN against an independent float64 computation of the same design (the authors' code is not public)."""

from __future__ import annotations

import ast
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from geoseg import networks
from geoseg.networks.gsn import EntropyControl, entropy_gate

pytestmark = pytest.mark.golden
CLOSE = 1e-4
GATE = {torch.float64: 1e-6, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def reference(golden):
    return golden("gsn")


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return getattr(torch, request.param)


def deviation(found, expected):
    """Largest difference in parts of the largest value."""
    return np.abs(found.detach().double().numpy() - expected).max() / np.abs(expected).max()


def described_input(text, weights):
    """Return the input that a text such as ``3*golden_input((2, 6), 1)`` describes."""
    factor, shape, seed = re.search(r"(?:([\d.]+)\s*\*\s*)?golden_input\((\([^)]*\)),\s*(\d+)\)", text).groups()
    return float(factor or 1) * weights.golden_input(ast.literal_eval(shape), int(seed))


def test_gate(reference, weights, dtype):
    scores = described_input(reference.manifest["gate"]["logits"], weights).to(dtype).requires_grad_()
    gate = entropy_gate(scores)
    (gradient,) = torch.autograd.grad(gate.sum(), scores)
    np.testing.assert_allclose(gate.detach().numpy(), reference["gate"], rtol=0, atol=GATE[dtype])
    np.testing.assert_allclose(gradient.numpy(), reference["gate_grad"], rtol=0, atol=GATE[dtype])


def test_entropy_control(reference, weights, dtype):
    facts = reference.manifest["ecm"]
    module = EntropyControl(facts["decoder_channels"], facts["classes"])
    expected = {entry["name"]: entry["shape"] for entry in facts["state_dict"]}
    assert {name: list(value.shape) for name, value in module.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in module.parameters()) == facts["parameters"]
    weights.fill_weights(module, int(reference["seed"])).to(dtype)
    upper = described_input(facts["top"], weights).to(dtype).requires_grad_()
    lower = described_input(facts["low"], weights).to(dtype).requires_grad_()
    joined = module(upper, lower)
    gradients = torch.autograd.grad(joined.features.square().sum() / 2, (upper, lower))
    found = (joined.features, joined.gate, joined.scores, *gradients)
    for name, value in zip(("out", "gate", "score", "grad_top", "grad_low"), found, strict=True):
        assert deviation(value, reference[f"ecm_{name}"]) <= CLOSE, name


@pytest.fixture(scope="module")
def network(reference, weights):
    facts = reference.manifest["network"]
    network = networks.create(
        "gsn",
        in_channels=facts["input_shape"][1],
        num_classes=facts["classes"],
        encoder=facts["encoder"],
        decoder_channels=facts["decoder_channels"],
    )
    core = weights.fill_weights(network.network, int(reference["seed"]))
    factor = float(re.search(r"multiplied by ([\d.]+)", facts["rescale"]).group(1))
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if re.fullmatch(r"decoder\.ecm\d\.score\.(weight|bias)", name):
                parameter.mul_(factor)
    return network.eval()


@pytest.fixture(scope="module")
def decoded(reference, network, weights):
    """Scores, coarse scores and gates, of the network itself: the reference does not pad its input."""
    shape = tuple(reference["input_shape"].tolist())
    core = network.network
    with torch.no_grad():
        pixels = weights.golden_input(shape, int(reference["seed"]))
        return core(pixels), core.decoder(core.encoder(pixels))


def test_names(reference, network):
    facts = reference.manifest["network"]
    expected = {entry["name"]: entry["shape"] for entry in facts["state_dict"]}
    assert {name: list(value.shape) for name, value in network.network.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in network.parameters()) == facts["parameters"]
    decoder = sum(parameter.numel() for parameter in network.network.decoder.parameters())
    assert decoder == facts["decoder_parameters"]


def test_scores_and_gates(reference, decoded, network):
    facts = reference.manifest["network"]
    scores, inner = decoded
    step = facts["subsample_step"]
    assert deviation(scores[..., ::step, ::step], reference["logits"]) <= CLOSE
    assert float(scores.double().mean()) == pytest.approx(facts["stats"]["mean"], rel=CLOSE)
    for name, gate in zip(network.network.auxiliary, inner.gates, strict=True):
        assert deviation(gate, reference[f"gate_{name}"]) <= CLOSE, name


def test_losses(reference, decoded, weights, network):
    facts = reference.manifest["network"]
    values = described_input(facts["loss"]["labels"], weights)
    labels = (10 * values.abs()).floor().long() % facts["classes"]
    labels[values > 2] = 255

    def loss(scores):
        return float(F.cross_entropy(scores.double(), labels, ignore_index=255))

    scores, inner = decoded
    assert loss(scores) == pytest.approx(facts["loss"]["main"], rel=CLOSE)
    for name, coarse in zip(network.network.auxiliary, inner.coarse, strict=True):
        enlarged = F.interpolate(coarse, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        assert loss(enlarged) == pytest.approx(facts["loss"]["auxiliary"][name], rel=CLOSE), name
