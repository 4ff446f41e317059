"""Two rasters of values, band by band: where they differ in level and in structure."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.engine.block_raster import block_raster
from geoseg.engine.evaluation import without_nan
from geoseg.engine.evaluation_grid import described
from geoseg.engine.nearest import OnGrid, Place
from geoseg.engine.structure import Pair, Planes, compare_structure
from geoseg.errors import ConfigError, SceneError
from geoseg.grid import Window
from geoseg.outputs.cog import write_structure_cog
from geoseg.outputs.staging import check_place, staged, writing
from geoseg.scene import Scene, open_scene

Progress = Callable[[str, int, int], None]


def compare_values(
    prediction: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    data_range: float | None = None,
    structure_file: str | os.PathLike[str] | None = None,
    json_file: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    chunk: int = 1024,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare two rasters of values on the reference's grid, the prediction by nearest neighbour if on another.

    Args:
        prediction: what is judged.
        reference: what is taken for true, of as many bands.
        data_range: what lies between the least and the largest possible value, the same for the whole scene; that of
            the reference's pixel type by default.
        structure_file: where to write a COG of S1, S2 and D2 of the window around each pixel, means over the bands.
        json_file: where to write the figures.
        overwrite: replace these files.
        chunk: largest side of a block in pixels.
        progress: called with a stage, steps done and steps in all.

    Returns:
        A record of the two files, the grid, the means over all windows (``structure``) and notes; None where a figure
        is not defined.

    Raises:
        SceneError: a file cannot be read or has no CRS, or there is no window that both fill with data.
        ConfigError: other bands, a range that is not above 0, or none for floating-point pixels.
        OutputError: an output that cannot be written.
    """
    outputs = [Path(path) for path in (structure_file, json_file) if path is not None]
    for path in outputs:
        check_place(path, overwrite)
    if len({*outputs}) < len(outputs):
        raise ConfigError("two outputs have the same name: give each its own.")
    if chunk < 1:
        raise ConfigError(f"--chunk {chunk} is refused: give a block of at least 1 pixel.")
    scenes = open_scene(reference), open_scene(prediction)
    pair = _pair(*scenes, _range(scenes[0], data_range))
    place = scenes[0].geobox
    with ExitStack() as stack:
        write = None
        if structure_file is not None:
            finished = structure_file
            raster = block_raster(
                finished, place, dtype="float32", bands=3, finish=lambda plain: write_structure_cog(plain, finished)
            )
            write = stack.enter_context(raster)
        told = None if progress is None else lambda done, total: progress("structure", done, total)
        found = compare_structure(pair, chunk=chunk, write=write, progress=told)
        if found.windows == 0:
            raise SceneError(
                f"{os.fspath(prediction)} and {os.fspath(reference)} have no window of 11 pixels in common that both "
                "fill with data: give rasters of the same place."
            )
    notes = []
    if scenes[0].geobox != scenes[1].geobox:
        notes.append(f"{scenes[1].path} lies on another grid and was read by nearest neighbour.")
    record: dict[str, Any] = without_nan(
        {
            "prediction": os.fspath(prediction),
            "reference": os.fspath(reference),
            "grid": described(place),
            "structure": found.as_dict(),
            "notes": notes,
        }
    )
    if json_file is not None:
        with staged(json_file) as temporary, writing(json_file):
            text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    return record


def _range(reference: Scene, given: float | None) -> float:
    """Return the data range, by default that of an integer type."""
    if given is not None:
        if not 0 < given < math.inf:
            raise ConfigError(f"--data-range {given:g} is refused: give what lies between least and largest value.")
        return float(given)
    dtype = np.dtype(reference.dtype)
    if dtype.kind not in "iu":
        raise ConfigError(
            f"{reference.path} has {reference.dtype} pixels, whose range is not known: give --data-range, what lies "
            "between the least and the largest possible value."
        )
    limits = np.iinfo(dtype)
    return float(limits.max) - float(limits.min)


def _pair(reference: Scene, prediction: Scene, data_range: float) -> Pair:
    if len(reference.bands) != len(prediction.bands):
        raise ConfigError(
            f"{prediction.path} has {len(prediction.bands)} bands and {reference.path} {len(reference.bands)}: "
            "give rasters of the same bands."
        )
    reads = [_readers(scene, reference) for scene in (prediction, reference)]

    def read(window: Window) -> tuple[Planes, NDArray[np.bool_]]:
        planes = [[band(window) for band in side] for side in reads]
        known = np.logical_and.reduce([np.isfinite(plane) for side in planes for plane in side])
        return zip(*planes, strict=True), known

    return Pair(reference.shape, reference.band_names, data_range, read)


def _readers(scene: Scene, onto: Scene) -> list[Callable[[Window], NDArray[np.float64]]]:
    """Return a reader for each band: windows of the grid of ``onto`` (h, w), NaN where nothing is known."""

    def band(index: int) -> Callable[[Window], NDArray[np.float64]]:
        def read(window: Window) -> NDArray[np.float64]:
            pixels = scene.read(window)
            return np.where(pixels.valid, pixels.data[index].astype(np.float64), np.nan)

        return OnGrid(Place.of(scene.geobox), onto.geobox, read, math.nan).read

    return [band(index) for index in range(len(scene.bands))]
