"""Files of weights that other programs wrote, read without running anything.

A torch file is a pickle: only torch's restricted reader sees it, which makes tensors and plain values and nothing else.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from geoseg.errors import BundleError, one_line

# Where files keep the weights among other things, in the order in which they are asked.
_PLACES = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
_DEPTH = 3


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        path: the file.
        tensors: by the names in the file.
        classes: names of the classes, where the file says them.
        facts: other plain values that it says of its network, such as TorchGeo's ``model`` and ``backbone``.
    """

    path: str
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    classes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str], *, bundles: bool = False) -> Checkpoint:
    """Read a torch file or a safetensors file.

    Nothing in the file is executed: a torch file that holds anything but tensors and plain values is refused.

    Raises:
        BundleError: missing, damaged, not such a file, without weights, or one that could run code.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise BundleError(f"{name} cannot be read ({error.strerror or error}): check the path.") from error
    content = _safetensors(name, bundles) if start[8:9] == b"{" else _torch_file(name, start)
    tensors = _state_dict(content)
    if not tensors:
        raise BundleError(f"{name} holds no weights: give a file with a state dict.")
    return Checkpoint(name, tensors, _class_names(content), _facts(content))


def _torch_file(path: str, start: bytes) -> Any:
    """Return the content of a torch file, made by torch's restricted reader alone."""
    if start[:2] == b"PK":
        _check_archive(path)
    elif start[:1] != b"\x80":
        raise BundleError(f"{path} is neither a torch file nor a safetensors file: give a checkpoint.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise BundleError(f"{path} asks for more memory than there is: it is damaged or hostile.") from error
    except Exception as error:  # any class that unpickling may raise
        told = str(error)
        if "weights_only" in told or "Weights only" in told:
            raise BundleError(
                f"{path} holds more than weights{_stranger(told)}, which could run any code when opened, so it was not "
                "opened: where you trust it, save its state dict alone, with torch or as safetensors."
            ) from error
        raise BundleError(f"{path} cannot be read as a torch file ({one_line(error, 120)}): copy it again.") from error


def _stranger(told: str) -> str:
    """Return in brackets which class or function torch refused to call, from its long message."""
    found = re.search(r"(?:GLOBAL|global:?|function:?|class:?) +([A-Za-z_][\w.]*\.[\w.]+)", told)
    return f" ({found.group(1)})" if found else ""


def _check_archive(path: str) -> None:
    """Refuse an archive whose parts unpack to more than the file holds: torch stores them as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise BundleError(f"{path} is damaged ({one_line(error)}): copy it again.") from error
    if packed or unpacked > os.path.getsize(path):
        raise BundleError(f"{path} is a packed archive, which no torch file is: give a checkpoint that torch saved.")


def _safetensors(path: str, bundles: bool) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if not bundles and "geoseg" in (file.metadata() or {}):
                raise BundleError(f"{path} is a bundle already: use it as it is.")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, MemoryError) as error:
        raise BundleError(f"{path} cannot be read ({one_line(error)}): copy it again.") from error


def _state_dict(content: Any, depth: int = _DEPTH) -> dict[str, torch.Tensor]:
    """Return the tensors by name, from wherever in a file's content they lie; empty if there are none."""
    if not isinstance(content, Mapping):
        return {}
    if depth:
        for place in _PLACES:
            if place in content and (found := _state_dict(content[place], depth - 1)):
                return found
    return {name: value for name, value in content.items() if isinstance(name, str) and _is_dense(value)}


def _is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _class_names(content: Any) -> tuple[str, ...]:
    """Return the class names that mmsegmentation keeps beside its weights; empty if there are none."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return ()
    dataset = meta.get("dataset_meta")
    names = dataset.get("classes") if isinstance(dataset, Mapping) else meta.get("CLASSES")
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()


def _facts(content: Any) -> dict[str, Any]:
    """Return the few plain values of Lightning's hyperparameters that say which network it is."""
    told = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    if not isinstance(told, Mapping):
        return {}
    keys = ("model", "backbone", "encoder", "encoder_name", "in_channels", "num_classes", "classes")
    return {key: told[key] for key in keys if isinstance(told.get(key), str | int)}
