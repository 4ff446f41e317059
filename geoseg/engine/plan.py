"""The plan of a run: all that a worker needs to compute any chunk, and the fingerprint that tells runs apart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakValueDictionary

import cloudpickle

import geoseg
from geoseg.classes import Classes
from geoseg.errors import BundleError
from geoseg.grid import ChunkGrid, TileGrid, Window
from geoseg.scene import Scene
from geoseg.segmenters.interface import Segmenter, State, View

if TYPE_CHECKING:
    from geoseg.bundle import Bundle
    from geoseg.engine.cluster import Job, Task
    from geoseg.engine.prior import Prior
    from geoseg.segmenters.macro_windows import MacroGrid

Blend = Literal["crop", "hann"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

# Confidence is kept as an integer in thousandths, so that means over polygons are exact whatever the order of summing.
CONFIDENCE_SCALE = 1000
CONFIDENCE_NODATA = 65535
# Uncertainty is kept as it is.
UNCERTAINTY_NODATA = -1.0


@dataclass(frozen=True)
class Recipe:
    """How a worker makes the segmenter: bundles by path and digest (several: an ensemble), and whether to augment.

    ``refiner`` is the bundle that refines what they say, tile by tile or object by object as ``refine_by`` says;
    without any others, what it is given as a prior.
    ``overview`` takes of a pair of networks the one that looks at the overview.
    """

    bundles: tuple[tuple[str, str], ...]
    tta: bool = False
    refiner: tuple[str, str] | None = None
    refine_by: Literal["tile", "object"] = "tile"
    overview: bool = False

    def build(self) -> Segmenter:
        """Load the bundles.

        Raises:
            BundleError: a bundle is missing here, or is not the one that the run was planned with.
        """
        from geoseg.segmenters.ensemble import Ensemble
        from geoseg.segmenters.loading import segmenter_of

        known = _BUILT.get(self)
        if known is not None:
            return known
        members = [segmenter_of(_opened(*each)) for each in self.bundles]
        if self.refiner is not None:
            from geoseg.segmenters.refining import Refining

            first = None if not members else members[0] if len(members) == 1 else Ensemble(members)
            segmenter: Segmenter = Refining(_opened(*self.refiner), first, whole=self.refine_by)
        else:
            segmenter = members[0] if len(members) == 1 else Ensemble(members)
        segmenter = augmented(segmenter) if self.tta else segmenter
        if self.overview:
            from geoseg.segmenters.saliency import SaliencyNetwork

            assert isinstance(segmenter, SaliencyNetwork)
            segmenter = segmenter.coarse_pass()
        _BUILT[self] = segmenter
        return segmenter


def _opened(path: str, digest: str) -> Bundle:
    """Return a bundle.

    Raises:
        BundleError: it is missing here, or is not the one that the run was planned with.
    """
    from geoseg.bundle import read_bundle

    bundle = read_bundle(path)
    if bundle.digest != digest:
        raise BundleError(f"{path} has changed since the run began: start the run again.")
    return bundle


# Segmenters still in use in this process: its own worker takes the one that the client has looked at.
_BUILT: WeakValueDictionary[Recipe, Segmenter] = WeakValueDictionary()


def augmented(segmenter: Segmenter) -> Segmenter:
    """Return ``segmenter`` under test-time augmentation."""
    from geoseg.segmenters.ensemble import TestTimeAugmentation

    return TestTimeAugmentation(segmenter)


class Parts(Protocol):
    """Numbered parts of a scene, from 0."""

    def __len__(self) -> int:
        """Return their number."""

    def window(self, number: int) -> Window:
        """Return where part ``number`` lies."""


class Work(Protocol):
    """What a run computes part by part; picklable, for every worker gets it once."""

    @property
    def source(self) -> Scene:
        """The scene that the parts are of."""

    @property
    def chunks(self) -> Parts:
        """The parts."""

    def task(self, workers: int) -> Task:
        """Return what computes a part, on a machine whose cores so many workers share."""


@dataclass(frozen=True)
class Plan:
    """One run over one scene.

    Attributes:
        source: the scene on the grid of the outputs.
        model_scene: the scene on the grid that the segmenter sees; equal to ``source`` unless its resolution differs.
        method: how to make the segmenter, or the segmenter itself (small ones, and those of Python callers).
        state: what the segmenter learned about the scene.
        classes: in the order of the scores' channels.
        probabilistic: whether the scores have a confidence.
        tiles: lattice of tiles, or of macro-windows, on the model's grid.
        chunks: partition of the outputs' grid.
        blend: ``crop`` takes each tile's core, ``hann`` weights tiles where they overlap.
        batch: tiles per forward pass; 0 chooses by device.
        device, precision: as asked for; "auto" is settled on the worker.
        aoi: area of interest as WKB in the CRS of the scene, or None.
        store: folder or ``s3://`` address of the chunk store.
        uncertainty: names of the uncertainty layers, the entropy of the classes first; empty where none are wanted.
        view: the surroundings that tiles are shown with, if any.
        prior: labels of an earlier stage, where the segmenter refines them.
        engine: what computes the scores; ``auto`` until it is settled.
    """

    source: Scene
    model_scene: Scene
    method: Recipe | Segmenter
    state: State
    classes: Classes
    probabilistic: bool
    tiles: TileGrid | MacroGrid
    chunks: ChunkGrid
    blend: Blend
    batch: int
    device: str
    precision: Precision
    aoi: bytes | None
    store: str
    uncertainty: tuple[str, ...] = ()
    view: View | None = None
    prior: Prior | None = None
    engine: str = "torch"

    @property
    def same_grid(self) -> bool:
        """Whether the segmenter sees the grid of the outputs."""
        return self.model_scene.geobox == self.source.geobox

    def task(self, workers: int) -> Job:
        """Return what computes a chunk."""
        from geoseg.engine.cluster import Job

        return Job(self, workers)

    def method_record(self) -> dict[str, Any]:
        """Return what tells the method from any other."""
        if not isinstance(self.method, Recipe):
            return {"object": hashlib.sha256(cloudpickle.dumps((self.method, self.state))).hexdigest()}
        record: dict[str, Any] = {"bundles": [digest for _, digest in self.method.bundles], "tta": self.method.tta}
        if self.method.refiner is not None:
            record["refiner"] = [self.method.refiner[1], self.method.refine_by]
        return record

    def fingerprint(self) -> str:
        """Return a digest of all that decides what the chunks hold: scene, method, options, version."""
        record = {
            "version": geoseg.__version__,
            "scene": self.source.identity,
            "model_grid": [list(self.model_scene.geobox.affine)[:6], list(self.model_scene.shape)],
            "method": self.method_record(),
            "classes": self.classes.as_dicts(),
            "tile": self.tiles.record,
            "chunk": self.chunks.record,
            "blend": self.blend,
            "precision": self.precision,
            "engine": self.engine,
            "uncertainty": list(self.uncertainty),
            "view": None if self.view is None else [self.view.extent, self.view.size],
            "prior": None if self.prior is None else self.prior.identity,
            "aoi": hashlib.sha256(self.aoi).hexdigest() if self.aoi else None,
        }
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
