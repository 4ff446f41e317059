"""A U-Net that has learned the synthetic scenes' fields a little, so that its labels are blobs and not speckle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from geoseg import networks
from geoseg.bundle import NormalisationRecord, write_bundle
from geoseg.classes import Classes
from geoseg.grid import Window
from geoseg.networks.tiling import picture_side
from geoseg.normalisation import Normalisation
from geoseg.scene import open_scene
from geoseg.segmenters.describing import describe
from geoseg.segmenters.network import tensors_of
from geoseg.segmenters.scene_part import part_as_input
from tests.benchmarks.scenes import kinds, write_scene

_STEPS, _BATCH, _CROP = 80, 6, 128
_LEARNED = 1024


def write_model(folder: Path, encoder: str) -> Path:
    """Write a bundle of a U-Net trained for 80 small steps, with tile and halo as ``geoseg train`` chooses them."""
    path = folder / f"unet_{encoder}.safetensors"
    if path.exists():
        return path
    scene = open_scene(write_scene(folder / "scene_2048.tif", 2048))
    classes = Classes.parse("background,wheat,maize,wood,water,town")
    torch.manual_seed(0)
    module = networks.create("unet", in_channels=3, num_classes=len(classes), encoder=encoder)
    scaling = Normalisation.of(scene.statistics())
    corner = Window(0, 0, _LEARNED, _LEARNED)
    _train(module, scene.read(corner).data, kinds(0, 0, *corner.shape), scaling)
    description = describe(
        module,
        name="unet",
        bands=["red", "green", "blue"],
        classes=classes,
        encoder=encoder,
        normalisation=NormalisationRecord(**scaling.as_dict()),
        pictures=[part_as_input(scene, scaling, picture_side(32))[0]],
    )
    print(f"tiles of {description.tile} pixels, a halo of {description.halo}", flush=True)
    write_bundle(path, description, tensors_of(module))
    return path


def _train(module: torch.nn.Module, pixels: np.ndarray, target: np.ndarray, scaling: Normalisation) -> None:
    offset, scale = (np.array(v, np.float32)[:, None, None] for v in (scaling.offset, scaling.scale))
    image = torch.from_numpy((pixels.astype(np.float32) - offset) / scale)
    labels = torch.from_numpy(target.astype(np.int64))
    rng = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(module.parameters(), 2e-3)
    module.train()
    for _ in range(_STEPS):
        corners = rng.integers(0, _LEARNED - _CROP, (_BATCH, 2))
        cut = [(slice(None), slice(r, r + _CROP), slice(c, c + _CROP)) for r, c in corners]
        scores = module(torch.stack([image[part] for part in cut]))
        loss = torch.nn.functional.cross_entropy(scores, torch.stack([labels[part[1:]] for part in cut]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    module.eval()
    print(f"trained for the benchmark: loss {loss.item():.2f}", flush=True)
