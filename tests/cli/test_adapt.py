"""``geoseg adapt`` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_train import QUICK, one_thread, run  # noqa: F401 - a fixture
from tests.training.conftest import squares  # noqa: F401 - a fixture


def test_adapt(squares: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    scene, labels = squares
    model, adapted = tmp_path / "model.safetensors", tmp_path / "adapted.safetensors"
    quick = [*QUICK[QUICK.index("--steps") :]]
    assert (
        run("train", "--scene", scene, "--labels", labels, "--classes", "background,square", *QUICK, "-o", model) == 0
    )
    capfd.readouterr()
    given = ["adapt", model, "--source", scene, labels, "--target", scene, "-o", adapted, *quick]
    more = ["--target-labels", labels, "--validation", "0.7:1", "--mixup", "0.7", "--set", "training.validate_every=3"]
    assert run(*given, *more) == 0
    told = capfd.readouterr()
    assert told.out == f"{adapted}\n"
    assert "training: 6/6" in told.err
    assert "kept are the weights of 6" in told.err
    assert "source: mean IoU 0." in told.err
    assert "target: mean IoU 0." in told.err
    assert run(*given, "-q") == 1
    assert "exists already" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--method", "magic"], "'magic' is not one of"),
        (["--target-labels", "a", "--target-labels", "b"], "2 files of target labels were given for 1 targets"),
        (["--set", "training.patch"], "'training.patch' is not KEY=VALUE"),
    ],
)
def test_slips_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str], change: list[str], message: str) -> None:
    output = tmp_path / "out.safetensors"
    given = ["adapt", "buildings", "--source", "a.tif", "a.gpkg", "--target", "b.tif", "-o", output]
    assert run(*given, *change) == 2
    assert message in capfd.readouterr().err
    assert run(*given) == 1
    assert "a.tif" in capfd.readouterr().err
    assert not output.exists()
