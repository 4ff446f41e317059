"""From a scene to polygons: plan, run, assemble, write."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from geoseg.bundle import read_bundle
from geoseg.engine.assemble import Outputs
from geoseg.engine.execute import Report, execute, two_passes
from geoseg.engine.plan import Blend, Plan, Precision, Recipe, augmented
from geoseg.engine.run import Progress
from geoseg.engine.selection import Selection
from geoseg.errors import BundleError, ConfigError, SceneError
from geoseg.grid import ChunkGrid, TileGrid, ViewGrid
from geoseg.normalisation import refuse_empty
from geoseg.scene import Scene, open_scene

if TYPE_CHECKING:
    from geoseg.engine.prior import PriorFile
    from geoseg.segmenters.engines import Asked
    from geoseg.segmenters.interface import Segmenter, Spec, State
    from geoseg.segmenters.macro_windows import MacroGrid

DEFAULT_CHUNK = 2048
# The first uncertainty layer of every model that has any.
ENTROPY = "entropy"
# Where tiles are blended, those on a line between chunks are computed for both: larger chunks, if scores leave room.
_BLENDED_CHUNK = 4096
_SCORES_BYTES = 512 << 20


@dataclass(frozen=True)
class Options:
    """How a run is to be done; every field is an option of the command line.

    Attributes:
        labels, confidence, uncertainty: where label, confidence and uncertainty COGs go, if wanted: paths or
            ``s3://`` addresses.
        candidates: where the boxes go that a model with two passes looked at closely, a vector file.
        aoi: vector file; pixels outside its polygons get no label.
        bands: indices (from 1) or names; by default those the model names, else all.
        nodata: value that means "no data", in place of what the file says.
        resolution: true ground metres per pixel to work at; by default the model's, else the scene's.
        output_grid: ``model`` writes on the grid the model saw, ``scene`` on the scene's own.
        chunk: pixels, rounded to whole tile cores; by default 2048, or 4096 where tiles are blended.
        tile: pixels, halo included.
        halo: pixels, or None for what the model asks.
        blend: ``crop`` or ``hann``; by default what fits the model: ``hann`` for macro-windows, which share a patch
            with their neighbours for this, else ``crop``.
        tta: average over the eight flips and quarter turns of every tile.
        refine: path, URL or name of a bundle that refines the labels of the model.
        refine_by: what a refiner takes in at a first look: the whole ``tile``, or each connected ``object`` of a class
            with its surroundings, those of less than 1024 pixels left as they are.
        batch: tiles per forward pass; 0 chooses by device.
        min_area, fill_holes: m²; see :class:`geoseg.engine.selection.Selection`.
        simplify: metres on the ground; see there.
        small, smooth, connectivity, regularize, regularize_class, drop, keep_background: see there.
        device, precision: see :mod:`geoseg.engine.device`.
        engine: what computes the scores of networks: ``torch``, on a CPU ``openvino`` or ``onnxruntime``, or ``auto``,
            which takes what is faster on a tile of the scene.
        workers: local worker processes; 0 runs in this process.
        scheduler: address or scheduler file of a running cluster, in place of workers.
        resource: what each chunk takes of a worker of that cluster, as ``NAME=AMOUNT``.
        patience: seconds without such a worker after which the run ends, to be gone on with later.
        allow_holes: write outputs although chunks failed: no data where they are.
        allow_vrt_elsewhere: let VRTs refer to files outside of their folder, to servers, and to raw files.
        workdir: folder or ``s3://`` address of the chunk store; by default a hidden one beside the output, or in
            geoseg's cache for outputs in object storage, removed at the end.
        fresh: throw away what the work folder holds.
        overwrite: replace existing outputs.
    """

    labels: str | None = None
    confidence: str | None = None
    uncertainty: str | None = None
    candidates: str | None = None
    aoi: str | None = None
    bands: Sequence[int | str] | None = None
    nodata: float | None = None
    resolution: float | None = None
    output_grid: Literal["model", "scene"] = "model"
    chunk: int | None = None
    tile: int | None = None
    halo: int | None = None
    blend: Blend | None = None
    tta: bool = False
    refine: str | None = None
    refine_by: Literal["tile", "object"] = "tile"
    batch: int = 0
    min_area: float = 0.0
    small: Literal["merge", "drop"] = "merge"
    fill_holes: float = 0.0
    simplify: float | None = None
    smooth: bool = False
    connectivity: int = 4
    regularize: bool = False
    regularize_class: Sequence[str] = ()
    drop: Sequence[str] = ()
    keep_background: bool = False
    device: str = "auto"
    precision: Precision = "auto"
    engine: Asked = "torch"
    workers: int = 0
    scheduler: str | None = None
    resource: str | None = None
    patience: float = 120.0
    allow_holes: bool = False
    allow_vrt_elsewhere: bool = False
    workdir: str | None = None
    fresh: bool = False
    overwrite: bool = False


def predict(
    scene: str | os.PathLike[str] | Scene,
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] | Sequence[str] | Segmenter = "buildings",
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    **changes: object,
) -> Report:
    """Segment a scene and write class polygons (or, where ``out`` ends in .tif, labels).

    Args:
        scene: path, URL, or an opened scene.
        out: .geojson, .geojsonl, .gpkg, .fgb, .parquet or .tif; a path or an ``s3://`` address.
        model: path, URL or name of a bundle, several for an ensemble, or any segmenter.
        options: see :class:`Options`.
        progress: called with a stage, steps done, and steps in all.
        changes: single fields of the options.

    Raises:
        SceneError, BundleError, ConfigError, OutputError: bad input, before any work.
        RunError: the run could not be finished; the same call goes on from there.
    """
    options = replace(options or Options(), **changes)  # type: ignore[arg-type]
    outputs = Outputs.check(out, options)
    method, segmenter = method_of(model, options)
    plan, notes = make_plan(scene, outputs, method, segmenter, options, progress)
    return execute(plan, outputs, options, notes, progress, two_passes(plan, segmenter, options))


def make_plan(
    scene: str | os.PathLike[str] | Scene,
    outputs: Outputs,
    method: Recipe | Segmenter,
    segmenter: Segmenter,
    options: Options,
    progress: Progress | None = None,
    labels: PriorFile | None = None,
) -> tuple[Plan, list[str]]:
    """Fit scene and method together, and look at the scene once; returns the plan and what a user should know.

    A segmenter that refines takes ``labels`` of an earlier stage; where it has no classes, they bring them.

    Raises:
        SceneError: the scene cannot be used, or has other bands than the model.
        ConfigError: tile, halo or chunk do not go together, or there is no such device.
        LabelsError: a class to drop does not exist.
        OutputError: an output is the scene itself.
    """
    from geoseg.engine.aoi import read_aoi
    from geoseg.engine.device import choose_device
    from geoseg.engine.engine_choice import refuse_engine, settled

    spec = segmenter.spec
    if spec.needs_prior and labels is None:
        raise ConfigError("this model refines labels and was given none: use `geoseg refine`.")
    own = (
        scene
        if isinstance(scene, Scene)
        else open_scene(scene, bands=options.bands, nodata=options.nodata, elsewhere=options.allow_vrt_elsewhere)
    )
    own = with_bands_of(own, spec, options)
    outputs.check_scene(own)
    for name, path in (("confidence", options.confidence), ("uncertainty", options.uncertainty)):
        if path and not spec.probabilistic:
            raise ConfigError(f"this model has no {name} to write: leave --{name} out.")
    uncertainty = _uncertainty_layers(spec) if options.uncertainty else ()
    aoi = read_aoi(options.aoi, own) if options.aoi else None
    model_scene, notes = at_model_resolution(own, spec, options)
    source = own if options.output_grid == "scene" else model_scene
    tiles = segmenter.lattice(model_scene.shape) or _tiles(spec, options, model_scene.shape)
    if spec.view is not None and isinstance(tiles, TileGrid):
        ViewGrid(tiles, spec.view.extent)  # refuses tiles that do not fit
    if not isinstance(tiles, TileGrid) and not (options.tile is None and options.halo is None):
        raise ConfigError("this model cuts the scene in its own way: leave --tile and --halo out.")
    refuse_engine(segmenter, options)
    if not options.scheduler:  # elsewhere there may be other devices
        choose_device(options.device)
    if progress:
        progress("preparing", 0, 1)
    prior = None if labels is None else labels.on(model_scene.geobox, own.path, spec.classes)
    refuse_empty(model_scene)
    state = _looked_at(model_scene, segmenter, options)
    if progress:
        progress("preparing", 1, 1)
    if prior is not None and state.classes is None:
        state = replace(state, classes=prior.classes)
    classes = state.classes or spec.classes
    if classes is None:
        raise BundleError("the model names no classes, and found none in the scene: give it classes.")
    Selection.of(options).check(classes, source.geobox)
    blend = options.blend or ("crop" if isinstance(tiles, TileGrid) else "hann")
    plan = Plan(
        source=source,
        model_scene=model_scene,
        method=method,
        state=state,
        classes=classes,
        probabilistic=spec.probabilistic,
        tiles=tiles,
        chunks=_chunks(options.chunk, blend, tiles, source, model_scene, len(classes) + len(uncertainty)),
        blend=blend,
        batch=options.batch,
        device=options.device,
        precision=options.precision,
        aoi=aoi,
        store=str(outputs.workdir),
        uncertainty=uncertainty,
        view=spec.view,
        prior=prior,
        engine=options.engine,
    )
    plan, told = settled(plan, segmenter, options)
    return plan, [*notes, *told]


def _looked_at(scene: Scene, segmenter: Segmenter, options: Options) -> State:
    """Return what the segmenter learned of the scene; one that computes over it does so on a device.

    That is done by a copy: the segmenter may yet be sent to workers that have other devices.
    """
    from geoseg.engine.device import choose_device, share_cores

    if not segmenter.spec.scene_pass:
        return segmenter.prepare(scene)
    share_cores()
    placed = copy.deepcopy(segmenter)
    # With a scheduler, what was asked for is the workers' and perhaps not here.
    placed.place(choose_device("auto" if options.scheduler and options.device != "cpu" else options.device))
    return placed.prepare(scene)


def method_of(model: object, options: Options) -> tuple[Recipe | Segmenter, Segmenter]:
    """Return how workers make the segmenter, and the segmenter itself."""
    from geoseg.segmenters.interface import Segmenter

    if options.refine is None and options.refine_by != "tile":
        raise ConfigError(f"labels are to be refined by {options.refine_by}, but no refiner was named: name it too.")
    refiner = None if options.refine is None else _named(options.refine)
    if isinstance(model, Segmenter):
        segmenter = model if options.refine is None else _refined(model, options.refine, options.refine_by)
        segmenter = augmented(segmenter) if options.tta else segmenter
        return segmenter, segmenter
    names = [model] if isinstance(model, str | os.PathLike) else list(model)  # type: ignore[call-overload]
    if not names:
        raise ConfigError("no model was given: name at least one bundle.")
    recipe = Recipe(tuple(_named(name) for name in names), options.tta, refiner, options.refine_by)
    return recipe, recipe.build()


def _named(name: str | os.PathLike[str]) -> tuple[str, str]:
    """Return path and digest of a bundle."""
    from geoseg.segmenters.loading import resolve_bundle

    path = os.path.abspath(resolve_bundle(name))
    return path, read_bundle(path).digest


def _refined(segmenter: Segmenter, name: str, by: Literal["tile", "object"]) -> Segmenter:
    from geoseg.segmenters.refining import Refining

    return Refining(read_bundle(_named(name)[0]), segmenter, whole=by)


def _uncertainty_layers(spec: Spec) -> tuple[str, ...]:
    """Return the names of the uncertainty layers: the entropy of the classes, then what the segmenter names."""
    return (ENTROPY, *(f"network {name}" if name == ENTROPY else name for name in spec.layers))


def with_bands_of(scene: Scene, spec: Spec, options: Options) -> Scene:
    """Return the scene with the model's bands: as chosen by the user, else by name, else all if their number fits."""
    count = len(spec.bands)
    if options.bands is None:
        names = [name.lower() for name in scene.band_names]
        if all(band.lower() in names for band in spec.bands):
            wanted = tuple(scene.bands[names.index(band.lower())] for band in spec.bands)
            return scene if wanted == scene.bands else scene.with_bands(wanted)
    if len(scene.bands) != count:
        example = f", for example --bands {','.join(str(i + 1) for i in range(count))}"
        has = f"{len(scene.bands)} band{'s' if len(scene.bands) > 1 else ''} ({', '.join(scene.band_names)})"
        raise SceneError(
            f"{scene.path} has {has} where the model takes {count} ({', '.join(spec.bands)}): "
            f"choose them with --bands{example if count <= len(scene.bands) else ''}, or use another model."
        )
    return scene


def at_model_resolution(scene: Scene, spec: Spec, options: Options) -> tuple[Scene, list[str]]:
    """Return the scene at the resolution the model works at, with a note for the user where that is another."""
    wanted = options.resolution or spec.resolution
    if wanted is None:
        return scene, []
    at = scene.at_resolution(wanted)
    if at.geobox == scene.geobox:
        return scene, []
    own = min(scene.resolution)
    why = "" if options.resolution else ", as the model was made for"
    grid = "outputs are on the scene's own grid" if options.output_grid == "scene" else "outputs are on that grid"
    return at, [f"the scene ({own:.3g} m per pixel) is read at {wanted:.3g} m{why}; {grid}."]


def _tiles(spec: Spec, options: Options, shape: tuple[int, int]) -> TileGrid:
    """Return the tiles of a scene of ``shape``: as asked for, else what fits it best up to the model's own size."""
    tile = options.tile if options.tile is not None else spec.tile
    halo = options.halo if options.halo is not None else spec.halo
    for name, value in (("--tile", tile), ("--halo", halo)):
        if value < 0 or value % spec.stride:
            fitting = max(spec.stride, -(-value // spec.stride) * spec.stride)
            raise ConfigError(
                f"{name} {value} is not a multiple of {spec.stride} pixels, the stride of the model: use {fitting}."
            )
    if spec.fixed_tile and options.tile is not None and tile != spec.tile:
        raise ConfigError(f"this model works at its own tile size of {spec.tile} pixels only: leave --tile out.")
    tiles = TileGrid(tile, halo)
    # What is seen round a tile is cut by the model's own tiles.
    return tiles if options.tile is not None or spec.fixed_tile or spec.view else tiles.fitted(shape, spec.stride)


def _chunks(
    asked: int | None, blend: Blend, tiles: TileGrid | MacroGrid, source: Scene, model_scene: Scene, values: int
) -> ChunkGrid:
    """Return the chunks of the outputs' grid: of the size ``asked`` for, in whole tile cores.

    A pixel that is blended takes as many ``values`` as there are classes and further layers.

    With tiles cut at their cores, each is then computed for one chunk only.  Blended tiles reach into their
    neighbours' cores, so lines between chunks run through the middle of cores, where only one row of tiles meets
    them.  Where the model sees a finer grid, chunks shrink to bound memory.
    """
    blended = blend == "hann"
    if asked is None:
        roomy = blended and values * _BLENDED_CHUNK**2 * 4 <= _SCORES_BYTES
        asked = _BLENDED_CHUNK if roomy else DEFAULT_CHUNK
    if asked < 1:
        raise ConfigError(f"--chunk {asked} makes no chunks: give a number of pixels, such as {DEFAULT_CHUNK}.")
    if source.geobox != model_scene.geobox:
        finer = max(1.0, max(a / b for a, b in zip(source.resolution, model_scene.resolution, strict=True)))
        return ChunkGrid(source.shape, max(64, int(asked / finer)))
    cores, first = (tiles.core_shape, 0) if isinstance(tiles, TileGrid) else ((tiles.step, tiles.step), tiles.reach)
    sizes = [max(1, round(asked / core)) * core for core in cores]
    down, across = (
        (size, (first + (core // 2 if blended else 0)) % size) for core, size in zip(cores, sizes, strict=True)
    )
    return ChunkGrid(source.shape, *down, None if across == down else across)
