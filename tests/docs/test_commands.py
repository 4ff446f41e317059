"""Every command of the documents is run, in the order of its page; those that cannot be are parsed, options and all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from geoseg.data import sample_labels
from geoseg_cli.main import main
from tests.docs.pages import PAGES, ROOT, Block, blocks, name, read, spans
from tests.docs.shell import OTHERS, command_of, every_option, lines, parsed

SHELL = [block for page in PAGES for block in blocks(page) if block.language in ("", "bash")]
# What a command needs that a test has not: it is parsed and goes no further.
NOT_RUN = {
    r"s3://|tcp://|tls://|https?://|scheduler": "a server or a cluster of the reader's",
    r"checkpoint\.pth": "a checkpoint of another program",
    r"^geoseg (demo|adapt) ": "minutes of work, which tests/cli do",
    r"\$|/shared/": "variables and folders of the reader's",
}
# Training goes on for a step or two: what it learns is not looked at here.
SHORTENED = {"train": ["--steps", "1", "--batch", "2", "--patch", "64", "--workers", "0"]}
# What needs no network takes seconds.
QUICK = re.compile(r"^cp |^geoseg (cluster|info scene|networks|vectorize)|again\.fgb")
# Pages whose commands run one after the other in one folder, which holds a scene and its labels.
RUN = (
    "README.md",
    "docs/adaptation.md",
    "docs/choosing.md",
    "docs/data.md",
    "docs/export.md",
    "docs/models.md",
    "docs/outputs.md",
    "docs/scripts.md",
    "docs/tiling.md",
)
# Those that run in a test of their own, and why.
ELSEWHERE = {
    "docs/looking.md": "after the README's, below",
    "docs/cluster.md": "with scenes and processes of their own: test_served_commands.py",
}
# These make a model in minutes, or from what a test has not: another one stands in for it.
MODELS = ("adapt", "import")
# Options in sentences that are not geoseg's.
FOREIGN = {"--no-dashboard", "--strict", "--nbmake", "--resources", "--recipe"}


def _reason(text: str) -> str | None:
    """Return why a command is not run here."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, text)), None)


def test_every_block_says_what_it_is() -> None:
    languages = {block.language for page in PAGES for block in blocks(page)}
    assert languages <= {"", "bash", "console", "csv", "json", "python", "text", "yaml"}


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_what_the_programs_take(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for words in lines(block):
        if words[0] == "geoseg":
            _parse(words[1:])
        else:
            assert words[0] in OTHERS, words
            _check_other(words)


def _parse(words: list[str]) -> None:
    """Let click take words apart.

    Raises:
        AssertionError: it refuses them.
    """
    try:
        parsed(words)
    except (LookupError, click.UsageError) as error:
        told = error.format_message() if isinstance(error, click.UsageError) else str(error)
        raise AssertionError(f"geoseg {' '.join(words)}: {told}") from error


def _check_other(words: list[str]) -> None:
    """Check targets of make, extras of pip and modules of Python against the repository."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.M)
        named = [word for word in words[1:] if "=" not in word]
        assert set(named) <= set(targets), words
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
        for asked in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(asked.split(",")) <= set(extras), words
    elif words[:2] == ["python", "-m"] and words[2].startswith("tests."):
        assert (ROOT / words[2].replace(".", "/")).exists(), words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_in_sentences_exist(page: Path) -> None:
    known = every_option()
    for span in spans(page):
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
            assert option in known | FOREIGN or span.startswith(("dask ", "pip ", "python ")), span
        words = span.split()
        if words[0] == "geoseg" and len(words) > 1 and words[1].islower() and not words[1].startswith("-"):
            command, arguments = command_of(words[1:])
            options = {option for param in command.params for option in param.opts} | {"--help"}
            assert {word for word in arguments if word.startswith("-")} <= options, span
        if words[0] == "make" and len(words) > 1:
            _check_other(words)


@pytest.fixture
def checkout(tmp_path: Path, piece: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in: the sample scene in its place, a piece of it that is quick, and its labels."""
    data = tmp_path / "geoseg" / "data"
    data.mkdir(parents=True)
    shutil.copy(piece(256, 288), data / "banepa_sample.tif")
    shutil.copy(sample_labels(), data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _runnable(page: Path) -> list[list[str]]:
    """Return the words of the commands of a page that are run."""
    found = [words for block in blocks(page) if block.language in ("", "bash") for words in lines(block)]
    known = [words for words in found if words[0] in ("geoseg", "cp")]
    return [words for words in known if words[1] in MODELS or _reason(" ".join(words)) is None]


def _run(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """Run commands one after the other; each must end well."""
    for words in commands:
        if words[0] == "cp":
            shutil.copy(words[1], words[2])
            continue
        if words[1] in MODELS:
            shutil.copy("land.safetensors", words[words.index("-o") + 1])
            continue
        with pytest.raises(SystemExit) as stop:
            main([*words[1:], *SHORTENED.get(words[1], [])])
        said = capsys.readouterr()
        assert stop.value.code == 0, f"{' '.join(words)}: {said.err}"
        assert "Traceback" not in said.err
    assert not [path for path in os.listdir() if path.endswith(".part")]


def test_commands_that_take_no_network_run(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [words for words in _runnable(ROOT / "README.md") if QUICK.search(" ".join(words))]
    assert len(commands) >= 8
    _run(commands, capsys)
    shutil.copy("segments.gpkg", "buildings.gpkg")
    _run(_runnable(ROOT / "docs" / "looking.md"), capsys)
    assert (checkout / "segments.gpkg").exists()
    assert (checkout / "smooth.gpkg").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run_in_their_order(
    page: str, checkout: Path, make_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    if page != "README.md":
        shutil.copy(checkout / "geoseg" / "data" / "banepa_sample.tif", "scene.tif")
        shutil.copy(sample_labels(), "roofs.geojson")
        shutil.copy("scene.tif", "new.tif")
        shutil.copy(make_bundle("plainconv", tile=128), "land.safetensors")
    _run(_runnable(ROOT / page), capsys)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_is_run_or_it_is_said_why_not(page: Path) -> None:
    if page.relative_to(ROOT).as_posix() not in (*RUN, *ELSEWHERE):
        assert not _runnable(page)


def test_a_slip_is_found_out() -> None:
    slips = (
        "predikt a.tif b.gpkg",
        "predict a.tif b.gpkg --simplfy 1",
        "predict a.tif",
        "cluster a.tif b.tif --segments x",
    )
    for slip in slips:
        with pytest.raises(AssertionError, match=slip.split()[0]):
            _parse(slip.split())
    _parse(["predict", "a.tif", "b.gpkg", "--simplify", "1"])


def test_what_is_not_run_stands_on_a_page() -> None:
    # A reason that no command has any more would hide the next one that it fits.
    text = "\n".join(" ".join(words) for block in SHELL for words in lines(block) if words[0] == "geoseg")
    for pattern in NOT_RUN:
        assert re.search(pattern, text, re.M), pattern
