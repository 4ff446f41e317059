"""A run in two passes: a coarse one over an overview of the scene, and a fine one over what it found.

The overview is run over like any scene, and its probabilities are kept as one small raster.  Boxes follow from it, once
for the whole scene.  Each box is then a task of its own, whatever chunks it touches, and in the end chunks are put
together of the answers.  All three steps are runs of the same kind, on the same workers, and each goes on from what an
interrupted one has left.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from geoseg.classes import Classes
from geoseg.engine.boxes import Boxes, BoxPlan, BoxStore, MosaicPlan, read_overview, records
from geoseg.engine.mosaic import write_mosaic
from geoseg.engine.plan import UNCERTAINTY_NODATA, Plan, Recipe
from geoseg.engine.run import Progress, Tally, run_chunks
from geoseg.engine.store import ChunkStore
from geoseg.geodesy import pixel_size, projection
from geoseg.grid import ChunkGrid, TileGrid
from geoseg.places import S3Place
from geoseg.segmenters.candidates import Candidates, above, candidates_of
from geoseg.vector.features import Features
from geoseg.vector.measures import measure

if TYPE_CHECKING:
    from geoseg.engine.crew import Crew
    from geoseg.scene import Scene
    from geoseg.segmenters.recurrence import Answer
    from geoseg.segmenters.saliency import SaliencyNetwork

# Side of the overview's chunks in its pixels, about: small enough that several workers share an overview.
_CHUNK = 1024
_CANDIDATE = Classes.parse("candidate:#cc79a7")
_COLUMNS = (("rounds", "int64"), ("dsc", "float64"), ("pixels", "int64"), ("stable", "int64"))


class TwoPasses:
    """How a plan of a pair of networks is run.

    Args:
        plan: of the run; its tiles are not used.
        segmenter: the pair.

    Attributes:
        notes: what the user should know, once it has run.
    """

    def __init__(self, plan: Plan, segmenter: SaliencyNetwork) -> None:
        self._plan, self._segmenter = plan, segmenter
        self._boxes = Boxes(())
        self._answers = BoxStore(Path(plan.store) / "boxes")
        self.notes: tuple[str, ...] = ()

    def run(
        self,
        plan: Plan,
        crew: Crew,
        key: str,
        done: Collection[int],
        progress: Progress | None = None,
        *,
        rank: int = 0,
        holes: bool | None = None,
    ) -> Tally:
        """Compute every chunk that is not ``done``, see :func:`geoseg.engine.run.run_chunks`.

        Tiles of the overview and looks at boxes are counted as tiles.

        Raises:
            RunError: parts failed, or no worker was left; what is finished stays in the store.
            OutputError: the store's disk is full.
        """
        first = overview_plan(plan, self._segmenter)
        store = ChunkStore(first.store, first.chunks)
        coarse = run_chunks(first, crew, f"{key}-overview", store.done(), progress, "overview", rank=rank)
        layers = [("Float32", UNCERTAINTY_NODATA)] * len(first.uncertainty)
        overview = write_mosaic(
            store, first.source.geobox, "overview.vrt", layers, path_of=store.uncertainty_path, stored="Float32"
        )
        found = self._found(str(overview), first)
        self._boxes = Boxes(found.windows)
        work = BoxPlan(plan, str(overview), self._boxes, str(self._answers.folder))
        fine = run_chunks(work, crew, f"{key}-boxes", self._answers.done(), progress, "candidates", rank=rank)
        pieces = MosaicPlan(plan, self._boxes, work.folder, self._segmenter.settings)
        tally = run_chunks(pieces, crew, key, done, progress, rank=rank, holes=holes)
        self.notes = _told(found)
        tally.tiles += coarse.tiles + fine.tiles
        tally.seconds += coarse.seconds + fine.seconds
        tally.busy_s += coarse.busy_s + fine.busy_s
        return tally

    def _found(self, overview: str, first: Plan) -> Candidates:
        """Return the boxes; memory holds a byte for each pixel of the overview."""
        settings, targets = self._segmenter.settings, len(first.uncertainty) - 1
        mask = np.zeros(first.source.shape, bool)
        for window in first.chunks:
            part = read_overview(overview, window, targets)
            mask[window.within(first.source.window)] = above(part, settings.threshold)
        return candidates_of(mask, self._plan.model_scene.shape, settings)

    def write_candidates(self, path: str | os.PathLike[str] | S3Place) -> None:
        """Write the boxes as polygons, with rounds, agreement of the last two masks, pixels found, and why it ended.

        Raises:
            OutputError: they cannot be written.
        """
        from geoseg.outputs.polygons import write_features

        scene = self._plan.model_scene
        write_features(
            path,
            self._features(),
            classes=_CANDIDATE,
            crs=projection(scene.geobox),
            pixel_m=min(scene.resolution),
            has_confidence=False,
            extra=_COLUMNS,
        )

    def _features(self) -> Iterator[Features]:
        scene = self._plan.model_scene
        for number, answer in enumerate(records(self._answers, len(self._boxes)), 1):
            outline = np.array([_outline(answer, scene)], object)
            area, perimeter = measure(outline, projection(scene.geobox))
            last = answer.rounds[-1]
            values = (len(answer.rounds), last.dsc, last.pixels, answer.end != "rounds")
            yield Features(
                outline,
                np.array([number]),
                np.array([_CANDIDATE.ids[0]]),
                area,
                perimeter,
                np.array([np.nan]),
                {name: np.array([value], kind) for (name, kind), value in zip(_COLUMNS, values, strict=True)},
            )


def overview_plan(plan: Plan, segmenter: SaliencyNetwork) -> Plan:
    """Return the plan of the first pass: the coarse network over the overview, its probabilities as layers."""
    coarse, factor = segmenter.coarse_pass(), segmenter.settings.factor
    scene = overview_of(plan.model_scene, factor)
    tiles = TileGrid(coarse.spec.tile, coarse.spec.halo)
    core = max(tiles.core_shape)
    size = max(1, round(_CHUNK / core)) * core
    aoi = None
    if plan.aoi is not None:
        # An overview pixel counts where it touches the area, and its neighbours decide whether a target ends there.
        width = 2 * max(pixel_size(scene.geobox.affine))
        aoi = bytes(shapely.to_wkb(shapely.buffer(shapely.from_wkb(plan.aoi), width)))
    return replace(
        plan,
        source=scene,
        model_scene=scene,
        method=replace(plan.method, overview=True) if isinstance(plan.method, Recipe) else coarse,
        tiles=tiles,
        chunks=ChunkGrid(scene.shape, size),
        blend="crop",
        aoi=aoi,
        store=str(Path(plan.store) / "overview"),
        uncertainty=("entropy", *coarse.spec.layers),
    )


def overview_of(scene: Scene, factor: int) -> Scene:
    """Return a scene made smaller by a whole factor, averaged, its first pixel over the scene's first pixels."""
    if factor == 1:
        return scene
    height, width = (-(-side // factor) for side in scene.shape)
    return scene.on_grid(GeoBox((height, width), scene.geobox.affine * Affine.scale(factor), scene.geobox.crs))


def _outline(answer: Answer, scene: Scene) -> shapely.Polygon:
    box = answer.window
    corners = ((box.col, box.row), (box.col_stop, box.row), (box.col_stop, box.row_stop), (box.col, box.row_stop))
    return shapely.Polygon([scene.geobox.affine * corner for corner in corners])


def _told(found: Candidates) -> tuple[str, ...]:
    count = len(found.windows)
    if found.everywhere:
        return (
            f"candidates covered so much of the scene that all of it was looked at closely, in {count} tiles: this "
            "model is for rare targets.",
        )
    boxes = "1 candidate was" if count == 1 else f"{count} candidates were"
    return (f"{boxes} looked at closely, {found.share:.2%} of the scene.",)
