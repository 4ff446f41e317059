"""Masks spoilt on purpose: what outlines are, how far agreement falls, and that chance repeats itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geoseg.errors import ConfigError
from geoseg.training.config import check
from geoseg.training.damage import agreement, coarser, damaged, gnawed, outlines
from geoseg.training.variation_config import DamageConfig

MASKS = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(lambda shape: arrays(bool, shape))
EVERYTHING = DamageConfig(cut=0, keep=1)


def disk(side: int = 224, radius: int = 60) -> np.ndarray:
    rows, cols = np.ogrid[:side, :side]
    return (rows - side // 2) ** 2 + (cols - side // 2) ** 2 < radius**2


def blobs(seed: int, side: int = 128) -> np.ndarray:
    random = np.random.default_rng(seed)
    mask = np.zeros((side, side), bool)
    for _ in range(6):
        row, col = random.integers(0, side - 20, 2)
        mask[row : row + random.integers(8, 60), col : col + random.integers(8, 60)] = True
    return mask


@settings(max_examples=40)
@given(mask=MASKS)
def test_outlines_pass_every_edge_of_the_mask_once_with_it_on_the_left(mask: np.ndarray) -> None:
    padded = np.pad(mask, 1)
    passed = set()
    for ring in outlines(mask):
        for start, step in zip(ring, np.roll(ring, -1, axis=0) - ring, strict=True):
            assert np.abs(step).sum() == 1
            # From the edge's middle, half a pixel to its left; the frame moves everything by one.
            left, right = (start + step / 2 + side * np.array([-step[1], step[0]]) / 2 for side in (1, -1))
            assert padded[tuple(np.floor(left).astype(int) + 1)]
            assert not padded[tuple(np.floor(right).astype(int) + 1)]
            passed.add((*start.tolist(), *step.tolist()))
    edges = sum(int(np.count_nonzero(padded != np.roll(padded, 1, axis))) for axis in (0, 1))
    assert len(passed) == sum(map(len, outlines(mask))) == edges


def test_pixels_that_touch_in_a_corner_have_one_outline() -> None:
    assert [len(ring) for ring in outlines(np.eye(3, dtype=bool))] == [12]
    assert sorted(len(ring) for ring in outlines(~np.eye(3, dtype=bool))) == [4, 12]
    assert outlines(np.zeros((4, 5), bool)) == []


@given(mask=MASKS)
def test_outlines_of_all_vertices_give_the_mask_back(mask: np.ndarray) -> None:
    large = np.kron(mask, np.ones((4, 4))).astype(bool)  # no outline is shorter than 16
    assert np.array_equal(coarser(large, EVERYTHING, np.random.default_rng(0)), large)


def test_short_outlines_go_unless_there_are_no_others() -> None:
    mask = np.zeros((40, 40), bool)
    mask[3:5, 3:5] = True
    assert np.array_equal(coarser(mask, DamageConfig(), np.random.default_rng(0)), mask)
    mask[10:30, 10:30] = True
    found = coarser(mask, DamageConfig(), np.random.default_rng(0))
    assert not found[:5].any()
    assert 0.3 < agreement(found, mask) < 1


def test_what_is_kept_and_moved_decides_how_far_outlines_go_astray() -> None:
    def mean(**options: float) -> float:
        config = DamageConfig(**options)
        return float(np.mean([agreement(coarser(disk(), config, np.random.default_rng(i)), disk()) for i in range(20)]))

    assert mean(cut=0, keep=1) == 1
    assert mean(keep=0.03) < mean(keep=0.1) < mean(keep=0.5) < 1
    assert mean(cut=0.4) < mean(cut=0.1)
    assert mean(jitter=0.2) < mean()


@given(seed=st.integers(0, 500), least=st.floats(0.5, 1), rounds=st.integers(0, 8))
def test_rounds_end_where_agreement_is_lost_or_there_are_no_more(seed: int, least: float, rounds: int) -> None:
    mask = blobs(seed)
    found, used = gnawed(mask, least, np.random.default_rng(seed), rounds)
    assert agreement(found, mask) < least or used == rounds
    if used:
        before, _ = gnawed(mask, 0, np.random.default_rng(seed), used - 1)
        assert agreement(before, mask) >= least or used == 1
    else:
        assert np.array_equal(found, mask)
    assert np.array_equal(mask, blobs(seed))


def test_agreement_with_the_truth_on_a_disk() -> None:
    """The check of the method's sheet: over 200 draws the mean lies in 0.80 to 0.93."""
    found = [agreement(damaged(disk(), DamageConfig(), np.random.default_rng(i)), disk()) for i in range(200)]
    assert 0.80 <= np.mean(found) <= 0.93
    assert np.std(found) > 0.02


@pytest.mark.parametrize("mask", [blobs(1), np.zeros((9, 30), bool), np.ones((30, 9), bool), np.ones((1, 1), bool)])
def test_equal_seeds_spoil_alike(mask: np.ndarray) -> None:
    given = mask.copy()
    first, again, other = (damaged(mask, DamageConfig(), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert first.shape == mask.shape
    assert first.dtype == bool
    assert np.array_equal(mask, given)
    assert mask.size == 1 or not np.array_equal(first, other)


def test_settings_that_are_refused() -> None:
    data = {"scenes": [{"image": "a.tif", "labels": "a.gpkg"}], "classes": "background,roof"}
    with pytest.raises(ConfigError, match=r"damage\.iou = \[1, 0\.5\]: give two shares"):
        check({"data": data, "damage": {"iou": [1, 0.5]}})
    with pytest.raises(ConfigError, match=r"damage\.keep = 0"):
        check({"data": data, "damage": {"keep": 0}})
