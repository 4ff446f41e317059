"""``geoseg evaluate``: tables on stdout, files beside them, one sentence where it fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from geoseg.classes import Classes
from geoseg.outputs.cog import write_label_cog
from geoseg_cli.main import main
from tests.conftest import asymmetric, write_raster


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Half background, half roof; a column of the prediction is wrong, and one has no label."""
    reference = np.zeros((40, 40), np.uint8)
    reference[:, 20:] = 1
    prediction = reference.copy()
    prediction[:, 20] = 0
    prediction[:, 39] = 255
    paths = []
    for name, labels in (("prediction", prediction), ("reference", reference)):
        plain = write_raster(tmp_path / f"{name}_plain.tif", labels, nodata=255)
        write_label_cog(plain, tmp_path / f"{name}.tif", Classes.parse("background,a <roof>"))
        paths.append(tmp_path / f"{name}.tif")
    return paths[0], paths[1]


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def _cells(text: str) -> dict[str, list[str]]:
    lines = (re.split(r"  +", line) for line in text.splitlines() if line)
    return {cells[0]: cells[1:] for cells in lines}


def test_the_table_tells_the_scores(pair, capsys):
    assert _run("evaluate", *pair) == 0
    said = _cells(capsys.readouterr().out)
    roof = (40 * 18) / (40 * 19)
    assert said["a <roof>"][:4] == [f"{roof:.4f}", f"{2 * roof / (1 + roof):.4f}", "1.0000", f"{roof:.4f}"]
    assert said["background"][0] == f"{20 / 21:.4f}"
    assert said["overall accuracy"] == [f"{38 / 39:.4f}"]
    assert said["mean IoU"] == [f"{(roof + 20 / 21) / 2:.4f}"]
    assert said["object F1 at IoU 0.5"] == ["1.0000"]
    assert said["pixels compared"] == [str(40 * 39)]
    assert said["no label in the prediction"] == ["40"]


def test_files_tell_the_same(pair, tmp_path, capsys):
    outputs = [tmp_path / name for name in ("f.json", "f.html", "f.tif")]
    options = [part for pair_ in zip(("--json", "--html", "--errors"), outputs, strict=True) for part in pair_]
    confidence = write_raster(tmp_path / "c.tif", np.full((40, 40), 0.75, np.float32))
    assert _run("evaluate", *pair, "--erode", 1, "--confidence", confidence, *options, "-q") == 0
    said = capsys.readouterr()
    assert said.err == ""
    record = json.loads(outputs[0].read_text())
    cells = _cells(said.out)
    assert cells["mean IoU"] == [f"{record['mean_iou']:.4f}"]
    assert cells["mean IoU, 1px off boundaries"] == [f"{record['eroded']['mean_iou']:.4f}"] == ["1.0000"]
    assert cells["expected calibration error"] == [f"{38 / 39 - 0.75:.4f}"]
    assert cells["0.7 to 0.8"] == ["0.7500", f"{38 / 39:.4f}", str(40 * 39)]
    assert record["matrix"] == [[800, 0], [40, 720]]
    page = outputs[1].read_text()
    assert f"{record['mean_iou']:.4f}" in page
    assert outputs[2].stat().st_size > 0
    assert Path(f"{outputs[2].with_suffix('')}.qml").exists()


def test_structure_is_told(pair, tmp_path, capsys):
    assert _run("evaluate", *pair, "--structure", tmp_path / "s.tif", "--json", tmp_path / "s.json", "-q") == 0
    cells = _cells(capsys.readouterr().out)
    record = json.loads((tmp_path / "s.json").read_text())["structure"]
    names = {"s1": "mean S1 (level), classes present", "s2": "mean S2 (structure), classes present"}
    for key, name in {**names, "ssim": "mean SSIM, classes present", "d2": "D2 of the maps"}.items():
        assert cells[name] == [f"{record[key]:.4f}"]
        assert 0 < record[key] < 1
    assert (tmp_path / "s.tif").stat().st_size > 0


def test_values_are_compared_band_by_band(tmp_path, capsys):
    images = [asymmetric(2, 30, 30), asymmetric(2, 30, 30)[:, ::-1]]
    paths = [write_raster(tmp_path / f"{i}.tif", image) for i, image in enumerate(images)]
    options = ["--values", "--structure", tmp_path / "s.tif", "--json", tmp_path / "s.json", "-q"]
    assert _run("evaluate", *paths, *options) == 0
    cells = _cells(capsys.readouterr().out)
    record = json.loads((tmp_path / "s.json").read_text())["structure"]
    assert cells["band"] == ["S1", "S2", "SSIM", "D2"]
    for each in record["planes"]:
        assert cells[each["name"]] == [f"{each[key]:.4f}" for key in ("s1", "s2", "ssim", "d2")]
    assert cells["D2 of the maps"] == [f"{record['d2']:.4f}"]
    assert cells["data range"] == ["255"]
    assert cells["windows compared"] == ["400"]


def test_without_objects_nothing_is_said_of_them(pair, capsys):
    assert _run("evaluate", *pair, "--no-objects") == 0
    assert "object" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--boundary", "wide"], 2, "--boundary 'wide' is no distance"),
        (["--grid", "reference", "--class-field", "kind"], 2, "--class-field kind is of no use"),
        (["--aoi", "missing.gpkg"], 1, "missing.gpkg does not exist"),
        (["--json", "missing/f.json"], 1, "the folder missing of the output f.json does not exist"),
        (["--values", "--erode", "2"], 2, "--erode is about classes: leave it out, or leave out --values"),
        (["--values", "--classes", "a,b"], 2, "--classes is about classes"),
        (["--data-range", "10"], 2, "--data-range goes with --values"),
        (["--json", "x", "--html", "x"], 2, "two outputs have the same name"),
    ],
)
def test_faults_are_one_sentence(options, code, message, pair, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert _run("evaluate", *pair, *options, "-q") == code
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert message in line
