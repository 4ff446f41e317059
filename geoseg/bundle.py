"""Bundles: one ``.safetensors`` file with the weights and all that is needed to use them.

The description stands as JSON in the file's header, under the key ``geoseg``.  Reading one never executes anything:
a safetensors file is a table of numbers, and a pickle is refused unopened.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from geoseg.classes import Classes
from geoseg.errors import BundleError, LabelsError, OutputError, one_line
from geoseg.normalisation import Normalisation
from geoseg.parsing import read_json

FORMAT_VERSION = 1
_HEADER_LIMIT = 100 << 20


class NormalisationRecord(BaseModel):
    """Scaling of the bands, see :class:`geoseg.normalisation.Normalisation`."""

    model_config = ConfigDict(extra="forbid")

    offset: list[float]
    scale: list[float]
    low: float | None = None
    high: float | None = None

    @field_validator("scale")
    @classmethod
    def _no_zero(cls, value: list[float]) -> list[float]:
        if any(not np.isfinite(v) or v == 0 for v in value):
            raise ValueError("every scale must be a finite number other than 0")
        return value

    def build(self) -> Normalisation:
        """Return the scaling itself."""
        return Normalisation(tuple(self.offset), tuple(self.scale), self.low, self.high)


class ClassRecord(BaseModel):
    """One class, see :class:`geoseg.classes.LabelClass`."""

    model_config = ConfigDict(extra="forbid")

    id: int = Field(ge=0, le=254)
    name: str = Field(min_length=1)
    color: str = Field(pattern=r"^#[0-9a-f]{6}$")
    background: bool = False


class TilingRecord(BaseModel):
    """How tiles were measured to differ from one pass, see :mod:`geoseg.networks.tiling`.

    Attributes:
        bound: share of labels that was allowed to differ when the halo was chosen; None where the halo was given.
        disagreement: share of labels that differed at the bundle's halo.
        score_error: relative error of the scores there.
        decided_by: ``structure`` (the halo is enough for exactness), ``labels``, or ``scores`` where the labels were
            nearly all the same; ``nothing`` where the scores were.
        halo_exact: halo in pixels that certainly makes tiles exact; None where the network looks at the whole tile.
        measured_on: the picture, in words.
    """

    model_config = ConfigDict(extra="forbid")

    bound: float | None = Field(default=None, gt=0, lt=1)
    disagreement: float = Field(ge=0, le=1)
    score_error: float | None = Field(default=None, ge=0)
    decided_by: Literal["structure", "labels", "scores", "nothing"]
    halo_exact: int | None = Field(default=None, ge=0)
    measured_on: str


class Description(BaseModel):
    """What a bundle says about itself.

    Attributes:
        format: version of this layout.
        method: ``network`` (a module of :mod:`geoseg.networks`), ``refiner`` (one of those that refine a mask),
            ``global-local`` (GLNet), ``saliency`` (a pair of networks after RSTN), ``feature-clustering``,
            ``superpixel-backprop``, ``active-contour``, or ``onnx``
            (an ONNX file, whole, as the bytes of one tensor).
        settings: how to build it: for a network or refiner its name, encoder and options.
        bands: names of the input channels in order.
        resolution: true ground metres per pixel, None if any.
        normalisation: scaling of the bands, None if it is measured on each scene.
        classes: in channel order; of a refiner, those whose outlines it was trained on.
        tile, halo, stride: pixels, see :class:`geoseg.segmenters.interface.Spec`; the tile of a refiner is the side of
            its crops; of a pair they are the coarse network's, in pixels of the overview.
        tile_exact: whether tiled scores equal those of one pass.
        tiling: how that was measured; None in bundles from before it was.
        licence: SPDX name or sentence for the weights.
        training: figures of the training; empty for an untrained bundle.
        card: what a user should know before relying on it, by heading: data, attribution, figures, limits.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT_VERSION
    method: Literal[
        "network",
        "refiner",
        "global-local",
        "saliency",
        "feature-clustering",
        "superpixel-backprop",
        "active-contour",
        "onnx",
    ]
    settings: dict[str, Any]
    bands: list[str] = Field(min_length=1)
    resolution: float | None = Field(default=None, gt=0)
    normalisation: NormalisationRecord | None = None
    classes: list[ClassRecord] = Field(min_length=1)
    tile: int = Field(gt=0, le=16384)
    halo: int = Field(ge=0)
    stride: int = Field(default=1, gt=0)
    tile_exact: bool = True
    tiling: TilingRecord | None = None
    licence: str = "not stated"
    training: dict[str, Any] = Field(default_factory=dict)
    card: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Description:
        if self.tile <= 2 * self.halo:
            raise ValueError(f"a tile of {self.tile} pixels leaves no core inside a halo of {self.halo}")
        if self.normalisation and len(self.normalisation.offset) != len(self.bands):
            raise ValueError(f"normalisation is for {len(self.normalisation.offset)} bands, not {len(self.bands)}")
        if self.normalisation and len(self.normalisation.scale) != len(self.bands):
            raise ValueError("normalisation has another number of scales than of offsets")
        try:
            self.class_table()
        except LabelsError as error:
            raise ValueError(str(error)) from error
        return self

    def class_table(self) -> Classes:
        """Return the classes."""
        return Classes.from_dicts(record.model_dump() for record in self.classes)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: of the file.
        description: what it says of itself.
        digest: SHA-256 of the file, in hexadecimal.
        shapes: shape of each tensor, by its name.
    """

    path: str
    description: Description
    digest: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Number of stored values."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Read the weights: arrays by name, of any shape (:attr:`shapes`) and the type they are kept in.

        Raises:
            BundleError: the file changed or is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return dict(load_file(self.path))
        except (OSError, SafetensorError) as error:
            raise BundleError(f"{self.path} cannot be read ({one_line(error)}): copy it again.") from error


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and check its description; the weights are read later, by :meth:`Bundle.tensors`.

    Args:
        path: of a ``.safetensors`` file on this machine.

    Raises:
        BundleError: missing, a pickle, not safetensors, damaged, without a description, or of another version.
    """
    name = os.fspath(path)
    header = _header(name)
    about = header.pop("__metadata__", None)
    text = about.get("geoseg") if isinstance(about, dict) else None
    if not isinstance(text, str):
        raise BundleError(
            f"{name} holds weights but no geoseg description: it is not a bundle; make one with `geoseg init`."
        )
    try:
        record = read_json(text)
    except ValueError as error:
        raise BundleError(
            f"{name} has a description that is not JSON ({one_line(error)}): the bundle is damaged."
        ) from error
    version = record.get("format") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{name} is a bundle of format {version!r}, and this version of geoseg reads format {FORMAT_VERSION}: "
            "update geoseg or make the bundle again."
        )
    try:
        description = Description.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the description"
        raise BundleError(f"{name} has a bad description: {place}: {first['msg']}.") from error
    shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
    return Bundle(name, description, file_digest(name), shapes)


def write_bundle(
    path: str | os.PathLike[str],
    description: Description,
    tensors: Mapping[str, NDArray[Any]],
    *,
    overwrite: bool = False,
) -> None:
    """Write a bundle beside ``path`` and rename it: the final name never holds half a file.

    Args:
        path: the file to be.
        description: what it says of itself.
        tensors: the weights by name, arrays of any shape.
        overwrite: replace a file that exists.

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is False, or cannot be written.
    """
    from safetensors.numpy import save

    target = Path(path)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already: choose another name or pass --overwrite.")
    text = json.dumps(description.model_dump(), sort_keys=True)
    data = save({key: np.ascontiguousarray(value) for key, value in sorted(tensors.items())}, metadata={"geoseg": text})
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{target} cannot be written ({error.strerror or error}).") from error


def file_digest(path: str) -> str:
    """Return the SHA-256 of the file at ``path``, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(path: str) -> dict[str, Any]:
    """Return the JSON header of a safetensors file, having looked at nothing but its bytes."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(9)
            length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
            fits = 2 <= length <= min(size - 8, _HEADER_LIMIT) and start[8:] == b"{"
            # Only what cannot be safetensors is asked for its kind: the length of a header may begin like a pickle.
            if not fits and (start[:2] == b"PK" or start[:1] == b"\x80"):
                raise BundleError(
                    f"{path} is a pickle (a torch or joblib file), which could run any code when opened, so it was not "
                    "opened: give a geoseg bundle (.safetensors)."
                )
            if not fits:
                raise BundleError(f"{path} is not a safetensors file, or it is cut short: give a geoseg bundle.")
            header = read_json(start[8:] + file.read(length - 1))
    except FileNotFoundError as error:
        raise BundleError(f"{path} does not exist: check the path of the model.") from error
    except (OSError, IsADirectoryError) as error:
        raise BundleError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path} is not a safetensors file: give a geoseg bundle.") from error
    tensors = [entry for key, entry in header.items() if key != "__metadata__"]
    if not all(map(_is_tensor, tensors)):
        raise BundleError(f"{path} has a tensor without a sound type, shape or place: it is damaged; copy it again.")
    ends = [entry["data_offsets"][1] for entry in tensors]
    if ends and max(ends) + 8 + length != size:
        raise BundleError(
            f"{path} is damaged: it has {size} bytes where {max(ends) + 8 + length} belong; copy it again."
        )
    return dict(header)


def _is_tensor(entry: Any) -> bool:
    """Whether an entry of the header says what a tensor is."""
    return (
        isinstance(entry, dict)
        and all(
            isinstance(entry.get(key), list) and all(type(n) is int and 0 <= n < 1 << 63 for n in entry[key])
            for key in ("shape", "data_offsets")
        )
        and len(entry["data_offsets"]) == 2
    )
