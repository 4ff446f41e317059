"""Outputs of a run: where they go, and how they are made from the chunk store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from geoseg.engine.device import cores
from geoseg.engine.mosaic import write_mosaic
from geoseg.engine.plan import CONFIDENCE_NODATA, UNCERTAINTY_NODATA, Plan
from geoseg.engine.run import Progress
from geoseg.engine.selection import Selection
from geoseg.engine.store import ChunkStore
from geoseg.engine.vectorize import Written, write_polygons
from geoseg.engine.work_places import own_workdir, workdir_of
from geoseg.errors import ConfigError, OutputError
from geoseg.fetching import without_secrets
from geoseg.geodesy import projection
from geoseg.places import Place, S3Place, place_of
from geoseg.scene import Scene
from geoseg.source import gdal_environment, open_raster
from geoseg.warp import native_grid

if TYPE_CHECKING:
    from pyproj import CRS

    from geoseg.engine.predict import Options
    from geoseg.outputs.qgis import Kind, Layer
    from geoseg.outputs.qgis_renderers import Colors

_RASTERS = {".tif", ".tiff"}
# Threads that turn labels into polygons, and the side in pixels of the blocks of which each holds a few: so small that
# this takes no more memory than the network did.
_THREADS, _BLOCK = 2, 1024


@dataclass(frozen=True)
class Outputs:
    """The files a run writes, None for those not wanted, and the work folder it goes through."""

    polygons: Place | None
    labels: Place | None
    confidence: Place | None
    uncertainty: Place | None
    workdir: Place
    candidates: Place | None = None

    @classmethod
    def check(cls, out: str | os.PathLike[str] | S3Place, options: Options) -> Outputs:
        """Settle where everything goes, and refuse what could not be written, before any work.

        Raises:
            OutputError: a path exists, its folder does not or cannot be written, or its suffix is unknown.
            ConfigError: two outputs share one path.
        """
        from geoseg.outputs.polygons import check_output
        from geoseg.outputs.staging import check_place

        place = partial(place_of, new=not options.overwrite)
        main = place(out)
        raster = main.suffix.lower() in _RASTERS
        if raster and options.labels:
            raise ConfigError(f"both {main} and --labels {options.labels} name a label raster: leave --labels out.")
        labels = main if raster else (place(options.labels) if options.labels else None)
        polygons = None if raster else main
        confidence = place(options.confidence) if options.confidence else None
        uncertainty = place(options.uncertainty) if options.uncertainty else None
        candidates = place(options.candidates) if options.candidates else None
        every = (polygons, labels, confidence, uncertainty, candidates)
        wanted = [path.absolute() for path in every if path is not None]
        if len(set(wanted)) != len(wanted):
            raise ConfigError(f"two outputs share the path {wanted[0]}: give each its own.")
        if polygons is not None:
            check_output(polygons, options.overwrite)
        if candidates is not None:
            check_output(candidates, options.overwrite)
        for option, path in (("--labels", labels), ("--confidence", confidence), ("--uncertainty", uncertainty)):
            if path is not None and path.suffix.lower() not in _RASTERS:
                raise ConfigError(f"{option} {path} is written as GeoTIFF: let its name end in .tif.")
            if path is not None:
                check_place(path, options.overwrite)
        workdir = workdir_of(options.workdir) if options.workdir else own_workdir(main, shared=bool(options.scheduler))
        if isinstance(workdir, S3Place):
            check_place(workdir, overwrite=True)
        return cls(polygons, labels, confidence, uncertainty, workdir.absolute(), candidates)

    def check_scene(self, scene: Scene) -> None:
        """Refuse what this scene cannot be written to.

        Raises:
            OutputError: an output is the scene itself.
            ConfigError: the format of the polygons needs longitude and latitude, and the CRS has none.
        """
        from geoseg.outputs.polygons import check_output

        for name in self.files:
            if is_same_file(name, scene.path):
                raise OutputError(f"{name} is the scene itself: give the output another name.")
        for path in (self.polygons, self.candidates):
            if path is not None:
                check_output(path, overwrite=True, crs=projection(scene.geobox))

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the outputs, polygons first."""
        known = [path for path, _ in self.kinds()]
        return tuple(str(path) for path in (*known, self.candidates) if path is not None)

    def kinds(self) -> list[tuple[Place, Kind]]:
        """Return the outputs with what each shows, polygons first."""
        named: tuple[tuple[Place | None, Kind], ...] = (
            (self.polygons, "polygons"),
            (self.labels, "labels"),
            (self.confidence, "confidence"),
            (self.uncertainty, "uncertainty"),
        )
        return [(path, kind) for path, kind in named if path is not None]


def assemble(
    plan: Plan, store: ChunkStore, outputs: Outputs, options: Options, progress: Progress | None = None
) -> tuple[tuple[str, ...], Written | None]:
    """Write the outputs from the finished chunks; returns their paths, and what was written of polygons, if any.

    Several outputs get a ``.qlr`` beside them, which opens all of them in QGIS, over the scene.

    Memory is bounded by the chunk.  Files appear under their names only when they are complete.

    Raises:
        OutputError: an output cannot be written.
    """
    from geoseg.outputs.cog import write_confidence_cog, write_label_cog, write_uncertainty_cog
    from geoseg.outputs.qgis import write_layer_definition

    layers: list[tuple[str, float]] = [("Byte", plan.classes.nodata), ("UInt16", CONFIDENCE_NODATA)]
    mosaic = write_mosaic(store, plan.source.geobox, "mosaic.vrt", layers)
    written = None
    if outputs.polygons is not None:
        written = write_polygons(
            mosaic,
            outputs.polygons,
            plan.classes,
            confidence=(str(mosaic), 2) if plan.probabilistic else None,
            selection=Selection.of(options),
            workers=min(_THREADS, cores()),
            block=_BLOCK,
            workdir=store.folder,
            progress=progress,
        )
    if outputs.labels is not None:
        _tell(progress, "writing labels", 0)
        write_label_cog(mosaic, outputs.labels, plan.classes, band=1)
        _tell(progress, "writing labels", 1)
    if outputs.confidence is not None:
        _tell(progress, "writing confidence", 0)
        write_confidence_cog(mosaic, outputs.confidence, band=2)
        _tell(progress, "writing confidence", 1)
    if outputs.uncertainty is not None:
        _tell(progress, "writing uncertainty", 0)
        layers = [("Float32", UNCERTAINTY_NODATA)] * len(plan.uncertainty)
        source = write_mosaic(
            store, plan.source.geobox, "uncertainty.vrt", layers, path_of=store.uncertainty_path, stored="Float32"
        )
        write_uncertainty_cog(source, outputs.uncertainty, plan.uncertainty)
        _tell(progress, "writing uncertainty", 1)
    files = outputs.files
    if len(outputs.kinds()) > 1:
        definition = outputs.kinds()[0][0].with_suffix(".qlr")
        write_layer_definition(definition, _layers(plan, outputs))
        files += (str(definition),)
    return files, written


def _layers(plan: Plan, outputs: Outputs) -> list[Layer]:
    """Return what the ``.qlr`` is to bring: the outputs, only the first of which is switched on, and the scene.

    The scene is left out where its address may hold a secret, and where the outputs are in object storage and it is
    not: others than this machine would not find it.
    """
    from geoseg.outputs.qgis import Layer

    crs = projection(plan.source.geobox)
    known = outputs.kinds()
    layers = [Layer(path, kind, crs, plan.classes, shown=path is known[0][0]) for path, kind in known]
    place = _scene_place(plan.source.path)
    here = isinstance(place, Path)
    if place is None or (here and isinstance(known[0][0], S3Place)):
        return layers
    title = f"{Path(plan.source.path).stem} image"
    return [*layers, Layer(place, "image", _own_crs(plan.source), title=title, colors=_colors(plan))]


def _own_crs(scene: Scene) -> CRS:
    """Return the CRS of the scene's file, which need not be that of the grid it is seen through."""
    if scene.warp is None:
        return projection(scene.geobox)
    with gdal_environment(scene.path), open_raster(scene.path, elsewhere=scene.elsewhere) as dataset:
        return projection(native_grid(scene.path, dataset)[0])


def _scene_place(path: str) -> Place | str | None:
    """Return where the scene is; None where that is not to be told."""
    if os.path.exists(path):
        return Path(path)
    if path.lower().startswith("s3://"):
        return place_of(path)
    if without_secrets(path) != path or "?" in path or "@" in path:
        return None
    return f"/vsicurl/{path}" if path.lower().startswith(("http://", "https://")) else path


def _colors(plan: Plan) -> Colors:
    """Return how the scene is shown: by its red, green and blue where it names them, else by its first bands."""
    from geoseg.outputs.qgis_renderers import Colors

    scene = plan.source
    names = [name.lower() for name in scene.band_names]
    wanted = [names.index(name) for name in ("red", "green", "blue") if name in names]
    if len(wanted) < 3:
        wanted = [0, 1, 2] if len(set(scene.bands[:3])) == 3 else [0]
    limits: tuple[tuple[float, float], ...] = ()
    if scene.dtype != "uint8":
        figures = plan.model_scene.statistics()
        limits = tuple((figures.p2[i], figures.p98[i]) for i in wanted)
    return Colors(tuple(scene.bands[i] for i in wanted), limits, scene.alpha)


def is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths are of one file that exists, by links too, or of one object in storage."""
    first, second = (os.fspath(name).replace("s3://", "/vsis3/", 1) for name in (one, other))
    if first.startswith("/vsis3/"):
        return first == second
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _tell(progress: Progress | None, stage: str, done: int) -> None:
    if progress:
        progress(stage, done, 1)
