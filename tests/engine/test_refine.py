"""A refiner run over a scene: behind another model, and over labels from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

import geoseg
from geoseg import networks
from geoseg.bundle import NormalisationRecord, read_bundle, write_bundle
from geoseg.classes import Classes
from geoseg.engine.context import one_hot
from geoseg.errors import BundleError, ConfigError, OutputError
from geoseg.grid import Window
from geoseg.segmenters.describing import describe
from geoseg.segmenters.interface import Tiles
from geoseg.segmenters.network import new_bundle, tensors_of
from geoseg.segmenters.refinement_settings import MergeSettings
from geoseg.segmenters.refining import Refining
from tests.conftest import Storage, write_raster

CLASSES = Classes.parse("background,roof:#d55e00")
_SMALL: dict[str, Any] = {"width": 0.02, "dilated": False}


@pytest.fixture(scope="module")
def village(piece: Callable[..., Path]) -> Path:
    """A real scene of 230 × 310 pixels, with nodata at its left."""
    return piece(230, 310, blank=30)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small refiner with random weights whose answers depend on all that it is shown."""
    torch.manual_seed(0)
    module = networks.create("cascadepsp", in_channels=3, num_classes=2, encoder="resnet18", **_SMALL)
    with torch.no_grad():
        first = next(layer for layer in module.feats.modules() if isinstance(layer, nn.Conv2d))
        first.weight.normal_()
        module.train()(torch.randn(2, 3, 64, 64), torch.randn(2, 1, 64, 64).sign())
        module.final_21.weight.normal_(std=20)
    description = describe(
        module.eval(),
        name="cascadepsp",
        encoder="resnet18",
        options=_SMALL,
        bands=["red", "green", "blue"],
        classes=CLASSES,
        tile=128,
        normalisation=NormalisationRecord(offset=[110, 110, 100], scale=[50, 50, 50], low=None, high=None),
    )
    path = tmp_path_factory.mktemp("refiner") / "refiner.safetensors"
    write_bundle(path, description, tensors_of(module))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_bundle(path, *new_bundle("plainconv", bands=["red", "green", "blue"], classes=CLASSES, tile=128, seed=1))
    return path


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, village: Path) -> Path:
    """Rough labels of the village, from its brightness."""
    with rasterio.open(village) as source:
        bright = source.read().mean(0)
        rough = (bright > np.median(bright[bright > 0])).astype(np.uint8)
        return write_raster(
            tmp_path_factory.mktemp("labels") / "rough.tif", rough, transform=source.transform, crs=source.crs
        )


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def test_labels_are_refined_the_same_whatever_the_chunks_and_workers(
    tmp_path: Path, village: Path, labels: Path, refiner: Path, two_workers: str
) -> None:
    made = {}
    cases: dict[str, dict[str, Any]] = {
        "whole": {},
        "small": {"chunk": 256, "batch": 2},
        "workers": {"scheduler": two_workers, "chunk": 256},
    }
    for name, changes in cases.items():
        out, sure = tmp_path / f"{name}.tif", tmp_path / f"{name}_c.tif"
        geoseg.refine(village, labels, out, refiner, confidence=str(sure), **changes)
        made[name] = out.read_bytes(), sure.read_bytes()
    assert made["small"] == made["whole"] == made["workers"]
    found, rough = _read(tmp_path / "whole.tif"), _read(labels)
    assert (found[:, :30] == 255).all()
    changed = (found != rough)[:, 30:].mean()
    assert 0.001 < changed < 0.999


def test_a_model_and_its_refiner_in_one_run(
    tmp_path: Path, village: Path, model: Path, refiner: Path, two_workers: str
) -> None:
    """The same as the model's labels refined afterwards, where tiles see the same."""
    geoseg.predict(village, tmp_path / "rough.tif", model)
    geoseg.refine(village, tmp_path / "rough.tif", tmp_path / "after.tif", refiner)
    geoseg.predict(village, tmp_path / "at_once.tif", model, refine=str(refiner))
    geoseg.predict(village, tmp_path / "workers.tif", model, refine=str(refiner), scheduler=two_workers, chunk=256)
    assert (tmp_path / "at_once.tif").read_bytes() == (tmp_path / "workers.tif").read_bytes()
    at_once, after = _read(tmp_path / "at_once.tif"), _read(tmp_path / "after.tif")
    assert (at_once != _read(tmp_path / "rough.tif")).any()
    # The model sees nothing beyond a tile, where the labels of before know their neighbours.
    assert (at_once != after).mean() < 0.05


def test_classes_of_the_labels_come_through(tmp_path: Path, village: Path, labels: Path, refiner: Path) -> None:
    geoseg.vectorize(labels, tmp_path / "rough.geojson", keep_background=False)
    geoseg.refine(village, tmp_path / "rough.geojson", tmp_path / "fine.geojson", refiner)
    import geopandas

    before, after = geopandas.read_file(tmp_path / "rough.geojson"), geopandas.read_file(tmp_path / "fine.geojson")
    assert set(after["class_name"]) <= set(before["class_name"])


def test_objects_are_refined_one_by_one(village: Path, labels: Path, refiner: Path) -> None:
    """Pixels far from every object that is large enough keep their labels."""
    scene = geoseg.open(village)
    window = Window(0, 100, 160, 160)
    rough = np.zeros(window.shape, np.uint8)
    rough[40:80, 50:90] = 1
    rough[150, 10] = 1
    method = Refining(read_bundle(refiner), whole="object", merge=MergeSettings(min_component=30))
    tiles = replace(Tiles.of([scene.read(window)]), prior=one_hot([rough], 2))
    shares = method.segment(tiles, replace(method.prepare(scene), classes=CLASSES)).exp()[0]
    assert torch.allclose(shares.sum(0), torch.ones(window.shape), atol=1e-5)
    inside = np.zeros(window.shape, bool)
    inside[30:90, 40:100] = True
    assert (shares.argmax(0).numpy() == rough)[~inside].all()
    assert ((shares[1] > 0.001) & (shares[1] < 0.999)).numpy()[inside].any()


def test_the_command_writes_labels_beside_polygons(tmp_path: Path, village: Path, labels: Path, refiner: Path) -> None:
    from geoseg_cli.main import main

    out, fine = tmp_path / "fine.gpkg", tmp_path / "fine.tif"
    with pytest.raises(SystemExit) as stop:
        main(["refine", *map(str, (village, labels, out, "-m", refiner, "--labels", fine)), "-q"])
    assert stop.value.code == 0
    assert out.exists()
    geoseg.refine(village, labels, tmp_path / "again.tif", refiner)
    assert (_read(fine) == _read(tmp_path / "again.tif")).all()


def test_the_commands_refine_object_by_object(
    tmp_path: Path, village: Path, model: Path, refiner: Path, two_workers: str
) -> None:
    """Small objects keep their labels, whichever command refines them."""
    from geoseg_cli.main import main

    def run(*arguments: object) -> None:
        with pytest.raises(SystemExit) as stop:
            main([*map(str, arguments), "--refine-by", "object", "-q"])
        assert stop.value.code == 0

    rough = np.zeros(geoseg.open(village).shape, np.uint8)
    rough[100:150, 100:160] = 1  # 3000 pixels
    rough[10:20, 60:70] = 1
    with rasterio.open(village) as source:
        labels = write_raster(tmp_path / "rough.tif", rough, transform=source.transform, crs=source.crs)
    sure = {name: tmp_path / f"{name}_sure.tif" for name in ("one", "two", "tile")}
    run("refine", village, labels, tmp_path / "one.tif", "-m", refiner, "--confidence", sure["one"])
    workers = ("--scheduler", two_workers, "--chunk", 256)
    run("refine", village, labels, tmp_path / "two.tif", "-m", refiner, "--confidence", sure["two"], *workers)
    geoseg.refine(village, labels, tmp_path / "tile.tif", refiner, confidence=str(sure["tile"]))
    found, doubt = _read(tmp_path / "one.tif"), _read(sure["one"])
    assert (found == _read(tmp_path / "two.tif")).all()
    assert (doubt == _read(sure["two"])).all()
    far = found != 255
    far[60:190, 60:200] = False
    assert (found == rough)[far].all()
    certain = doubt[far].max()
    assert (doubt[far] == certain).all()
    assert (doubt[60:190, 60:200] < certain).any()
    # Seen a tile at a time, the small object and what is far from any are in doubt too.
    assert (_read(sure["tile"])[far] < certain).any()
    run("predict", village, tmp_path / "predicted.tif", "-m", model, "--refine", refiner)
    geoseg.predict(village, tmp_path / "tiles.tif", model, refine=str(refiner))
    assert (_read(tmp_path / "predicted.tif") != _read(tmp_path / "tiles.tif")).any()
    with pytest.raises(ConfigError, match="to be refined by object, but no refiner was named"):
        geoseg.predict(village, tmp_path / "a.tif", model, refine_by="object")


def test_what_is_refined_is_not_overwritten(tmp_path: Path, village: Path, labels: Path, refiner: Path) -> None:
    own = tmp_path / "own.tif"
    own.write_bytes(labels.read_bytes())
    with pytest.raises(OutputError, match="is what is to be refined: give the output another name"):
        geoseg.refine(village, own, own, refiner, overwrite=True)
    assert own.read_bytes() == labels.read_bytes()


def test_what_cannot_be_refined_is_refused(
    tmp_path: Path, village: Path, labels: Path, refiner: Path, model: Path
) -> None:
    with pytest.raises(BundleError, match="refines nothing"):
        geoseg.refine(village, labels, tmp_path / "a.tif", model)
    with pytest.raises(BundleError, match="a refiner, which segments nothing by itself"):
        geoseg.predict(village, tmp_path / "b.tif", refiner)
    other = tmp_path / "other.safetensors"
    write_bundle(other, *new_bundle("plainconv", bands=["nir", "green", "blue"], classes=CLASSES, tile=128))
    with pytest.raises(ConfigError, match="takes the bands nir, green, blue and the refiner red, green, blue"):
        geoseg.predict(village, tmp_path / "c.tif", other, refine=str(refiner))
    assert not list(tmp_path.glob("*.tif"))


@pytest.mark.slow
def test_refined_labels_go_to_object_storage(
    storage: Storage, tmp_path: Path, village: Path, labels: Path, refiner: Path
) -> None:
    geoseg.refine(village, labels, tmp_path / "out.tif", refiner)
    storage.put("rough.tif", labels.read_bytes())
    geoseg.refine(village, storage / "rough.tif", storage / "out.tif", refiner)
    assert storage.get("out.tif") == (tmp_path / "out.tif").read_bytes()
    with pytest.raises(OutputError, match="is what is to be refined"):
        geoseg.refine(village, storage / "rough.tif", storage / "rough.tif", refiner, overwrite=True)
