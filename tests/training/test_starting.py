"""What a training starts from: weights of an encoder from a file, seeds, and the scaling of the bands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from geoseg import networks
from geoseg.bundle import read_bundle
from geoseg.errors import ConfigError
from geoseg.segmenters.loading import resolve_bundle
from geoseg.training.config import TrainConfig, check, read_config
from geoseg.training.site import open_sites
from geoseg.training.starting import find_encoder, first_network, load_encoder, measured_scaling
from tests.conftest import write_raster

ROOT = Path(__file__).parents[2]


def config(network: dict[str, Any], **training: Any) -> TrainConfig:
    data = {"scenes": [{"image": "i", "labels": "l"}], "classes": "a,b"}
    return check({"data": data, "network": network, "training": training})


@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_weights_of_an_encoder(tmp_path: Path, bands: int, prefix: str) -> None:
    import timm

    source = timm.create_model("mobilenetv3_small_050", pretrained=False)
    with torch.no_grad():
        for i, value in enumerate(source.state_dict().values()):
            value.fill_(i / 1000)
    path = tmp_path / "encoder.safetensors"
    save_file({prefix + name: value.contiguous() for name, value in source.state_dict().items()}, path)
    given = {"name": "unet", "encoder": "mobilenetv3_small_050", "encoder_weights": str(path)}
    network, _, scaling = first_network(config(given), bands)
    assert scaling is None
    encoder = find_encoder(network)
    assert encoder is not None
    own = encoder.state_dict()
    stem = next(value for name, value in own.items() if name.endswith("conv_stem.weight"))
    first = source.state_dict()["conv_stem.weight"]
    assert torch.allclose(stem.sum(1), first.sum(1))
    deep = next(value for name, value in own.items() if name.endswith("blocks.1.0.conv_pw.weight"))
    assert torch.equal(deep, source.state_dict()["blocks.1.0.conv_pw.weight"])


@pytest.mark.parametrize("bands", [3, 4])
def test_an_encoder_that_sees_masks_too_knows_nothing_of_them_yet(tmp_path: Path, bands: int) -> None:
    import timm

    source = timm.create_model("mobilenetv3_small_050", pretrained=False)
    path = tmp_path / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, path)
    given = {"name": "cascadepsp", "encoder": "mobilenetv3_small_050", "encoder_weights": str(path)}
    options = {"width": 0.02, "dilated": False}
    network, _, _ = first_network(config({**given, "options": options}), bands)
    first = source.state_dict()["conv_stem.weight"]
    stem = network.state_dict()["feats.conv_stem.weight"]
    assert stem.shape[1] == bands + 3
    assert not stem[:, bands:].any()
    torch.testing.assert_close(stem[:, :bands].sum(1), first.sum(1))
    if bands == 3:
        assert torch.equal(stem[:, :3], first)


def test_the_encoder_of_a_bundle_of_another_network() -> None:
    given = {
        "name": "cascadepsp",
        "encoder": "tf_efficientnet_lite0",
        "encoder_weights": str(resolve_bundle("buildings")),
        "options": {"width": 0.02, "dilated": False},
    }
    network, _, _ = first_network(config(given), 3)
    source = read_bundle(resolve_bundle("buildings")).tensors()
    own = network.state_dict()
    for name in ("conv_stem.weight", "blocks.6.0.conv_pwl.weight", "bn1.running_var"):
        wanted = torch.from_numpy(np.array(source[f"network.encoder.model.{name}"])).float()
        assert torch.equal(
            own[f"feats.{name}"][:, : wanted.shape[1]] if wanted.ndim == 4 else own[f"feats.{name}"], wanted
        )


def test_weights_of_other_names_in_the_same_order() -> None:
    network = networks.create("unet", in_channels=4, num_classes=2, encoder="resnet18")
    encoder = find_encoder(network)
    assert encoder is not None
    names = [name for name in encoder.state_dict() if not name.endswith("num_batches_tracked")]
    given = {f"_{i}.w": torch.full_like(encoder.state_dict()[name], i / 100) for i, name in enumerate(names)}
    given["_0.w"] = given["_0.w"][:, :3] + 1
    load_encoder(encoder, {**given, "_fc.w": torch.zeros(10, 512)}, "other")
    own = encoder.state_dict()
    assert torch.equal(own[names[7]], given["_7.w"])
    assert torch.allclose(own[names[0]], torch.full_like(own[names[0]], 0.75))


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    network = networks.create("unet", in_channels=3, num_classes=2, encoder="resnet18")
    encoder = find_encoder(network)
    assert encoder is not None
    with pytest.raises(ConfigError, match=r"other holds 0 of the \d+ weights of the encoder"):
        load_encoder(encoder, {"stem.weight": torch.zeros(3)}, "other")


def test_a_network_without_an_encoder_takes_no_weights(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="plainconv has no encoder"):
        first_network(config({"name": "plainconv", "encoder_weights": str(tmp_path / "w.safetensors")}), 3)


def test_seeds_and_the_caller_s_random_numbers() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    made = [first_network(config({"name": "plainconv"}, seed=seed), 3)[0].state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    name = next(name for name, value in made[0].items() if value.ndim == 4)
    assert torch.equal(made[0][name], made[1][name])
    assert not torch.equal(made[0][name], made[2][name])


def test_scaling_over_all_scenes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = [
        random.normal(mean, 10, (2, 60, 50 * (i + 1))).clip(1, 255).astype(np.uint8) for i, mean in enumerate((60, 120))
    ]
    scenes = []
    for i, array in enumerate(arrays):
        labels = write_raster(tmp_path / f"l{i}.tif", np.zeros(array.shape[1:], np.uint8))
        scenes.append({"image": str(write_raster(tmp_path / f"s{i}.tif", array)), "labels": str(labels)})
    found = measured_scaling(open_sites(check({"data": {"scenes": scenes, "classes": "a,b"}}))[0])
    values = np.concatenate([array.reshape(2, -1) for array in arrays], 1).astype(float)
    assert found.offset == pytest.approx(values.mean(1), rel=1e-6)
    assert found.scale == pytest.approx(values.std(1), rel=1e-6)


def test_the_building_configuration_is_sound() -> None:
    made = check(read_config(ROOT / "notebooks" / "buildings.yaml"))
    assert made.network.encoder == "tf_efficientnet_lite0"
    assert Path(made.path("banepa_dev_rgb.tif")).resolve() == ROOT / "tests" / "data" / "banepa" / "banepa_dev_rgb.tif"
