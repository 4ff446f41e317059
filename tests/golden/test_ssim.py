"""Structural similarity against an independent transcription, itself compared with scikit-image."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geoseg.losses.ssim import ssim_maps

from .conftest import reference_folder

pytestmark = pytest.mark.golden
CASES = json.loads((reference_folder() / "ssim" / "manifest.json").read_text())["cases"]


@pytest.fixture(scope="module")
def reference(golden):
    return golden("ssim")


@pytest.fixture(params=CASES, ids=[case["name"] for case in CASES])
def case(request):
    return request.param


def images(reference, case):
    x = torch.from_numpy(reference[case["x"]]).double()
    if case["y"] in reference.arrays:
        return x, torch.from_numpy(reference[case["y"]]).double()
    labels = torch.from_numpy(reference[case["y"].rsplit(" ", 1)[-1]]).long()
    return x, F.one_hot(labels, x.shape[1]).movedim(-1, 1).double()


def maps(case, x, y):
    return ssim_maps(
        x,
        y,
        data_range=case["data_range"],
        window=case["window"],
        size=case["size"],
        **({} if case["sigma"] is None else {"sigma": case["sigma"]}),
        sample_covariance=case["covariance"].startswith("sample"),
    )


def test_means_maps_and_gradient(reference, case):
    x, y = images(reference, case)
    x.requires_grad_()
    found = maps(case, x, y)
    means = {
        "mean_S1": found.s1.mean(),
        "mean_S2": found.s2.mean(),
        "mean_ssim": found.ssim.mean(),
        "scikit_image_0_26": found.ssim.mean(),
        "mean_D2_squared": found.d2_squared.mean(),
        "D2": found.image_d2,
        "mean_local_D2": found.d2.mean(),
    }
    for name, value in means.items():
        assert value.item() == pytest.approx(case[name], abs=1e-9), name
    for part in ("S1", "S2"):
        np.testing.assert_allclose(
            getattr(found, part.lower()).detach().numpy(), reference[f"{case['name']}_{part}"], atol=1e-5
        )
    found.d2_squared.mean().backward()
    expected = reference[f"{case['name']}_grad_D2sq"]
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_all_pixels_valid_is_no_mask(reference, case):
    x, y = images(reference, case)
    whole = maps(case, x, y)
    masked = ssim_maps(
        x,
        y,
        data_range=case["data_range"],
        window=case["window"],
        size=case["size"],
        sample_covariance=case["covariance"].startswith("sample"),
        valid=torch.ones_like(x[:, :1], dtype=torch.bool),
        ignored="renormalised",
    )
    assert masked.counted.all()
    np.testing.assert_allclose(masked.ssim, whole.ssim, atol=1e-9)
