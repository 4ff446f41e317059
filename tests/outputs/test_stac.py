"""STAC items and collections: valid, relative, with footprints that hold on the antimeridian and off the Earth."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pystac
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from geoseg.classes import Classes
from geoseg.outputs.stac import ItemNote, ModelNote, footprint, write_collection, write_item
from tests.outputs.stac_schemas import check_extensions

CLASSES = Classes.parse("background,Gebäude & Höfe:#d55e00,3")
MODEL = ModelNote("3 models", "unet")


def _note(folder: Path, name: str = "a", **more: Any) -> ItemNote:
    geobox = more.pop("geobox", GeoBox((20, 30), Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000), "EPSG:32645"))
    files = {"polygons": folder / f"{name}.fgb", "labels": folder / f"{name}.tif", "confidence": folder / "c.tif"}
    return ItemNote(name, geobox, 0.5, CLASSES, files, MODEL, str(folder.parent / "in" / "a.tif"), **more)


def _model(folder: Path, *names: str) -> ModelNote:
    """Return what is said of bundles in a folder."""
    paths = []
    for name in names:
        (folder / f"{name}.safetensors").write_bytes(b"")
        paths.append(str(folder / f"{name}.safetensors"))
    bands = ("red", "green", "blue")
    return ModelNote(" + ".join(names), "unet", tuple(paths), bands, 256, CLASSES, 7 * len(names))


def _valid(path: Path, kind: pystac.STACObjectType) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert record["type"] == ("Feature" if kind is pystac.STACObjectType.ITEM else "Collection")
    check_extensions(record)
    return record


def test_items_are_valid_and_relative(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "a.json"
    write_item(path, _note(tmp_path / "a", when="2024-05-01T10:00:00Z", item="https://host/a.json"))
    record = _valid(path, pystac.STACObjectType.ITEM)
    assert str(tmp_path) not in path.read_text()
    assert record["properties"]["datetime"] == "2024-05-01T10:00:00Z"
    assert record["properties"]["proj:code"] == "EPSG:32645"
    links = {link["rel"]: link["href"] for link in record["links"]}
    assert links["via"] == "../in/a.tif"
    assert links["derived_from"] == "https://host/a.json"
    classes = record["assets"]["labels"]["classification:classes"]
    assert [item["name"] for item in classes] == ["background", "Geb-ude-H-fe", "class-3"]
    assert classes[1]["title"] == "Gebäude & Höfe"
    assert classes[1]["color_hint"] == "D55E00"
    assert record["assets"]["polygons"]["type"] == "application/vnd.flatgeobuf"


def test_times_are_those_of_the_scenes_item(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for properties in (
        {"datetime": "2020-01-01T00:00:00Z"},
        {"datetime": None, "start_datetime": "2020-01-01T00:00:00Z", "end_datetime": "2020-02-01T00:00:00Z"},
    ):
        write_item(tmp_path / "a" / "a.json", _note(tmp_path / "a", properties=properties))
        record = _valid(tmp_path / "a" / "a.json", pystac.STACObjectType.ITEM)
        assert {name: record["properties"].get(name) for name in properties} == properties


def test_the_collection_covers_its_items_in_place_and_time(tmp_path: Path) -> None:
    items = []
    for name, east, time in (("a", 350_000, "2024-05-01T10:00:00Z"), ("b", 360_000, "2023-05-01T12:00:00+02:00")):
        (tmp_path / name).mkdir()
        geobox = GeoBox((20, 30), Affine(0.5, 0, east, 0, -0.5, 3_060_000), "EPSG:32645")
        note = _note(tmp_path / name, name, geobox=geobox, when=time)
        items.append(write_item(tmp_path / name / f"{name}.json", note))
    write_collection(tmp_path, items, _model(tmp_path, "m"))
    record = _valid(tmp_path / "collection.json", pystac.STACObjectType.COLLECTION)
    assert record["extent"]["temporal"]["interval"] == [["2023-05-01T10:00:00Z", "2024-05-01T10:00:00Z"]]
    (box,) = record["extent"]["spatial"]["bbox"]
    assert box[0] == items[0]["bbox"][0]
    assert box[2] == items[1]["bbox"][2]
    assert record["assets"]["model"]["href"] == "m.safetensors"
    assert record["assets"]["model"]["mlm:total_parameters"] == 7
    found = pystac.Collection.from_file(str(tmp_path / "collection.json"))
    assert [item.id for item in found.get_items()] == ["a", "b"]
    assert str(tmp_path) not in (tmp_path / "collection.json").read_text()


@given(st.floats(-179, 179), st.floats(-80, 80), st.floats(0.01, 1))
def test_a_footprint_is_where_the_grid_is(lon: float, lat: float, size: float) -> None:
    step = size / 10
    geobox = GeoBox((10, 10), Affine(step, 0, lon - size / 2, 0, -step, lat + size / 2), "EPSG:4326")
    geometry, bbox = footprint(geobox, step * 100_000)
    assert bbox is not None
    assert bbox == pytest.approx([lon - size / 2, lat - size / 2, lon + size / 2, lat + size / 2], abs=1e-6)
    shape = shapely.from_geojson(json.dumps(geometry))
    assert shape.is_valid
    assert shape.contains(shapely.Point(lon, lat))


def test_a_footprint_across_the_antimeridian_is_cut_there(tmp_path: Path) -> None:
    geobox = GeoBox((10, 10), Affine(1000, 0, 296_000 + 400_000, 0, -1000, 100_000), "EPSG:32760")
    geobox = GeoBox((10, 200), Affine(1000, 0, 750_000, 0, -1000, 8_000_000), "EPSG:32760")
    geometry, bbox = footprint(geobox, 1000)
    assert geometry is not None
    assert bbox is not None
    assert geometry["type"] == "MultiPolygon"
    west, _, east, _ = bbox
    assert 170 < west < 180
    assert -180 < east < -170
    (tmp_path / "a").mkdir()
    item = write_item(tmp_path / "a" / "a.json", _note(tmp_path / "a", geobox=geobox))
    write_collection(tmp_path, [item], MODEL)
    assert _valid(tmp_path / "collection.json", pystac.STACObjectType.COLLECTION)["extent"]["spatial"]["bbox"] == [
        [-180.0, bbox[1], 180.0, bbox[3]]
    ]


def test_a_scene_on_another_planet_has_no_footprint(tmp_path: Path) -> None:
    geobox = GeoBox((10, 10), Affine(100, 0, 0, 0, -100, 0), "IAU_2015:49910")
    assert footprint(geobox, 100) == (None, None)
    (tmp_path / "a").mkdir()
    item = write_item(tmp_path / "a" / "a.json", _note(tmp_path / "a", geobox=geobox))
    assert _valid(tmp_path / "a" / "a.json", pystac.STACObjectType.ITEM)["geometry"] is None
    write_collection(tmp_path, [item], MODEL)
    _valid(tmp_path / "collection.json", pystac.STACObjectType.COLLECTION)


@pytest.mark.parametrize("names", [("m",), ("land", "Wälder 2")])
def test_the_model_is_told_as_its_extension_wants_it(tmp_path: Path, names: tuple[str, ...]) -> None:
    model = _model(tmp_path, *names)
    (tmp_path / "a").mkdir()
    item = write_item(tmp_path / "a" / "a.json", replace(_note(tmp_path / "a"), model=model))
    write_collection(tmp_path, [item], model)
    record = _valid(tmp_path / "a" / "a.json", pystac.STACObjectType.ITEM)
    collection = _valid(tmp_path / "collection.json", pystac.STACObjectType.COLLECTION)
    for thing, folder in ((record, tmp_path / "a"), (collection, tmp_path)):
        assert "mlm" in check_extensions(thing)
        models = [asset for asset in thing["assets"].values() if "mlm:model" in asset["roles"]]
        assert [(folder / asset["href"]).resolve() for asset in models] == [Path(path) for path in model.paths]
    (taken,), (answered,) = record["properties"]["mlm:input"], record["properties"]["mlm:output"]
    assert taken["bands"] == ["red", "green", "blue"]
    assert taken["input"]["shape"] == [-1, 3, 256, 256]
    assert answered["result"]["shape"] == [-1, 3, 256, 256]
    assert [each["title"] for each in answered["classification:classes"]] == ["background", "Gebäude & Höfe", "3"]
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", record["properties"]["mlm:name"])


def test_a_model_that_is_no_file_is_told_in_words_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    item = write_item(tmp_path / "a" / "a.json", _note(tmp_path / "a"))
    write_collection(tmp_path, [item], MODEL)
    for path in (tmp_path / "a" / "a.json", tmp_path / "collection.json"):
        assert "mlm" not in path.read_text()
    assert "with the model 3 models" in item["properties"]["processing:lineage"]
