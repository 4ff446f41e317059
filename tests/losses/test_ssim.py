"""Structural similarity: its distances, bounds and invariances, masks, and the other libraries' values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.losses.ssim import SsimLoss, ssim_maps
from tests.losses.batches import IGNORED, batch, one_hot


def images(seed, count=2, *, shape=(1, 1, 21, 26), scale=255.0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(scale * rng.random(shape)) for _ in range(count)]


@given(seed=st.integers(0, 99), size=st.sampled_from([5, 7, 11]), sample=st.booleans())
def test_the_mean_is_that_of_scikit_image(seed, size, sample):
    metrics = pytest.importorskip("skimage.metrics")
    x, y = images(seed)
    y = 0.5 * x + 0.5 * y
    for options, theirs in (
        ({"window": "uniform", "size": size}, {"win_size": size}),
        ({"sigma": 1.5}, {"gaussian_weights": True, "sigma": 1.5}),
    ):
        if "sigma" in options and sample:
            continue  # the library divides by N − 1 of equal weights there
        found = ssim_maps(x, y, data_range=255, sample_covariance=sample, **options).ssim.mean()
        expected = metrics.structural_similarity(
            x[0, 0].numpy(), y[0, 0].numpy(), data_range=255, use_sample_covariance=sample, **theirs
        )
        assert found.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_map_is_that_of_torchmetrics(seed):
    tm = pytest.importorskip("torchmetrics.functional.image")
    x, y = images(seed, shape=(2, 3, 24, 30))
    _, full = tm.structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    found = ssim_maps(x, y, data_range=255).ssim
    torch.testing.assert_close(found, full[..., 5:-5, 5:-5], atol=1e-6, rtol=0)


def distances(x, y):
    found = ssim_maps(x, y, data_range=1.0, window="uniform", size=4)
    whole = found.level.sqrt(), found.structure.sqrt(), found.d2, found.d1, 1 - found.ssim
    return [each[:, 0, 0, 0] for each in whole]


def triples(count, rng):
    """Random patches of many kinds: near each other, far, negative, flat."""
    base = rng.standard_normal((3, count, 1, 4, 4)) * 10.0 ** rng.uniform(-2, 1, (3, count, 1, 1, 1))
    shift = rng.standard_normal((3, count, 1, 1, 1)) * (rng.random((count, 1, 1, 1)) < 0.7)
    near = base[:1] + base[1:] * 10.0 ** rng.uniform(-3, 0, (2, count, 1, 1, 1))
    mixed = np.where(rng.random((count, 1, 1, 1)) < 0.5, np.concatenate([base[:1], near]), base)
    return torch.from_numpy(mixed + shift)


def test_triangles_hold_for_the_distances_and_not_for_one_minus_ssim():
    x, y, z = triples(10_000, np.random.default_rng(0))
    sides = [distances(*pair) for pair in ((x, z), (x, y), (y, z))]
    slack = [(one + other - direct).min().item() for direct, one, other in zip(*sides, strict=True)]
    assert all(value >= -1e-9 for value in slack[:4])
    assert slack[4] < -0.1


@given(st.integers(0, 999))
def test_triangles_hold_for_images(seed):
    rng = np.random.default_rng(seed)
    x, y, z = (torch.from_numpy(rng.standard_normal((1, 2, 13, 15)) * 10.0 ** rng.uniform(-2, 1)) for _ in range(3))

    def distance(one, other):
        return ssim_maps(one, other, data_range=1.0).image_d2.item()

    assert distance(x, z) <= distance(x, y) + distance(y, z) + 1e-9


@given(st.integers(0, 99))
def test_distances_are_symmetric_and_zero_for_the_same(seed):
    x, y = images(seed)
    one, other = ssim_maps(x, y, data_range=255), ssim_maps(y, x, data_range=255)
    torch.testing.assert_close(one.d2, other.d2)
    torch.testing.assert_close(one.d1, other.d1)
    same = ssim_maps(x, x, data_range=255)
    assert not same.d2.any()
    assert (same.ssim == 1).all()
    assert same.image_d2 == 0


@pytest.mark.parametrize("level", [0.0, 1.0, -3.0])
def test_constant_windows_are_finite(level):
    flat = torch.full((1, 1, 12, 12), level, dtype=torch.float64)
    other = images(1, 1, shape=(1, 1, 12, 12), scale=1.0)[0]
    for pair in ((flat, flat), (flat, other), (other, flat), (flat, flat + 1)):
        found = ssim_maps(*pair, data_range=1.0)
        assert torch.isfinite(found.d2).all()
        assert (found.d2 < 2).all()
    assert not ssim_maps(flat, flat, data_range=1.0).d2.any()
    torch.testing.assert_close(ssim_maps(flat, flat + 1, data_range=1.0).s2, torch.ones(1, 1, 2, 2).double())


@pytest.mark.parametrize("part", ["s1", "s2", "ssim", "d1", "d2"])
def test_the_gradient_is_finite_where_images_are_equal(part):
    x = images(2, 1, shape=(1, 1, 12, 12), scale=1.0)[0].requires_grad_()
    found = ssim_maps(x, x.detach(), data_range=1.0)
    SsimLoss(2, part=part)._losses(found).mean().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() < 1e-12


def test_opposites_are_alike_to_ssim_and_far_to_d2():
    x = images(3, 1)[0] - 127.5
    x = 1e3 * (x + 100 * torch.sign(torch.randn(1, generator=torch.Generator().manual_seed(0))))
    x = x - x.mean() + 5e5
    found = ssim_maps(x, -x, data_range=1.0)
    assert (found.ssim > 0.99).all()
    assert (found.d2 > 1.9).all()


@given(st.integers(0, 99), st.floats(-100, 100), st.floats(0.1, 50))
def test_invariances(seed, constant, factor):
    x, y = images(seed)
    plain = ssim_maps(x, y, data_range=255)
    torch.testing.assert_close(ssim_maps(x + constant, y + constant, data_range=255).s2, plain.s2)
    scaled = ssim_maps(factor * x, factor * y, data_range=factor * 255)
    torch.testing.assert_close(scaled.s1, plain.s1)
    torch.testing.assert_close(scaled.s2, plain.s2)


@given(st.integers(0, 99))
def test_s2_is_least_at_the_opposite_pattern(seed):
    y = images(seed, 1, shape=(1, 1, 7, 7), scale=1.0)[0]
    centred = y - y.mean()
    variance, e2 = (centred**2).mean(), 0.03**2

    def s2(x):
        return ssim_maps(x, y, data_range=1.0, window="uniform", size=7).s2.item()

    least = s2(-(1 + e2 / variance) * centred)
    assert least == pytest.approx((-variance / (variance + e2)).item(), abs=1e-9)
    for change in images(seed + 1000, 5, shape=(1, 1, 7, 7), scale=0.1):
        assert s2(-(1 + e2 / variance) * centred + change - change.mean()) > least


def test_a_large_level_costs_no_digits():
    x, y = images(4, scale=10.0)
    single = [(each + 20_000).float() for each in (x, y)]
    expected = ssim_maps(*(each.double() for each in single), data_range=10)
    found = ssim_maps(*single, data_range=10)
    torch.testing.assert_close(found.s2.double(), expected.s2, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.d2.double(), expected.d2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [7, 11])
def test_a_tile_gives_what_the_whole_gives(dtype, size):
    x, y = (each.to(dtype) for each in images(5, shape=(1, 2, 60, 70)))
    kind = {"window": "uniform" if size == 7 else "gaussian", "size": size, "data_range": 255}
    whole = ssim_maps(x, y, **kind)
    for row in range(0, 60 - size + 1, 17):
        for col in range(0, 70 - size + 1, 23):
            tile = (slice(None), slice(None), slice(row, row + 16 + size), slice(col, col + 22 + size))
            core = (slice(None), slice(None), slice(row, row + 17), slice(col, col + 23))
            part = ssim_maps(x[tile], y[tile], **kind)
            limit = 1e-6 if dtype == torch.float32 else 1e-12
            for name in ("s1", "s2"):
                torch.testing.assert_close(getattr(part, name), getattr(whole, name)[core], atol=limit, rtol=0)


def by_hand(x, y, valid, size, sigma, sample, least):
    """S1, S2 and whether a window counts, window by window."""
    places = np.arange(size) - (size - 1) / 2
    kernel = np.exp(-(places[:, None] ** 2 + places**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    height, width = x.shape[0] - size + 1, x.shape[1] - size + 1
    s1, s2, counted = (np.full((height, width), np.nan) for _ in range(3))
    for row, col in np.ndindex(height, width):
        w = kernel * valid[row : row + size, col : col + size]
        counted[row, col] = w.sum() >= least
        if w.sum() == 0:
            continue
        w = w / w.sum()
        a, b = x[row : row + size, col : col + size], y[row : row + size, col : col + size]
        a, b = np.where(w > 0, a, 0), np.where(w > 0, b, 0)
        ma, mb = (w * a).sum(), (w * b).sum()
        more = 1 / max(1 - (w**2).sum(), 1e-15) if sample else 1
        va, vb, ab = ((w * d).sum() * more for d in ((a - ma) ** 2, (b - mb) ** 2, (a - ma) * (b - mb)))
        s1[row, col] = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4)
        s2[row, col] = (2 * ab + 9e-4) / (va + vb + 9e-4)
    return s1, s2, counted == 1


@given(seed=st.integers(0, 99), sample=st.booleans(), rule=st.sampled_from(["strict", "renormalised"]))
def test_pixels_that_do_not_count(seed, sample, rule):
    x, y = images(seed, shape=(1, 1, 13, 12), scale=1.0)
    rng = np.random.default_rng(seed)
    valid = rng.random((13, 12)) < 0.97
    valid[:4, :5] = False
    least = 1 - 1e-9 if rule == "strict" else 0.5
    s1, s2, counted = by_hand(x[0, 0].numpy(), y[0, 0].numpy(), valid, 5, 1.5, sample, least)
    mask = torch.from_numpy(valid)[None, None]
    x, y = (each.masked_fill(~mask, value) for each, value in ((x, np.nan), (y, 1e9)))
    found = ssim_maps(x, y, data_range=1.0, size=5, sample_covariance=sample, valid=mask, ignored=rule)
    assert np.array_equal(found.counted[0, 0], counted)
    np.testing.assert_allclose(found.s1[0, 0].numpy()[counted], s1[counted], atol=1e-9)
    np.testing.assert_allclose(found.s2[0, 0].numpy()[counted], s2[counted], atol=1e-9)
    assert found.mean(found.ssim).item() == pytest.approx((s1 * s2)[counted].mean(), abs=1e-9)
    nothing = ssim_maps(x, y, data_range=1.0, size=5, valid=torch.zeros_like(mask), ignored=rule)
    assert not nothing.counted.any()
    assert nothing.image_d2 == 0


@pytest.mark.parametrize("part", ["s1", "s2", "ssim", "d2"])
def test_the_loss_is_the_mean_of_its_part(part):
    scores, labels = batch(ignored=False, dtype=torch.float64)
    found = ssim_maps(scores.softmax(1), one_hot(labels, 4), data_range=1.0, size=7)
    expected = {"s1": found.level, "s2": found.structure, "ssim": 1 - found.ssim, "d2": found.d2**2}[part].mean()
    assert SsimLoss(4, part=part, size=7)(scores, labels).item() == pytest.approx(expected.item(), rel=1e-9)


def test_absent_classes_do_not_dilute_it():
    scores, labels = batch(classes=2, ignored=False, dtype=torch.float64)
    scores[1, 1] -= 50  # in the second image one class alone is predicted
    labels[1] = 0
    wider = torch.cat([scores, torch.full_like(scores, -50)], 1)
    found = ssim_maps(scores.softmax(1), one_hot(labels, 2), data_range=1.0).d2_squared
    expected = torch.cat([found[0].flatten(), found[2].flatten(), found[1, 0].flatten()]).mean()
    assert SsimLoss(4, present_only=True)(wider, labels).item() == pytest.approx(expected.item(), rel=1e-9)
    assert SsimLoss(4)(wider, labels).item() == pytest.approx(found.sum().item() / (found.numel() * 2), rel=1e-9)


def test_windows_that_touch_ignored_pixels():
    scores, labels = batch(dtype=torch.float64)
    valid = (labels != IGNORED).unsqueeze(1)
    for rule in ("strict", "renormalised"):
        found = ssim_maps(scores.softmax(1), one_hot(labels, 4), data_range=1.0, valid=valid, ignored=rule, size=5)
        expected = found.mean(found.d2_squared).item()
        assert SsimLoss(4, size=5, ignored=rule)(scores, labels).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "box"}, "window of ssim"),
        ({"size": 1}, "the window of ssim has 1 pixels"),
        ({"size": 11.0}, "the window of ssim has 11.0 pixels"),
        ({"sigma": 0}, "sigma of ssim is 0"),
        ({"ignored": "kept"}, "rule for ignored pixels of ssim"),
        ({"data_range": 0}, "the data range of ssim is 0"),
        ({"size": 30}, r"images of .* cannot be compared in windows of 30 pixels"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        ssim_maps(*images(0), **{"data_range": 1.0, **options})
    if "data_range" not in options and options.get("size") != 30:
        with pytest.raises(ConfigError, match=message):
            SsimLoss(2, **options)


def test_unknown_parts_and_small_images_are_refused():
    with pytest.raises(ConfigError, match="part of ssim"):
        SsimLoss(2, part="s3")
    with pytest.raises(ConfigError, match="windows of 11 pixels"):
        SsimLoss(4)(*batch(size=(10, 20)))
