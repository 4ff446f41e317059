"""The structural similarity loss against an independent transcription of its equations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from geoseg.losses.ssl_loss import StructuralSimilarityLoss

from .conftest import reference_folder

pytestmark = pytest.mark.golden
CASES = json.loads((reference_folder() / "ssl_loss" / "manifest.json").read_text())["cases"]


@pytest.fixture(scope="module")
def reference(golden):
    return golden("ssl_loss")


def loss_of(reference, case):
    return StructuralSimilarityLoss(
        int(reference["input_shape"][1]),
        case["ignore_index"],
        window=case["window"],
        sigma=case["sigma"],
        c4=case["C4"],
        beta=case["beta"],
        lam=case["lam"],
        border=case["border"],
        detach_weight=case["detach_weight"],
    )


@pytest.mark.parametrize("index", range(len(CASES)))
def test_value_and_gradient(reference, index):
    case = CASES[index]
    loss = loss_of(reference, case)
    scores = torch.from_numpy(reference["logits"]).double().requires_grad_()
    labels = torch.from_numpy(reference[case["labels"]])
    parts = loss.parts(*loss.prepared(scores, labels))
    found = [each.item() for each in (loss(scores, labels), parts.bce, parts.structural, parts.error.max())]
    np.testing.assert_allclose(found, [case[name] for name in ("total", "bce_mean", "ssl", "e_max")], rtol=1e-5)
    assert parts.hard_count.item() == case["hard_count"]
    loss(scores, labels).backward()
    expected = reference[f"case{index}_grad"]
    np.testing.assert_allclose(scores.grad.numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    if f"case{index}_error_map" in reference.arrays:
        expected = reference[f"case{index}_error_map"]
        np.testing.assert_allclose(parts.error.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_single_precision(reference, index):
    labels = torch.from_numpy(reference[CASES[index]["labels"]])
    found = loss_of(reference, CASES[index])(torch.from_numpy(reference["logits"]).float(), labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(CASES[index]["total"], rel=1e-3)
