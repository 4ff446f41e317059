"""A scene with its labels and the parts of it that are trained on and judged, on any grid."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geoseg.errors import ConfigError, SceneError
from geoseg.grid import Window
from geoseg.nodata import hide_nodata
from geoseg.scene import Pixels, Scene, open_scene
from geoseg.source import gdal_environment, open_raster, reading
from geoseg.training.adaptation_config import TargetConfig
from geoseg.training.blocks import Blocks
from geoseg.training.coarse_config import CoarseSourceConfig
from geoseg.training.coarse_labels import CoarseLabels, open_coarse, open_table
from geoseg.training.config import SceneConfig, TrainConfig
from geoseg.training.labels import IGNORE, AnyClass, Labels, NoLabels, open_labels, outline
from geoseg.training.polygons import burn, footprint, read_polygons
from geoseg.warp import Warp

# Of the transformation, in pixels: far below what a label is drawn to.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Site:
    """One scene to train on or to be judged on.

    Attributes:
        scene: at the resolution of the training.
        native: on its own grid.
        overviews: factors of the file's overviews.
        labels: what is known of it.
        area: polygons, in the scene's CRS, outside of which labels do not count.
        coarse: coarse labels by the number of their source, with how they are read there.
        taught: what a teacher says, where there is one.
    """

    scene: Scene
    native: Scene
    overviews: tuple[int, ...]
    labels: Labels
    area: NDArray[np.object_]
    coarse: Mapping[int, tuple[CoarseLabels, CoarseSourceConfig]] = field(default_factory=dict)
    taught: Labels | None = None
    _open: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    def labels_on(self, to_site: Affine, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Return positions in the class table, (H, W), 255 outside the area; ``to_site`` leads to site pixels."""
        labels = self.labels.burn(self.scene.geobox.affine * to_site, shape)
        inside = self.inside(to_site, shape)
        if inside is not None:
            labels[~inside] = IGNORE
        return labels

    def taught_on(self, to_site: Affine, seen: NDArray[np.bool_]) -> NDArray[np.uint8] | None:
        """Return what a teacher says of the pixels that are ``seen``, (H, W), 255 elsewhere; None without a teacher.

        Raises:
            SceneError: the scene cannot be read there.
        """
        if self.taught is None:
            return None
        return np.where(seen, self.taught.burn(self.scene.geobox.affine * to_site, seen.shape), np.uint8(IGNORE))

    def blocks_on(self, to_site: Affine, valid: NDArray[np.bool_]) -> dict[int, Blocks]:
        """Return the blocks of each source on a grid, without those that are cut too much by its edge or by ``valid``.

        Args:
            to_site: leads to site pixels.
            valid: (H, W), pixels that hold data.

        Raises:
            LabelsError: a coarse class without statistics.
        """
        affine, found = self.scene.geobox.affine * to_site, {}
        inside = self.inside(to_site, valid.shape) if self.coarse else None
        seen = valid if inside is None else valid & inside
        for number, (labels, how) in self.coarse.items():
            blocks = labels.blocks(affine, valid.shape)
            held = blocks.where(seen).whole(labels.areas(blocks, affine), how.min_block_fraction)
            # What is cut off by an edge of the data is no border of blocks.
            found[number] = held.where(blocks.eroded(how.block_erode).numbers >= 0) if how.block_erode else held
        return found

    def inside(self, to_site: Affine, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """Return where a grid lies in the area, (H, W); None for everywhere."""
        affine, size = self.scene.geobox.affine * to_site, (shape[0], shape[1])
        if shapely.covers(self.area, outline(affine, size)).any():
            return None
        return burn(self.area, np.ones(len(self.area), np.uint8), affine, size, fill=0) > 0

    @cached_property
    def _metres(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """True ground lengths of the file's own pixels and of the site's; geodesy would take longer than a patch."""
        return self.native.resolution, self.scene.resolution

    def pixels_on(self, to_site: Affine, shape: tuple[int, int], scale: float) -> Pixels:
        """Read the source anew on a grid of ``scale`` site pixels per pixel; invalid beyond the scene.

        Raises:
            SceneError: the file cannot be read there.
        """
        own, target = self._metres
        ratio = (target[0] * scale / own[0], target[1] * scale / own[1])
        fitting = [i for i, factor in enumerate(self.overviews) if factor <= min(ratio) * 1.001]
        level = max(fitting, default=None)
        geobox = GeoBox(shape, self.scene.geobox.affine * to_site, self.scene.geobox.crs)
        if self.native.warp is not None or self.native.masked or self.native.alpha is not None:
            seen = replace(self.native, geobox=geobox, warp=Warp(level, ratio), _open=threading.local())
            return seen.read(seen.window)
        return self._warped(geobox, Warp(level, ratio))

    def _warped(self, geobox: GeoBox, warp: Warp) -> Pixels:
        """Do what ``replace(native, …).read`` does with a file that stays open, whose decoded blocks are kept."""
        opened = self._open.__dict__.setdefault("sources", {})
        source = opened.get(warp.overview_level)
        with gdal_environment(self.native.path), reading(self.native.path, "a patch"):
            if source is None:
                source = opened[warp.overview_level] = open_raster(
                    self.native.path, warp.overview_level, elsewhere=self.native.elsewhere
                )
            factor = 1.0 if warp.overview_level is None else self.overviews[warp.overview_level]
            value = next((v for v in self.native.nodata if v is not None), None)
            # Not asked for validity, GDAL warps several times faster; where nothing is nodata, the outline says it.
            validity: dict[str, Any] = {}
            if value is not None:
                validity = {"src_nodata": value, "nodata": value, "UNIFIED_SRC_NODATA": "YES"}
            height, width = geobox.shape
            with WarpedVRT(
                source,
                crs=source.crs,
                transform=geobox.affine,
                height=int(height),
                width=int(width),
                resampling=Resampling.bilinear,
                tolerance=_TOLERANCE,
                XSCALE=str(min(1.0, factor / warp.ratio[0])),
                YSCALE=str(min(1.0, factor / warp.ratio[1])),
                **validity,
            ) as dataset:
                data = dataset.read(list(self.native.bands))
        shape, whole = (int(height), int(width)), footprint(self.native)
        mask = None
        if not shapely.covers(whole, outline(geobox.affine, shape)):
            mask = burn(np.array([whole], object), np.ones(1, np.uint8), geobox.affine, shape, fill=0)
        pixels, valid = hide_nodata(data, mask, self.native.nodata)
        return Pixels(pixels, valid, Window(0, 0, *shape))


def open_sites(config: TrainConfig) -> tuple[list[Site], list[Site]]:
    """Open the scenes of a configuration: those to train on, and those to be judged on.

    Raises:
        SceneError: a scene that cannot be opened, or has other bands than the first.
        LabelsError: labels or areas that cannot be used with their scene.
    """
    training: list[Site] = []
    judged: list[Site] = []
    metres = config.data.resolution
    tables = [open_table(source, config) for source in config.coarse.sources]
    for entry in config.data.scenes:
        native, scene = _open(config, entry, metres)
        metres = metres or min(scene.resolution)
        held = _area(config, entry.validation, scene)
        kept = _area(config, entry.train, scene)
        area = footprint(scene) if kept is None else kept
        labels = _labels(config, entry, scene)
        make = _maker(native, scene, labels)
        site = make(area if held is None else shapely.difference(area, held))
        coarse = {
            number: (open_coarse(config.path(path), scene, source, table), source)
            for number, (path, source, table) in enumerate(
                zip(entry.coarse, config.coarse.sources, tables, strict=False)
            )
            if path is not None
        }
        # Fine labels that count for nothing must not be drawn from either.
        kept_labels = labels if config.targets == "fine" or config.coarse.fine_weight else NoLabels()
        training.append(replace(site, coarse=coarse, labels=kept_labels))
        if held is not None:
            judged.append(make(held))
    for entry in config.data.validation_scenes:
        native, scene = _open(config, entry, metres)
        area = _area(config, entry.validation, scene)
        labels = _labels(config, entry, scene)
        judged.append(_maker(native, scene, labels)(footprint(scene) if area is None else area))
    _refuse_other_bands([*training, *judged])
    return training, judged


def open_targets(config: TrainConfig, source: Site) -> tuple[list[Site], list[Site]]:
    """Open the scenes to adapt to: all of them, every pixel of the first class, and those with labels, with these.

    Args:
        config: of the run.
        source: a site with labels, whose resolution and number of bands they must have.

    Raises:
        SceneError: a scene that cannot be opened, or has other bands than the source.
        LabelsError: labels that cannot be used with their scene.
    """
    unknown, known = [], []
    for entry in config.adaptation.targets:
        native, scene = _open(config, entry, config.data.resolution or min(source.scene.resolution))
        unknown.append(_maker(native, scene, AnyClass())(footprint(scene)))
        if entry.labels is not None:
            known.append(replace(unknown[-1], labels=open_labels(config.path(entry.labels), scene, config.data)))
    _refuse_other_bands([source, *unknown])
    return unknown, known


def _open(config: TrainConfig, entry: SceneConfig | TargetConfig, metres: float | None) -> tuple[Scene, Scene]:
    native = open_scene(config.path(entry.image), bands=config.data.bands, elsewhere=config.data.allow_vrt_elsewhere)
    return native, native if metres is None else native.at_resolution(metres)


def _labels(config: TrainConfig, entry: SceneConfig, scene: Scene) -> Labels:
    return NoLabels() if entry.labels is None else open_labels(config.path(entry.labels), scene, config.data)


def _maker(native: Scene, scene: Scene, labels: Labels) -> Callable[[Any], Site]:
    factors: tuple[int, ...] = ()
    if native.warp is None:  # an overview does not carry the control points
        with gdal_environment(native.path), open_raster(native.path, elsewhere=native.elsewhere) as dataset:
            factors = tuple(dataset.overviews(1))

    def make(area: Any) -> Site:
        return Site(scene, native, factors, labels, np.array([] if area.is_empty else [area], object))

    return make


def _area(config: TrainConfig, given: str | tuple[float, float] | None, scene: Scene) -> Any:
    """Return an area of a configuration as one shape in the scene's CRS, None where none is given."""
    if given is None:
        return None
    if isinstance(given, str):
        return shapely.union_all(read_polygons(config.path(given), scene, repair=True)[0])
    height, width = scene.shape
    left, right = (share * width for share in given)
    corners = ((left, 0), (right, 0), (right, height), (left, height))
    return shapely.Polygon([scene.geobox.affine * xy for xy in corners])


def _refuse_other_bands(sites: list[Site]) -> None:
    first = sites[0].scene
    for site in sites[1:]:
        if len(site.scene.bands) != len(first.bands):
            raise SceneError(
                f"{site.scene.path} has {len(site.scene.bands)} bands where {first.path} has {len(first.bands)}: "
                "choose the same ones with data.bands."
            )


def refuse_large_patches(sites: list[Site], config: TrainConfig) -> None:
    """Refuse patches that could not hold the least share of data anywhere in a scene, however they were drawn.

    Raises:
        ConfigError: there is such a scene.
    """
    side = config.training.patch * config.augment.scale[0]
    for site in sites:
        height, width = site.scene.shape
        if min(1.0, height / side) * min(1.0, width / side) < config.sampling.min_valid:
            raise ConfigError(
                f"training.patch is {config.training.patch} pixels, but {site.scene.path} has no more than {height} × "
                f"{width} at {min(site.scene.resolution):.3g} m: make patches smaller, or data.resolution finer."
            )


def windows_of(site: Site, patch: int) -> list[Window]:
    """Return the squares of ``patch`` pixels that cover the site's area, row by row."""
    height, width = site.scene.shape
    windows = [Window(row, col, patch, patch) for row in range(0, height, patch) for col in range(0, width, patch)]
    return [window for window, met in zip(windows, meeting(site, windows), strict=True) if met]


def meeting(site: Site, windows: Sequence[Window]) -> NDArray[np.bool_]:
    """Return which windows share ground with the site's area."""
    back = ~site.scene.geobox.affine
    matrix = np.array([[back.a, back.b], [back.d, back.e]])
    placed = shapely.transform(site.area, lambda xy: xy @ matrix.T + (back.c, back.f))
    boxes = shapely.box(*np.array([(w.col, w.row, w.col_stop, w.row_stop) for w in windows]).T)
    meets = np.zeros(len(windows), bool)
    for shape in placed:
        meets |= shapely.area(shapely.intersection(boxes, shape)) > 0
    return meets
