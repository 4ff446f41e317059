"""ONNX models behind the tile interface, and the bundles that hold one.

They run in onnxruntime, on the CPU or on CUDA, in float32.  No library of further operators is ever loaded and no file
but the model is ever opened.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from geoseg.bundle import Bundle
from geoseg.errors import BundleError, ConfigError, GeosegWarning, one_line
from geoseg.normalisation import Normalisation
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles, normalised
from geoseg.segmenters.network import NetworkState, spec_of
from geoseg.segmenters.onnx_graph import Layout, read_graph

if TYPE_CHECKING:
    from geoseg.scene import Scene

# Name of the file's bytes among a bundle's tensors.
TENSOR = "onnx"
# Probabilities nearer to 0 or 1 than this are all the same to float32.
_LEAST = 1e-7

Answer = Literal["logits", "probabilities"]


class OnnxNetwork(Segmenter):
    """An ONNX model from pixels to scores, applied to each tile alone.

    Args:
        model: the file's bytes.
        spec: what it asks of its tiles.
        answer: whether it gives logits or probabilities.
        threshold: probability from which a pixel belongs to the second class, for a model with one channel.
        path: the file, for messages.
        fill: for each band, what the model is given for pixels without data; 0 for all by default.

    A model for one size of tiles has a spec that takes no other.

    Raises:
        BundleError: the model is refused, see :func:`geoseg.segmenters.onnx_graph.read_graph`.
        ConfigError: onnxruntime or onnx is not installed.
    """

    def __init__(
        self,
        model: bytes,
        spec: Spec,
        *,
        answer: Answer = "logits",
        threshold: float = 0.5,
        path: str = "the model",
        fill: tuple[float, ...] | None = None,
    ) -> None:
        check_installed()
        self.graph = read_graph(model, path)
        self.spec = spec if self.graph.tile is None else replace(spec, tile_exact=False, bounded=False)
        self._fill = None if fill is None or not any(fill) else torch.tensor(fill, dtype=torch.float32)[:, None, None]
        self._model = model
        self._answer = answer
        self._threshold = threshold
        self._path = path
        self._session: Any = None

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> OnnxNetwork:
        """Return the model that a bundle holds.

        Raises:
            BundleError: the bundle holds none, or one that is refused.
        """
        stored = bundle.tensors().get(TENSOR)
        if stored is None or stored.dtype != np.uint8 or stored.ndim != 1:
            raise BundleError(f"{bundle.path} holds no ONNX model under {TENSOR!r}: the bundle is damaged.")
        settings = bundle.description.settings
        answer, threshold = settings.get("answer"), settings.get("threshold", 0.5)
        if answer not in ("logits", "probabilities") or not isinstance(threshold, float) or not 0 < threshold < 1:
            raise BundleError(f"{bundle.path} does not say what its model answers with: import the model again.")
        fill = settings.get("fill")
        spec = spec_of(bundle.description)
        if fill is not None and not _fits(fill, len(spec.bands)):
            raise BundleError(f"{bundle.path} has a fill that is no number for each band: import the model again.")
        known = None if fill is None else tuple(map(float, fill))
        return cls(stored.tobytes(), spec, answer=answer, threshold=threshold, path=bundle.path, fill=known)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the session out: the process that takes the segmenter makes its own."""
        return {**self.__dict__, "_session": None}

    def prepare(self, scene: Scene) -> NetworkState:
        """Measure the scaling of the bands on the scene, unless the spec has one."""
        if self.spec.normalisation is not None:
            return NetworkState()
        return NetworkState(normalisation=Normalisation.of(scene.statistics(), "standard"))

    def place(self, device: torch.device) -> None:
        """Open the model on ``device``, with as many threads as torch uses in the calling thread.

        Where onnxruntime cannot use the GPU, a warning says so and the model runs on the CPU.
        """
        self._session = open_model(self._model, device, self._path)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W) float32 for the tiles, on their device.

        Raises:
            ConfigError: nothing scales the bands.
            BundleError: the model fails, or its scores have another shape than they should.
        """
        scaling = self.spec.normalisation or getattr(state, "normalisation", None)
        if scaling is None:
            raise ConfigError("the model has no scaling of its bands: pass the state that prepare(scene) returned.")
        pixels = normalised(tiles, scaling)
        if self._fill is not None:
            pixels = torch.where(tiles.valid.unsqueeze(1), pixels, self._fill.to(pixels.device))
        scores = self.scores(pixels.cpu()).to(pixels.device)
        count = scores.shape[1] if self.spec.classes is None else len(self.spec.classes)
        if scores.shape[1] != count:
            raise BundleError(f"{self._path} gives scores of {scores.shape[1]} classes where {count} belong.")
        return scores

    def scores(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return scores (N, K, H, W) for network input (N, C, H, W), both float32 on the CPU.

        Probabilities become their logarithms, so that a softmax gives them back.  Of one channel, two classes are made.

        Raises:
            BundleError: the model fails, or what it gives is no score of each pixel.
        """
        if self._session is None:
            self.place(torch.device("cpu"))
        parts = pixels.split(1) if self.graph.single else [pixels]
        answer = torch.cat([self._run(part) for part in parts])
        answer = _channels_first(answer, self.graph.layout, pixels.shape, self._path)
        if answer.shape[1] == 1:
            odds = torch.logit(answer, eps=_LEAST) if self._answer == "probabilities" else answer
            odds = odds - math.log(self._threshold / (1 - self._threshold))
            answer = torch.cat([torch.zeros_like(odds), odds], dim=1)
        elif self._answer == "probabilities":
            answer = answer.clamp(min=_LEAST).log()
        if answer.shape[-2:] != pixels.shape[-2:]:
            answer = functional.interpolate(answer, size=pixels.shape[-2:], mode="bilinear")
        return answer

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.graph.layout == "nhwc":
            pixels = pixels.permute(0, 2, 3, 1)
        values = np.ascontiguousarray(pixels.numpy())
        try:
            (answer,) = self._session.run([self.graph.output], {self.graph.input: values})
        except Exception as error:  # onnxruntime has classes of its own for each kind of failure
            raise BundleError(
                f"{self._path} fails on a tile of {values.shape} values ({one_line(error, 120)}): check its bands and "
                "the size of its tiles."
            ) from error
        if not isinstance(answer, np.ndarray) or answer.dtype.kind != "f":
            raise BundleError(f"{self._path} does not give scores as numbers of type float: export it without argmax.")
        return torch.from_numpy(answer.astype(np.float32, copy=False))


def check_installed() -> None:
    """Refuse to go on without the libraries of the extra.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"ONNX models need onnx and onnxruntime ({one_line(error)}): install them with pip install 'geoseg[onnx]'."
        ) from error


def _fits(fill: Any, bands: int) -> bool:
    """Whether a setting is a finite number for each band."""
    return (
        isinstance(fill, list)
        and len(fill) == bands
        and all(isinstance(value, int | float) and math.isfinite(value) for value in fill)
    )


def open_model(model: bytes, device: torch.device, path: str, sizes: Mapping[str, int] | None = None) -> Any:
    """Return a model opened in onnxruntime, with as many threads as torch uses in the calling thread.

    Args:
        model: the file's bytes.
        device: where it is to run.
        path: the file, for messages.
        sizes: of axes that the model leaves open, by their names.

    Raises:
        BundleError: onnxruntime cannot open it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is told by its exceptions
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    # Waiting threads would take the cores from the reading of the next tile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            warnings.warn(
                "this onnxruntime has no CUDA: the model runs on the CPU; install onnxruntime-gpu in its place.",
                GeosegWarning,
                stacklevel=3,
            )
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime has classes of its own for each kind of failure
        raise BundleError(f"{path} cannot be opened by onnxruntime ({one_line(error, 160)}).") from error


def _channels_first(answer: torch.Tensor, layout: Layout, shape: Sequence[int], path: str) -> torch.Tensor:
    """Return scores as (N, K, h, w), h and w being whole parts of the input's height and width."""
    height, width = shape[-2:]

    def parts(rows: int, cols: int) -> bool:
        return height % rows == 0 and width % cols == 0 and height // rows == width // cols

    if answer.ndim == 3:
        answer = answer.unsqueeze(1)
    if answer.ndim == 4 and answer.shape[0] == shape[0] and answer.numel():
        first, last = parts(*answer.shape[2:]), parts(*answer.shape[1:3])
        if first and (layout == "nchw" or not last):
            return answer
        if last:
            return answer.permute(0, 3, 1, 2)
    raise BundleError(
        f"{path} gives values of shape {tuple(answer.shape)} for pictures of shape {tuple(shape)}, and not scores of "
        "each pixel: it is no segmentation model, or exported with another output first."
    )
