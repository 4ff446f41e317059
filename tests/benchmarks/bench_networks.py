"""Size, cost and tiling of every network; writes ``geoseg/networks/facts.json`` and the table ``docs/networks.md``.

``python -m tests.benchmarks networks`` measures all; ``python -m tests.benchmarks.bench_networks NAME…`` only some and
leaves the others' figures as they are.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from geoseg import networks
from geoseg.networks.facts import BANDS, CLASSES, SIDE, Facts, Tiling, as_json, facts
from geoseg.networks.inference import fold_batch_norm
from geoseg.networks.measuring import measure_size
from geoseg.networks.tiling import choose_halo

_ROOT = Path(__file__).parents[2]
_FACTS = _ROOT / "geoseg" / "networks" / "facts.json"
_TABLE = _ROOT / "docs" / "networks.md"
_PEER = "unet"
_HEAD = """# The networks, measured

Written by `python -m tests.benchmarks networks`. Default encoder and options, {bands} bands and {classes} classes,
random weights, tiles of {side} × {side} pixels.

- **parameters**: numbers that training sets. **MACs**: multiply-adds of convolutions, linear layers and the products
  of attention for one tile.
- **CPU**: CPU seconds per pixel relative to `unet` with `resnet18`, in one run on one core, batch norm folded.
- **memory**: what one tile needs at most, beyond the program and the weights.
- **halo**: pixels around a tile that an untrained network asks for; training changes it, so `geoseg init` and
  `geoseg import` measure again. **exact from**: the halo with which tiles give exactly what one pass over the whole
  scene would; a dash where no halo does, because the network pools or attends over the whole tile or enlarges by a
  factor that depends on its size. **differ**: share of labels that differ from one pass at the halo.
- `icnet` is measured as it pools by default, over the tile. With `--set pooling=scene` its tiles are given the means of
  the whole scene and are exact from a halo of 1024; a run then computes the part below the pooling twice.

| network | encoder | parameters | MACs | CPU | memory | stride | halo | exact from | differ |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|
"""


def main(folder: Path, chosen: tuple[str, ...] = (), rounds: int = 3) -> None:
    """Measure the networks ``chosen`` (all, if none), and write the file and the table; cost first, tiling after it."""
    chosen = chosen or networks.names()
    stored = {name: facts(name) for name in networks.names()}
    peer = _placed(_PEER)
    for name in chosen:
        before = stored[name]
        stored[name] = _cost(name, peer, rounds, None if before is None else before.tiling)
        _report(name, stored)
    for name in chosen:
        known = stored[name]
        assert known is not None
        stored[name] = dataclasses.replace(known, tiling=_tiling(name, known.stride))
        _report(name, stored)


def _cost(name: str, peer: nn.Module, rounds: int, tiling: Tiling | None) -> Facts:
    size = measure_size(name, in_channels=BANDS, num_classes=CLASSES)
    return Facts(
        parameters=size.parameters,
        macs=size.macs,
        stride=size.stride,
        cpu_ratio=_rounded(_cpu_ratio(_placed(name), peer, rounds)),
        tile_mb=_rounded(_tile_mb(name)),
        tiling=tiling,
    )


def _tiling(name: str, stride: int) -> Tiling:
    found = choose_halo(_built(name), BANDS, stride)
    return Tiling(
        halo=found.halo,
        exact_halo=found.limit if networks.info(name).tile_exact else None,
        disagreement=_rounded(found.difference.expected("scores" if found.decision == "scores" else "labels")),
    )


def _report(name: str, stored: dict[str, Facts | None]) -> None:
    """Write what is known, and print the row of ``name``."""
    measured = {other: found for other, found in stored.items() if found is not None}
    rows = [_row(other, found) for other, found in measured.items()]
    _FACTS.write_text(as_json(measured), encoding="utf-8")
    _TABLE.write_text(_HEAD.format(bands=BANDS, classes=CLASSES, side=SIDE) + "\n".join(rows) + "\n", encoding="utf-8")
    print(_row(name, measured[name]), flush=True)


def _rounded(value: float, digits: int = 3) -> float:
    return 0.0 if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))


def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return networks.create(name, in_channels=BANDS, num_classes=CLASSES).eval().requires_grad_(False)


def _placed(name: str) -> nn.Module:
    """Return the network as the engine runs it on a CPU."""
    folded = fold_batch_norm(_built(name), (1, BANDS, 128, 128))
    return folded.to(memory_format=torch.channels_last)


def _pixels() -> torch.Tensor:
    pixels = torch.randn(1, BANDS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return pixels.contiguous(memory_format=torch.channels_last)


def _cpu_ratio(network: nn.Module, peer: nn.Module, rounds: int) -> float:
    """Return the median over interleaved rounds of CPU seconds for a tile, relative to the peer's."""
    pixels = _pixels()
    # Threads that wait for each other count as CPU time, the more the busier the machine is.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for module in (network, peer):
            module(pixels)
        ratios = [_cpu_s(network, pixels) / _cpu_s(peer, pixels) for _ in range(rounds)]
    torch.set_num_threads(threads)
    return sorted(ratios)[len(ratios) // 2]


def _cpu_s(network: nn.Module, pixels: torch.Tensor) -> float:
    started = time.process_time()
    network(pixels)
    return time.process_time() - started


def _tile_mb(name: str) -> float:
    """Return what one tile adds to the memory of a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_networks", "--tile", name]
    # Everything large is given back at once: what was freed before does not hide what the tile needs.
    place = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=_ROOT, env=place, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _print_tile_mb(name: str) -> None:
    """Print the peak of resident memory during one tile, less what was resident before, in MB (Linux only)."""
    network, pixels = _placed(name), _pixels()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_mb("VmRSS")
    with torch.inference_mode():
        network(pixels)
    print(_status_mb("VmHWM") - before)


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _row(name: str, found: Facts) -> str:
    tiling = ("", "", "")
    if (told := found.tiling) is not None:
        exact = "–" if told.exact_halo is None else str(told.exact_halo)
        tiling = (str(told.halo), exact, f"{100 * told.disagreement:.3g} %")
    cells = (
        *(f"`{name}`", networks.info(name).encoder or "–", f"{found.parameters:,}", f"{found.macs / 1e9:.2f} G"),
        *(f"{found.cpu_ratio:.2f}", f"{found.tile_mb:.0f} MB", str(found.stride), *tiling),
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tile"]:
        _print_tile_mb(sys.argv[2])
    else:
        main(Path(), tuple(sys.argv[1:]))
