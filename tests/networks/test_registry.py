"""Names, facts and refusals of the registry; the networks themselves are in test_families.py."""

import subprocess
import sys

import pytest

from geoseg import networks
from geoseg.errors import ConfigError


def test_listing_the_networks_imports_no_torch():
    code = (
        "import sys; from geoseg import networks; networks.names(); networks.info('unet');"
        "print([m for m in ('torch', 'timm', 'segmentation_models_pytorch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_has_its_facts():
    for name in networks.names():
        info = networks.info(name)
        assert info.name == name
        assert info.summary
        assert "\n" not in info.summary
        assert info.source
        assert info.stride >= 1
        assert info.min_size % info.stride == 0


def test_the_families_of_the_survey_are_there():
    encoder_decoders = {"unet", "unet++", "linknet", "manet", "segformer", "dpt", "segnet"}
    pyramids = {"fpn", "pspnet", "pan", "upernet", "deeplabv3", "deeplabv3+"}
    own = {"san", "gsn", "hrnet", "icnet", "fcn8s", "plainconv", "lsr-unet", "lsr-unet-large", "lsr-fcn", "unet-lext"}
    own |= {"local-statistics"}
    kept = {"torchvision-fcn", "torchvision-deeplabv3", "torchvision-lraspp"}
    assert encoder_decoders | pyramids | own | kept <= set(networks.names())
    exact = {name for name in networks.names() if networks.info(name).tile_exact}
    assert exact == own - {"icnet"} | {"segnet", "unet", "unet++", "linknet", "torchvision-fcn"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "unett"}, "no network named 'unett'; did you mean unet"),
        ({"name": "zzz"}, "known: cascadepsp, deeplabv3"),
        ({"encoder": "resnet19"}, "no encoder named 'resnet19'; did you mean resnet1"),
        ({"encoder": "zzzzzzz"}, "known: convnext_tiny.* and all others of timm"),
        ({"encoder": "hf-hub:someone/resnet18"}, "no encoder named 'hf-hub:someone/resnet18'"),
        ({"encoder": "swin_tiny_patch4_window7_224"}, "does not take tiles of any size"),
        ({"name": "deeplabv3", "encoder": "hrnet_w18"}, "cannot be built with encoder='hrnet_w18'"),
        ({"in_channels": 0}, "in_channels of network unet is 0"),
        ({"in_channels": True}, "in_channels of network unet is True"),
        ({"num_classes": 2.0}, "num_classes of network unet is 2.0"),
        ({"encoder_dept": 4}, "no option of Unet named 'encoder_dept'; did you mean encoder_depth"),
        ({"activation": "softmax"}, "no option of Unet named 'activation'"),
        ({"encoder_depth": 9}, "cannot be built with encoder_depth=9"),
        ({"name": "plainconv", "encoder": "resnet18"}, "takes no encoder"),
        ({"name": "plainconv", "pretrained": True}, "no pretrained weights"),
        ({"name": "plainconv", "depth": 0}, "depth of network plainconv is 0"),
        ({"name": "plainconv", "deepness": 2}, "no option of network plainconv named 'deepness'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        networks.create(**{"name": "unet", "in_channels": 3, "num_classes": 2, **arguments})
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_downloaded_leave_a_way_on(monkeypatch):
    import timm.models._builder

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", offline)
    with pytest.raises(ConfigError, match=r"weights of encoder resnet18 cannot be had \(no route to host\).*leave out"):
        networks.create("unet", in_channels=3, num_classes=2, pretrained=True)
