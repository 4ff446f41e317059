"""The loss of refined masks: unknown pixels, plain maps, and what each part looks at."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError, LabelsError
from geoseg.losses.refinement import FINEST, WEIGHTS, RefinementLoss, edge_strength

SIZE = (11, 17)


def case(seed=0, unknown=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    maps = {name: 2 * torch.randn(2, 1, *SIZE, generator=generator, dtype=dtype) for name in WEIGHTS}
    target = (torch.rand(2, *SIZE, generator=generator) < 0.4).long()
    return maps, target.masked_fill(torch.rand(2, *SIZE, generator=generator) < unknown, 255)


def gradients(maps, target):
    maps = {name: each.clone().requires_grad_() for name, each in maps.items()}
    value = RefinementLoss()(maps, target)
    value.backward()
    return value.detach(), {name: each.grad for name, each in maps.items()}


def test_a_sure_and_right_answer_costs_nothing():
    maps, target = case()
    right = {name: (target.unsqueeze(1) * 2 - 1) * 60.0 for name in maps}
    assert float(RefinementLoss()(right, target)) == pytest.approx(0, abs=1e-9)
    # A mask that is wrong everywhere, without edges: its cross-entropies alone have no bound.
    wrong = {name: torch.full_like(each, 60.0) for name, each in maps.items()}
    zeros = torch.zeros_like(target)
    terms = RefinementLoss().terms(wrong, zeros)
    assert {float(each[1]) for name, each in terms.items() if name != "gradient"} == {1.0}
    assert float(RefinementLoss()(wrong, zeros)) == pytest.approx(
        sum(60 * each.bce + each.l1 + each.l2 for each in WEIGHTS.values()) + 5 * float(terms["gradient"][0])
    )


def test_the_finest_map_is_pulled_to_edges_the_coarse_ones_to_the_mask():
    maps, target = case()
    _, found = gradients(maps, target)
    for name, each in found.items():
        towards = target.unsqueeze(1) * 2 - 1
        share = float(((each * towards) < 0).double().mean())
        assert share == 1 if name != FINEST else share > 0.6


@pytest.mark.parametrize("there", [math.nan, math.inf, -1e30])
def test_unknown_pixels_change_neither_value_nor_gradient(there):
    maps, target = case(unknown=0.03)
    unknown = (target == 255).unsqueeze(1)
    value, found = gradients(maps, target)
    again, other = gradients({name: each.masked_fill(unknown, there) for name, each in maps.items()}, target)
    assert value == again > 0
    for name in maps:
        assert torch.equal(found[name], other[name])
        assert (found[name][unknown] == 0).all()


def test_without_a_known_pixel_value_and_gradient_are_zero():
    maps, target = case()
    value, found = gradients(maps, torch.full_like(target, 255))
    assert value == 0
    assert not any(each.any() for each in found.values())


@given(st.floats(-3, 3))
def test_plain_maps_have_edges_of_fixed_strength_and_finite_gradients(level):
    values = torch.full((1, 1, 9, 9), level, dtype=torch.float64, requires_grad=True)
    strength = edge_strength(values)
    torch.testing.assert_close(strength[..., 2:-2, 2:-2], torch.full((1, 1, 5, 5), 0.01, dtype=torch.float64))
    strength.sum().backward()
    assert torch.isfinite(values.grad).all()


def test_edges_are_as_strong_whatever_their_direction():
    ramp = torch.arange(12.0, dtype=torch.float64).expand(1, 1, 12, 12)
    for values in (ramp, ramp.mT, -ramp):
        inner = edge_strength(values)[..., 3:-3, 3:-3]
        torch.testing.assert_close(inner, torch.full_like(inner, math.sqrt(4 + 1e-4)))


def test_an_unknown_pixel_takes_its_surroundings_out_of_the_edges():
    """The gradient there would be that of a made up truth."""
    maps, target = case()
    target[:, 5, 8] = 255
    loss = RefinementLoss()
    here = loss.terms(maps, target)["gradient"][0]
    changed = target.clone()
    changed[:, 5, 8] = 1
    expected = edge_strength((changed == 1).double().unsqueeze(1)) - edge_strength(maps[FINEST].sigmoid())
    counted = torch.ones_like(expected)
    counted[..., 3:8, 6:11] = 0
    assert float(here) == pytest.approx(float((expected.abs() * counted).sum() / counted.sum()))


def test_arithmetic_is_in_float32_under_autocast():
    maps, target = case(dtype=torch.float32)
    expected = RefinementLoss()(maps, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(RefinementLoss()(maps, target), expected)
    half = RefinementLoss()({name: each.bfloat16() for name, each in maps.items()}, target)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(expected), rel=0.01)


def test_refusals():
    maps, target = case()
    loss = RefinementLoss()
    with pytest.raises(ConfigError, match="gives no out_28_3"):
        loss({name: each for name, each in maps.items() if name != "out_28_3"}, target)
    with pytest.raises(ConfigError, match=r"out_224 is \(2, 1, 11, 17\) where the target asks for \(2, 1, 11, 16\)"):
        loss(maps, target[..., :16])
    with pytest.raises(LabelsError, match="has the value 2: give 0, 1, or 255"):
        loss(maps, 2 * target)
