"""Object storage on the command line: what cannot be written there is one sentence, and leaves nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from geoseg_cli.main import main
from tests.cli.test_errors import Fails, fails  # noqa: F401 - a fixture
from tests.conftest import Storage, asymmetric, write_raster

BAD = [
    ("s3://nowhere/out.gpkg", "s3://nowhere/.* there is no bucket nowhere: make it first"),
    ("s3://nowhere", "has no suffix"),
    ("s3:///out.gpkg", "names no bucket"),
    ("gs://maps/out.gpkg", "copy it from there"),
    ("abfs://maps/out.gpkg", "copy it from there"),
    ("/vsis3/maps/out.gpkg", "s3://bucket"),
]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A sound scene of 60 × 80 pixels, three bands."""
    return write_raster(tmp_path / "scene.tif", asymmetric(3, 60, 80))


@pytest.mark.parametrize(("out", "told"), BAD)
def test_bad_places_are_refused(
    storage: Storage,
    tmp_path: Path,
    scene: Path,
    plain: Path,
    fails: Fails,  # noqa: F811
    out: str,
    told: str,
) -> None:
    assert re.search(told, fails("predict", scene, out, "-m", plain))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.tif"]


@pytest.mark.parametrize("command", ["predict", "batch", "vectorize", "workdir"])
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "storage does not answer"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials were found"),
    ],
)
def test_a_storage_that_is_not_to_be_had_is_told_before_work(
    storage: Storage,
    tmp_path: Path,
    scene: Path,
    plain: Path,
    fails: Fails,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    settings: dict[str, str],
    told: str,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    out = storage / "other/out.gpkg"
    arguments = {
        "predict": ("predict", scene, out, "-m", plain),
        "batch": ("batch", scene, storage / "other", "-m", plain),
        "vectorize": ("vectorize", scene, out),
        "workdir": ("predict", scene, tmp_path / "out.gpkg", "-m", plain, "--workdir", storage / "work"),
    }[command]
    assert told in fails(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.tif"]
    assert storage.names() == []


def test_without_boto3_the_extra_is_named(
    storage: Storage,
    scene: Path,
    plain: Path,
    fails: Fails,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)  # as where it is not installed
    assert "run `pip install geoseg[s3]`" in fails("predict", scene, storage / "out.gpkg", "-m", plain)


@pytest.mark.slow
def test_files_are_told_by_their_addresses(
    storage: Storage, scene: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, labels = storage / "maps/out.gpkg", storage / "maps/out.tif"
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(scene), out, "-m", str(plain), "--labels", labels, "--quiet"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.splitlines() == [out, labels, storage / "maps/out.qlr"]
    assert storage.names() == [f"maps/out.{end}" for end in ("gpkg", "qlr", "qml", "tif", "tif.aux.xml")]
