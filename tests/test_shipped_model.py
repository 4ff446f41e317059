"""The model that ships: what it says of itself, that it is the default, and how well it finds buildings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

import geoseg
from geoseg.bundle import read_bundle
from geoseg.segmenters.loading import resolve_bundle, shipped
from tests.conftest import write_raster

_LARGEST_BYTES = 12_000_000


def test_it_ships_small_and_says_what_it_is() -> None:
    assert shipped() == ("buildings",)
    path = Path(resolve_bundle("buildings"))
    assert path.stat().st_size <= _LARGEST_BYTES
    description = read_bundle(path).description
    assert [(item.id, item.name, item.background) for item in description.classes] == [
        (0, "background", True),
        (1, "building", False),
    ]
    assert description.bands == ["red", "green", "blue"]
    assert description.resolution is not None
    assert 0.05 <= description.resolution <= 0.5
    assert set(description.card) == {"use", "data", "attribution", "limits", "figures"}
    assert "CC BY 4.0" in description.card["attribution"]
    assert "ODbL" in description.card["attribution"]
    assert description.training["config"]["data"]["scenes"][0]["image"] == "banepa_dev_rgb.tif"
    assert "/" not in str(description.training["config"]["data"]["scenes"])


def test_it_is_the_default_and_the_command_says_so(
    tmp_path: Path, sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from geoseg_cli.main import main

    with rasterio.open(sample) as source:
        window = Window(300, 500, 500, 400)
        scene = write_raster(
            tmp_path / "s.tif", source.read(window=window), transform=source.window_transform(window), crs=source.crs
        )
    for out, model in (("a.tif", []), ("b.tif", ["-m", "buildings"])):
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(scene), str(tmp_path / out), *model, "-q"])
        assert stop.value.code == 0
        assert ("no model was given" in capsys.readouterr().err) == (not model)
    with rasterio.open(tmp_path / "a.tif") as first, rasterio.open(tmp_path / "b.tif") as second:
        labels = first.read(1)
        assert (labels == second.read(1)).all()
    assert 0.2 < (labels == 1).mean() < 0.9


def _columns(scene: Path, first: int, stop: int, target: Path) -> Path:
    """Write columns ``first`` to ``stop`` of a scene, in pixels, so that nothing of the others can be seen."""
    with rasterio.open(scene) as source:
        window = Window(first, 0, stop - first, source.height)
        return write_raster(
            target, source.read(window=window), transform=source.window_transform(window), crs=source.crs
        )


def _building_iou(labels: Path, footprints: Path) -> float:
    found = geoseg.evaluate(labels, footprints, one_class="building", objects=False).as_dict()
    return float(next(row["iou"] for row in found["classes"] if row["name"] == "building"))


@pytest.mark.slow
def test_buildings_of_the_test_column_are_found(tmp_path: Path, data: Path) -> None:
    folder = data / "banepa"
    scene = _columns(folder / "banepa_dev_rgb.tif", 2560, 3072, tmp_path / "column.tif")
    geoseg.predict(scene, tmp_path / "labels.tif", output_grid="scene")
    assert _building_iou(tmp_path / "labels.tif", folder / "banepa_dev_buildings.geojson") >= 0.75


@pytest.mark.slow
def test_buildings_of_another_city_are_found(tmp_path: Path, data: Path) -> None:
    folder = data / "kampala"
    geoseg.predict(folder / "kampala_dev_rgb.tif", tmp_path / "labels.tif", output_grid="scene")
    assert _building_iou(tmp_path / "labels.tif", folder / "kampala_dev_buildings.geojson") >= 0.66


@pytest.mark.slow
def test_pixels_of_half_a_metre_will_do(tmp_path: Path, data: Path) -> None:
    folder = data / "banepa"
    with rasterio.open(folder / "banepa_dev_rgb.tif") as source:
        window = Window(2560, 0, 512, 2560)
        small = source.read(window=window, out_shape=(3, 677, 135), resampling=rasterio.enums.Resampling.average)
        transform = source.window_transform(window) * rasterio.Affine.scale(512 / 135, 2560 / 677)
        crs = source.crs
    scene = write_raster(tmp_path / "half.tif", small, transform=transform, crs=crs)
    geoseg.predict(scene, tmp_path / "labels.tif", output_grid="scene")
    assert _building_iou(tmp_path / "labels.tif", folder / "banepa_dev_buildings.geojson") >= 0.7


def test_darkness_and_a_cast_of_colour_change_little(tmp_path: Path, sample: Path) -> None:
    with rasterio.open(sample) as source:
        window = Window(300, 500, 600, 500)
        pixels, transform, crs = source.read(window=window), source.window_transform(window), source.crs
    cast = (pixels * np.array([0.75, 0.7, 0.55]).reshape(3, 1, 1)).astype(np.uint8)
    found = []
    for name, array in (("plain", pixels), ("cast", cast)):
        scene = write_raster(tmp_path / f"{name}.tif", array, transform=transform, crs=crs)
        geoseg.predict(scene, tmp_path / f"{name}_labels.tif")
        with rasterio.open(tmp_path / f"{name}_labels.tif") as file:
            found.append(file.read(1) == 1)
    assert (found[0] & found[1]).sum() / (found[0] | found[1]).sum() > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("town", ["banepa", "kampala"])
def test_labels_are_those_of_one_pass_over_the_scene(tmp_path: Path, data: Path, town: str) -> None:
    """Tiles as a run takes them, against one tile that holds the whole scene and more context than they have."""
    scene = data / town / f"{town}_dev_rgb.tif"
    about = read_bundle(resolve_bundle("buildings")).description
    assert about.resolution is not None
    wide = about.halo + 96
    longest = max(geoseg.open(scene).at_resolution(about.resolution).shape)
    whole = {"halo": wide, "tile": -(-longest // about.stride) * about.stride + 2 * wide}
    labels = []
    for name, cut in (("tiles.tif", {}), ("whole.tif", whole)):
        geoseg.predict(scene, tmp_path / name, "buildings", chunk=8192, **cut)
        with rasterio.open(tmp_path / name) as file:
            labels.append(file.read(1))
    differ = float((labels[0] != labels[1]).mean())
    assert 0 < differ <= 5e-4
    assert about.tiling is not None
    assert differ <= about.tiling.disagreement * 1.05
