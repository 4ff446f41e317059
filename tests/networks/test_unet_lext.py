"""The U-Net of adversarial adaptation: published sizes, its auxiliary head, tiles, and the authors' checkpoints."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.unet_lext import Discriminator
from geoseg.segmenters.checkpoint_files import read_checkpoint
from geoseg.segmenters.checkpoints import filled_network


def _made(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return networks.create("unet-lext", in_channels=2, num_classes=3, width=4, **options)


@pytest.mark.parametrize(
    ("auxiliary", "parameters", "flops"), [(False, 24_816_845, 21_010_095_360), (True, 24_821_185, 21_107_295_360)]
)
def test_as_large_as_released(auxiliary, parameters, flops):
    """Sizes of the released network with one band and five outputs; operations for 300 × 300 pixels."""
    with torch.device("meta"):
        network = networks.create("unet-lext", in_channels=1, num_classes=5, auxiliary=auxiliary).network
        assert sum(p.numel() for p in network.parameters()) == parameters
        with FlopCounterMode(display=False) as counted:
            network.both(torch.empty(1, 1, 300, 300))
    assert counted.get_total_flops() == flops


def test_the_discriminator_is_as_large_as_released():
    with torch.device("meta"):
        discriminator = Discriminator(5)
        assert sum(p.numel() for p in discriminator.parameters()) == 2_766_785
        with FlopCounterMode(display=False) as counted:
            assert discriminator(torch.empty(1, 5, 300, 300)).shape == (1, 1, 300, 300)
    assert counted.get_total_flops() == 4_500_742_144


@pytest.mark.parametrize("used", [2, 4])
def test_only_the_dilations_that_are_used_learn(used):
    network = _made(auxiliary=True, aux_dilations_used=used).train()
    pixels = torch.randn(2, 2, 64, 70, generator=torch.Generator().manual_seed(0))
    output = network(pixels)
    assert output["scores"].shape == output["aux"].shape == (2, 3, 64, 70)
    output["aux"].square().sum().backward()
    learned = [layer.weight.grad is not None for layer in network.network.aux.layers]
    assert learned == [True] * used + [False] * (4 - used)


def test_the_head_changes_nothing_else():
    pixels = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    with_head = _made(auxiliary=True).eval()
    plain = _made().eval()
    assert plain.load_state_dict(with_head.state_dict(), strict=False).missing_keys == []
    assert torch.equal(plain(pixels), with_head(pixels))


def test_corners_that_are_aligned_bind_scores_to_the_size_of_a_tile():
    pixels = torch.randn(1, 2, 512, 512, generator=torch.Generator().manual_seed(1))
    apart = []
    for align_corners in (False, True):
        network = _made(align_corners=align_corners).eval()
        with torch.inference_mode():
            whole, tile = network(pixels)[..., 192:256, 192:256], network(pixels[..., 64:384, 64:384])
        apart.append(float((tile[..., 128:192, 128:192] - whole).abs().max() / whole.std()))
    assert apart[0] < apart[1] / 2


def test_checkpoints_of_the_authors_are_imported(tmp_path):
    network = _made(auxiliary=True)
    theirs = {f"module.{name.removeprefix('network.')}": value for name, value in network.state_dict().items()}
    torch.save(theirs, tmp_path / "fold_0.pth")
    options = {"width": 4, "auxiliary": True}
    checkpoint = read_checkpoint(tmp_path / "fold_0.pth")
    found, _, match = filled_network(checkpoint, "unet-lext", in_channels=2, num_classes=3, options=options)
    assert match.prefix == "module."
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "wrong",
    [{"depth": 9}, {"center_depth": 0}, {"aux_dilations_used": 3}, {"auxiliary": True, "depth": 1}, {"width": 0}],
)
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="of network unet-lext"):
        networks.create("unet-lext", **{"in_channels": 2, "num_classes": 3, **wrong})
