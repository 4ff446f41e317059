"""A U-Net that has learned the synthetic scenes' fields a little, so that its labels are blobs and not speckle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from geoseg.bundle import NormalisationRecord, write_bundle
from geoseg.classes import Classes
from geoseg.normalisation import Normalisation
from geoseg.scene import open_scene
from geoseg.segmenters.network import PlainNetwork, new_bundle, spec_of, tensors_of
from tests.benchmarks.scenes import kinds, write_scene

_STEPS, _BATCH, _CROP = 80, 6, 128


def write_model(folder: Path, encoder: str) -> Path:
    """Write a bundle of a U-Net with tiles of 1024 pixels and a halo of 64, trained for 80 small steps."""
    path = folder / f"unet_{encoder}.safetensors"
    if path.exists():
        return path
    scene = open_scene(write_scene(folder / "scene_1024.tif", 1024))
    classes = Classes.parse("background,wheat,maize,wood,water,town")
    description, tensors = new_bundle(
        "unet", bands=["red", "green", "blue"], classes=classes, encoder=encoder, tile=1024, halo=64
    )
    normalisation = Normalisation.of(scene.statistics())
    description = description.model_copy(update={"normalisation": NormalisationRecord(**normalisation.as_dict())})
    write_bundle(path, description, tensors, overwrite=True)
    from geoseg.segmenters.loading import load

    segmenter = load(path)
    assert isinstance(segmenter, PlainNetwork)
    _train(segmenter.module, scene.read(scene.window).data, kinds(0, 0, 1024, 1024), normalisation)
    write_bundle(path, description, tensors_of(segmenter.module), overwrite=True)
    assert spec_of(description).halo == 64
    return path


def _train(module: torch.nn.Module, pixels: np.ndarray, target: np.ndarray, scaling: Normalisation) -> None:
    offset, scale = (np.array(v, np.float32)[:, None, None] for v in (scaling.offset, scaling.scale))
    image = torch.from_numpy((pixels.astype(np.float32) - offset) / scale)
    labels = torch.from_numpy(target.astype(np.int64))
    rng = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(module.parameters(), 2e-3)
    module.train()
    for _ in range(_STEPS):
        corners = rng.integers(0, 1024 - _CROP, (_BATCH, 2))
        cut = [(slice(None), slice(r, r + _CROP), slice(c, c + _CROP)) for r, c in corners]
        scores = module(torch.stack([image[part] for part in cut]))
        loss = torch.nn.functional.cross_entropy(scores, torch.stack([labels[part[1:]] for part in cut]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    module.eval()
    print(f"trained for the benchmark: loss {loss.item():.2f}", flush=True)
