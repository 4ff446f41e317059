"""What a command makes of the files it is given."""

import shutil

import numpy as np
import pytest

from geoseg.classes import Classes
from geoseg.errors import ConfigError, SceneError
from geoseg.geodesy import projection
from geoseg.looking.found import find, raster_kind
from geoseg.looking.styles import style_classes
from geoseg.outputs.qgis import Layer, write_layer_definition
from geoseg.scene import open_scene
from tests.conftest import asymmetric


def define(run, folder, *scenes):
    """Write a definition of polygons and confidence, and what else is given."""
    crs = projection(open_scene(run.scene).geobox)
    layers = [
        Layer(folder / "map.gpkg", "polygons", crs, run.classes),
        Layer(folder / "confidence.tif", "confidence", crs),
        *(Layer(scene, "labels", crs) for scene in scenes),
    ]
    write_layer_definition(folder / "map.qlr", layers)


def test_outputs_are_told_apart_by_what_they_are(run):
    found = find([run.confidence, run.polygons, run.scene, run.labels])
    assert found.polygons == [run.polygons]
    assert [(path, [c.name for c in classes]) for path, classes in found.labels] == [
        (str(run.labels), [c.name for c in run.classes])
    ]
    assert found.doubts == [(str(run.confidence), "confidence")]
    assert found.scenes == [str(run.scene)]
    assert found.notes == []
    assert found.first == run.polygons


def test_a_folder_stands_for_the_outputs_in_it(run):
    found = find([run.folder])
    assert (len(found.polygons), len(found.labels), len(found.doubts), len(found.scenes)) == (1, 1, 1, 1)


def test_what_a_definition_names_with_an_output_is_found_and_told(run, tmp_path):
    for name in ("map.gpkg", "confidence.tif", "scene.tif"):
        shutil.copy(run.folder / name, tmp_path)
    define(run, tmp_path, tmp_path / "scene.tif", tmp_path / "gone.tif")
    found = find([tmp_path / "map.gpkg"])
    assert found.doubts == [(str(tmp_path / "confidence.tif"), "confidence")]
    assert found.scenes == [str(tmp_path / "scene.tif")]
    assert found.notes == [f"the scene is {tmp_path / 'scene.tif'}, as a project beside the outputs tells."]
    named = find([tmp_path / "map.gpkg"], [tmp_path / "scene.tif"])
    assert named.scenes == [str(tmp_path / "scene.tif")]
    assert named.notes == []
    # A definition that does not name the output has nothing to say of it.
    shutil.copy(run.folder / "labels.tif", tmp_path)
    assert find([tmp_path / "labels.tif"]).polygons == []


def test_a_damaged_companion_is_passed_over_with_a_note(run, tmp_path):
    shutil.copy(run.folder / "map.gpkg", tmp_path)
    (tmp_path / "confidence.tif").write_bytes(b"II*\0 no raster")
    define(run, tmp_path)
    found = find([tmp_path / "map.gpkg"])
    assert found.doubts == []
    assert "is not a raster" in found.notes[0]
    (tmp_path / "map.qlr").write_text("<qlr")
    assert len(find([tmp_path / "map.gpkg"]).notes) == 1


def test_a_float_raster_is_a_scene_unless_its_nodata_says_confidence(raster):
    heights = asymmetric(1, 20, 30).astype(np.float32)
    assert raster_kind(str(raster(heights, name="dsm.tif"))) == "scene"
    assert raster_kind(str(raster(heights, name="other.tif", nodata=-9999))) == "scene"
    assert raster_kind(str(raster(heights / 200, name="sure.tif", nodata=-1))) == "confidence"
    doubt = raster(np.stack([heights[0] / 200] * 2), name="doubt.tif", nodata=-1, descriptions=("entropy", "gate"))
    assert raster_kind(str(doubt)) == "uncertainty"


def test_what_cannot_be_looked_at_is_refused_in_a_sentence(run, tmp_path):
    with pytest.raises(ConfigError, match="no output among these files"):
        find([run.scene])
    with pytest.raises(SceneError, match=r"gone\.gpkg does not exist"):
        find([tmp_path / "gone.gpkg"])
    with pytest.raises(SceneError, match=r"gone\.tif does not exist"):
        find([tmp_path / "gone.tif"])
    with pytest.raises(ConfigError, match="holds no outputs"):
        find([tmp_path])
    with pytest.raises(ConfigError, match="copy it here"):
        find(["s3://bucket/map.gpkg"])


def test_names_and_colours_come_from_the_style_inside_or_beside(run, tmp_path):
    expected = {item.id: (item.name, item.color) for item in run.classes}
    shutil.copy(run.polygons, tmp_path)
    inside = style_classes(tmp_path / "map.gpkg")
    assert {value: (item.name, item.color) for value, item in inside.items()} == expected
    (tmp_path / "map.fgb").touch()
    assert style_classes(tmp_path / "map.fgb") == {}
    shutil.copy(run.polygons.with_suffix(".qml"), tmp_path)
    assert style_classes(tmp_path / "map.fgb") == inside
    for damaged in ("<qgis", "<qgis/>", "<qgis><renderer-v2 attr='class_id'><categories/></renderer-v2></qgis>"):
        (tmp_path / "map.qml").write_text(damaged)
        assert style_classes(tmp_path / "map.fgb") == {}


def test_a_label_raster_tells_its_classes(run):
    assert isinstance(find([run.labels]).labels[0][1], Classes)
