"""RSTN against the authors' pair of networks, their loss, crops and post-processing, and their loop with a stub."""

from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geoseg.components import keep_large
from geoseg.grid import Window
from geoseg.losses.dsc import dsc_loss, dsc_per_item, pair_loss
from geoseg.networks.rstn import Saliency, crop_box
from geoseg.networks.rstn_fcn8s import AuthorsFCN8s, authors_pair, from_authors
from geoseg.segmenters.recurrence import combined, reach, recur
from geoseg.segmenters.saliency_settings import SaliencySettings

from .conftest import reference_folder

pytestmark = pytest.mark.golden
MANIFEST = json.loads((reference_folder() / "rstn" / "manifest.json").read_text())
MODES = {"S": "separate", "I": "individual", "J": "joint"}


@pytest.fixture(scope="module")
def reference(golden):
    return golden("rstn")


def shapes(entries):
    return {entry["name"]: tuple(entry["shape"]) for entry in entries}


def test_names_and_counts():
    with torch.device("meta"):
        pair = authors_pair(MANIFEST["n_class"])
    assert {name: tuple(value.shape) for name, value in pair.state_dict().items()} == shapes(MANIFEST["state_dict"])
    assert sum(each.numel() for each in pair.parameters()) == MANIFEST["parameters"]
    for each in (pair.coarse_model, pair.fine_model):
        assert sum(value.numel() for value in each.parameters()) == MANIFEST["parameters_one_fcn8s"]


def test_official_names_load():
    with torch.device("meta"):
        file = {f"module.{name}": torch.empty(shape) for name, shape in shapes(MANIFEST["state_dict"]).items()}
        state, channels = from_authors(file)
        assert channels == MANIFEST["n_class"]
        authors_pair(channels).load_state_dict(state, assign=True)


def numbers(pattern, text):
    """The numbers that a pattern catches in what the manifest says in words."""
    found = re.search(pattern, text)
    assert found, text
    return [float(each) for each in found.groups()]


def drawn(text, weights):
    """The input that the manifest names, such as ``2*golden_input((3, 10, 12), 3)``, in float64."""
    times, shape, seed = re.search(r"(?:([\d.]+)\*)?golden_input\(\(([\d, ]+)\), ?(\d+)\)", text).groups()
    return float(times or 1) * weights.golden_input(tuple(map(int, shape.split(","))), int(seed)).double()


class FilledPair:
    """The pair with the manifest's weights, its input and target."""

    def __init__(self, reference, weights):
        seed = int(reference["seed"])
        with torch.device("meta"):
            self.pair = authors_pair(MANIFEST["n_class"])
        for part in ("coarse_model", "fine_model", "saliency1", "saliency2"):
            module = self.pair.get_submodule(part).to_empty(device="cpu")
            weights.fill_weights(module, seed, lambda name, part=part: f"{part}.{name}")
            if isinstance(module, AuthorsFCN8s):
                factor = float(MANIFEST["rescale"].rsplit(" multiplied by ", 1)[1].split()[0])
                with torch.no_grad():
                    module.upscore8.weight.mul_(factor)
        self.pair.eval()
        self.pixels = weights.golden_input(tuple(reference["input_shape"].tolist()), seed)
        row, row_stop, col, col_stop = reference["label_box"].tolist()
        self.target = torch.zeros(self.pixels.shape)
        self.target[..., row:row_stop, col:col_stop] = 1
        self.margins = (int(reference["margin"]),) * 4


@pytest.fixture(scope="module")
def filled(reference, weights):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield FilledPair(reference, weights)
    torch.set_num_threads(before)


def error(found, expected):
    expected = torch.from_numpy(expected).double()
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.slow
@pytest.mark.parametrize("letter", MODES)
def test_the_authors_pair_in_training(letter, filled, reference):
    with torch.inference_mode():
        found = filled.pair.passes(filled.pixels, filled.target, MODES[letter], filled.margins)
    assert error(found.coarse_logits, reference["coarse_logits"]) <= 1e-4
    assert error(found.coarse, reference["coarse_prob"]) <= 1e-4
    assert error(found.fine, reference[f"fine_prob_{letter}"]) <= 1e-4
    assert found.boxes == (tuple(MANIFEST[f"crop_box_{letter}"]),)
    assert float((found.fine == 0).double().mean()) == MANIFEST[f"fine_prob_{letter}_fraction_exact_zero"]
    losses = MANIFEST[f"loss_{letter}"]
    assert float(dsc_loss(found.coarse, filled.target)) == pytest.approx(losses["coarse"], abs=1e-5)
    assert float(dsc_loss(found.fine, filled.target)) == pytest.approx(losses["fine"], abs=1e-5)
    assert float(pair_loss(found.coarse, found.fine, filled.target)) == pytest.approx(losses["total"], abs=1e-5)


@pytest.mark.slow
def test_the_authors_pair_fed_back(filled, reference):
    coarse = torch.from_numpy(reference["coarse_prob"])
    box = crop_box(filled.target[0] > 0, filled.margins)
    assert box == tuple(MANIFEST["crop_box_F"])
    with torch.inference_mode():
        assert error(filled.pair.weights(coarse), reference["saliency"]) <= 1e-4
        found = filled.pair.fine_pass(filled.pixels, [box], coarse)
    assert error(found, reference["fine_prob_F"]) <= 1e-4


def test_generalised_saliency(reference, weights):
    case = MANIFEST["generalised_saliency"]
    module = Saliency(case["scores"], case["bands"]).double()
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == shapes(case["state_dict"])
    assert sum(each.numel() for each in module.parameters()) == case["parameters"]
    weights.fill_weights(module, MANIFEST["seed"])
    score = torch.sigmoid(drawn(case["score_input"], weights)).requires_grad_()
    image = drawn(case["image_input"], weights)
    found = module(image, score)
    assert error(found.detach(), reference["salmod_out"]) <= 1e-6
    (found.square().sum() / 2).backward()
    assert error(score.grad, reference["salmod_grad"]) <= 1e-6


def test_dsc_loss(reference, weights):
    case = MANIFEST["dsc_loss"]
    probabilities = torch.sigmoid(drawn(case["pred"], weights)).requires_grad_()
    bound, empty = numbers(r"> ([\d.]+), with item (\d+) set to zero", case["target"])
    target = drawn(case["target"], weights) > bound
    target[int(empty)] = False
    assert dsc_per_item(probabilities, target).tolist() == pytest.approx(case["per_item"], abs=1e-9)
    whole = dsc_loss(probabilities, target, whole_batch=True)
    assert whole.item() == pytest.approx(case["whole_batch"], abs=1e-9)
    loss = dsc_loss(probabilities, target)
    assert loss.item() == pytest.approx(case["per_item_mean"], abs=1e-9)
    loss.backward()
    expected = torch.from_numpy(reference["dsc_grad"]).double()
    torch.testing.assert_close(probabilities.grad, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    nothing = torch.zeros_like(probabilities)
    assert dsc_loss(nothing, nothing).item() == case["all_zero_both"]


def test_crop_boxes():
    height, width = MANIFEST["crop_boxes"]["image_size"]
    for case in MANIFEST["crop_boxes"]["cases"]:
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        (row, last_row), (col, last_col) = case["mask_rows"], case["mask_cols"]
        mask[0, row : last_row + 1, col : last_col + 1] = True
        assert crop_box(mask, (case["margin"],) * 4) == tuple(case["box_r0_r1_c0_c1"])
    empty = torch.zeros(1, height, width, dtype=torch.bool)
    assert crop_box(empty, (5, 5, 5, 5)) == tuple(MANIFEST["crop_boxes"]["empty_mask"])


def unpacked(packed, shape):
    return np.unpackbits(packed)[: int(np.prod(shape))].reshape(shape).astype(bool)


@pytest.mark.parametrize(("name", "counts"), [("pp2d", "pixels"), ("pp3d", "voxels")])
def test_post_processing(name, counts, reference):
    case = MANIFEST["post_processing"]
    before, after = (unpacked(reference[f"{name}_{end}"], case[f"{name}_shape"]) for end in ("in", "out"))
    found = keep_large(before, case["threshold"])
    assert np.array_equal(found, after)
    assert [int(before.sum()), int(found.sum())] == case[counts]


def test_recurrent_loop(reference):
    """With the manifest's stub for the fine network."""
    case, image = MANIFEST["recurrent_loop"], torch.from_numpy(reference["loop_image"])
    assert list(image.shape) == case["shape"]
    scene = Window(0, 0, *case["shape"])
    steep, middle = numbers(r"sigmoid\(([\d.]+)\*\(image-([\d.]+)\)\)", case["note"])
    assert [steep, middle] == numbers(r"logits = ([\d.]+)\*\(mean3x3.* - ([\d.]+)\)", case["note"])
    stop, most = numbers(r"DSC >= ([\d.]+) or (\d+) rounds", case["note"])
    sums = []

    def chances(values):
        return torch.sigmoid(steep * (values - middle))

    def look(box, score, whole):
        weighted = image[box.within(scene)] * (1 + torch.from_numpy(score[(0, *box.within(whole))]))
        found = chances(F.avg_pool2d(weighted[None], 3, 1, 1)).numpy()
        sums.append(float(found.sum()))
        return found

    settings = SaliencySettings(rounds=int(most), stop_dsc=stop, margin=case["margin"])
    clean = partial(keep_large, share=MANIFEST["post_processing"]["threshold"])
    score = chances(image)[None].numpy()
    row, row_stop, col, col_stop = crop_box(torch.from_numpy(clean(score >= 0.5)), (case["margin"],) * 4)
    window = Window(row, col, row_stop - row, col_stop - col)
    seen = reach(window, scene.shape, settings).within(scene)
    found = recur(look, score[(slice(None), *seen)], window, scene.shape, settings, clean)
    rounds = case["rounds"]
    assert [[e.box.row, e.box.row_stop, e.box.col, e.box.col_stop] for e in found.rounds] == [e["box"] for e in rounds]
    assert [each.pixels for each in found.rounds] == [each["pixels"] for each in rounds]
    assert [each.dsc for each in found.rounds] == pytest.approx([each["inter_dsc"] for each in rounds], abs=1e-12)
    assert sums == pytest.approx([each["score_sum"] for each in rounds], abs=1e-6)
    assert found.end == ("stable" if rounds[-1]["inter_dsc"] >= stop else "rounds")
    final = combined([found], scene, 1)
    np.testing.assert_allclose(final[0], reference["loop_final_score"], rtol=0, atol=1e-6)
    assert np.array_equal(clean(final >= 0.5)[0], unpacked(reference["loop_final_mask"], case["shape"]))
