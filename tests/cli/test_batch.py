"""``geoseg batch`` as a user types it: what is printed, and what the exit code tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geoseg_cli.main import main
from tests.conftest import asymmetric, write_raster


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], list[str]]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out.splitlines(), said.err.splitlines()


def test_the_exit_code_tells_whether_all_is_done(
    tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    town = write_raster(tmp_path / "town.tif", asymmetric(3, 150, 130))
    (tmp_path / "list.txt").write_text(f"{town}\nmissing.tif\n")
    command = ("batch", tmp_path / "list.txt", tmp_path / "out", "-m", plain, "--format", "tif", "-q")
    code, out, err = _run(capsys, *command)
    assert code == 1
    assert [Path(line).name for line in out] == ["report.json", "report.csv", "report.html", "collection.json"]
    assert all(Path(line).is_file() for line in out)
    assert err[0].startswith("Failed: missing: ")
    assert "missing.tif does not exist" in err[0]
    assert err[1].startswith("1 of 2 scenes are done, 1 failed; it took ")
    code, _, err = _run(capsys, "batch", town, tmp_path / "out", "-m", plain, "--format", "tif")
    assert code == 0
    assert err[-1].startswith("1 of 1 scenes are done, 1 of them before; it took ")
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["totals"]["kept"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("none/*.tif", "out"), 1, "no file matches none/*.tif"),
        (("a.tif", "out", "--format", "doc"), 2, ".doc is no format"),
        (("a.tif", "out", "--resource", "GPU=1"), 2, "--scheduler"),
        (("a.tif", "pyproject.toml"), 1, "pyproject.toml is a file"),
        (("out",), 2, "Missing argument"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_sentence(
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    got, _, err = _run(capsys, "batch", *arguments, "-m", plain, "-q")
    assert got == code
    assert message in err[-1]
    assert not any(line.startswith("Traceback") for line in err)
