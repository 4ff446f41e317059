"""The network of the active contour CNN: its size, what it sees, and how it begins."""

from __future__ import annotations

import pytest
import torch

from geoseg.errors import ConfigError
from geoseg.networks.active_contour import ActiveContourNet


def test_it_has_as_many_parameters_as_the_released_network_with_slopes_by_channel():
    network = ActiveContourNet(1, clipped=True)
    assert sum(each.numel() for each in network.parameters()) == 26_274
    moving = [value for name, value in network.state_dict().items() if "running" in name]
    assert sum(each.numel() for each in moving) == 384
    assert sum(each.numel() for each in ActiveContourNet(1).parameters()) == 26_273
    assert sum(each.numel() for each in ActiveContourNet(1, tied=True).parameters()) == 26_273 - 3 * 2 * 2320


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_score_depends_on_its_halo_and_no_more(blocks):
    network = ActiveContourNet.seeded(2, 4, blocks, seed=0).eval().double()
    side = 2 * network.halo + 9
    pixels = torch.rand(1, 2, side, side, dtype=torch.float64, requires_grad=True)
    middle = side // 2
    for module in network.modules():
        if isinstance(module, torch.nn.PReLU):
            module.weight.data.fill_(0.5)
    network(pixels)[0, 0, middle, middle].backward()
    rows = torch.nonzero(pixels.grad.abs().sum((0, 1, 3))).flatten()
    assert (rows.min(), rows.max()) == (middle - network.halo, middle + network.halo)


def test_the_steps_of_a_block_begin_alike_and_learn_apart():
    network = ActiveContourNet.seeded(1, 4, 2, seed=1)
    steps = network.blocks[0].steps
    assert torch.equal(steps[0].weight, steps[2].weight)
    network(torch.rand(1, 1, 8, 8)).sum().backward()
    assert not torch.equal(steps[0].weight.grad, steps[2].weight.grad)
    again, other = (ActiveContourNet.seeded(1, 4, 2, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(value, again[name]) for name, value in network.state_dict().items() if "weight" in name)
    assert not torch.equal(again["head.weight"], other["head.weight"])


def test_masked_pixels_do_not_count_in_its_statistics():
    valid = torch.ones(1, 8, 12, dtype=torch.bool)
    valid[..., 9:] = False
    pixels = torch.rand(1, 1, 8, 12)
    network = ActiveContourNet.seeded(1, 4, 1, seed=0).train()
    network(pixels, valid)
    entered = network.blocks[0].first(pixels).detach()
    expected = 0.01 * entered[..., :9].mean((0, 2, 3))
    torch.testing.assert_close(network.blocks[0].norms[0].running_mean, expected)
    assert not torch.allclose(expected, 0.01 * entered.mean((0, 2, 3)))


@pytest.mark.parametrize("name", ["in_channels", "channels", "blocks"])
def test_refuses_numbers_below_one(name):
    with pytest.raises(ConfigError, match=name):
        ActiveContourNet(**{"in_channels": 1, name: 0})
