"""The recipes for clusters can be read by what they are written for, and name options that exist."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import geoseg
from geoseg.engine.predict import Options
from geoseg_cli.batch import command

DOCS = Path(__file__).parent.parent / "docs"
TEXT = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("cluster.md", "scale.md"))
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.M | re.S)


def _blocks(kind: str) -> list[str]:
    return [text for name, text in BLOCKS if name == kind]


def test_there_are_recipes_of_each_kind() -> None:
    assert {name for name, _ in BLOCKS} == {"bash", "python", "yaml"}
    assert len(_blocks("python")) == 2


@pytest.mark.parametrize("text", _blocks("bash"))
def test_shell_recipes_parse_and_name_options_of_batch(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    known = {name for option in command.params for name in option.opts}
    for line in text.splitlines():
        if line.lstrip().startswith("geoseg batch"):
            assert {word for word in line.split() if word.startswith("-")} <= known


@pytest.mark.parametrize("text", _blocks("python"))
def test_python_recipes_parse_and_call_batch_as_it_is(text: str) -> None:
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    (batch,) = [call for call in calls if ast.unparse(call.func) == "geoseg.batch"]
    known = {field.name for field in dataclasses.fields(Options)} | set(inspect.signature(geoseg.batch).parameters)
    assert {word.arg for word in batch.keywords} <= known


def test_the_manifest_parses_and_selects_its_scheduler() -> None:
    (text,) = _blocks("yaml")
    manifest = yaml.safe_load(text)
    assert manifest["kind"] == "DaskCluster"
    assert manifest["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == manifest["metadata"]["name"]
    ports = [port["name"] for port in manifest["spec"]["scheduler"]["spec"]["containers"][0]["ports"]]
    assert [port["targetPort"] for port in manifest["spec"]["scheduler"]["service"]["ports"]] == ports
