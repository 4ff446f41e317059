"""Bundles: round trips, and every way a file can fail to be one."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from geoseg.bundle import Description, read_bundle, write_bundle
from geoseg.errors import BundleError, OutputError


def _description(**changes: object) -> Description:
    record: dict[str, object] = {
        "method": "network",
        "settings": {"name": "plainconv"},
        "bands": ["red", "green"],
        "classes": [{"id": 0, "name": "köy & <b>", "color": "#112233", "background": True}],
        "tile": 128,
        "halo": 8,
        "licence": "CC0-1.0",
        "training": {"iou": 0.5},
    }
    return Description.model_validate(record | changes)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(3, np.int64)}
    path = tmp_path / "m.safetensors"
    write_bundle(path, _description(), tensors)
    bundle = read_bundle(path)
    assert bundle.description == _description()
    assert bundle.parameters == 7
    for name, value in bundle.tensors().items():
        np.testing.assert_array_equal(value, tensors[name])
        assert value.dtype == tensors[name].dtype
    write_bundle(tmp_path / "again.safetensors", _description(), tensors)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_an_existing_bundle_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_bundle(path, _description(), {})
    assert path.read_text() == "mine"
    write_bundle(path, _description(), {}, overwrite=True)
    assert read_bundle(path).parameters == 0


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    first_bytes = set()
    for length in range(0, 300, 4):  # the header's length comes first in the file, and may begin like a pickle
        path = tmp_path / f"{length}.safetensors"
        write_bundle(path, _description(licence="x" * (length + 1)), {"a": np.zeros(3, np.float32)})
        first_bytes.add(path.read_bytes()[0])
        assert read_bundle(path).description.licence == "x" * (length + 1)
    assert 0x80 in first_bytes
    assert len(first_bytes) >= 30


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_is_never_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    else:
        import torch

        torch.save({"weights": _Bomb(tmp_path / "exploded")}, path)
    with pytest.raises(BundleError, match="pickle"):
        read_bundle(path)
    assert not (tmp_path / "exploded").exists()


def _truncated(path: Path) -> None:
    write_bundle(path, _description(), {"a": np.zeros(100, np.float32)})
    path.write_bytes(path.read_bytes()[:-40])


def _stranger(path: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, path)


def _other_version(path: Path) -> None:
    record = _description().model_dump() | {"format": 99}
    save_file({"a": np.zeros(3, np.float32)}, path, metadata={"geoseg": json.dumps(record)})


def _bad_field(path: Path) -> None:
    record = _description().model_dump() | {"tile": 16}
    save_file({}, path, metadata={"geoseg": json.dumps(record)})


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b""), "not a safetensors file"),
        (lambda path: path.write_bytes(b"II*\0 a tiff, say" * 9), "not a safetensors file"),
        (lambda path: path.write_bytes(b"\x10\0\0\0\0\0\0\0" + b"not json at all!"), "not a safetensors file"),
        (_truncated, "damaged"),
        (_stranger, "no geoseg description"),
        (_other_version, "format 99"),
        (_bad_field, "leaves no core"),
    ],
)
def test_what_is_no_bundle_is_refused_in_one_sentence(
    tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    path = tmp_path / "m.safetensors"
    make(path)
    with pytest.raises(BundleError, match=told) as caught:
        read_bundle(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
