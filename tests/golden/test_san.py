"""SAN and its scale-aware module against the authors' code, and the corrected modes against their equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoseg import networks
from geoseg.networks.san import authors_name
from geoseg.networks.scale_aware import ScaleAwareModule, ScaleAwareStage, read_at

pytestmark = pytest.mark.golden
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-4}


@pytest.fixture(scope="module")
def reference(golden):
    return golden("san")


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return getattr(torch, request.param)


def deviation(found, expected):
    """Largest difference in parts of the largest value."""
    return np.abs(found.detach().double().numpy() - expected).max() / np.abs(expected).max()


def scale_aware_module(facts, mode):
    options = {}
    if mode == "pixel":
        pixel = facts["checks"]["pixel"]
        mode = "tile"
        options = {"reference_size": pixel["ref_size_hw"], "bound": pixel["max_offset_px"]}
    return ScaleAwareModule(facts["in_channels"], mode=mode, **options)


@pytest.mark.parametrize("mode", ["authors", "xy", "pixel"])
def test_module(reference, weights, dtype, mode):
    facts, seed = reference.manifest["module"], int(reference["seed"])
    module = scale_aware_module(facts, mode)
    expected = {entry["name"]: entry["shape"] for entry in facts["state_dict"]}
    assert {name: list(value.shape) for name, value in module.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in module.parameters()) == facts["parameters"]
    weights.fill_weights(module, seed).to(dtype)

    features = weights.golden_input(tuple(facts["input_shape"]), seed).to(dtype).requires_grad_()
    weighted = module(features)
    (gradient,) = torch.autograd.grad(weighted.square().sum() / 2, features)
    assert deviation(module.sampling_conv(features), reference["sam_offset"]) <= CLOSE[dtype]
    assert deviation(weighted, reference[f"sam_{mode}_out"]) <= CLOSE[dtype]
    assert deviation(gradient, reference[f"sam_{mode}_grad"]) <= CLOSE[dtype]
    read = read_at(features, *module.positions(features))
    assert deviation(read, reference[f"sam_{mode}_sampled"]) <= CLOSE[dtype]


def parts(key):
    """Return variant, encoder and mode of a reference's network."""
    _, variant, encoder, mode = key.split("_")
    return variant.upper(), encoder, mode


def network_of(entry, weights, seed):
    variant, encoder, mode = parts(entry["key"])
    options = {"modules": variant, "mode": mode}
    if mode == "tile":
        options["bound"] = entry["max_offset_px"]
        options["reference_size"] = 8 * entry["ref_size_px_by_level"]["stride8"]
    network = networks.create(
        "san", in_channels=entry["input_shape"][1], num_classes=entry["classes"], encoder=encoder, **options
    )
    weights.fill_weights(network.network, seed, rename=authors_name)
    return network.eval()


def test_networks(reference, weights):
    seed = int(reference["seed"])
    for entry in reference.manifest["networks"]:
        check_network(entry, reference, weights, seed)


def check_network(entry, reference, weights, seed):
    network = network_of(entry, weights, seed)
    check_names(entry, network)
    if "ref_size_px_by_level" in entry:
        check_reference_sizes(entry, network)
    stages = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        network.network.encoder[name].register_forward_hook(
            lambda _, __, output, name=name: stages.__setitem__(name, output)
        )
    with torch.no_grad():
        scores = network(weights.golden_input(tuple(entry["input_shape"]), seed))
    stored = reference[f"{entry['key']}_logits"]
    step = entry["subsample_step"]
    assert deviation(scores[..., ::step, ::step], stored) <= CLOSE[torch.float32], entry["key"]
    statistics = entry["full_stats"]
    assert list(scores.shape) == statistics["shape"]
    assert float(scores.double().std(correction=0)) == pytest.approx(statistics["std"], rel=1e-4)
    for name, output in stages.items():
        key = f"{entry['key'].rpartition('_')[0]}_{name}_slice"
        if key in reference.arrays:
            expected = reference[key]
            assert deviation(output[:, : expected.shape[1]], expected) <= CLOSE[torch.float32], (entry["key"], name)


def check_names(entry, network):
    if "state_dict" in entry:
        expected = {item["name"]: item["shape"] for item in entry["state_dict"]}
        found = {authors_name(name): list(value.shape) for name, value in network.network.state_dict().items()}
        assert found == expected
    if "parameters" in entry:
        assert sum(parameter.numel() for parameter in network.parameters()) == entry["parameters"]
    if "trainable" in entry:
        frozen = sum(
            module.weight.numel() for module in network.network.encoder.modules() if isinstance(module, torch.nn.Conv2d)
        )
        assert entry["parameters"] - frozen == entry["trainable"]


def check_reference_sizes(entry, network):
    stages = {int(name.removeprefix("offset_")) for name in network.layers}
    expected = {int(name.removeprefix("stride")): size for name, size in entry["ref_size_px_by_level"].items()}
    found = [
        module.scale_aware.reference_size for module in network.network.modules() if isinstance(module, ScaleAwareStage)
    ]
    assert sorted(found) == sorted((expected[stride], expected[stride]) for stride in stages)
