"""QGIS styles: well-formed in themselves, and what a real QGIS makes of them."""

import os
import shutil
import xml.etree.ElementTree as ET

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine

import geoseg
from geoseg.classes import Classes, LabelClass
from geoseg.outputs.cog import write_confidence_cog, write_label_cog
from geoseg.outputs.polygons import write_features
from geoseg.outputs.qgis import (
    Layer,
    confidence_style,
    label_style,
    vector_style,
    write_label_style,
    write_layer_definition,
    write_residual_style,
    write_vector_style,
)

HEIGHT, WIDTH, PIXEL = 600, 800, 10.0
X, Y = 500_000.0, 5_400_000.0


def root_of(text: str) -> ET.Element:
    return ET.fromstring(text.encode("utf-8"))


def test_a_vector_style_names_and_colours_every_class(classes):
    renderer = root_of(vector_style(classes)).find("renderer-v2")
    assert renderer.get("type") == "categorizedSymbol"
    assert renderer.get("attr") == "class_id"
    symbols = {s.get("name"): s for s in renderer.find("symbols")}
    for category, item in zip(renderer.find("categories"), classes, strict=True):
        assert (category.get("value"), category.get("label")) == (str(item.id), item.name)
        options = {o.get("name"): o.get("value") for o in symbols[category.get("symbol")].iter("Option")}
        assert options["color"] == ",".join(map(str, (*item.rgb, 255)))
        assert options["outline_style"] == "no"


def test_a_label_style_hides_the_background(classes):
    entries = list(root_of(label_style(classes)).iter("paletteEntry"))
    assert [(e.get("value"), e.get("label"), e.get("color")) for e in entries] == [
        (str(c.id), c.name, c.color) for c in classes
    ]
    assert [e.get("alpha") for e in entries] == ["0", "255", "255"]


def test_a_confidence_style_runs_from_zero_to_one():
    values = [float(item.get("value")) for item in root_of(confidence_style()).iter("item")]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["]]>", "<!--", "&amp;", "'\"", "a\u00a0b".replace("\u00a0", "–"), "森", "<b>x</b>"])
def test_any_class_name_is_escaped(name):
    classes = Classes((LabelClass(3, name, "#123456"),))
    assert next(root_of(vector_style(classes)).iter("category")).get("label") == name
    assert next(root_of(label_style(classes)).iter("paletteEntry")).get("label") == name


def test_a_raster_and_a_vector_layer_share_one_style_file(tmp_path, classes):
    other = Classes.parse("water,forest")
    write_label_style(tmp_path / "map.tif", classes)
    write_vector_style(tmp_path / "map.geojson", other)
    write_vector_style(tmp_path / "map.geojson", classes)
    root = ET.parse(tmp_path / "map.qml").getroot()
    assert [e.tag for e in root] == ["pipe", "renderer-v2"]
    assert [e.get("label") for e in root.iter("category")] == [c.name for c in classes]
    assert [e.get("label") for e in root.iter("paletteEntry")] == [c.name for c in classes]
    assert os.listdir(tmp_path) == ["map.qml"]


def test_a_style_that_is_no_xml_is_replaced(tmp_path, classes):
    (tmp_path / "map.qml").write_text("nonsense <")
    write_vector_style(tmp_path / "map.fgb", classes)
    assert (tmp_path / "map.qml").read_text("utf-8") == vector_style(classes)


def test_a_layer_definition_names_its_files_relative_to_itself(tmp_path, classes, utm33):
    layers = [
        Layer(tmp_path / "sub" / "map.gpkg", "polygons", utm33, classes),
        Layer(tmp_path / "map.tif", "labels", utm33, classes, title="a & b"),
        Layer(tmp_path.parent / "sure.tif", "confidence", utm33),
    ]
    write_layer_definition(tmp_path / "run.qlr", layers)
    root = root_of((tmp_path / "run.qlr").read_text("utf-8"))
    nodes = root.findall("layer-tree-group/layer-tree-group[@name='run']/layer-tree-layer")
    assert [n.get("source") for n in nodes] == [
        "./sub/map.gpkg|layername=map",
        "./map.tif",
        str(tmp_path.parent / "sure.tif"),
    ]
    assert [n.get("name") for n in nodes] == ["map polygons", "a & b", "sure confidence"]
    assert [m.findtext("id") for m in root.iter("maplayer")] == [n.get("id") for n in nodes]
    assert all(len(n.get("id")) > 10 for n in nodes)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Outputs of one run: a map of three classes with nodata at the top, as rasters and as polygons."""
    classes = Classes(
        (
            LabelClass(0, "background", "#d9d9d9", background=True),
            LabelClass(1, 'a<b & "c"', "#e60000"),
            LabelClass(7, "Wäldchen 森", "#00a000"),
        )
    )
    folder = tmp_path_factory.mktemp("run")
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    labels = np.choose((cols // 100 + rows // 150) % 3, [0, 1, 7]).astype(np.uint8)
    labels[:20] = 255
    stored = np.where(labels == 255, 65535, (cols * 1000) // WIDTH).astype(np.uint16)
    crs, transform = pyproj.CRS(32633), Affine(PIXEL, 0, X, 0, -PIXEL, Y)
    for name, band, nodata in (("labels", labels, 255), ("stored", stored, 65535)):
        with rasterio.open(
            folder / f"{name}_source.tif", "w", driver="GTiff", width=WIDTH, height=HEIGHT, count=1,
            dtype=band.dtype.name, nodata=nodata, crs="EPSG:32633", transform=transform,
        ) as dataset:  # fmt: skip
            dataset.write(band, 1)
    write_label_cog(folder / "labels_source.tif", folder / "labels.tif", classes)
    write_confidence_cog(folder / "stored_source.tif", folder / "sure.tif")
    from rasterio.features import shapes

    pairs = [(shapely.geometry.shape(g), int(v)) for g, v in shapes(labels, transform=transform) if v in (1, 7)]
    geometry = np.array([g for g, _ in pairs], object)
    from geoseg.vector.features import Features

    features = Features(
        geometry,
        np.arange(len(pairs)) + 1,
        np.array([v for _, v in pairs]),
        shapely.area(geometry),
        shapely.length(geometry),
        np.full(len(pairs), 0.9),
    )
    for suffix in (".geojson", ".geojsonl", ".gpkg", ".fgb"):
        path = folder / suffix[1:] / f"map{suffix}"
        path.parent.mkdir()
        write_features(path, [features], classes=classes, crs=crs, pixel_m=PIXEL, has_confidence=True)
    write_layer_definition(
        folder / "run.qlr",
        [
            Layer(folder / "geojson" / "map.geojson", "polygons", crs, classes),
            Layer(folder / "gpkg" / "map.gpkg", "polygons", crs, classes),
            Layer(folder / "labels.tif", "labels", crs, classes),
            Layer(folder / "sure.tif", "confidence", crs),
        ],
    )
    return folder, classes, len(pairs)


@pytest.mark.qgis
@pytest.mark.parametrize(
    ("suffix", "with_qml"), [(".geojson", True), (".geojsonl", True), (".fgb", True), (".gpkg", True), (".gpkg", False)]
)
def test_polygons_open_styled(suffix, with_qml, run_folder, qgis, tmp_path):
    folder, classes, count = run_folder
    path = tmp_path / f"map{suffix}"
    shutil.copy(folder / suffix[1:] / path.name, path)
    if with_qml:
        shutil.copy(folder / suffix[1:] / "map.qml", tmp_path)
    crs = "EPSG:4326" if suffix.startswith(".geojson") else "EPSG:32633"
    report = qgis("--vector", path, "--png", tmp_path / "map.png", "--expect", f"crs={crs}")
    (layer,) = report["layers"]
    assert layer["renderer"] == "categorizedSymbol"
    assert layer["attribute"] == "class_id"
    assert layer["features"] == count
    assert layer["invalid_geometries"] == layer["empty_geometries"] == 0
    assert layer["values_without_category"] == []
    assert [(str(r["value"]), r["label"], r["rgb"]) for r in layer["legend"]] == [
        (str(c.id), c.name, c.color) for c in classes
    ]
    assert report["png"]["legend_pixels"]["#e60000"] > 1000
    assert report["png"]["legend_pixels"]["#00a000"] > 1000
    assert report["png"]["distinct_colours"] == 3
    assert {f.split(":")[0] for f in layer["fields"]} >= {
        "id",
        "class_id",
        "class_name",
        "area_m2",
        "perimeter_m",
        "confidence",
    }


@pytest.mark.qgis
def test_a_label_raster_opens_with_names_and_without_background(run_folder, qgis, tmp_path):
    folder, classes, _ = run_folder
    report = qgis("--raster", folder / "labels.tif", "--png", tmp_path / "map.png")
    (layer,) = report["layers"]
    assert layer["renderer"] == "paletted"
    assert [(r["value"], r["label"], r["rgb"], r["alpha"]) for r in layer["legend"]] == [
        (c.id, c.name, c.color, 0 if c.background else 255) for c in classes
    ]
    assert layer["nodata"] == [255]
    assert layer["pyramids"] == [[WIDTH // 2, HEIGHT // 2]]
    assert report["png"]["distinct_colours"] == 3
    assert report["png"]["legend_pixels"]["#d9d9d9"] == 0


@pytest.mark.qgis
def test_a_confidence_raster_opens_as_a_ramp(run_folder, qgis):
    (layer,) = qgis("--raster", run_folder[0] / "sure.tif")["layers"]
    assert layer["renderer"] == "singlebandpseudocolor"
    assert [layer["legend"][0]["value"], layer["legend"][-1]["value"]] == [0, 1]
    assert layer["band_types"] in (["Float32"], [6])
    assert layer["nodata"] == [-1]


@pytest.mark.qgis
def test_one_style_file_serves_both_layers_of_a_stem(run_folder, qgis, tmp_path, make_features):
    folder, classes, _count = run_folder
    write_label_cog(folder / "labels_source.tif", tmp_path / "map.tif", classes)
    boxes = make_features([shapely.box(X, Y - 1000, X + 1000, Y)])
    write_features(
        tmp_path / "map.fgb", [boxes], classes=classes, crs=pyproj.CRS(32633), pixel_m=PIXEL, has_confidence=True
    )
    layers = qgis("--vector", tmp_path / "map.fgb", "--raster", tmp_path / "map.tif")["layers"]
    assert [layer["renderer"] for layer in layers] == ["categorizedSymbol", "paletted"]
    assert [len(layer["legend"]) for layer in layers] == [3, 3]


@pytest.mark.qgis
def test_polygons_cover_the_pixels_of_their_classes(run_folder, qgis, tmp_path):
    folder, _, _ = run_folder
    alone = qgis("--raster", folder / "labels.tif", "--png", tmp_path / "a.png")["png"]["legend_pixels"]
    gpkg = folder / "gpkg" / "map.gpkg"
    both = qgis("--vector", gpkg, "--raster", folder / "labels.tif", "--png", tmp_path / "b.png")["png"]
    vector = qgis("--vector", gpkg, "--png", tmp_path / "c.png")["png"]["legend_pixels"]
    assert both["distinct_colours"] == 3
    for color in ("#e60000", "#00a000"):
        assert both["legend_pixels"][color] == pytest.approx(alone[color], rel=0.02)
        assert vector[color] > 1000


@pytest.mark.qgis
def test_a_moved_folder_opens_from_its_layer_definition(run_folder, qgis, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run_folder[0], moved)
    report = qgis("--project", moved / "run.qlr", "--png", tmp_path / "map.png")
    by_name = {layer["name"]: layer for layer in report["layers"]}
    assert len(report["layers"]) == 4
    assert {layer["renderer"] for layer in report["layers"]} == {
        "categorizedSymbol",
        "paletted",
        "singlebandpseudocolor",
    }
    assert by_name["labels labels"]["crs"] == "EPSG:32633"
    assert str(moved) in by_name["sure confidence"]["source"]
    assert report["png"]["legend_pixels"]["#e60000"] > 1000


@pytest.mark.qgis
@pytest.mark.parametrize(("dtype", "bands"), [("uint8", 4), ("uint16", 4), ("uint16", 1)])
def test_a_definition_groups_the_outputs_over_their_scene(dtype, bands, raster, qgis, tmp_path, plain):
    """Red is bright in the upper half, green in the left one; bands as in Sentinel-2: blue, green, red, infrared."""
    rows, cols = np.mgrid[:120, :160]
    factor = 1 if dtype == "uint8" else 50
    blue = np.full(rows.shape, 10) + rows % 3
    red, green = np.where(rows < 60, 200, 10) + cols % 3, np.where(cols < 80, 200, 10) + cols % 3
    pixels = np.stack([blue, green, red, blue][:bands]).astype(dtype) * factor
    names = ("blue", "green", "red", "nir") if bands == 4 else ("pan",)
    scene = raster(pixels, descriptions=names)
    (tmp_path / "outputs").mkdir()
    given = {"bands": ["red", "green", "blue"] if bands == 4 else [1, 1, 1], "keep_background": True}
    labels, confidence = (tmp_path / "outputs" / name for name in ("labels.tif", "sure.tif"))
    geoseg.predict(
        scene, tmp_path / "outputs" / "town.gpkg", plain, labels=str(labels), confidence=str(confidence), **given
    )
    shutil.move(tmp_path / "outputs", tmp_path / "moved")
    report = qgis("--project", tmp_path / "moved" / "town.qlr", "--png", tmp_path / "map.png")
    assert report["tree"] == [
        {
            "name": "town",
            "shown": True,
            "below": [
                {"name": "town polygons", "shown": True},
                {"name": "labels labels", "shown": False},
                {"name": "sure confidence", "shown": False},
                {"name": "scene image", "shown": True},
            ],
        }
    ]
    polygons, *_, image = report["layers"]
    assert all(layer["valid"] for layer in report["layers"])
    assert {layer["crs"] for layer in report["layers"]} == {"EPSG:32645"}
    assert image["renderer"] == ("multibandcolor" if bands == 4 else "singlebandgray")
    assert image["attribute"] == ([3, 2, 1] if bands == 4 else 1)
    assert image["source"] == str(scene)
    assert polygons["source"].startswith(str(tmp_path / "moved"))
    # Bytes are shown as they are, wider numbers from their 2nd to their 98th percentile.
    stretched = [
        (float(e.findtext("minValue")), float(e.findtext("maxValue")))
        for e in root_of((tmp_path / "moved" / "town.qlr").read_text("utf-8")).iter()
        if e.tag.lower().endswith("contrastenhancement")
    ]
    expected = {"uint8": [], "uint16": [(500.0, 10_100.0), (500.0, 10_100.0), (500.0, 600.0)]}[dtype]
    assert stretched == (expected if bands == 4 else expected[2:])


@pytest.mark.qgis
def test_no_polygons_open_too(qgis, tmp_path, classes, utm33):
    for suffix in (".geojson", ".gpkg", ".fgb"):
        path = tmp_path / f"none{suffix}"
        write_features(path, [], classes=classes, crs=utm33, pixel_m=1, has_confidence=True)
        (layer,) = qgis("--vector", path)["layers"]
        assert layer["valid"]
        assert layer["features"] == 0


@pytest.mark.qgis
def test_residuals_open_by_their_size(raster, qgis, tmp_path):
    path = raster(np.linspace(-5, 5, 64, dtype=np.float32).reshape(8, 8), "doubts.tif")
    write_residual_style(path, path, band=1)
    boxes = [shapely.box(500_000 + 10 * i, 5_400_000, 500_010 + 10 * i, 5_400_010) for i in range(5)]
    frame = geopandas.GeoDataFrame({"off": [-9.0, -2.0, 0.5, 2.0, 9.0]}, geometry=boxes, crs=32633)
    frame.to_file(tmp_path / "doubts_too.gpkg")
    write_residual_style(tmp_path / "doubts_too.gpkg", tmp_path / "doubts_too.gpkg", attribute="off")
    rasters, polygons = qgis("--raster", path, "--vector", tmp_path / "doubts_too.gpkg")["layers"]
    if rasters["renderer"] == "graduatedSymbol":
        rasters, polygons = polygons, rasters
    assert (rasters["renderer"], polygons["renderer"]) == ("singlebandpseudocolor", "graduatedSymbol")
    colours = ["#b2182b", "#f4a582", "#f7f7f7", "#f4a582", "#b2182b"]
    assert [(entry["value"], entry["rgb"]) for entry in rasters["legend"]] == list(
        zip([-4, -2, 0, 2, 4], colours, strict=True)
    )
    assert [(entry["label"], entry["rgb"]) for entry in polygons["legend"]] == list(
        zip(["below -3", "-3 to -1", "-1 to 1", "1 to 3", "above 3"], colours, strict=True)
    )
