"""What coarse classes are made of, measured where coarse and fine labels overlap."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geoseg.classes import Classes
from geoseg.errors import GeosegWarning, LabelsError
from geoseg.grid import ChunkGrid, Window
from geoseg.outputs.staging import check_place
from geoseg.scene import Scene, open_scene
from geoseg.training.coarse_config import CoarseSourceConfig
from geoseg.training.coarse_labels import AnyCode, CoarseLabels, open_coarse_codes
from geoseg.training.coarse_tables import CoarseTable, read_table, write_table
from geoseg.training.config import DataConfig
from geoseg.training.labels import IGNORE, Labels, open_labels

_CHUNK = 1024
# Blocks of so many tiles wait before those of one number are brought together.
_MERGE_FROM = 1 << 20
_ARRAYS = ("weights", "means", "deviations", "blocks")

Progress = Callable[[str, int, int], None]


@dataclass
class BlockCounts:
    """Pixels of each fine class in blocks, gathered tile by tile: a block may lie in several."""

    num_classes: int

    def __post_init__(self) -> None:
        self.ids = np.zeros(0, np.int64)
        self.codes = np.zeros(0, np.int64)
        self.counts = np.zeros((0, self.num_classes + 1), np.int64)
        self._waiting: list[tuple[NDArray[Any], ...]] = []

    def add(self, ids: NDArray[np.int64], codes: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Add pixels (B, K + 1) of blocks; the last column is of pixels without a fine class."""
        self._waiting.append((ids, codes, counts))
        if sum(len(each[0]) for each in self._waiting) > _MERGE_FROM:
            self.merge()

    def merge(self) -> BlockCounts:
        """Bring what is known of one block together, and return the whole."""
        parts = [(self.ids, self.codes, self.counts), *self._waiting]
        ids, codes, counts = (np.concatenate([part[i] for part in parts]) for i in range(3))
        self.ids, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        self.codes = codes[first]
        self.counts = np.zeros((len(self.ids), self.num_classes + 1), np.int64)
        np.add.at(self.counts, inverse, counts)
        self._waiting = []
        return self


def coarse_stats(
    grid: str | os.PathLike[str],
    coarse: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    classes: Classes | str,
    class_field: str | None = None,
    coarse_field: str | None = None,
    ignore: Sequence[int | str] = (),
    resolution: float | None = None,
    area: tuple[float, float] = (0.0, 1.0),
    min_labelled: float = 0.9,
    min_blocks: int = 30,
    fallback: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CoarseTable:
    """Measure the mean share of each fine class in blocks of each coarse class, and its deviation; write a table.

    Args:
        grid: a raster whose pixels are counted, such as the image or the raster of fine labels itself.
        coarse: raster of coarse classes or polygons, in any CRS.
        labels: fine labels: polygons in any CRS or a raster of class ids.
        output: CSV file.
        classes: the fine classes, or their names as ``data.classes`` takes them.
        class_field: attribute of fine polygons that says their class.
        coarse_field: attribute of coarse polygons that says their code.
        ignore: coarse codes that are left out.
        resolution: ground metres per pixel that are counted, by default those of ``grid``.
        area: shares of the width of ``grid`` that count.
        min_labelled: least share of a block that must have a fine label for the block to count.
        min_blocks: classes with fewer blocks are left out, or taken from ``fallback``.
        fallback: a table of rows for these.
        overwrite: replace an existing file.
        progress: told the stage, steps done, and steps in all.

    Raises:
        SceneError, LabelsError: files that cannot be used or do not overlap.
        OutputError: the table cannot be written.
    """
    check_place(Path(output), overwrite)
    table = Classes.parse(classes) if isinstance(classes, str) else classes
    native = open_scene(os.fspath(grid))
    scene = native if resolution is None else native.at_resolution(resolution)
    data = DataConfig.model_validate(
        {"scenes": [{"image": scene.path, "labels": ""}], "classes": table.as_dicts(), "class_field": class_field}
    )
    source = CoarseSourceConfig(table="", class_field=coarse_field, ignore=list(ignore))
    codes = AnyCode({str(code) for code in ignore})
    found = open_coarse_codes(os.fspath(coarse), scene, source, codes)
    fine = open_labels(os.fspath(labels), scene, data)
    counts = count_blocks(scene, found, fine, len(table), area=area, progress=progress)
    measured = _measured(*counts, codes, table, os.fspath(output), min_labelled)
    result = _with_fallback(measured, min_blocks, fallback, table)
    write_table(result, os.fspath(output), overwrite=overwrite)
    return result


def count_blocks(
    scene: Scene,
    coarse: CoarseLabels,
    labels: Labels,
    num_classes: int,
    *,
    area: tuple[float, float] = (0.0, 1.0),
    progress: Progress | None = None,
) -> tuple[BlockCounts, NDArray[np.float64]]:
    """Return pixels by block and fine class, and the area of each whole block in pixels, (B,).

    Raises:
        SceneError, LabelsError: something cannot be read, or is no class.
    """
    height, width = scene.shape
    left, right = (round(share * width) for share in area)
    windows = list(ChunkGrid((height, right - left), _CHUNK))
    gathered = BlockCounts(num_classes)
    areas: dict[int, float] = {}
    for done, part in enumerate(windows):
        if progress is not None:
            progress("counting pixels", done, len(windows))
        window = Window(part.row, part.col + left, part.height, part.width)
        affine = scene.geobox.affine * Affine.translation(window.col, window.row)
        blocks = coarse.blocks(affine, window.shape)
        fine = np.where(scene.read(window).valid, labels.burn(affine, window.shape), IGNORE)
        inside = blocks.numbers >= 0
        place = np.where(fine == IGNORE, num_classes, fine).astype(np.int64)
        flat = blocks.numbers[inside].astype(np.int64) * (num_classes + 1) + place[inside]
        pixels = np.bincount(flat, minlength=len(blocks.ids) * (num_classes + 1)).reshape(-1, num_classes + 1)
        gathered.add(blocks.ids, blocks.classes.astype(np.int64), pixels)
        areas.update(zip(blocks.ids.tolist(), coarse.areas(blocks, affine).tolist(), strict=True))
    if progress is not None:
        progress("counting pixels", len(windows), len(windows))
    merged = gathered.merge()
    return merged, np.array([areas[each] for each in merged.ids.tolist()])


def _measured(
    counts: BlockCounts,
    areas: NDArray[np.float64],
    codes: AnyCode,
    classes: Classes,
    output: str,
    min_labelled: float,
) -> CoarseTable:
    known = counts.counts[:, :-1].sum(1)
    kept = (known > 0) & (known >= min_labelled * areas)
    if not kept.any():
        raise LabelsError(
            f"no block has fine labels on {min_labelled:.0%} of its pixels: check that coarse and fine labels are "
            "of the same place, or lower the share."
        )
    shares = counts.counts[kept, :-1] / known[kept, None]
    rows = counts.codes[kept]
    order = sorted(np.unique(rows).tolist(), key=lambda row: _in_order(codes.names[row]))
    groups = [shares[rows == row] for row in order]
    names = tuple(codes.names[row] for row in order)
    return CoarseTable(
        output,
        tuple(item.name for item in classes),
        names,
        names,
        np.ones(len(order)),
        np.array([group.mean(0) for group in groups]),
        np.array([group.std(0) for group in groups]),
        np.array([len(group) for group in groups], np.int64),
    )


def _in_order(code: str) -> tuple[float, str]:
    return (float(code), "") if code.lstrip("-").isdigit() else (np.inf, code)


def _with_fallback(table: CoarseTable, least: int, fallback: str | None, classes: Classes) -> CoarseTable:
    """Return the table without classes of too few blocks, or with what a fallback says of them."""
    others = None if fallback is None else read_table(fallback, classes)
    few = [z for z in range(len(table.codes)) if table.blocks[z] < least]
    kept = [z for z in range(len(table.codes)) if z not in few]
    rows: list[tuple[CoarseTable, int]] = [(table, z) for z in kept]
    for z in few:
        code, blocks = table.codes[z], int(table.blocks[z])
        told = f"coarse class {code} has {blocks} blocks, fewer than {least}"
        if others is not None and code in others.codes:
            rows.append((others, others.codes.index(code)))
            told += f": its row is that of {others.path}"
        else:
            told += ": it is left out; give a fallback with a row for it"
        warnings.warn(f"{told}.", GeosegWarning, stacklevel=3)
    if not rows:
        raise LabelsError(
            f"no coarse class has {least} blocks (the most has {int(table.blocks.max())}): lower the number of blocks, "
            "or give fine labels of a larger area."
        )
    arrays: dict[str, Any] = {name: np.array([getattr(each, name)[z] for each, z in rows]) for name in _ARRAYS}
    return replace(
        table,
        codes=tuple(each.codes[z] for each, z in rows),
        names=tuple(each.names[z] for each, z in rows),
        **arrays,
    )
