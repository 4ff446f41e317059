"""How commands speak: options that all of them have, one JSON document for scripts, examples, and completion."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import rasterio

import geoseg
from geoseg_cli.main import _COMMANDS, main
from geoseg_cli.main import geoseg as program

# These print nothing but their answer, or a script.
SILENT = {"completion"}


def _command(name: str) -> click.Command:
    command = program.get_command(click.Context(program), name)
    assert command is not None
    return command


def _options(name: str) -> dict[str, click.Parameter]:
    return {text: each for each in _command(name).params for text in each.opts if text.startswith("-")}


def _examples() -> Iterator[tuple[str, str]]:
    for name in _COMMANDS:
        _, _, rest = (_command(name).help or "").partition("Example:")
        for line in rest.splitlines():
            if line.strip().startswith("geoseg "):
                yield name, line.strip()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command: exit code, stdout, stderr."""

    def go(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return go


@pytest.fixture
def document(run: Callable[..., tuple[int, str, str]]) -> Callable[..., dict[str, Any]]:
    """Return a function that runs a command with ``--json``, and reads the one document that it may print."""

    def go(*arguments: object) -> dict[str, Any]:
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        record: dict[str, Any] = json.loads(out)
        assert record["command"] == arguments[0]
        assert record["version"] == geoseg.__version__
        assert record["seconds"] >= 0
        assert isinstance(record["notes"], list)
        for name in record["files"]:
            assert Path(name).exists()
        return record

    return go


# Options


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_can_be_quiet_verbose_and_read_by_a_program(name: str) -> None:
    found = _options(name)
    if name in SILENT:
        return
    assert found["-q"] is found["--quiet"]
    assert found["-v"] is found["--verbose"]
    assert "--json" in found


def test_quiet_and_verbose_are_opposites(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("losses", "-q", "-v")
    assert (code, out) == (2, "")
    assert "are opposites" in err


@pytest.mark.parametrize(("name", "example"), _examples())
def test_every_example_is_understood(name: str, example: str) -> None:
    _, own, *arguments = shlex.split(example)
    assert own == name
    # Commands keep what they were told of help at first: it must be what the program tells them.
    parent = click.Context(program, info_name="geoseg", **program.context_settings)
    with _command(name).make_context(name, arguments, parent=parent) as context:
        assert context.params or name in {"networks", "losses", "methods"}


def test_every_command_has_an_example() -> None:
    assert {name for name, _ in _examples()} == set(_COMMANDS)


# One document


def test_predict_tells_a_program_what_it_made(
    document: Callable[..., dict[str, Any]], tmp_path: Path, town: Path, plain: Path
) -> None:
    out, labels = tmp_path / "town.gpkg", tmp_path / "labels.tif"
    record = document("predict", town, out, "-m", plain, "--labels", labels)
    assert record["files"] == [str(out), str(labels), str(tmp_path / "town.qlr")]
    with rasterio.open(labels) as file:
        values = file.read(1)
    assert record["pixels"] == values.size
    assert record["chunks"] == 1
    assert record["chunks_resumed"] == 0
    assert record["holes"] == []
    classes = ["background", "roof", "road", "tree", "water"]
    assert list(record["areas_m2"]) == classes
    labelled, ground = (values != 255).sum(), sum(record["areas_m2"].values())
    for number, name in enumerate(classes):
        # On so small a scene all pixels are of one size on the ground, to a ten-thousandth.
        share = (values == number).sum() / labelled
        assert record["areas_m2"][name] / ground == pytest.approx(share, rel=1e-4, abs=1e-6)
    assert record["polygons"] > 40
    assert record["pixels_per_s"] == pytest.approx(record["pixels"] / record["computing_s"], rel=0.01)


def test_the_summary_tells_time_speed_and_ground(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, town: Path, plain: Path
) -> None:
    code, out, err = run("predict", town, tmp_path / "a.gpkg", "-m", plain)
    assert (code, out) == (0, f"{tmp_path / 'a.gpkg'}\n")
    assert "264 k pixels" in err
    assert "pixels a second" in err
    assert "from beginning to end" in err
    assert " m² (" in err
    code, out, err = run("predict", town, tmp_path / "b.gpkg", "-m", plain, "-v")
    assert "tiles of 128 pixels with a halo of" in err
    assert "by torch on" in err
    assert "segmenting: 1/1 after" in err
    # What was shown of the log does not go on after the command.
    _, _, err = run("predict", town, tmp_path / "c.gpkg", "-m", plain)
    assert "tiles of 128 pixels" not in err


def test_the_other_commands_tell_a_program_what_they_made(
    document: Callable[..., dict[str, Any]], tmp_path: Path, town: Path
) -> None:
    model = tmp_path / "m.safetensors"
    made = document("init", model, "--network", "plainconv", "--classes", "background,roof:#d55e00", "--tile", 64)
    assert made["files"] == [str(model)]
    assert made["classes"][1] == {"id": 1, "name": "roof", "color": "#d55e00", "background": False}
    assert (made["tile"], made["bands"], made["method"]) == (64, ["red", "green", "blue"], "network")
    labels = tmp_path / "labels.tif"
    document("predict", town, labels, "-m", model)
    polygons = document("vectorize", labels, tmp_path / "labels.fgb", "--keep-background")
    assert polygons["polygons"] >= 1
    assert polygons["files"] == [str(tmp_path / "labels.fgb")]
    judged = document("evaluate", labels, labels, "--html", tmp_path / "page.html")
    assert judged["overall_accuracy"] == 1.0
    assert judged["files"] == [str(tmp_path / "page.html")]
    (tmp_path / "names.csv").write_text("1,barn\n")
    named = document("name", labels, tmp_path / "names.csv", tmp_path / "named.tif")
    assert [each["name"] for each in named["classes"]] == ["background", "barn"]


def test_a_batch_tells_a_program_of_each_scene(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, town: Path, part: Path, plain: Path
) -> None:
    code, out, err = run("batch", town, part, tmp_path / "no.tif", tmp_path / "out", "-m", plain, "--json")
    assert code == 1, err
    record = json.loads(out)
    assert [(each["name"], each["status"]) for each in record["scenes"]] == [
        ("town", "done"),
        ("part", "done"),
        ("no", "failed"),
    ]
    assert "no.tif" in record["scenes"][2]["error"]
    assert sum(record["areas_m2"].values()) == pytest.approx(
        sum(sum(each["areas_m2"].values()) for each in record["scenes"])
    )
    assert all(Path(name).exists() for name in record["files"])


def test_an_error_leaves_stdout_empty(run: Callable[..., tuple[int, str, str]], tmp_path: Path, plain: Path) -> None:
    code, out, err = run("predict", tmp_path / "no.tif", tmp_path / "a.gpkg", "-m", plain, "--json")
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")


@pytest.mark.slow
def test_a_training_tells_a_program_how_well_it_went(
    document: Callable[..., dict[str, Any]], tmp_path: Path, crop: Path, footprints: Path
) -> None:
    record = document(
        "train", "--scene", crop, "--labels", footprints, "--classes", "background,roof", "--network", "plainconv",
        "--steps", 2, "--batch", 1, "--patch", 64, "--validation", "0.5:1", "-o", tmp_path / "m.safetensors",
    )  # fmt: skip
    assert record["steps"] == 2
    assert set(record["figures"]["iou"]) == {"background", "roof"}
    assert record["files"] == [str(tmp_path / "m.safetensors")]


# Completion


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], list[str]]:
    """Return a function that lets a bash with the script complete the last word of a line, in a folder."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    folder = tmp_path_factory.mktemp("shell")
    own = folder / "geoseg"
    own.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m geoseg_cli "$@"\n')
    own.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    def complete(line: str, place: str = ".") -> list[str]:
        words = line.split(" ")
        code = (
            'eval "$(geoseg completion bash)" || exit 3\n'
            "read -r _ _ _ _ _ function _ < <(complete -p geoseg | sed 's/.*-F/x x x x x/')\n"
            f"COMP_WORDS=({' '.join(shlex.quote(word) for word in words)})\nCOMP_CWORD={len(words) - 1}\n"
            '"$function" geoseg "${COMP_WORDS[COMP_CWORD]}"\n'
            "printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run([bash, "--norc", "-c", code], capture_output=True, text=True, env=environment, cwd=place)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return complete


def test_bash_completes_commands_options_values_and_models(shell: Callable[..., list[str]]) -> None:
    assert shell("geoseg co") == ["coarse-stats", "coarse-check", "completion"]
    assert shell("geoseg predict --conf") == ["--confidence"]
    assert shell("geoseg predict --blend h") == ["hann"]
    assert shell("geoseg info buil") == ["buildings"]
    assert "unet" in shell("geoseg init x --network un")


@pytest.mark.parametrize("kind", ["zsh", "fish"])
def test_other_shells_get_scripts_of_their_own(run: Callable[..., tuple[int, str, str]], kind: str) -> None:
    code, out, _ = run("completion", kind)
    assert code == 0
    assert "_GEOSEG_COMPLETE" in out
    assert f"{kind}_complete" in out


def test_areas_of_a_scene_do_not_depend_on_its_chunks(tmp_path: Path, town: Path, plain: Path) -> None:
    one, many = (geoseg.predict(town, tmp_path / f"{chunk}.tif", plain, chunk=chunk).areas_m2 for chunk in (2048, 128))
    assert one.keys() == many.keys()
    np.testing.assert_allclose(list(one.values()), list(many.values()), rtol=1e-12)
