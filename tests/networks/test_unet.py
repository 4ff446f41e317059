"""The U-Net that needs no library, against the library's own."""

import subprocess
import sys

import pytest
import torch

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.families import build_family
from geoseg.networks.unet import PlainUnet


def _both(encoder, **options):
    """Return ours and the library's, drawn from one seed, and what was drawn next."""
    built, following = [], []
    for build, name in ((networks.create, {"name": "unet"}), (build_family, {"architecture": "Unet", "min_size": 32})):
        torch.manual_seed(3)
        built.append(build(in_channels=4, num_classes=5, encoder=encoder, **name, **options))
        following.append(torch.rand(1))
    assert isinstance(built[0].network, PlainUnet)
    assert not isinstance(built[1].network, PlainUnet)
    return built, following


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("resnet18", {}),
        ("tu-resnet34", {"decoder_channels": [64, 48, 32, 24, 8]}),
        ("resnet50", {}),
        ("tf_efficientnet_lite0", {}),
        ("tf_efficientnet_lite0", {"decoder_channels": [128, 64, 48, 32, 16]}),
    ],
)
def test_weights_scores_and_gradients_are_the_librarys(encoder, options):
    (ours, theirs), (ours_next, theirs_next) = _both(encoder, **options)
    assert torch.equal(ours_next, theirs_next)
    assert (ours.stride, ours.min_size) == (theirs.stride, theirs.min_size)
    own, others = ours.state_dict(), theirs.state_dict()
    assert list(own) == list(others)
    assert all(torch.equal(own[name], others[name]) for name in own)

    pixels = torch.randn(2, 4, 70, 100, generator=torch.Generator().manual_seed(1))
    trained = [network.train()(pixels) for network in (ours, theirs)]
    assert torch.equal(*trained)
    for scores in trained:
        scores.square().mean().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    # Running statistics are no longer those of an untrained network.
    with torch.inference_mode():
        assert torch.equal(ours.eval()(pixels), theirs.eval()(pixels))


@pytest.mark.parametrize("encoder", ["resnet101", "resnet152"])
def test_the_deep_encoders_have_the_librarys_weights_by_name_and_shape(encoder):
    with torch.device("meta"):
        ours = PlainUnet(3, 2, encoder).state_dict()
        theirs = build_family(architecture="Unet", in_channels=3, num_classes=2, encoder=encoder).network.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in theirs.items()}


def test_one_tile_of_one_feature_can_be_trained_on():
    network = networks.create("unet", in_channels=3, num_classes=2).train()
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize("options", [{"encoder": "mobilenetv3_small_050"}, {"encoder_depth": 5}, {"scale_aware": True}])
def test_everything_else_is_left_to_the_library(options):
    assert not isinstance(networks.create("unet", in_channels=3, num_classes=2, **options).network, PlainUnet)


def test_an_unknown_option_is_refused():
    with pytest.raises(ConfigError, match="no option of Unet named 'decoder_chanels'"):
        networks.create("unet", in_channels=3, num_classes=2, decoder_chanels=[8])


@pytest.mark.parametrize("channels", [[32, 16, 8, 8], [32, 16, 8, 8, 0], [32, 16, 8, 8, 8.5], "many"])
def test_channels_that_are_none_are_refused(channels):
    with pytest.raises((ConfigError, ValueError, TypeError, RuntimeError)):
        networks.create("unet", in_channels=3, num_classes=2, decoder_channels=channels)


@pytest.mark.parametrize("encoder", ["resnet18", "tf_efficientnet_lite0"])
def test_building_it_imports_torch_alone(encoder):
    heavy = {"torchvision", "timm", "segmentation_models_pytorch", "torch._dynamo"}
    code = (
        "import sys; from geoseg import networks;"
        f"networks.create('unet', in_channels=3, num_classes=2, encoder={encoder!r});"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
