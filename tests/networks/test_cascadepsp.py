"""The refinement module: its passes, its encoders, and what it starts from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.cascadepsp import MAPS, MASKS, CascadePSP, PyramidPooling

BANDS = 4
SIZE = (48, 64)
SMALL = {"encoder": "test_resnet", "width": 0.02}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(bands=BANDS, seed=0, **options):
    torch.manual_seed(seed)
    return networks.create("cascadepsp", in_channels=bands, num_classes=2, **{**SMALL, **options})


def aware(**options):
    """A network in use whose answer depends on the masks, as after some training."""
    network = made(**options)
    with torch.no_grad():
        first = next(layer for layer in network.feats.modules() if isinstance(layer, nn.Conv2d))
        first.weight[:, -MASKS:] = noise(*first.weight[:, -MASKS:].shape, seed=7)
        network.train()(*inputs(2))
    return network.eval()


def inputs(count=1, size=SIZE):
    return noise(count, BANDS, *size), noise(count, 1, *size, seed=2).sign()


def answers(network, *given):
    with torch.inference_mode():
        return network(*given)


def test_it_is_known_by_name_among_those_that_refine():
    assert networks.names(needs_prior=True) == ("cascadepsp",)
    assert "cascadepsp" not in networks.names()
    assert networks.info("cascadepsp").needs_prior
    assert not any(networks.info(name).needs_prior for name in networks.names())


@pytest.mark.parametrize(
    ("encoder", "dilated"),
    [
        ("test_resnet", True),
        ("test_resnet", False),
        ("resnet18", True),
        ("tf_efficientnet_lite0", True),
        ("tf_efficientnet_lite0", False),
        ("mobilenetv3_small_050", False),
    ],
)
def test_maps_have_the_size_of_the_image(encoder, dilated):
    with torch.device("meta"):
        network = made(encoder=encoder, width=0.125, dilated=dilated).eval()
        for size in (SIZE, (8, 8), (40, 8)):
            maps = network(*(torch.empty(2, bands, *size) for bands in (BANDS, 1)))
            assert tuple(maps) == MAPS
            assert {tuple(each.shape) for each in maps.values()} == {(2, 1, *size)}


def test_passes_that_are_told_go_on_where_the_others_ended():
    network = aware()
    image, mask = inputs(2)
    whole = answers(network, image, mask)
    later = answers(network, image, mask, whole["out_28"].tanh())
    assert tuple(later) == MAPS[1:]
    last = answers(network, image, mask, whole["out_28_2"].tanh(), whole["out_56"].tanh())
    assert tuple(last) == MAPS[3:]
    for part in (later, last):
        for name, found in part.items():
            torch.testing.assert_close(found, whole[name], rtol=0, atol=1e-5)
    assert (whole["out_28_3"] - whole["out_28"]).abs().max() > 1e-3


def test_masks_do_not_matter_before_training():
    image, mask = inputs()
    untrained, trained = made().eval(), aware()
    assert torch.equal(answers(untrained, image, mask)["out_224"], answers(untrained, image, -mask)["out_224"])
    assert not torch.equal(answers(trained, image, mask)["out_224"], answers(trained, image, -mask)["out_224"])


@pytest.mark.parametrize("dilated", [True, False])
def test_training_reaches_every_weight(dilated):
    network = made(dilated=dilated).train()
    maps = network(*inputs(2))
    sum((each * noise(*each.shape, seed=i).sign()).mean() for i, each in enumerate(maps.values())).backward()
    for name, each in network.named_parameters():
        assert each.grad is not None, name
        assert torch.isfinite(each.grad).all(), name


def test_a_resnet_is_dilated_and_read_as_the_authors_do():
    network = made(encoder="resnet18").eval()
    dilations = [layer.dilation[0] for layer in network.feats["layer4"].modules() if isinstance(layer, nn.Conv2d)]
    # The third is the shortcut.
    assert dilations == [1, 4, 1, 4, 4]
    joined = noise(1, BANDS + MASKS, *SIZE)
    with torch.inference_mode():
        stem, quarter, deep = network.features(joined)
        assert torch.equal(stem, network.feats["conv1"](joined))
    assert float(stem.min()) < 0
    assert [each.shape[-2:] for each in (quarter, deep)] == [(12, 16), (6, 8)]


def test_width_is_of_all_but_the_encoder():
    with torch.device("meta"):
        networks_ = [made(width=width) for width in (1.0, 0.5, 1e-6)]
    for part, narrow, least in (("psp.bottleneck", 512, 8), ("up_3.shortcut", 16, 8), ("final_11", 16, 8)):
        assert networks_[1].get_submodule(part).out_channels == narrow
        assert networks_[2].get_submodule(part).out_channels == least
    encoders = [sum(each.numel() for each in network.feats.parameters()) for network in networks_]
    assert len(set(encoders)) == 1


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20))
def test_pooling_keeps_the_size_and_a_plain_map_plain(height, width):
    torch.manual_seed(0)
    pool = PyramidPooling(3, 2, 5).double()
    values = noise(1, 3, 1, 1).double()
    found = pool(values.expand(1, 3, height, width))
    assert found.shape == (1, 5, height, width)
    torch.testing.assert_close(found, pool(values).expand_as(found))


def test_refusals():
    image, mask = inputs()
    network = made()
    for call, message in (
        (lambda: network(image[..., :60], mask), "48 × 60 pixels cannot be refined: pad it to 48 × 64"),
        (lambda: network(image[:, :3], mask), "has 3 bands: this network was made for 4"),
        (lambda: network(image, mask, None, mask), "give that at stride 8 as well"),
        (lambda: made(width=0), "the width of cascadepsp is 0"),
        (lambda: made(width=True), "the width of cascadepsp is True"),
        (lambda: made(encoder="convnext_tiny"), "none of stride 2"),
        (lambda: made(encoder="vgg11"), "encoder vgg11"),
        (lambda: made(depth=3), "no option of network cascadepsp named 'depth'"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_another_number_of_bands():
    with torch.device("meta"):
        network = CascadePSP(1, **SMALL)
        assert network(torch.empty(1, 1, 16, 16), torch.empty(1, 1, 16, 16))["out_224"].shape == (1, 1, 16, 16)
