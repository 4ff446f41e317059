"""Bundles by the name of a network: each kind from its own maker, and refusals of what a maker does not take."""

import numpy as np
import pytest
import torch

from geoseg import networks
from geoseg.bundle import write_bundle
from geoseg.classes import Classes
from geoseg.errors import ConfigError
from geoseg.networks.glnet import build_glnet
from geoseg.segmenters.global_local import GlobalLocal
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.loading import load
from geoseg.segmenters.making import import_model, new_model
from geoseg.segmenters.network import PlainNetwork, new_bundle

BANDS = ["red", "green", "blue"]
CLASSES = Classes.parse("background,road")
ENCODER = "mobilenetv3_small_100"
SMALL = {"overview": 64, "patch": 64, "extent": 128}


def test_most_networks_are_made_as_ever(tmp_path):
    made = new_model("plainconv", bands=BANDS, classes=CLASSES, seed=3)
    description, tensors = new_bundle("plainconv", bands=BANDS, classes=CLASSES, seed=3)
    assert made[0] == description
    assert all(np.array_equal(made[1][name], value) for name, value in tensors.items())
    write_bundle(tmp_path / "m.safetensors", *made)
    assert isinstance(load(tmp_path / "m.safetensors"), PlainNetwork)


@pytest.mark.parametrize("mode", [None, "global", "local"])
def test_glnet_by_options(mode, tmp_path):
    options = {**SMALL, "min_overlap": 8, **({"mode": mode} if mode else {})}
    made = new_model("glnet", bands=BANDS, classes=CLASSES, encoder=ENCODER, resolution=0.5, seed=5, options=options)
    write_bundle(tmp_path / "m.safetensors", *made)
    found = load(tmp_path / "m.safetensors")
    assert isinstance(found, GlobalLocal)
    assert found.network.mode == (mode or "collaborative")
    assert found.settings == GlobalLocalSettings(overview=64, patch=64, extent=128, min_overlap=8)
    assert found.spec.resolution == 0.5
    torch.manual_seed(5)
    drawn = build_glnet(in_channels=3, num_classes=2, mode=found.network.mode, encoder=ENCODER).state_dict()
    assert all(torch.equal(drawn[name], value) for name, value in found.network.state_dict().items())


def test_the_tile_of_glnet_is_its_macro_window():
    options = {"overview": 64, "patch": 64, "mode": "global"}
    arguments = {"bands": BANDS, "classes": CLASSES, "encoder": ENCODER}
    description, _ = new_model("glnet", tile=192, options=options, **arguments)
    assert description.tile == description.settings["extent"] == 192
    with pytest.raises(ConfigError, match="the tile is 192 pixels and the extent 128: both are the side"):
        new_model("glnet", tile=192, options={**options, "extent": 128}, **arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"patchh": 64}}, "no option of network glnet named 'patchh'; did you mean patch"),
        ({"options": {"mode": "sideways"}}, "no mode of GLNet named 'sideways'"),
        ({"options": {"patch": 66}}, "patch of GLNet is 66"),
        ({"options": {"encoder": "resnet18"}}, "encoder is no option of a network"),
        ({"halo": 12}, "the halo is 12 pixels: network glnet has none to set"),
    ],
)
def test_what_glnet_does_not_take(given, message):
    with pytest.raises(ConfigError, match=message):
        new_model("glnet", bands=BANDS, classes=CLASSES, **given)


def _authors_file(folder, mode, number):
    """A file with the parts of both branches, as the authors write them in every stage; all weights are one number."""
    with torch.device("meta"):
        made = [
            build_glnet(in_channels=3, num_classes=2, mode=each, encoder=ENCODER) for each in ("local", "collaborative")
        ]
    shapes = {
        name: value.shape
        for network in made
        for name, value in network.state_dict().items()
        if not name.startswith("fixed.")
    }
    path = folder / f"{mode}.pth"
    torch.save({f"module.{name}": torch.tensor(number).expand(shape) for name, shape in shapes.items()}, path)
    return path


def test_glnet_of_the_authors_files(tmp_path):
    first, third = _authors_file(tmp_path, "global", 0.25), _authors_file(tmp_path, "collaborative", 0.5)
    options = {**SMALL, "mode": "collaborative", "first": str(first)}
    description, tensors, match = import_model(
        third, "glnet", bands=BANDS, classes=CLASSES, encoder=ENCODER, options=options, licence="MIT"
    )
    assert match.taken == len(tensors)
    assert {float(value.max()) for name, value in tensors.items() if name.startswith("fixed.")} == {0.25}
    assert {float(value.max()) for name, value in tensors.items() if not name.startswith("fixed.")} == {0.5}
    assert description.settings["extent"] == 128
    assert description.normalisation.scale == [255] * 3
    assert "first" not in description.settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"mode": "collaborative"}}, "takes the file of the first stage too"),
        ({"classes": None}, "does not name its classes"),
        ({"prefix": "net."}, "leave out prefix"),
        ({"halo": 3}, "the halo is 3 pixels"),
    ],
)
def test_files_that_cannot_be_read_so(given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        import_model(tmp_path / "a.pth", "glnet", **{"bands": BANDS, "classes": CLASSES, **given})


def test_every_network_is_made_by_one_or_the_other():
    assert {name for name in networks.every_name() if networks.info(name).needs_scene} == set(
        networks.names(needs_scene=True)
    )
    assert "glnet" in networks.names(needs_scene=True)
    assert "glnet" not in networks.names()
