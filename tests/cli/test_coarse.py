"""Coarse labels from end to end: statistics, training, prediction, and where it contradicts the coarse map."""

from __future__ import annotations

import warnings
import xml.etree.ElementTree as ET

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
import yaml
from affine import Affine

from geoseg.errors import GeosegWarning
from geoseg_cli.main import _show_warning, main
from tests.conftest import write_raster


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def coarse(squares, tmp_path):
    """Cells of a ten-thousandth of a degree (about 10 m) with classes 0, 1 and 2 by the share of squares."""
    import pyproj

    with rasterio.open(squares[1]) as source:
        labels, to_utm = source.read(1), source.transform
    rows, cols = np.indices(labels.shape) + 0.5
    turn = pyproj.Transformer.from_crs(32645, 4326, always_xy=True)
    lon, lat = turn.transform(*(to_utm * (cols, rows)))
    step = 1e-4
    affine = Affine(step, 0, lon.min() - 1e-5, 0, -step, lat.max() + 1e-5)
    col, row = (np.floor(each).astype(int) for each in ~affine * (lon, lat))
    shape = (row.max() + 1, col.max() + 1)
    ids = (row * shape[1] + col).ravel()
    pixels, ones = (np.bincount(ids, w, shape[0] * shape[1]) for w in (None, labels.ravel()))
    values = np.digitize(ones / np.maximum(pixels, 1), [0.08, 0.2]).astype(np.uint8).reshape(shape)
    return write_raster(tmp_path / "coarse.tif", values, transform=affine, crs="EPSG:4326")


def test_from_a_coarse_map_to_labels_and_doubts(squares, coarse, tmp_path, capfd):
    table, model, labels, doubts = (tmp_path / n for n in ("t.csv", "m.safetensors", "labels.tif", "doubts.tif"))
    given = (squares[0], coarse, squares[1], table, "--classes", "background,square", "-q")
    assert run("coarse-stats", *given, "--min-blocks", 5, "--min-labelled", 0.5) == 0
    told = capfd.readouterr()
    assert told.out.startswith("coarse class  blocks")
    assert told.out.endswith(f"{table}\n")
    assert "3 coarse classes of" in told.err
    assert run("coarse-stats", *given) == 1
    assert "exists already" in capfd.readouterr().err

    scene = {"image": str(squares[0]), "coarse": str(coarse)}
    config = {
        "data": {"scenes": [scene], "classes": "background,square"},
        "targets": "coarse",
        "coarse": {"sources": [{"table": str(table), "least_deviation": 0.03, "max_block_grad": 1.0}]},
        "network": {"name": "lsr-fcn", "options": {"width": 8, "depth": 2}},
        "training": {"steps": 60, "batch": 4, "patch": 64, "lr": 0.02, "workers": 0, "device": "cpu", "average": 0.9},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert run("train", tmp_path / "c.yaml", "-o", model, "-q") == 0
    assert run("predict", squares[0], labels, "-m", model, "-q") == 0
    with rasterio.open(labels) as found, rasterio.open(squares[0]) as image, rasterio.open(squares[1]) as truth:
        assert (found.crs, found.transform, found.shape) == (image.crs, image.transform, image.shape)
        predicted, true = found.read(1) == 1, truth.read(1) == 1
    assert (predicted & true).sum() > 0.6 * (predicted | true).sum()

    capfd.readouterr()
    assert run("coarse-check", labels, coarse, doubts, "--table", table, "-q") == 0
    assert "beyond 4" in capfd.readouterr().out
    with rasterio.open(doubts) as found, rasterio.open(coarse) as source:
        assert found.crs == source.crs
        assert found.descriptions == ("background", "square", "largest")
        background, square, largest = found.read()
        known = ~np.isnan(square)
        np.testing.assert_allclose(background[known], -square[known], atol=1e-4)
        assert np.array_equal(np.abs(largest[known]), np.abs(background[known]))
    renderer = ET.parse(doubts.with_suffix(".qml")).find("pipe/rasterrenderer")
    assert (renderer.get("band"), renderer.get("type")) == ("3", "singlebandpseudocolor")


def test_a_check_finds_the_block_that_is_wrong(squares, coarse, tmp_path):
    """By hand: a district that is all squares where the table expects a tenth, deviation 0.1."""
    labels = np.zeros((128, 192), np.uint8)
    labels[:, 96:] = 1
    prediction = write_raster(tmp_path / "p.tif", labels)
    boxes = [shapely.box(350_000 + 48 * i, 3_060_000 - 64, 350_048 + 48 * i, 3_060_000) for i in range(2)]
    frame = geopandas.GeoDataFrame({"kind": ["open", "open"]}, geometry=boxes, crs=32645)
    frame.to_file(tmp_path / "d.gpkg")
    (tmp_path / "t.csv").write_text("code,mean_square,sd_square\nopen,0.1,0.1\n")
    given = ("coarse-check", prediction, tmp_path / "d.gpkg")
    options = ("--table", tmp_path / "t.csv", "--classes", "background,square", "--coarse-field", "kind", "-q")
    assert run(*given, tmp_path / "out.tif", *options) == 2
    assert run(*given, tmp_path / "out.gpkg", *options) == 0
    found = geopandas.read_file(tmp_path / "out.gpkg")
    np.testing.assert_allclose(found["residual_square"], [-1, 9], rtol=1e-3)
    np.testing.assert_allclose(found["residual_largest"].abs(), [1, 9], rtol=1e-3)
    assert found["coarse_class"].tolist() == ["open", "open"]
    assert ET.parse(tmp_path / "out.qml").find("renderer-v2").get("attr") == "residual_largest"


def test_an_area_that_is_none_is_refused(squares, coarse, tmp_path, capfd):
    given = (squares[0], coarse, squares[1], tmp_path / "t.csv", "--classes", "background,square")
    assert run("coarse-stats", *given, "--area", "0.8:0.2") == 2
    assert "two rising shares of the width" in capfd.readouterr().err
    assert not (tmp_path / "t.csv").exists()


@pytest.fixture
def table(tmp_path):
    """What the classes of ``coarse`` are made of, by their definition."""
    (tmp_path / "classes.csv").write_text("code,low_square,high_square\n0,0,0.08\n1,0.08,0.2\n2,0.2,1\n")
    return tmp_path / "classes.csv"


@pytest.fixture
def training(squares, coarse, table, tmp_path):
    """Return a function that writes settings of a short training on coarse labels alone."""

    def make(labels=coarse, classes=table, **source):
        settings = {
            "data": {"scenes": [{"image": str(squares[0]), "coarse": str(labels)}], "classes": "background,square"},
            "targets": "coarse",
            "coarse": {"sources": [{"table": str(classes), **source}]},
            "network": {"name": "lsr-fcn", "options": {"width": 4, "depth": 1}},
            "training": {"steps": 2, "batch": 2, "patch": 64, "workers": 0, "device": "cpu"},
        }
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
        return tmp_path / "c.yaml"

    return make


@pytest.mark.parametrize("kind", ["raster", "polygons", "beyond the CRS"])
def test_coarse_labels_of_another_place_are_refused_by_every_command(
    squares,
    table,
    training,
    tmp_path,
    capfd,
    kind,
):
    away, field = tmp_path / "away.tif", ()
    if kind == "polygons":
        away, field = tmp_path / "away.gpkg", ("--coarse-field", "kind")
        frame = geopandas.GeoDataFrame({"kind": [1]}, geometry=[shapely.box(10.0, 50.0, 10.1, 50.1)], crs=4326)
        frame.to_file(away)
    else:
        # Half the world away, or in a CRS that does not reach the scene at all.
        affine, crs = (
            (Affine(30, 0, 9e5, 0, -30, 9e5), 32645) if kind == "raster" else (Affine(500, 0, 0, 0, -500, 0), 3031)
        )
        write_raster(away, np.ones((9, 9), np.uint8), transform=affine, crs=f"EPSG:{crs}")
    labels, classes = squares[1], ("--classes", "background,square", "-q")
    for arguments in (
        ("coarse-stats", squares[0], away, labels, tmp_path / "out.csv", *classes, *field),
        ("coarse-check", labels, away, tmp_path / f"out{away.suffix}", "--table", table, *classes, *field),
        (
            "train",
            training(away, **({"class_field": "kind"} if field else {})),
            "-o",
            tmp_path / "out.safetensors",
            "-q",
        ),
    ):
        assert run(*arguments) == 1
        told = capfd.readouterr().err.splitlines()
        assert len(told) == 1
        assert f"{away} does not meet the scene" in told[0]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]


def test_classes_without_statistics_are_named(squares, coarse, table, training, tmp_path, capfd):
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    for arguments in (
        (
            "coarse-check",
            squares[1],
            coarse,
            tmp_path / "out.tif",
            "--table",
            table,
            "--classes",
            "background,square",
            "-q",
        ),
        ("train", training(), "-o", tmp_path / "out.safetensors", "-q"),
    ):
        assert run(*arguments) == 1
        told = capfd.readouterr().err.splitlines()
        assert len(told) == 1
        assert "coarse.tif has the coarse class 2, of which the table says nothing (it has 0, 1)" in told[0]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]


def test_classes_that_tell_nothing_apart_are_warned_of_with_numbers(training, tmp_path, capfd, monkeypatch):
    same = tmp_path / "same.csv"
    same.write_text("code,mean_square,sd_square\n0,0.1,0.05\n1,0.12,0.05\n2,0.13,0.05\n")
    monkeypatch.setattr(warnings, "showwarning", _show_warning)
    with warnings.catch_warnings():
        warnings.simplefilter("default", GeosegWarning)
        assert run("train", training(classes=same), "-o", tmp_path / "m.safetensors", "-q") == 0
    told, *others = capfd.readouterr().err.splitlines()
    assert told.startswith(f"Warning: 3 coarse classes of {same}: means at most 0.042 apart")
    assert "by 0.018: below 0.05 the network cannot learn from them which is which of background and square" in told
    assert not [line for line in others if "Warning" in line]
