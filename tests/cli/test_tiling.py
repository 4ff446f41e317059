"""``geoseg info MODEL --tiling SCENE`` and ``predict --uncertainty`` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio

from geoseg.bundle import read_bundle
from geoseg_cli.main import main

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command which must succeed, and returns what it prints."""

    def go(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert stop.value.code == 0, said.err
        return said.out

    return go


@pytest.fixture(scope="module")
def deep(make_bundle: Callable[..., Path]) -> Path:
    """A network that reaches 4 pixels, with a halo of 2."""
    return make_bundle("plainconv", options={"depth": 4}, tile=128, halo=2)


def test_the_table_tells_halos_and_which_will_do(run: Run, deep: Path, town: Path) -> None:
    lines = run("info", deep, "--tiling", town, "--crop", 256, "--bound", "0.01").splitlines()
    assert str(town) in lines[0]
    assert lines[1].split() == ["halo", "px", "labels", "differ", "score", "error"]
    assert [line.split()[0] for line in lines[2:-1]] == ["0", "2", "16", "32", "48", "51"]
    assert "the model's halo" in lines[3]
    assert lines[-1].startswith("A halo of ")
    assert "within 0.01" in lines[-1]


def test_the_table_as_json(run: Run, deep: Path, town: Path) -> None:
    record = json.loads(run("info", deep, "--tiling", town, "--crop", 256, "--json"))
    assert [row["halo"] for row in record["comparison"]["differences"]] == [0, 2, 16, 32, 48, 51]
    assert record["stored"] == 2
    assert record["comparison"]["decision"] in {"labels", "scores"}


def test_a_bundle_tells_what_was_measured_when_it_was_made(run: Run, tmp_path: Path, deep: Path) -> None:
    assert "exact from a halo of 4" in run("info", deep)
    tiling = read_bundle(deep).description.tiling
    assert tiling is not None
    assert tiling.halo_exact == 4
    assert tiling.bound is None  # the halo was given
    assert tiling.decided_by in {"labels", "scores"}
    run("init", tmp_path / "new.safetensors", "--network", "plainconv", "--classes", "background,roof")
    made = read_bundle(tmp_path / "new.safetensors").description
    assert made.tiling is not None
    assert (made.tile_exact, made.halo, made.tiling.halo_exact, made.tiling.decided_by) == (True, 3, 3, "structure")
    assert made.tiling.score_error <= 1e-5  # type: ignore[operator]
    assert made.tiling.bound == 1e-4


def test_uncertainty_from_the_command_line(run: Run, tmp_path: Path, town: Path, plain: Path) -> None:
    run("predict", town, tmp_path / "o.tif", "-m", plain, "--uncertainty", tmp_path / "u.tif", "-q")
    with rasterio.open(tmp_path / "u.tif") as file:
        assert file.descriptions == ("entropy",)
        values = file.read(1, masked=True)
    assert 0 <= values.min() < values.max() <= 1
    assert (tmp_path / "o.qlr").exists()
