"""A prediction against its reference: rasters or polygons on either side, compared on one grid."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.boundaries import reach
from geoseg.classes import Classes
from geoseg.engine.block_raster import block_raster
from geoseg.engine.burnt import BurntPolygons
from geoseg.engine.class_matching import Matched, match
from geoseg.engine.comparing import Counts, Maps, compare
from geoseg.engine.error_raster import error_raster
from geoseg.engine.evaluation import Boundaries, Evaluation, ObjectScores
from geoseg.engine.evaluation_grid import choose_grid, described
from geoseg.engine.label_sides import (
    RasterSide,
    VectorSide,
    is_vector,
    open_raster_side,
    polygons_on_grid,
    read_frame,
    read_vector_side,
)
from geoseg.engine.nearest import OnGrid, Place
from geoseg.engine.objects import InnerPoints, Objects, match_objects, objects_of_raster
from geoseg.engine.structure import Structure, compare_structure, of_classes
from geoseg.errors import ConfigError, LabelsError, SceneError
from geoseg.geodesy import ground_resolution
from geoseg.grid import Window
from geoseg.metrics import IGNORED
from geoseg.outputs.cog import write_structure_cog
from geoseg.outputs.staging import check_place, staged, writing
from geoseg.scene import open_scene
from geoseg.vector.labels import RasterBlocks

Progress = Callable[[str, int, int], None]
Side = RasterSide | VectorSide

_DISTANCE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(px|m)?")
_MOST_CONTEXT_PX = 1024
_PICTURE_SIDE = 640


def evaluate(
    prediction: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    classes: Classes | None = None,
    class_field: str | None = None,
    one_class: str | None = None,
    ignore: Sequence[str] = (),
    outside: Literal["background", "ignore"] = "background",
    all_touched: bool = False,
    grid: Literal["auto", "reference", "prediction"] = "auto",
    resolution: float | None = None,
    aoi: str | os.PathLike[str] | None = None,
    erode: float = 0.0,
    boundary: str = "3px",
    objects: bool = True,
    confidence: str | os.PathLike[str] | None = None,
    json_file: str | os.PathLike[str] | None = None,
    html_file: str | os.PathLike[str] | None = None,
    errors_file: str | os.PathLike[str] | None = None,
    structure_file: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    chunk: int = 2048,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a prediction with a reference, pixel by pixel and object by object.

    Either is a label raster or a vector file of class polygons, in any CRS and on any grid.  Counts are pooled over
    the whole grid, and no figure depends on ``chunk``.  Memory is bounded by the block, but for polygons: those of
    vector files, and with ``objects`` those of rasters.

    Boundary IoU of a class is the intersection over union of two sets of pixels: those of the class in the reference
    with another class within the distance in the reference, and likewise in the prediction (after Cheng et al. 2021;
    distances are Euclidean, from centre to centre; the edge of the data is no boundary).

    Args:
        prediction: what is judged.
        reference: what is taken for true.
        classes: what the numbers or names of both mean; by default what the files tell.
        class_field: attribute of polygons that tells their class; else ``class_id`` with ``class_name``, or ``class``.
        one_class: class of all polygons of a vector reference, and of a vector prediction that tells none.
        ignore: reference classes (names or numbers) that are left out.
        outside: what pixels in no polygon of a vector file are.
        all_touched: burn every pixel that a polygon touches, not only those whose centre it holds.
        grid: whose grid to compare on; ``auto`` is the reference's if it is a raster, else the prediction's.
        resolution: another pixel size, in ground metres; for two vector files 1/4096 of the longer side if None.
        aoi: vector file; only pixels in its polygons are compared.
        erode: also score without reference pixels that have another class within so many pixels.
        boundary: distance of boundary IoU, in pixels (``3px``) or ground metres (``0.5m``).
        objects: match polygons at IoU 0.5.
        confidence: raster of the probability of each predicted label, 0 to 1 or integers in 1/1000.
        json_file: where to write all figures.
        html_file: where to write a page with tables and maps.
        errors_file: where to write a COG of right (0), wrong (1) and ignored (2) pixels.
        structure_file: where to write a COG of structural similarity, S1, S2 and D2 of the window around each pixel, on
            the grid of the comparison; its means are among the figures then.
        overwrite: replace these files.
        chunk: side of a block in pixels.
        progress: called with a stage, steps done and steps in all.

    Raises:
        SceneError: a file cannot be read or has no CRS, or the two do not overlap.
        LabelsError: classes that cannot be brought together, an empty reference, or values that are no class.
        ConfigError: an option that makes no sense.
        OutputError: an output that cannot be written.
    """
    outputs = [Path(path) for path in (json_file, html_file, errors_file, structure_file) if path is not None]
    for path in outputs:
        check_place(path, overwrite)
    _refuse_options(erode, chunk, class_field, (prediction, reference), len({*outputs}) < len(outputs))
    sides, place = _open_sides(
        os.fspath(prediction), os.fspath(reference), classes, class_field, one_class, outside, grid, resolution
    )
    matched = match(sides[0].table, sides[1].table, classes=classes, ignore=ignore)
    distance_yx = _distance_px(boundary, place)
    with ExitStack() as stack:
        maps = _maps(stack, sides, matched, place, all_touched)
        maps = replace(maps, **_extra_maps(place, aoi, confidence, os.fspath(reference), all_touched))
        found = _objects(sides, matched, place) if objects else ()
        points = [InnerPoints(part) for part in found]
        write = stack.enter_context(error_raster(errors_file, place)) if errors_file is not None else None
        counts = compare(
            maps,
            chunk=chunk,
            erode_px=erode,
            boundary_yx=distance_yx,
            points=points,
            picture_side=_PICTURE_SIDE if html_file is not None else 0,
            write=write,
            progress=None if progress is None else lambda done, total: progress("pixels", done, total),
        )
        # Inside the block: a comparison of nothing leaves no error raster behind.
        _refuse_nothing(counts, os.fspath(prediction), os.fspath(reference), confidence)
        structure = None
        if structure_file is not None:
            structure = _structure(structure_file, maps, counts, matched.classes, place, chunk, progress)
    scores = None
    if objects:
        numbers, iou = match_objects(found[0], found[1], (points[0].counted, points[1].counted), len(matched.classes))
        scores = ObjectScores(numbers, float(iou.mean()) if len(iou) else math.nan)
    result = Evaluation(
        prediction=os.fspath(prediction),
        reference=os.fspath(reference),
        classes=matched.classes,
        grid=described(place),
        pixels=counts.pixels,
        scores=counts.matrix,
        eroded=counts.eroded if erode > 0 else None,
        erode_px=erode,
        boundaries=Boundaries(counts.boundaries, boundary),
        objects=scores,
        calibration=counts.calibration if confidence is not None else None,
        structure=structure,
        pictures=counts.pictures,
        notes=_notes(sides, matched),
    )
    _write(result, json_file, html_file)
    return result


def _refuse_options(
    erode: float, chunk: int, attribute: str | None, files: tuple[str | os.PathLike[str], ...], same: bool
) -> None:
    if same:
        raise ConfigError("two outputs have the same name: give each its own.")
    if not 0 <= erode <= _MOST_CONTEXT_PX:
        raise ConfigError(f"--erode {erode:g} is refused: give 0 to {_MOST_CONTEXT_PX} pixels.")
    if chunk < 1:
        raise ConfigError(f"--chunk {chunk} is refused: give a block of at least 1 pixel.")
    if attribute is not None and not any(is_vector(path) for path in files):
        raise ConfigError(f"--class-field {attribute} is of no use: neither file is a vector file.")


def _open_sides(
    prediction: str,
    reference: str,
    classes: Classes | None,
    attribute: str | None,
    one_class: str | None,
    outside: str,
    grid: str,
    resolution: float | None,
) -> tuple[tuple[Side, Side], GeoBox]:
    """Open the reference and the prediction (in this order), and choose the grid."""
    paths = (reference, prediction)
    rasters = [None if is_vector(path) else open_raster_side(path, numbered=classes) for path in paths]
    place = choose_grid(paths, rasters, grid, resolution)
    sides: list[Side] = []
    for number, (path, raster) in enumerate(zip(paths, rasters, strict=True)):
        if raster is not None:
            sides.append(raster)
            continue
        sides.append(
            read_vector_side(
                path,
                place,
                attribute=attribute,
                one_class=one_class,
                class_first=number == 0,
                fills=outside == "background",
                other=paths[1 - number],
            )
        )
    vectors = [side for side in sides if isinstance(side, VectorSide)]
    if attribute is not None and not any(attribute in side.attributes for side in vectors):
        names = ", ".join(vectors[0].attributes)
        raise LabelsError(f"{vectors[0].path} has no attribute {attribute!r}: its attributes are {names}.")
    if isinstance(sides[0], VectorSide) and sides[0].table.empty:
        raise LabelsError(f"{reference} holds no polygon: a reference must not be empty.")
    return (sides[0], sides[1]), place


def _lookup(side: RasterSide, places: dict[Any, int | None]) -> NDArray[np.uint8]:
    """Return the class index of each label value: (256,) uint8, 255 for those to ignore."""
    table = np.full(256, IGNORED, np.uint8)
    for value in side.classes.ids:
        index = places.get(value)
        table[value] = IGNORED if index is None else index
    return table


def _indices(side: VectorSide, places: dict[Any, int | None]) -> NDArray[np.uint8]:
    """Return the class index of each feature: (N,) uint8, 255 for those to ignore."""
    found = (places.get(key) for key in side.keys)
    return np.array([IGNORED if index is None else index for index in found], np.uint8)


def _maps(stack: ExitStack, sides: tuple[Side, Side], matched: Matched, place: GeoBox, all_touched: bool) -> Maps:
    reads: list[Callable[[Window], NDArray[np.uint8]]] = []
    for side, places in zip(sides, (matched.reference, matched.prediction), strict=True):
        if isinstance(side, RasterSide):
            blocks = stack.enter_context(RasterBlocks(side.raster, 2048, side.classes))
            reads.append(_raster_reader(side, blocks, _lookup(side, places), place))
            continue
        outside = matched.background if side.table.fills and matched.background is not None else IGNORED
        burnt = BurntPolygons(
            side.geometry, _indices(side, places), Place.of(place).shape, outside=outside, all_touched=all_touched
        )
        reads.append(burnt.read)
    return Maps(Place.of(place).shape, len(matched.classes), reads[0], reads[1])


def _raster_reader(
    side: RasterSide, blocks: RasterBlocks, lookup: NDArray[np.uint8], place: GeoBox
) -> Callable[[Window], NDArray[np.uint8]]:
    return OnGrid(side.place, place, lambda window: lookup[blocks.read(window).labels], IGNORED).read


def _extra_maps(
    place: GeoBox,
    aoi: str | os.PathLike[str] | None,
    confidence: str | os.PathLike[str] | None,
    reference: str,
    all_touched: bool,
) -> dict[str, Any]:
    """Return the area to compare in and the confidence, as far as they are given."""
    extra: dict[str, Any] = {}
    if aoi is not None:
        name = os.fspath(aoi)
        shapes, _ = polygons_on_grid(name, read_frame(name, place), place, reference)
        if len(shapes) == 0:
            raise SceneError(f"{name} does not meet the grid of {reference}: give an area that overlaps it.")
        ones = np.ones(len(shapes), np.uint8)
        area = BurntPolygons(shapes, ones, Place.of(place).shape, outside=0, all_touched=all_touched)
        extra["area"] = area.read
    if confidence is not None:
        scene = open_scene(confidence, bands=[1])
        unit = 1.0 if np.dtype(scene.dtype).kind == "f" else 1000.0

        def values(window: Window) -> NDArray[np.float64]:
            pixels = scene.read(window)
            return np.where(pixels.valid, pixels.data[0] / unit, -1.0)

        extra["confidence"] = OnGrid(Place.of(scene.geobox), place, values, -1.0).read
        extra["confidence_path"] = scene.path
    return extra


def _objects(sides: tuple[Side, Side], matched: Matched, place: GeoBox) -> tuple[Objects, ...]:
    """Return the objects of the reference and of the prediction: polygons of all classes but the background."""
    found = []
    for side, places in zip(sides, (matched.reference, matched.prediction), strict=True):
        things = {key: None if index == matched.background else index for key, index in places.items()}
        if isinstance(side, RasterSide):
            found.append(objects_of_raster(side, _lookup(side, things), Place.of(place)))
        else:
            found.append(Objects.of(side.geometry, _indices(side, things), Place.of(place).shape))
    return tuple(found)


def _structure(
    path: str | os.PathLike[str],
    maps: Maps,
    counts: Counts,
    classes: Classes,
    place: GeoBox,
    chunk: int,
    progress: Progress | None,
) -> Structure:
    """Write the structural similarity of both maps, of the classes that occur in either, and return its means."""
    present = [(int(index), classes[index].name) for index in np.flatnonzero(counts.matrix.present)]
    pair = of_classes(maps.shape, maps.reference, maps.prediction, maps.area, present)
    with block_raster(
        path, place, dtype="float32", bands=3, finish=lambda plain: write_structure_cog(plain, path)
    ) as write:
        return compare_structure(
            pair,
            chunk=chunk,
            write=write,
            progress=None if progress is None else lambda done, total: progress("structure", done, total),
        )


def _distance_px(text: str, place: GeoBox) -> tuple[float, float]:
    """Return a distance such as ``3px`` or ``0.5m`` in pixels, down and across.

    Raises:
        ConfigError: it is no distance, less than a pixel, or too long.
    """
    found = _DISTANCE.fullmatch(text.strip().lower())
    if found is None:
        raise ConfigError(f"--boundary {text!r} is no distance: give pixels (3px) or ground metres (0.5m).")
    length = float(found[1])
    across, down = ground_resolution(place)
    pixels = (length / down, length / across) if found[2] == "m" else (length, length)
    if reach((0.0, min(pixels))) < 1 or reach(pixels) > _MOST_CONTEXT_PX:
        raise ConfigError(
            f"--boundary {text} is {min(pixels):.3g} to {max(pixels):.3g} pixels here: give 1 to {_MOST_CONTEXT_PX}."
        )
    return pixels


def _refuse_nothing(counts: Counts, prediction: str, reference: str, confidence: str | os.PathLike[str] | None) -> None:
    pixels = counts.pixels
    if pixels["evaluated"] == 0:
        labelled = pixels["all"] - pixels["reference_ignored"] - pixels["outside_area"]
        if labelled == 0:
            raise LabelsError(f"{reference} has no label where it is to be compared: check its nodata value and --aoi.")
        raise SceneError(
            f"{prediction} and {reference} have no labelled pixel in common: give files of the same place."
        )
    if confidence is not None and not counts.calibration.pixels.any():
        raise SceneError(
            f"{os.fspath(confidence)} has no value where labels are compared: give the confidence of {prediction}."
        )


def _notes(sides: tuple[Side, Side], matched: Matched) -> tuple[str, ...]:
    notes = []
    for side in sides:
        if isinstance(side, VectorSide) and side.table.fills and matched.background is not None:
            name = matched.classes[matched.background].name
            notes.append(f"Pixels in no polygon of {side.path} count as {name} (--outside ignore leaves them out).")
    if all(isinstance(side, VectorSide) for side in sides):
        notes.append("Both files are vectors: what is compared is the rectangle that both of their extents hold.")
    return tuple(notes)


def _write(
    result: Evaluation, json_file: str | os.PathLike[str] | None, html_file: str | os.PathLike[str] | None
) -> None:
    record = result.as_dict()
    if json_file is not None:
        with staged(json_file) as temporary, writing(json_file):
            text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    if html_file is not None and result.pictures is not None:
        from geoseg.outputs.report_html import write_report

        pictures = result.pictures
        write_report(html_file, record, result.classes, (pictures.reference, pictures.prediction, pictures.wrong))
