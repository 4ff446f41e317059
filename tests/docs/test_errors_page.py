"""The page of errors: its messages are those of the code, each under its class, and exit codes are what it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import geoseg.errors
from geoseg.errors import ConfigError, GeosegError
from geoseg_cli.main import main
from tests.docs.messages import GAP, messages, texts
from tests.docs.pages import ROOT, read

PAGE = ROOT / "docs" / "errors.md"
KINDS = [
    name
    for name, kind in vars(geoseg.errors).items()
    if isinstance(kind, type) and issubclass(kind, GeosegError) and kind is not GeosegError
]


def _rows() -> list[tuple[str, str]]:
    """Return the class and the message of every row of the page."""
    found = []
    for section in re.split(r"^## ", read(PAGE), flags=re.M)[1:]:
        kind = section.split("\n", 1)[0].strip()
        found += [(kind, message) for message in re.findall(r"^\| `([^`]+)` \|", section, re.M)]
    return found


def _fits(pattern: str, message: str) -> bool:
    """Whether the words of a pattern stand in a message, in their order and where the message begins."""
    place = 0
    for part in (part for part in pattern.split(GAP) if part.strip()):
        found = message.find(part, place)
        if found < 0 or (place == 0 and not pattern.startswith(GAP) and found):
            return False
        place = found + len(part)
    return True


def test_the_page_speaks_of_every_kind() -> None:
    assert {kind for kind, _ in _rows()} == set(KINDS)
    assert len(_rows()) > 40


@pytest.mark.parametrize(("kind", "pattern"), _rows())
def test_a_message_is_one_of_the_code(kind: str, pattern: str) -> None:
    kinds = {each for each, message in messages() if _fits(pattern, message)}
    if kinds:
        assert kind in kinds
    else:  # made by a function, which the code that raises it calls
        assert any(_fits(pattern, text) for text in texts())


def test_a_message_that_is_not_there_is_found_out() -> None:
    assert not any(_fits("… has no CRS: throw it away.", text) for text in texts())
    assert not _fits("exists already", "… exists already: choose another name")


def test_what_a_kind_inherits_is_as_the_page_says() -> None:
    text = read(PAGE)
    for kind in KINDS:
        (said,) = re.findall(rf"^## {kind}\n\n.*?also an? `(\w+)`", text, re.M | re.S)[:1]
        assert said in {base.__name__ for base in getattr(geoseg.errors, kind).__mro__}


def test_exit_codes_are_as_the_page_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.tif")
    for words, code in (
        (["predict", missing, str(tmp_path / "out.gpkg")], 1),
        (["init", str(tmp_path / "m.safetensors"), "--network", "unett", "--classes", "a,b"], 2),
        (["predict"], 2),
        (["methods"], 0),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == code
    assert "there is no network named 'unett'; did you mean" in capsys.readouterr().err
    assert issubclass(ConfigError, ValueError)


def test_every_name_of_an_error_class_on_the_page_is_one() -> None:
    tree = ast.parse(read(ROOT / "geoseg" / "errors.py"))
    known = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    told = set(re.findall(r"\b(?:Geoseg|Scene|Bundle|Labels|Config|Output|Run)(?:Error|Warning)\b", read(PAGE)))
    assert told == known
