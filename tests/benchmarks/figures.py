"""The figures that a run of the benchmarks comes to: printed as they come, kept as JSON, drawn as a chart."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("geoseg", "torch", "openvino", "onnxruntime", "rasterio", "shapely", "numba", "dask")
_KEPT: list[Figure] = []


@dataclass(frozen=True)
class Figure:
    """One figure, and the mark it is held to.

    Attributes:
        benchmark: its name on the command line.
        what: in words.
        value: a ratio within one run, or a size in ``unit``.
        wanted: the mark; None where there is none.
        least: whether the mark is the least that is wanted, not the most.
        unit: empty for ratios.
    """

    benchmark: str
    what: str
    value: float
    wanted: float | None = None
    least: bool = False
    unit: str = ""

    @property
    def kept(self) -> bool:
        """Whether the mark is kept."""
        if self.wanted is None:
            return True
        return self.value >= self.wanted if self.least else self.value <= self.wanted

    def __str__(self) -> str:
        """Return what is printed."""
        mark = ""
        if self.wanted is not None:
            mark = f" (wanted: {'at least' if self.least else 'at most'} {self.wanted:g})"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.benchmark}: {self.what} {self.number}{unit}{mark}"

    @property
    def number(self) -> str:
        """The value in three digits, or as a whole number."""
        return f"{self.value:.3g}" if abs(self.value) < 1000 else f"{self.value:.0f}"


def tell(
    benchmark: str, what: str, value: float, wanted: float | None = None, *, least: bool = False, unit: str = ""
) -> None:
    """Print a figure, and keep it for :func:`write_json` and :func:`draw`; see :class:`Figure`."""
    figure = Figure(benchmark, what, float(value), wanted, least, unit)
    _KEPT.append(figure)
    print(f"→ {figure}", flush=True)


def write_json(path: Path) -> None:
    """Write what has been told, with the machine and the libraries it was measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"processor": _processor(), "cores": cores, "python": platform.python_version()}
    versions = {name: metadata.version(name) for name in _LIBRARIES if _installed(name)}
    record = {"machine": machine, "libraries": versions, "figures": [{**asdict(f), "kept": f.kept} for f in _KEPT]}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def draw(path: Path) -> None:
    """Draw what has a mark, as a share of it, by turns of benchmarks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = [figure for figure in _KEPT if figure.wanted]
    if not figures:
        return
    shares = [f.wanted / f.value if f.least else f.value / f.wanted for f in figures if f.wanted]
    canvas, axes = pyplot.subplots(figsize=(9, 1 + 0.32 * len(figures)), layout="constrained")
    colours = ["#1b7837" if figure.kept else "#b2182b" for figure in figures]
    axes.barh(range(len(figures)), shares, color=colours)
    axes.set_yticks(
        range(len(figures)), [f"{figure.benchmark}: {figure.what.rstrip(',')}" for figure in figures], fontsize=8
    )
    for row, (figure, share) in enumerate(zip(figures, shares, strict=True)):
        sign = "≥" if figure.least else "≤"
        axes.text(share, row, f" {figure.number} {figure.unit} ({sign} {figure.wanted:g})", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(0, 1.35 * max(1.0, *shares))
    axes.set_xlabel("share of the mark: shorter is better")
    axes.invert_yaxis()
    canvas.savefig(path, dpi=110)
    pyplot.close(canvas)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
