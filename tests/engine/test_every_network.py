"""Every network through ``predict`` on a real scene: two worker processes give what one chunk in one process gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

import geoseg
from geoseg import networks
from geoseg.bundle import write_bundle
from geoseg.classes import Classes
from geoseg.segmenters.network import new_bundle, tensors_of

pytestmark = [pytest.mark.slow, pytest.mark.dist]

# Small forms: what is asked here has nothing to do with size.  Other networks get the smallest encoder there is.
_SMALL: dict[str, dict[str, Any]] = {
    "plainconv": {},
    "gsn": {"encoder": "test_resnet", "decoder_channels": 8},
    "hrnet": {"width": "small-v1"},
    "icnet": {},
    "segnet": {"width": 8},
    "local-statistics": {"scales": [1, 2], "hidden": [4]},
    "unet-lext": {"width": 4},
    "unet++": {"encoder": "test_resnet", "decoder_channels": [32, 16, 8, 8, 8]},
    "manet": {"encoder": "test_resnet", "decoder_channels": [32, 16, 8, 8, 8]},
    "upernet": {"encoder": "test_resnet", "decoder_channels": 32},
    "segformer": {"decoder_segmentation_channels": 32},
    "dpt": {"encoder": "test_vit", "decoder_intermediate_channels": [8, 8, 16, 16], "decoder_fusion_channels": 16},
    "torchvision-fcn": {},
    "torchvision-deeplabv3": {"encoder": "mobilenet_v3_large"},
    "torchvision-lraspp": {},
}


@pytest.fixture(scope="module")
def village(piece: Callable[..., Path]) -> Path:
    """A real scene of 300 × 420 pixels."""
    return piece(300, 420)


@pytest.fixture(params=networks.names())
def model(request: pytest.FixtureRequest, tmp_path: Path, village: Path) -> Path:
    """A network that has learned a little of how bright the scene is, so that its labels vary."""
    takes_encoder = networks.info(request.param).encoder is not None
    options = dict(_SMALL.get(request.param, {"encoder": "test_resnet"} if takes_encoder else {}))
    encoder = options.pop("encoder", None)
    description, tensors = new_bundle(
        request.param,
        bands=["red", "green", "blue"],
        classes=Classes.parse("background,roof,road,tree"),
        encoder=encoder,
        tile=256,
        halo=64,
        options=options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.create(request.param, in_channels=3, num_classes=4, encoder=encoder, **options)
        assert tensors.keys() == tensors_of(network).keys()
        with rasterio.open(village) as source:
            pixels = torch.from_numpy(source.read()).float().sub(110).div(50)
        crops = torch.stack([pixels[:, :128, :128], pixels[:, 172:, 292:], pixels[:, 100:228, 160:288]])
        brightness = crops.mean(dim=1)
        targets = torch.bucketize(brightness, brightness.quantile(torch.tensor([0.25, 0.5, 0.75])))
        optimiser = torch.optim.Adam(network.train().parameters(), 5e-3)
        for _ in range(15):
            output = network(crops)
            scores = output["scores"] if isinstance(output, dict) else output
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(scores, targets).backward()
            optimiser.step()
        # The statistics of batch norm are those of the weights as they are now, not of the way to them.
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None
        with torch.no_grad():
            network(crops)
    path = tmp_path / "model.safetensors"
    write_bundle(path, description, tensors_of(network))
    return path


def _run(folder: Path, scene: Path, model: Path, **options: Any) -> tuple[bytes, np.ndarray]:
    folder.mkdir()
    geoseg.predict(
        scene, folder / "out.geojson", str(model), labels=str(folder / "labels.tif"), keep_background=True, **options
    )
    with rasterio.open(folder / "labels.tif") as labels:
        return (folder / "out.geojson").read_bytes(), labels.read(1)


def test_two_workers_and_small_chunks_leave_no_seam(
    tmp_path: Path, village: Path, model: Path, two_workers: str
) -> None:
    whole, labels = _run(tmp_path / "whole", village, model, chunk=1024)
    parts, also = _run(tmp_path / "parts", village, model, chunk=128, scheduler=two_workers)
    assert len(np.unique(labels)) > 1
    assert (also == labels).all()
    assert parts == whole
