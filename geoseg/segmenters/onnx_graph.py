"""What an ONNX file says of itself, and what in one is refused: read as data, before anything runs it.

Metadata are those that GeoDeep and the QGIS plugin Deepness agree on: keys in ``metadata_props`` with values in JSON.
Files that geoseg wrote also hold, under a key of its own, all that a bundle says.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from geoseg.bundle import FORMAT_VERSION, Description
from geoseg.errors import BundleError, one_line
from geoseg.parsing import read_json

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

Layout = Literal["nchw", "nhwc"]

# What protobuf can hold in one message; larger models keep weights beside the file, which is refused.
LARGEST_FILE = (1 << 31) - 1
# Trials take a picture of half as much again, which must fit into memory whoever made the file.
LARGEST_TILE = 4096
_MOST_BANDS = 256
# Where files that geoseg wrote keep the description of their bundle.
OWN_KEY = "geoseg"
_LARGEST_METADATA = 1 << 20
# Operators that come with onnxruntime itself; others would be libraries to load.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
# A compiled part, which may lie in another file.
_REFUSED_OPERATORS = ("EPContext",)
_FORWARDING = (
    "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Resize", "Upsample", "Slice", "Clip",
)  # fmt: skip


@dataclass(frozen=True)
class Graph:
    """The one input and the first output of a model.

    Attributes:
        input, output: their names.
        layout: axis order of the input.
        channels: number of bands, None if the file leaves it open.
        tile: side in pixels of the only input it takes, None for any.
        single: whether it takes one tile at a time.
        probabilities: whether the last operator on scores is a softmax or a sigmoid.
        metadata: what the file says of itself.
    """

    input: str
    output: str
    layout: Layout
    channels: int | None
    tile: int | None
    single: bool
    probabilities: bool
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Facts:
    """The metadata of GeoDeep and Deepness in our units; None or empty where the file says nothing.

    Attributes:
        classes: names in the order of the channels.
        resolution: ground metres per pixel (centimetres in the file).
        tile: pixels.
        overlap: share of a tile's side that neighbouring tiles have in common.
        mean, std: of the bands, on 0 to 1.
        threshold: probability from which a pixel belongs to the one class of a model with one channel.
    """

    classes: tuple[str, ...] = ()
    resolution: float | None = None
    tile: int | None = None
    overlap: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    threshold: float | None = None


def read_graph(data: bytes, path: str) -> Graph:
    """Return what a model takes and gives.

    Raises:
        BundleError: not an ONNX model, one with weights in other files or operators from elsewhere, or one that does
            not turn one picture into scores; ``path`` names the file in the message.
    """
    model = _parsed(data, path)
    _check_contents(model, path)
    initial = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initial]
    if len(inputs) != 1 or not model.graph.output:
        raise BundleError(f"{path} has {len(inputs)} inputs: a segmentation model has one, the picture.")
    shape = _shape(inputs[0], path)
    layout: Layout = "nhwc" if _channels_last(shape) else "nchw"
    batch, channels, height, width = shape if layout == "nchw" else (shape[0], shape[3], shape[1], shape[2])
    if height != width:
        raise BundleError(f"{path} takes pictures of {width} × {height} pixels: only square tiles can be given.")
    if height is not None and not 8 <= height <= LARGEST_TILE:
        raise BundleError(f"{path} takes pictures of {height} pixels a side: it must be 8 to {LARGEST_TILE}.")
    if channels is not None and channels > _MOST_BANDS:
        raise BundleError(f"{path} takes {channels} bands: no more than {_MOST_BANDS} can be given.")
    if batch not in (None, 1):
        raise BundleError(f"{path} takes {batch} pictures at a time: export it for one, or for any number.")
    output = model.graph.output[0].name
    return Graph(
        input=inputs[0].name,
        output=output,
        layout=layout,
        channels=channels,
        tile=height,
        single=batch == 1,
        probabilities=_ends_in_probabilities(model.graph, output),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def read_facts(metadata: Mapping[str, str], path: str) -> Facts:
    """Return what a file's metadata say, in our units.

    Raises:
        BundleError: the model is no segmentation model, or a value cannot be what its key says.
    """
    kind = str(_value(metadata, "model_type", path) or "Segmentor")
    if kind.lower() not in ("segmentor", "segmentation"):
        raise BundleError(f"{path} is a model of the kind {kind}: only segmentation models can be used.")
    resolution = _number(metadata, ("resolution",), path, 1e-3, 1e7)
    tile = _number(metadata, ("tile_size", "tiles_size"), path, 8, LARGEST_TILE)
    overlap = _number(metadata, ("tiles_overlap",), path, 0, 90)
    return Facts(
        classes=_class_names(metadata, path),
        resolution=None if resolution is None else resolution / 100,
        tile=None if tile is None else int(tile),
        overlap=None if overlap is None else overlap / 100,
        mean=_numbers(metadata, "standardization_mean", path),
        std=_numbers(metadata, "standardization_std", path),
        threshold=_number(metadata, ("seg_thresh",), path, 1e-6, 1 - 1e-6),
    )


def read_own(metadata: Mapping[str, str], path: str) -> Description | None:
    """Return what geoseg wrote into a file that it made, None for files of other programs.

    Raises:
        BundleError: it is no description of an ONNX model, or one of another version.
    """
    if OWN_KEY not in metadata:
        return None
    record = _value(metadata, OWN_KEY, path)
    version = record.get("format") if isinstance(record, dict) else None
    if version != FORMAT_VERSION or record.get("method") != "onnx":
        raise BundleError(
            f"{path} has a description of format {version!r} under {OWN_KEY} of its metadata, and this version of "
            f"geoseg reads format {FORMAT_VERSION} of ONNX models: update geoseg, or export the model again."
        )
    try:
        return Description.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the description"
        raise BundleError(f"{path} has a bad description: {place}: {first['msg']}.") from error


def _parsed(data: bytes, path: str) -> ModelProto:
    import onnx

    if len(data) > LARGEST_FILE:
        raise BundleError(f"{path} has {len(data)} bytes, more than an ONNX model can have in one file.")
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's own class differs by version
        raise BundleError(f"{path} is not an ONNX model, or it is cut short ({one_line(error, 80)}).") from error
    if not model.graph.node:
        raise BundleError(f"{path} is not an ONNX model, or an empty one.")
    return model


def _check_contents(model: ModelProto, path: str) -> None:
    """Refuse what would have other files opened or other code loaded."""
    import onnx

    own = {function.domain for function in model.functions}
    foreign = sorted({entry.domain for entry in model.opset_import} - own - set(_DOMAINS))
    for node in _nodes(model):
        if node.domain not in own and node.domain not in _DOMAINS:
            foreign.append(node.domain)
        if node.op_type in _REFUSED_OPERATORS:
            raise BundleError(f"{path} has a compiled part ({node.op_type}): give the model it was made from.")
    if foreign:
        raise BundleError(
            f"{path} needs operators of {foreign[0]!r}, which come from a library of its own, and none is ever "
            "loaded: export the model with standard operators."
        )
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise BundleError(
                f"{path} keeps weights in other files ({tensor.name}), which are never opened: save it as one file."
            )


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Iterate over all nodes, those of functions and of branches and loops included."""
    waiting: list[Any] = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                waiting.extend(graph.node)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Iterate over all stored tensors, wherever they stand."""
    graphs = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += [attribute.g, *attribute.graphs]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _shape(value: ValueInfoProto, path: str) -> list[int | None]:
    """Return the four sides of the input, None for those left open."""
    import onnx

    kind = value.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
        raise BundleError(f"{path} takes values of type {name}: export it for float (32 bits).")
    sides = [side.dim_value if side.HasField("dim_value") and side.dim_value > 0 else None for side in kind.shape.dim]
    if len(sides) != 4:
        raise BundleError(f"{path} takes an input of {len(sides)} axes: pictures have four (N, C, H, W).")
    return sides


def _channels_last(shape: list[int | None]) -> bool:
    first, last = shape[1], shape[3]
    if last is None or first is None:
        # An open axis is a side of the picture; bands are always fixed.
        return last is not None and first is None
    return last < first


def _ends_in_probabilities(graph: GraphProto, output: str) -> bool:
    """Whether the output is that of a softmax or sigmoid, reached through operators that only move values."""
    makers = {name: node for node in graph.node for name in node.output}
    for _ in range(len(graph.node)):
        node = makers.get(output)
        if node is None or node.op_type not in _FORWARDING or not node.input:
            return node is not None and node.op_type in ("Softmax", "Sigmoid", "HardSigmoid")
        output = node.input[0]
    return False


def _value(metadata: Mapping[str, str], key: str, path: str) -> Any:
    """Return what stands under a key: JSON, or as some exporters write it a Python literal; None if nothing does."""
    text = metadata.get(key)
    if text is None:
        return None
    if len(text) > _LARGEST_METADATA:
        raise BundleError(f"{path} has {len(text)} characters under {key} of its metadata: that is no description.")
    for read in (read_json, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def _class_names(metadata: Mapping[str, str], path: str) -> tuple[str, ...]:
    for key in ("class_names", "names"):
        found = _value(metadata, key, path)
        if found is None:
            continue
        if isinstance(found, dict):
            try:
                pairs = sorted((int(number), str(name)) for number, name in found.items())
            except (TypeError, ValueError):
                pairs = []
            if not pairs or [number for number, _ in pairs] != list(range(len(pairs))):
                raise BundleError(
                    f"{path} has {key} that are not numbered 0, 1, 2, …: import it with your own classes."
                )
            found = [name for _, name in pairs]
        if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
            raise BundleError(f"{path} has {key} that are no names: import it with your own classes.")
        return tuple(found)
    return ()


def _number(metadata: Mapping[str, str], keys: tuple[str, ...], path: str, least: float, most: float) -> float | None:
    for key in keys:
        found = _value(metadata, key, path)
        if found is None:
            continue
        try:
            number = float(found)
        except (TypeError, ValueError):
            number = math.nan
        if not least <= number <= most:
            raise BundleError(
                f"{path} says {key} {one_line(ValueError(found), 40)}, and it can be {least:g} to {most:g}."
            )
        return number
    return None


def _numbers(metadata: Mapping[str, str], key: str, path: str) -> tuple[float, ...]:
    found = _value(metadata, key, path)
    if found is None:
        return ()
    try:
        return tuple(float(value) for value in found)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{path} has {key} that are no numbers: import it with mean and std of your own.") from error
