"""A model of buildings moved to another city, and to its own town seen by another camera; no label of either is used.

``python notebooks/adaptation.py FOLDER [--seeds N] [--case NAME] [--to TARGET]`` trains the source models with the
recipe of ``adaptation.yaml``, adapts them, and prints building IoU on the targets:

- ``kampala``: another city, sensor and season.
- ``rendered``: the two columns of the town that are not trained on, with other light, colours, haze and blur and twice
  as coarse, all drawn by one seed.  What the shift costs is known: the same columns as they are tell.

Cases: ``source`` (nothing done), ``scaling``, ``batch-norm``, ``outputs`` (UDA1), ``outputs-mixup`` and
``self-training``.  What was made is kept in FOLDER, and not made again.  A training takes about five minutes of one
core, an adaptation as long.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from coarse_labels import encoder_weights
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter

import geoseg
from geoseg.bundle import read_bundle
from geoseg.training.config import read_config, set_value

HERE = Path(__file__).parent
DATA = HERE.parent / "tests" / "data"
SCENE = DATA / "banepa" / "banepa_dev_rgb.tif"
FOOTPRINTS = DATA / "banepa" / "banepa_dev_buildings.geojson"
KAMPALA = DATA / "kampala" / "kampala_dev_rgb.tif"
KAMPALA_FOOTPRINTS = DATA / "kampala" / "kampala_dev_buildings.geojson"
CASES = ("source", "scaling", "batch-norm", "outputs", "outputs-mixup", "self-training")
STEPS = {"training.steps": 100, "training.validate_every": 50}
HELD_OUT = (2 / 3, 1)
# Twice as coarse as the model looks, in metres.
COARSE_M = 1.2


def main(folder: Path, seeds: list[int], cases: list[str], targets: list[str], settings: dict[str, Any]) -> None:
    """Make all that is not there yet, and print the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = _columns(folder / "plain.tif")
    scenes = {
        "rendered": (_rendered(plain, folder / "rendered.tif"), FOOTPRINTS),
        "kampala": (KAMPALA, KAMPALA_FOOTPRINTS),
    }
    for name in targets:
        print(f"\n| to {name} | IoU | each seed | against source | worst seed | at home |\n|---|--:|---|--:|--:|--:|")
        base: list[float] = []
        for case in cases:
            found = [_found(folder, case, seed, name, scenes[name], settings) for seed in seeds]
            values = [each["target"] for each in found]
            base = base or values
            gains = np.subtract(values, base)
            each = " ".join(f"{value:.3f}" for value in values)
            home = np.mean([one["home"] for one in found])
            told = (
                f"| {case} | {np.mean(values):.3f} | {each} | {gains.mean():+.3f} | {gains.min():+.3f} | {home:.3f} |"
            )
            print(told, flush=True)
    if "rendered" in targets:
        as_they_are = [_known(folder, seed, plain) for seed in seeds]
        each = " ".join(f"{value:.3f}" for value in as_they_are)
        print(f"\nThe source models on the columns as they are: {np.mean(as_they_are):.3f} ({each})")


def _found(
    folder: Path, case: str, seed: int, name: str, target: tuple[Path, Path], settings: dict[str, Any]
) -> dict[str, float]:
    """Return the IoU of buildings on a target, and on the sources' validation, of a model that is made if need be."""
    record, start = folder / f"{case}_{name}_{seed}.json", folder / f"source_{seed}.safetensors"
    if not record.exists():
        home = _train(start, seed)
        model = start
        if case != "source":
            model = record.with_suffix(".safetensors")
            home = _adapt(start, model, case, seed, target[0], settings)
        record.write_text(json.dumps({"target": iou(model, *target), "home": home}))
    return dict(json.loads(record.read_text()))


def _known(folder: Path, seed: int, plain: Path) -> float:
    """Return the IoU of a source model where nothing has been shifted."""
    record = folder / f"source_plain_{seed}.json"
    if not record.exists():
        record.write_text(json.dumps(iou(folder / f"source_{seed}.safetensors", plain, FOOTPRINTS)))
    return float(json.loads(record.read_text()))


def _train(model: Path, seed: int) -> float:
    """Train a source model if there is none, and return the IoU of buildings on its validation."""
    if model.exists():
        return float(read_bundle(model).description.training["validation"]["iou"]["building"])
    given = read_config(HERE / "adaptation.yaml")
    set_value(given, "network.encoder_weights", encoder_weights())
    set_value(given, "training.seed", seed)
    return float(geoseg.train(given, model, tell=print, fresh=True).figures["iou"]["building"])


def _adapt(start: Path, model: Path, case: str, seed: int, scene: Path, settings: dict[str, Any]) -> float:
    """Adapt a model without labels of the target, and return the IoU of buildings on the sources' validation."""
    area = read_config(HERE / "adaptation.yaml")["data"]["scenes"][0]
    more = {"mixing.alpha": 0.7} if case.endswith("-mixup") else {}
    report = geoseg.adapt(
        start,
        model,
        sources=[(SCENE, FOOTPRINTS)],
        targets=[scene],
        method=case.removesuffix("-mixup"),
        validation=tuple(area["validation"]),
        settings={"data.scenes.0.train": area["train"], "training.seed": seed, **STEPS, **more, **settings},
        tell=print,
        overwrite=True,
        fresh=True,
    )
    print(f"{model.stem}: kept the weights of step {report.kept} of {report.steps}", flush=True)
    return float(report.scores["source"]["after"]["iou"]["building"])


def iou(model: Path, scene: Path, footprints: Path) -> float:
    """Return the IoU of buildings on a scene."""
    labels = model.with_suffix(".tif")
    geoseg.predict(scene, labels, str(model), overwrite=True, fresh=True)
    told = geoseg.evaluate(labels, footprints, one_class="building", objects=False).as_dict()
    return float(next(row["iou"] for row in told["classes"] if row["name"] == "building"))


def _columns(path: Path) -> Path:
    """Write the columns that are not trained on as a GeoTIFF of their own."""
    with rasterio.open(SCENE) as source:
        left, right = (round(share * source.width) for share in HELD_OUT)
        window = Window(left, 0, right - left, source.height)
        profile = {**source.profile, "width": right - left, "transform": source.window_transform(window)}
        profile.update(driver="GTiff", compress="deflate", photometric="rgb")
        with rasterio.open(path, "w", **profile) as target:
            target.write(source.read(window=window))
    return path


def _rendered(plain: Path, path: Path, seed: int = 0) -> Path:
    """Write the same ground as another camera might have seen it on another day."""
    random = np.random.default_rng(seed)
    with rasterio.open(plain) as source:
        factor = COARSE_M / geoseg.open(plain).resolution[0]
        shape = (3, round(source.height / factor), round(source.width / factor))
        blurred = gaussian_filter(source.read().astype(np.float32) / 255, (0, factor / 2, factor / 2))
        scale = Affine.scale(source.width / shape[2], source.height / shape[1])
        profile = {**source.profile, "height": shape[1], "width": shape[2], "transform": source.transform * scale}
    rows, cols = (((np.arange(count) + 0.5) * factor).astype(int) for count in shape[1:])
    seen = blurred[:, rows.clip(max=blurred.shape[1] - 1)][:, :, cols.clip(max=blurred.shape[2] - 1)] ** random.uniform(
        1.4, 1.8
    )
    mix = random.dirichlet((1, 1, 1), 3)
    seen = np.einsum("ij,jhw->ihw", 0.6 * np.eye(3) + 0.4 * mix, seen)
    haze, light = random.uniform(0.35, 0.5), np.array([0.65, 0.72, 0.8])[:, None, None]
    seen = (1 - haze) * seen + haze * light + random.normal(0, 0.01, seen.shape)
    with rasterio.open(path, "w", **{**profile, "tiled": False}) as target:
        target.write((255 * seen.clip(0, 1)).round().astype(np.uint8))
    return path


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, json.loads(value)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("adaptation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; repeatable")
    parser.add_argument("--to", action="append", choices=("rendered", "kampala"), help="only there; repeatable")
    parser.add_argument("--set", action="append", default=[], type=_setting, metavar="KEY=JSON", help="of adaptations")
    given = parser.parse_args()
    main(
        given.folder,
        list(range(given.seeds)),
        given.case or list(CASES),
        given.to or ["rendered", "kampala"],
        dict(given.set),
    )
