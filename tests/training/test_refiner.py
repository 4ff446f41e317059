"""Training a network that refines: its patches, its figures, and the bundle that comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import geoseg
from geoseg.bundle import read_bundle
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError
from geoseg.segmenters.refinement import Refiner
from geoseg.training.damage import agreement
from geoseg.training.patches import Patch, collate
from geoseg.training.priors import SpoiltMasks, SpoiltSquares
from geoseg.training.refiner import signed
from geoseg.training.variation_config import DamageConfig
from tests.training.conftest import same

Settings = Callable[..., dict[str, Any]]
SMALL = {"name": "cascadepsp", "encoder": "test_resnet", "options": {"width": 0.02, "dilated": False}}


class Labels:
    """A source of patches with given labels."""

    def __init__(self, *labels: np.ndarray) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> Patch:
        labels = self.labels[number]
        pixels = np.zeros((3, *labels.shape), np.uint8)
        return Patch(pixels, np.ones(labels.shape, bool), labels)


def quarters(*values: int) -> np.ndarray:
    return np.kron(np.reshape(values, (2, 2)), np.ones((40, 48))).astype(np.uint8)


def refining(settings: Settings, **changed: Any) -> dict[str, Any]:
    loop = {"steps": 40, "batch": 4, "patch": 64, "lr": 0.01, "validate_every": 20, **changed.pop("training", {})}
    network = {**SMALL, **changed.pop("network", {})}
    damage = {"keep": 0.5, "iou": [0.6, 0.8]}
    return settings(network=network, training={**settings()["training"], **loop}, damage=damage, **changed)


def test_patches_have_the_mask_of_one_class_and_a_spoilt_copy() -> None:
    classes = Classes.parse("background,roof,road")
    labels = [quarters(0, 1, 2, 255), quarters(0, 255, 255, 0), quarters(1, 1, 1, 1)]
    several = SpoiltSquares(Labels(*labels), classes, DamageConfig(), 7)
    assert len(several) == 3
    first, none, every = (several[number] for number in range(3))
    assert first.prior is not None
    chosen = [position for position in (1, 2) if np.array_equal(first.labels == 1, labels[0] == position)]
    assert len(chosen) == 1
    assert np.array_equal(first.labels == 255, labels[0] == 255)
    assert 0.4 < agreement(first.prior, labels[0] == chosen[0]) < 1
    assert not (none.labels == 1).any()
    assert (every.labels == 1).all()
    drawn = {
        position
        for seed in range(20)
        for position in (1, 2)
        if np.array_equal(
            SpoiltMasks(Labels(*labels), classes, DamageConfig(), seed)[0].labels == 1, labels[0] == position
        )
    }
    assert drawn == {1, 2}
    again = SpoiltMasks(Labels(*labels), classes, DamageConfig(), 7)[0]
    assert np.array_equal(again.prior, first.prior)
    batch = collate([first, every], [0, 2])
    assert batch["prior"].shape == (2, 80, 96)
    assert "prior" not in collate([Labels(*labels)[0]], [0])
    masks = signed(batch["prior"], torch.zeros(1))
    assert masks.shape == (2, 1, 80, 96)
    assert set(masks.unique().tolist()) <= {-1.0, 1.0}


def test_it_learns_to_mend_masks(settings: Settings, tmp_path: Path) -> None:
    model = tmp_path / "refiner.safetensors"
    report = geoseg.train(refining(settings, training={"steps": 30, "validate_every": 15}), model)
    figures = report.figures
    assert figures["iou"]["mask"] > figures["rough"]["iou"]["mask"] + 0.03
    assert figures["mba"] > figures["rough"]["mba"] + 0.03
    assert report.notes == [
        f"rough masks agreed with the truth to {figures['rough']['iou']['mask']:.3f} (IoU), refined ones to "
        f"{figures['iou']['mask']:.3f}"
    ]
    description = read_bundle(model).description
    assert description.method == "refiner"
    assert [item.name for item in description.classes] == ["background", "square"]
    assert description.training["validation"] == figures
    refiner = Refiner.from_bundle(read_bundle(model))
    # It was trained at one resolution, so small images are not enlarged.
    assert refiner.settings.enlarge_to == 0
    scene = geoseg.open(settings()["data"]["scenes"][0]["image"])
    read = scene.read(scene.window)
    prior = np.zeros(scene.shape, bool)
    prior[20:40, 30:60] = True
    found = refiner.refine(read.data, read.valid, prior)
    assert found.shape == prior.shape
    assert 0 <= found.min() < found.max() <= 1


def test_equal_seeds_give_equal_weights_whatever_the_workers(settings: Settings, tmp_path: Path) -> None:
    for name, changed in {"a": {}, "b": {"workers": 3}, "c": {"seed": 1}}.items():
        given = refining(settings, training={"steps": 4, "validate_every": 0, **changed})
        geoseg.train(given, tmp_path / f"{name}.safetensors")
    assert same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert not same(tmp_path / "a.safetensors", tmp_path / "c.safetensors")


def test_it_goes_on_from_a_refiner_of_other_classes_and_from_nothing_else(settings: Settings, tmp_path: Path) -> None:
    first, plain = tmp_path / "first.safetensors", tmp_path / "plain.safetensors"
    short = {"steps": 2, "validate_every": 0}
    geoseg.train(refining(settings, training=short), first)
    geoseg.train(settings(), plain)
    other = refining(settings, training=short, network={"start": str(first)}, data={"classes": "ground,square"})
    geoseg.train(other, tmp_path / "second.safetensors")
    assert not same(first, tmp_path / "second.safetensors")
    with pytest.raises(BundleError, match="holds a network model, which is no start for network cascadepsp"):
        geoseg.train(refining(settings, network={"start": str(plain)}), tmp_path / "a.safetensors")
    with pytest.raises(BundleError, match="holds a refiner model, which is no start for network plainconv"):
        geoseg.train(settings(network={"name": "plainconv", "start": str(first)}), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "ce"}, "network cascadepsp has a loss of its own: leave loss out"),
        ({"mixing": {"alpha": 0.4}}, r"mixing\.alpha is 0\.4, but the masks"),
        ({"training": {"patch": 60}}, r"training\.patch is 60, but network cascadepsp takes multiples of 8: use 64"),
    ],
)
def test_settings_that_do_not_go_with_it(changed: Any, message: str, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        geoseg.train(refining(settings, **changed), tmp_path / "m.safetensors")
