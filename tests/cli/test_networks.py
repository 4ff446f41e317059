"""``geoseg networks``: the list, one network, and everything for programs."""

import json
import re

import pytest
from click.testing import CliRunner

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.facts import facts
from geoseg_cli.networks import command


def _lines(*arguments):
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output.splitlines()


def test_the_list_has_a_line_a_network_in_aligned_columns():
    lines = _lines()
    assert [line.split()[0] for line in lines] == ["name", *networks.every_name()]
    start = lines[0].index("what it is")
    for line, name in zip(lines[1:], networks.every_name(), strict=True):
        assert line[start:] == networks.info(name).summary


def test_a_line_says_what_was_measured():
    found = facts("unet")
    (line,) = (line for line in _lines() if line.startswith("unet "))
    cells = re.split(r"  +", line)
    assert cells[:6] == ["unet", "resnet18", "14.33 M", f"{found.macs / 1e9:.1f} G", "32", "yes"]


def test_one_network_in_full():
    cells = dict(re.split(r"  +", line, maxsplit=1) for line in _lines("fcn8s"))
    assert cells["source"] == networks.info("fcn8s").source
    assert cells["parameters"] == f"{facts('fcn8s').parameters:,}"
    assert cells["MACs at 512 × 512"] == f"{facts('fcn8s').macs:,}"
    assert cells["tiles exact"] == "yes"


def test_a_network_not_measured_yet_is_listed_without_figures(monkeypatch):
    monkeypatch.setattr("geoseg.networks.facts.facts", lambda name: None)
    assert [line.split()[0] for line in _lines()][1:] == list(networks.every_name())
    assert "parameters" not in "\n".join(_lines("unet"))
    assert json.loads("\n".join(_lines("unet", "--json")))["measured"] is None


def test_json_holds_everything():
    records = json.loads("\n".join(_lines("--json")))
    assert [record["name"] for record in records] == list(networks.every_name())
    (record,) = (record for record in records if record["name"] == "plainconv")
    assert record == json.loads("\n".join(_lines("plainconv", "--json")))
    assert record["source"] == networks.info("plainconv").source
    assert record["measured"]["macs"] == facts("plainconv").macs


def test_an_unknown_network_is_refused():
    with pytest.raises(ConfigError, match="no network named 'unett'; did you mean unet"):
        CliRunner().invoke(command, ["unett"], catch_exceptions=False)


def test_what_a_network_needs_beside_a_tile_is_said():
    column = _lines()[0].index("needs ")
    needs = {line.split()[0]: line[column:].split()[0] for line in _lines()[1:]}
    assert {name for name, told in needs.items() if told == "labels"} == set(networks.names(needs_prior=True))
    assert {name for name, told in needs.items() if told == "scene"} == set(networks.names(needs_scene=True))
    assert {name for name, told in needs.items() if told == "-"} == set(networks.names())
    assert dict(re.split(r"  +", line, maxsplit=1) for line in _lines("glnet"))["needs beside a tile"] == "scene"
