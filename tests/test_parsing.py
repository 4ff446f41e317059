"""Limits of JSON and YAML."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import BundleError, ConfigError
from geoseg.parsing import MOST_DEEP, read_json, read_yaml
from geoseg.training.config import read_config

_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_PLAIN)
def test_what_is_plain_is_read_as_it_is(value):
    assert read_json(json.dumps(value)) == value


@given(st.recursive(st.integers() | st.booleans(), lambda inner: st.lists(inner, max_size=3), max_leaves=20))
def test_settings_are_read_as_they_are(value):
    assert read_yaml(yaml.safe_dump(value)) == value


def test_depth_has_an_end():
    with pytest.raises(ValueError, match="too deep"):
        read_json("[" * 1_000_000)
    assert read_yaml("[" * MOST_DEEP + "]" * MOST_DEEP) is not None
    for deep in ("[" * (MOST_DEEP + 1) + "]" * (MOST_DEEP + 1), "[" * 100_000, "&a [*a]"):
        with pytest.raises(ValueError, match="deep"):
            read_yaml(deep)


def test_aliases_do_not_multiply(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"bomb\.yaml is not YAML that can be read: it holds more than"):
        read_config(path)


@pytest.mark.parametrize("text", ["!!int []", "!!timestamp x", "!!int ''", "!!python/object/apply:os.system [ls]"])
def test_strange_tags_are_no_settings(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not YAML that can be read"):
        read_config(path)


@pytest.mark.parametrize(
    "header",
    [
        "[" * 100_000,
        "{" + '"a":{' * 100_000,
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}',
        '{"a":{"dtype":"F32","shape":"x","data_offsets":[0,4]}}',
        '{"a":[]}',
        '{"__metadata__":[1]}',
        '{"__metadata__":{"geoseg":7}}',
        '{"__metadata__":{"geoseg":"[[[["}}',
    ],
)
def test_a_strange_header_is_no_bundle(tmp_path, header):
    from geoseg.bundle import read_bundle

    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(BundleError):
        read_bundle(path)
