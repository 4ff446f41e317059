"""Tables of what coarse classes are made of: mean share of each fine class, and its standard deviation.

A table is a CSV file with one row a coarse class and these columns:

- ``code``: its value in a raster, or that of an attribute of polygons (``nlcd_code`` will do too);
- ``name`` and ``weight``, which may be left out, and ``usable``, 0 for a row whose figures are none;
- ``mean_<class>`` and ``sd_<class>`` of each fine class, measured; or ``low_<class>`` and ``high_<class>``, from a
  definition such as "20 to 49 % sealed".  One fine class may be left out: it has what the others leave.

Source of the tables that ship: the code released with Malkin et al. 2019 (calebrob6/land-cover).
"""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from geoseg.classes import Classes
from geoseg.errors import ConfigError, GeosegWarning, LabelsError, one_line, unknown_name
from geoseg.outputs.staging import check_place, staged, writing

SHIPPED = {"nlcd": "nlcd_to_chesapeake_all.csv", "nlcd-delaware": "nlcd_to_chesapeake_delaware.csv"}
# Classes that the shipped tables are about, as `data.classes` takes them.
NLCD_CLASSES = "water:#0000ff,tree canopy:#008000,low vegetation:#80ff80,impervious:#806060"
_MOST_CLASSES = 254
# A row whose shares sum to 1 within this is right: published ones are rounded to two digits.
_ROUNDING = 0.011
# Below this deviation over the coarse classes a fine class cannot be told from a mix of the others.
_LEAST_SPREAD = 0.05


@dataclass(frozen=True)
class CoarseTable:
    """What coarse classes are made of.

    Attributes:
        path: of the file, for messages.
        classes: names of the K fine classes.
        codes: of the Z coarse classes, as text.
        names: of these.
        weights: (Z,), 0 for one that teaches nothing.
        means: (Z, K), shares that sum to 1.
        deviations: (Z, K), standard deviations; half-widths for the interval forms where the file gives intervals.
        blocks: (Z,), from how many blocks each was estimated; 0 where the file does not say.
        unusable: codes of which the file says (``usable`` is 0) that their figures are none: they teach nothing.
    """

    path: str
    classes: tuple[str, ...]
    codes: tuple[str, ...]
    names: tuple[str, ...]
    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    deviations: NDArray[np.float64]
    blocks: NDArray[np.int64]
    unusable: tuple[str, ...] = ()

    def weighted(self, weights: Mapping[int | str, float]) -> CoarseTable:
        """Return it with other weights of some classes.

        Raises:
            ConfigError: a code that it has not, or a weight below 0.
        """
        found = self.weights.copy()
        for code, weight in weights.items():
            if str(code) not in self.codes:
                raise ConfigError(f"{self.path}: {unknown_name('coarse class', str(code), self.codes)}")
            if not 0 <= weight < math.inf:
                raise ConfigError(f"the weight of coarse class {code} is {weight}: give a number of 0 or more.")
            found[self.codes.index(str(code))] = weight
        return replace(self, weights=found)

    def telling(self, rows: Sequence[int]) -> tuple[float, float, str]:
        """Return how well these coarse classes tell fine ones apart.

        Returns:
            The largest distance between two rows of means; the deviation, over the rows, of the mix of fine classes
            that varies least; and between which two fine classes shares vary least, in words.
        """
        means = self.means[list(rows)]
        apart = np.linalg.norm(means[:, None] - means[None], axis=-1).max(initial=0.0)
        spread = means - means.mean(0)
        # Shares sum to 1, so one direction of the K never varies.
        values = np.sort(np.linalg.svd(spread.T @ spread, compute_uv=False))[::-1]
        count = len(self.classes)
        least = math.sqrt(max(0.0, values[count - 2]) / len(means))
        pairs = [(i, j) for i in range(count) for j in range(i)]
        nearest = min(pairs, key=lambda pair: float(np.std(means[:, pair[0]] - means[:, pair[1]])))
        return float(apart), least, f"{self.classes[nearest[1]]} and {self.classes[nearest[0]]}"

    def warn_if_blind(self, rows: Sequence[int]) -> str:
        """Return in words how well the coarse classes in ``rows`` tell fine ones apart, and warn if they do not."""
        apart, least, pair = self.telling(rows)
        told = (
            f"{len(rows)} coarse classes of {self.path}: means at most {apart:.3f} apart, the mix of classes that "
            f"varies least among them by {least:.3f}"
        )
        if least < _LEAST_SPREAD:
            warnings.warn(
                f"{told}: below {_LEAST_SPREAD} the network cannot learn from them which is which of {pair}; add fine "
                "labels, or coarse classes that differ in these.",
                GeosegWarning,
                stacklevel=2,
            )
        return told


def read_table(
    path: str,
    classes: Classes,
    *,
    means: Literal["measured", "tuned"] = "measured",
    intervals: bool = False,
) -> CoarseTable:
    """Read a table, or one that ships by its name; a row whose shares do not sum to 1 is scaled, with a warning.

    Args:
        path: of the file, or one of :data:`SHIPPED`.
        classes: the fine classes.
        means: which columns of means to take.
        intervals: whether an interval is meant to give its half-width, not the deviation of its even distribution.

    Raises:
        LabelsError: unreadable, without rows, or without a column that is needed; a value that is no share.
    """
    rows = _rows(path)
    head = {name.strip().lower(): name for name in rows[0]}
    code = _column(head, "code")
    if code is None:
        raise LabelsError(f"{path} has no column `code`: name the coarse class of each row in one.")
    named, weight = _column(head, "name"), _column(head, "weight")
    usable, blocks = head.get("usable"), head.get("blocks")
    kept = [row for row in rows if usable is None or _number(path, row, usable) > 0]
    if not 0 < len(kept) <= _MOST_CLASSES:
        raise LabelsError(f"{path} has {len(kept)} usable coarse classes: give 1 to {_MOST_CLASSES}.")
    codes = tuple(str(row[code]).strip() for row in kept)
    twice = sorted({each for each in codes if codes.count(each) > 1})
    if twice:
        raise LabelsError(f"{path} has the coarse class {twice[0]} twice: keep one row for each.")
    mean, deviation = _shares(path, kept, head, classes, means, intervals)
    weights = [1.0 if weight is None else _number(path, row, weight) for row in kept]
    table = CoarseTable(
        path,
        tuple(item.name for item in classes),
        codes,
        tuple(codes[i] if named is None else str(row[named]) for i, row in enumerate(kept)),
        np.array(weights, float),
        mean,
        deviation,
        np.array([0 if blocks is None else int(_number(path, row, blocks)) for row in kept], np.int64),
        tuple(str(row[code]).strip() for row in rows if row not in kept),
    )
    return _summing_to_one(table)


def write_table(table: CoarseTable, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a table as CSV.

    Raises:
        OutputError: it exists and may not be replaced, or cannot be written.
    """
    target = Path(path)
    check_place(target, overwrite)
    slugs = [_slug(name) for name in table.classes]
    with staged(target) as temporary, writing(target), temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["code", "name", "weight", "blocks", *(f"{kind}_{s}" for kind in ("mean", "sd") for s in slugs)]
        )
        for z, code in enumerate(table.codes):
            figures = [f"{value:.6f}" for value in (*table.means[z], *table.deviations[z])]
            writer.writerow([code, table.names[z], f"{table.weights[z]:g}", int(table.blocks[z]), *figures])


def _rows(path: str) -> list[dict[str, Any]]:
    try:
        if path in SHIPPED:
            text = resources.files("geoseg.data").joinpath(SHIPPED[path]).read_text(encoding="utf-8")
        else:
            text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelsError(
            f"{path} cannot be read as a table of coarse classes ({one_line(error)}): give a CSV file, or one of "
            f"{', '.join(SHIPPED)}."
        ) from error
    try:
        rows = list(csv.DictReader(text.splitlines()))
    except csv.Error as error:
        raise LabelsError(f"{path} is not CSV ({one_line(error)}): write it again.") from error
    if any(None in row for row in rows):
        raise LabelsError(f"{path} has a row with more cells than its head: correct it.")
    if not rows:
        raise LabelsError(f"{path} holds no coarse class: give a CSV file with a head and one row for each class.")
    return rows


def _column(head: Mapping[str, str], what: str) -> str | None:
    """Return the column called ``what``, or else the first whose name ends so."""
    return head.get(what) or next((name for low, name in head.items() if low.endswith(f"_{what}")), None)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def _number(path: str, row: Mapping[str, Any], column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise LabelsError(f"{path} has {row[column]!r} in column {column!r}: give numbers of 0 or more there.")
    return value


def _shares(
    path: str,
    rows: Sequence[Mapping[str, Any]],
    head: Mapping[str, str],
    classes: Classes,
    means: str,
    intervals: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means and deviations, (Z, K) each."""
    prefix = "tuned_mean" if means == "tuned" else "mean"
    pairs = (("low", "high"), (prefix, "sd"))
    first, second = next((p for p in pairs if any(low.startswith(f"{p[0]}_") for low in head)), pairs[1])
    names = [item.name for item in classes]
    found = {name: [head.get(f"{each}_{_slug(name)}") for each in (first, second)] for name in names}
    missing = [name for name in names if None in found[name]]
    if len(missing) > 1 or len(missing) == len(names):
        raise LabelsError(
            f"{path} has no columns {first}_{_slug(missing[0])} and {second}_{_slug(missing[0])}, nor those of "
            f"{', '.join(missing[1:])}: give both of each class of data.classes, of which one may be left out."
        )
    values = np.zeros((len(rows), len(names), 2))
    for k, name in enumerate(names):
        for i, column in enumerate(found[name] if name not in missing else ()):
            assert column is not None
            values[:, k, i] = [_number(path, row, column) for row in rows]
    if (values > 1).any():
        raise LabelsError(f"{path} has a share of {values.max():g}: give shares from 0 to 1, not per cent.")
    left = names.index(missing[0]) if missing else None
    if first == "low":
        if left is not None:
            others = np.delete(values, left, 1).sum(1)
            values[:, left] = (1 - others[:, ::-1]).clip(0, 1)
        half = (values[..., 1] - values[..., 0]) / 2
        if (half < 0).any():
            raise LabelsError(f"{path} has an interval that ends below its start: give low and high, low first.")
        # An even distribution over an interval deviates by its length over √12.
        return values.mean(-1), half if intervals else half / math.sqrt(3)
    if left is not None:
        values[:, left, 0] = (1 - values[..., 0].sum(1)).clip(0, 1)
        values[:, left, 1] = np.sqrt((values[..., 1] ** 2).sum(1)).clip(0, 1)
    return values[..., 0], values[..., 1]


def _summing_to_one(table: CoarseTable) -> CoarseTable:
    sums = table.means.sum(1)
    for z in np.flatnonzero(np.abs(sums - 1) > _ROUNDING):
        if sums[z] == 0:
            raise LabelsError(
                f"{table.path}: the shares of coarse class {table.codes[z]} are all 0; give its weight as 0, "
                "and its shares as those of any other."
            )
        warnings.warn(
            f"{table.path}: the shares of coarse class {table.codes[z]} sum to {sums[z]:.3f}; they are scaled to 1.",
            GeosegWarning,
            stacklevel=3,
        )
    return replace(table, means=table.means / sums[:, None])
