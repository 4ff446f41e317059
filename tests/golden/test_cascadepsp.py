"""CascadePSP against the authors: network, loss, procedure, accuracy near boundaries, and merging of classes."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from geoseg.networks.cascadepsp import CascadePSP

from .conftest import reference_folder

pytestmark = pytest.mark.golden
MANIFEST = json.loads((reference_folder() / "cascadepsp" / "manifest.json").read_text())
CONFIG = MANIFEST["config"]
BANDS = CONFIG["network_input"][1]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference(golden):
    return golden("cascadepsp")


@pytest.fixture(scope="module")
def network(weights):
    with torch.device("meta"):
        network = CascadePSP(BANDS)
    return weights.fill_weights(network.to_empty(device="cpu"), CONFIG["weights_seed"])


def smooth(weights, shape, cells, seed):
    """The smooth field of the manifest, (1, 1, *shape)."""
    return F.interpolate(weights.golden_input((1, 1, *cells), seed), shape, mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def inputs(reference, weights):
    """Image, mask, and masks at strides 8 and 4."""
    seed, shape = int(reference["seed"]), tuple(reference["input_shape"].tolist())
    size = shape[-2:]
    mask = torch.from_numpy(reference["N_mask"]).float()[None, None] * 2 - 1
    assert torch.equal(mask > 0, smooth(weights, size, (6, 8), seed + 1) > 0)
    finer = (smooth(weights, size, (12, 16), seed + 2), smooth(weights, size, (24, 32), seed + 3))
    return weights.golden_input(shape, seed), mask, *(each.tanh() for each in finer)


def thinned(found, expected):
    """Every so many pixels of a map, as the golden one was stored."""
    step = -(-found.shape[-1] // expected.shape[-1])
    return found[..., ::step, ::step]


def error(found, expected):
    """The largest error, as a share of the largest value."""
    found = thinned(torch.as_tensor(found), expected)
    expected = torch.from_numpy(expected)
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


def test_names_and_counts():
    with torch.device("meta"):
        network = CascadePSP(BANDS)
    names = {entry["name"]: tuple(entry["shape"]) for entry in MANIFEST["state_dict"]}
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == names
    assert sum(each.numel() for each in network.parameters()) == MANIFEST["param_count"]
    parts = {part: sum(p.numel() for p in each.parameters()) for part, each in network.named_children()}
    assert parts == MANIFEST["param_count_by_part"]


@pytest.mark.parametrize("side", sorted({key.split("x")[0] for key in MANIFEST["gmac"] if key != "note"}))
def test_multiply_adds(side):
    told = {"three passes": 0, "two passes": 1, "one pass": 2}
    with torch.device("meta"):
        network, image, mask = CascadePSP(BANDS).eval(), torch.empty(1, BANDS, *(int(side),) * 2), None
        mask = torch.empty(1, 1, *image.shape[-2:])
    for key, expected in MANIFEST["gmac"].items():
        if not key.startswith(f"{side}x"):
            continue
        known = next(count for words, count in told.items() if words in key)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image, mask, *[mask] * known)
        assert counter.get_total_flops() / 2e9 == pytest.approx(expected, rel=2e-6)


@pytest.mark.slow
def test_passes(network, inputs, reference):
    image, mask, mask_8, mask_4 = inputs
    with torch.inference_mode():
        for name, found in network(image, mask).items():
            assert error(found, reference[f"N_{name}"]) <= 1e-4, name
        for given, name in (((mask_8,), "given_s8"), ((mask_8, mask_4), "given_s8_s4")):
            assert error(network(image, mask, *given)["out_224"], reference[f"N_out_224_{name}"]) <= 1e-4
