"""Networks written as ONNX files that other programs run, and that :mod:`geoseg.segmenters.onnx_import` reads back.

A file takes pixel values divided by 255 and gives probabilities: the scaling of the bands is inside, for GeoDeep knows
none.  Its metadata are those of GeoDeep and Deepness, and under ``geoseg`` the description that a bundle of it has.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from geoseg.bundle import Bundle, Description, NormalisationRecord
from geoseg.errors import BundleError, ConfigError, one_line
from geoseg.networks.inference import MainOutput
from geoseg.networks.pictures import scene_like
from geoseg.normalisation import Normalisation
from geoseg.segmenters.loading import segmenter_of
from geoseg.segmenters.network import PlainNetwork
from geoseg.segmenters.onnx import TENSOR, check_installed
from geoseg.segmenters.onnx_graph import LARGEST_FILE, LARGEST_TILE, OWN_KEY
from geoseg.segmenters.onnx_writing import written

if TYPE_CHECKING:
    from onnx import ModelProto

# The pixel value that a file takes as 1.
FULL_SCALE = 255.0
# Of probabilities: other kernels sum in another order, and nothing else may differ.
_TOLERANCE = 1e-3
# But for so small a share of pixels: pooling whose largest value is not the only one may choose another.
_MOST_FAR = 1e-4
_INPUT, _OUTPUT = "pixels", "probabilities"
_MOST_OVERLAP = 90


class _Whole(nn.Module):
    """A network between pixel values on 0 to 1 and probabilities."""

    def __init__(self, network: nn.Module, scaling: Normalisation) -> None:
        super().__init__()
        self.network = MainOutput(network)
        self.offset: torch.Tensor
        self.factor: torch.Tensor
        self.register_buffer("offset", torch.tensor(scaling.offset, dtype=torch.float32)[None, :, None, None])
        self.register_buffer(
            "factor", torch.tensor(scaling.scale, dtype=torch.float32).reciprocal()[None, :, None, None]
        )
        self.low, self.high = scaling.low, scaling.high

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return probabilities (N, K, H, W) for pixel values (N, C, H, W) on 0 to 1."""
        values = (pixels * FULL_SCALE - self.offset) * self.factor
        if self.low is not None or self.high is not None:
            values = values.clamp(self.low, self.high)
        return self.network(values).float().softmax(1)


def onnx_of(
    bundle: Bundle, *, scaling: Normalisation | None = None, tile: int | None = None, any_size: bool = False
) -> tuple[bytes, Description]:
    """Return the ONNX file of a bundle's network, and what it says of itself.

    Args:
        bundle: of a plain network, or of an ONNX model, which is given back.
        scaling: of the bands, for a model that measures it on each scene.
        tile: side of the tiles in pixels; by default the bundle's.
        any_size: let the file take tiles of any size, several at a time, and not one of the side ``tile`` alone.

    Raises:
        BundleError: the method is not one network, or the network cannot be written.
        ConfigError: a size is refused, no scaling is known, or a library is missing.
    """
    check_installed()
    description = bundle.description
    known = scaling or (description.normalisation.build() if description.normalisation else None)
    if known is None:
        raise ConfigError(
            f"{bundle.path} measures the scaling of the bands on each scene, which no ONNX file can: name the scene "
            "whose scaling it is to keep, with --scene."
        )
    if description.method == "onnx":
        return _given_back(bundle, known, tile, any_size)
    network = _network(bundle)
    side = _side(bundle, tile)
    whole = _Whole(network, known).eval()
    data = _written(whole, len(description.bands), side, any_size, bundle.path)
    about = description.model_copy(
        update={
            "method": "onnx",
            "settings": {
                "answer": "probabilities",
                "threshold": 0.5,
                # What a pixel without data is given: the value that the network sees as 0.
                "fill": [value / FULL_SCALE for value in known.offset],
                "network": description.settings.get("name"),
            },
            "normalisation": NormalisationRecord(
                offset=[0.0] * len(description.bands), scale=[FULL_SCALE] * len(description.bands)
            ),
            "tile": side,
        }
    )
    finished = _described(data, about, bundle.path)
    _check(finished, whole, about, any_size, bundle.path)
    return finished, about


def _network(bundle: Bundle) -> nn.Module:
    """Return the network of a bundle that holds nothing else.

    Raises:
        BundleError: its method is more, or other, than one network.
    """
    method = bundle.description.method
    if method != "network":
        raise BundleError(
            f"{bundle.path} is of the method {method}, which is more than one network from pixels to scores and "
            "cannot be written as ONNX: describe it as a STAC item (.json), or use it with geoseg."
        )
    segmenter = segmenter_of(bundle)
    if type(segmenter) is not PlainNetwork:
        raise BundleError(
            f"{bundle.path} looks at the whole scene before its tiles, which an ONNX file cannot: make the model "
            "without --set pooling=scene."
        )
    segmenter.place(torch.device("cpu"))  # folds the batch norms
    return segmenter.module


def _side(bundle: Bundle, tile: int | None) -> int:
    """Return the side of the tiles in pixels.

    Raises:
        ConfigError: it does not fit the model.
    """
    own = bundle.description
    side = own.tile if tile is None else tile
    bounded = own.tiling is not None and own.tiling.halo_exact is not None
    if side != own.tile and not (own.tile_exact or bounded):
        raise ConfigError(
            f"{bundle.path} works at its own tile size of {own.tile} pixels only: leave --tile {side} out."
        )
    if side % own.stride or not 2 * own.halo < side <= LARGEST_TILE:
        raise ConfigError(
            f"--tile {side} does not fit {bundle.path}: give a multiple of {own.stride} pixels above its two halos of "
            f"{own.halo}, at most {LARGEST_TILE}."
        )
    return side


def _written(whole: nn.Module, bands: int, side: int, any_size: bool, path: str) -> bytes:
    """Return the file without metadata.

    Raises:
        BundleError: the exporter does not know an operation, or the file would be too large.
    """
    try:
        return written(whole, (1, bands, side, side), _INPUT, _OUTPUT, free=any_size)
    except Exception as error:  # the tracer, the exporter and protobuf have classes of their own
        raise BundleError(
            f"{path} cannot be written as ONNX ({one_line(error, 160)}): "
            f"{'leave --any-size out.' if any_size else 'use it with geoseg, or another network.'}"
        ) from error


def _given_back(bundle: Bundle, scaling: Normalisation, tile: int | None, any_size: bool) -> tuple[bytes, Description]:
    """Return the ONNX file that a bundle holds, with what the bundle says as its metadata."""
    if tile not in (None, bundle.description.tile) or any_size:
        raise ConfigError(f"{bundle.path} holds an ONNX file, which is given back as it is: leave out sizes.")
    stored = bundle.tensors().get(TENSOR)
    if stored is None:
        raise BundleError(f"{bundle.path} holds no ONNX model under {TENSOR!r}: the bundle is damaged.")
    about = bundle.description.model_copy(
        update={"normalisation": NormalisationRecord.model_validate(scaling.as_dict())}
    )
    return _described(stored.tobytes(), about, bundle.path), about


def metadata_of(about: Description) -> dict[str, str]:
    """Return what GeoDeep, Deepness and geoseg read from a file, by key: all of it JSON."""
    names = {str(item.id): item.name for item in about.class_table()}
    scaling = about.normalisation
    found: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": names,
        "tile_size": about.tile,  # as Deepness reads it
        "tiles_size": about.tile,  # as its documents say
        "tiles_overlap": min(_MOST_OVERLAP, math.ceil(100 * 2 * about.halo / about.tile)),
        # Of several probabilities the largest is never below this, so nothing is lost; of one it is the bound.
        "seg_thresh": round(1 / (len(names) + 1), 4) if about.settings["answer"] == "probabilities" else 0.0001,
        # Sizes are for geoseg's --min-area: these programs would drop what is smaller.
        "seg_small_segment": 0,
        OWN_KEY: about.model_dump(),
    }
    if about.resolution is not None:
        found["resolution"] = about.resolution * 100
    if scaling is not None and any((*scaling.offset, *(value - FULL_SCALE for value in scaling.scale))):
        found["standardization_mean"] = [value / FULL_SCALE for value in scaling.offset]
        found["standardization_std"] = [value / FULL_SCALE for value in scaling.scale]
    return {key: json.dumps(value, ensure_ascii=False) for key, value in found.items()}


def _described(data: bytes, about: Description, path: str) -> bytes:
    import onnx

    from geoseg import __version__

    model: ModelProto = onnx.ModelProto.FromString(data)
    model.producer_name, model.producer_version = "geoseg", __version__
    metadata = metadata_of(about)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    for key, value in {**kept, **metadata}.items():
        model.metadata_props.add(key=key, value=value)
    if model.ByteSize() > LARGEST_FILE:
        raise BundleError(f"{path} makes an ONNX model of more than {LARGEST_FILE} bytes, which one file cannot hold.")
    return model.SerializeToString(deterministic=True)


def _check(data: bytes, whole: nn.Module, about: Description, any_size: bool, path: str) -> None:
    """Run the file beside the network on a picture, or on pictures of two sizes.

    Raises:
        BundleError: the two do not agree.
    """
    from geoseg.segmenters.onnx import open_model

    session = open_model(data, torch.device("cpu"), path)
    more = about.stride if any_size else 0
    for height, width in dict.fromkeys([(about.tile, about.tile), (about.tile + more, about.tile + 2 * more)]):
        picture = scene_like(len(about.bands), max(height, width))[..., :height, :width]
        pixels = ((picture + 3) / 6).clamp(0, 1).contiguous()
        with torch.inference_mode():
            expected = whole(pixels)
        try:
            (found,) = session.run([_OUTPUT], {_INPUT: pixels.numpy()})
        except Exception as error:  # onnxruntime has classes of its own for each kind of failure
            raise BundleError(
                f"{path} written as ONNX fails on a picture of {width} × {height} pixels ({one_line(error, 120)})"
                f"{': leave --any-size out.' if any_size else ': use it with geoseg.'}"
            ) from error
        same_shape = isinstance(found, np.ndarray) and found.shape == tuple(expected.shape)
        # Probabilities that are no numbers are not near anything.
        near = (np.abs(found - expected.numpy()) <= _TOLERANCE).all(1).mean() if same_shape else 0.0
        if 1 - near > _MOST_FAR:
            raise BundleError(
                f"{path} written as ONNX gives other probabilities than the network in {100 * (1 - near):.2g} % of a "
                f"picture of {width} × {height} pixels: "
                f"{'leave --any-size out.' if any_size else 'use it with geoseg, or another network.'}"
            )
