"""CascadePSP against the authors: network, loss, procedure, accuracy near boundaries, and merging of classes."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from geoseg.boundary_accuracy import boundary_radii, mean_boundary_accuracy
from geoseg.grid import Window
from geoseg.losses.refinement import GRADIENT_WEIGHT, WEIGHTS, RefinementLoss, edge_strength
from geoseg.morphology import ellipse
from geoseg.networks.cascadepsp import CascadePSP
from geoseg.segmenters.interface import Tiles, normalised
from geoseg.segmenters.refined_classes import claimed, components_of
from geoseg.segmenters.refinement import first_look, refined
from geoseg.segmenters.refinement_settings import MergeSettings, RefinementSettings
from geoseg.segmenters.scaling import Scaling

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


class Spy(nn.Module):
    """Passes everything on to a module, and keeps what a padded mask holds and what else was given."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, []

    def forward(self, image, mask, *known):
        self.calls.append((*mask.shape[-2:], float((mask > 0).sum()), len(known)))
        return self.module(image, mask, *known)


@pytest.fixture(scope="module")
def shifted(network):
    """The network with the manifest's final bias."""
    module = copy.copy(network)
    module._modules = {**network._modules, "final_21": copy.deepcopy(network.final_21)}
    with torch.no_grad():
        module.final_21.bias += CONFIG["final_21_bias_shift_for_P_and_S"]
    return module


@pytest.fixture(scope="module")
def scene(reference, weights):
    """Image as the network sees it, and rough mask."""
    height, width = CONFIG["scene_hw"]
    noise = weights.golden_input((height, width, BANDS), int(reference["seed"])).numpy()
    pixels = np.clip(np.round(128 + 48 * noise), 0, 255).astype(np.uint8).transpose(2, 0, 1)
    mask = reference["P_mask"].astype(bool)
    scaling = Scaling("imagenet").record(BANDS).build()
    tiles = Tiles(torch.from_numpy(pixels)[None], torch.ones(1, *mask.shape, dtype=torch.bool), ())
    return normalised(tiles, scaling)[0], mask


def as_published(side, fast=False):
    return RefinementSettings(side=side, fast=fast, skip_below=0.1, skip_above=0.9)


def beyond(side):
    return (side // 8 + 1) * 8


def near(found, expected, within=1e-3, share=0.999):
    return float((np.abs(thinned(found, expected) - expected) <= within).mean()) >= share


@pytest.mark.slow
@pytest.mark.parametrize("case", ["P_L100", "P_Leq190", "P_Lup224"])
def test_procedure(case, shifted, scene, reference):
    side = int(re.search(r"\d+$", case)[0])
    spy = Spy(shifted)
    found = refined(spy, *scene, as_published(side))
    assert near(found, reference[f"{case}_full"][0, 0])
    expected = MANIFEST["arrays"][f"{case}_full"]["forward_calls_h_w_fg_hasS8_hasS4"]
    assert len(spy.calls) == len(expected)
    for (height, width, pixels, known), (h, w, share, has_8, has_4) in zip(spy.calls, expected, strict=True):
        assert (height, width) == ((h, w) if h % 8 == w % 8 == 0 else (beyond(h), beyond(w)))
        assert pixels / (h * w) == pytest.approx(share, abs=1e-3)
        assert known == has_8 + has_4
    fast = refined(shifted, *scene, as_published(side, fast=True))
    assert near(fast, reference[f"{case}_fast"][0, 0])
    if side == CONFIG["L"]:
        for name, map_ in zip(("224", "56"), first_look(shifted, *scene, as_published(side)), strict=True):
            assert near(map_.numpy(), reference[f"{case}_global_pred_{name}"][0, 0])
        for kind, probabilities in (("full", found), ("fast", fast)):
            stored = reference[f"P_refiner_uint8_{kind}"].astype(int)
            assert near((probabilities * 255).astype(np.uint8).astype(int), stored, within=1)


@pytest.mark.slow
def test_padding(shifted, reference, weights):
    """An image of which one side alone is no multiple of 8 grows on both; nothing is resized."""
    mask = reference["S_mask"].astype(bool)
    image = weights.golden_input((1, BANDS, *mask.shape), int(reference["seed"]) + 6)[0]
    spy = Spy(shifted)
    settings = RefinementSettings(side=max(80, *mask.shape), enlarge_to=0, fast=True)
    found = refined(spy, image, mask, settings)
    assert [call[:2] for call in spy.calls] == [tuple(map(beyond, mask.shape))]
    assert near(found, reference["S_safe_forward_64x60_pred_224"][0, 0])


def as_the_scripts():
    """The settings of the authors' scripts, with what the manifest says of classes in words."""
    told = MANIFEST["how_inputs_are_made"]
    told = next(text for name, text in told.items() if name.startswith("A "))
    background = re.search(r"\((\d+) and (\d+) belong to the list of background", told).groups()
    return MergeSettings(
        min_component=product(re.search(r"parts of (\d+)\*(\d+) px or fewer dropped", told)),
        closing=int(re.search(r"disk of (\d+) px dilation", told)[1]),
        box_margin=int(re.search(r"enlarged by (\d+) per cent", told)[1]) / 100,
        background_classes=tuple(map(int, background)),
        background_weight=float(re.search(r"multiplied by ([\d.]+)\)", told)[1]),
        as_authors=True,
    )


def product(found):
    return int(found[1]) * int(found[2])


def merging():
    """What the manifest says of the components, with the numbers of their arrays."""
    return list(enumerate(MANIFEST["arrays"]["A"]["components"]))


def window_of(component):
    row, row_stop, col, col_stop = component["box_rmin_rmax_cmin_cmax"]
    return Window(row, col, row_stop - row, col_stop - col)


def test_components(reference):
    labels = reference["A_seg"]
    expected = {(each["class"], each["pixels"], window_of(each)): number for number, each in merging()}
    found = components_of(labels, as_the_scripts())
    assert {(each.position, each.pixels, each.window) for each in found} == set(expected)
    assert len(found) == len(expected)
    for each in found:
        stored = reference[f"A_component{expected[each.position, each.pixels, each.window]}"].astype(bool)
        assert np.array_equal(each.mask, stored[each.window.within(Window(0, 0, *labels.shape))])


def test_merging(reference):
    answers = [
        (each["class"], window_of(each), reference[f"A_prob{number}"].astype(np.float32) / np.float32(255))
        for number, each in merging()
    ]
    merged, confidence = claimed(reference["A_seg"], answers, as_the_scripts())
    assert np.array_equal(merged, reference["A_merged"])
    np.testing.assert_allclose(thinned(confidence, reference["A_confidence"]), reference["A_confidence"], atol=1e-6)
    assert float((merged != reference["A_seg"]).mean()) == MANIFEST["arrays"]["A"]["fraction_changed"]


def test_accuracy_near_boundaries(reference):
    told = MANIFEST["arrays"]["M"]
    shape = tuple(reference["M_shape"].tolist())
    truth, *masks = (
        np.unpackbits(reference[name])[: shape[0] * shape[1]].reshape(shape) for name in ("M_gt", "M_seg", "M_refined")
    )
    assert list(boundary_radii(shape)) == told["radii"]
    for radius, kernel in told["disk_kernels"].items():
        assert ellipse(2 * int(radius) + 1, 2 * int(radius) + 1).astype(int).tolist() == kernel
    found = [mean_boundary_accuracy(truth, mask) for mask in masks]
    assert found == pytest.approx(reference["M_mba_seg_refined"].tolist(), abs=1e-6)
    assert mean_boundary_accuracy(truth, truth) == 1
    # Class 0 is none.
    several = [np.where(reference[name] == 0, 255, reference[name]) for name in ("M_multi_gt", "M_multi_seg")]
    for prediction, expected in zip(several[::-1], reference["M_multi_mba_seg_self"], strict=True):
        value = mean_boundary_accuracy(several[0], prediction, ignored_must_match=True)
        assert value == pytest.approx(expected, abs=1e-6)


def numbered_maps():
    """The maps in the order in which the authors number them in training."""
    told = next(text for name, text in MANIFEST["how_inputs_are_made"].items() if name.startswith("L "))
    return list(enumerate(re.search(r"indices s_0..s_5 are (.*)$", told)[1].split(", ")))


@pytest.mark.slow
def test_loss(network, inputs, reference):
    truth = torch.from_numpy(reference["N_gt"]).long()[None]
    parameters = {name: network.get_parameter(name) for name in MANIFEST["arrays"]["L_grad_norms"]}
    maps = network(*inputs[:2])
    loss, told = RefinementLoss(), MANIFEST["arrays"]["L_terms"]
    for number, name in numbered_maps():
        weights = [CONFIG["loss_weights"][f"{kind}_weight"][number] for kind in ("ce", "l1", "l2")]
        assert tuple(weights) == WEIGHTS[name]
    with torch.no_grad():
        terms = loss.terms(maps, truth)
    for number, name in numbered_maps():
        expected = [told[f"{kind}_loss/s_{number}"] for kind in ("ce", "l1", "l2")]
        assert [float(each) for each in terms[name]] == pytest.approx(expected, rel=1e-5)
    assert float(terms["gradient"][0]) == pytest.approx(told["grad_loss"], rel=1e-5)
    assert CONFIG["loss_weights"]["grad_weight"] == GRADIENT_WEIGHT
    total = loss(maps, truth)
    assert total.item() == pytest.approx(told["total_loss"], rel=1e-5)
    assert total.item() == pytest.approx(reference["L_total"].item(), rel=1e-5)
    with torch.no_grad():
        for name, values in (("gt", truth.float()[None]), ("pred", maps["out_224"].sigmoid())):
            assert error(edge_strength(values), reference[f"L_sobel_{name}"]) <= 1e-5
    found = torch.autograd.grad(total, list(parameters.values()))
    norms = {name: float(each.norm()) for name, each in zip(parameters, found, strict=True)}
    assert norms == pytest.approx(MANIFEST["arrays"]["L_grad_norms"], rel=1e-3)
