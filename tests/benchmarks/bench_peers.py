"""What ``geoseg predict`` costs beside other tools, with the same weights on the same scene, from GeoTIFF to GeoJSON.

Each tool gets an environment of its own, made here; one that cannot be installed is left out with a message.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from geoseg.bundle import read_bundle
from geoseg.scene import open_scene
from geoseg.segmenters.network import module_of, spec_of
from tests.benchmarks.figures import tell
from tests.benchmarks.measuring import Cost, geoseg, run
from tests.benchmarks.models import write_model
from tests.benchmarks.scenes import write_scene

# What these tools are made for.
_TILE = 512
_CENTIMETRES = 25


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Attributes:
        name: of the tool.
        packages: what pip is to install.
        program: in the environment's ``bin``.
        arguments: of the program; ``{scene}``, ``{onnx}`` and ``{script}`` (the model as ONNX and as TorchScript, for
            tiles of 512 pixels), ``{classes}`` (how many it has), ``{folder}`` (empty) and ``{out}`` are filled in.
        wrote: the polygons, below the folder; empty where they are ``{out}``.
        wanted: how many times as fast geoseg is to be, at least, in CPU seconds and on the clock; None for no mark.
    """

    name: str
    packages: tuple[str, ...]
    program: str
    arguments: tuple[str, ...]
    wrote: str = ""
    wanted: float | None = None


_TORCH = tuple(f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("torch", "torchvision"))
PEERS = (
    Peer(
        "GeoDeep",
        ("geodeep==0.9.13",),
        "geodeep",
        ("{scene}", "{onnx}", "-t", "geojson", "-o", "{out}", "-r", str(_CENTIMETRES), "-q"),
        wanted=1.6,
    ),
    Peer(
        "TorchGeo",
        (*_TORCH, "torchgeo==0.8.1", "requests"),
        "python",
        (str(Path(__file__).with_name("torchgeo_recipe.py")), "{scene}", "{script}", "{out}"),
    ),
    Peer(
        "geo-inference",
        (*_TORCH, "geo-inference==3.2.4"),
        "geo_inference",
        (
            *("-i", "{scene}", "-m", "{script}", "-wd", "{folder}", "-ps", str(_TILE), "-w", "1", "-d", "cpu"),
            *("-v", "True", "-cls", "{classes}"),
        ),
        wrote="*.geojson",
    ),
)


def main(folder: Path, side: int = 4096, encoder: str = "resnet18", rounds: int = 3) -> None:
    """Print, for each tool that can be installed, its wall and CPU seconds over geoseg's, interleaved."""
    scene, model = write_scene(folder / f"scene_{side}.tif", side), write_model(folder, encoder)
    assert round(100 * min(open_scene(scene).resolution)) == _CENTIMETRES
    models = _exported(model)
    for peer in PEERS:
        program = _installed(peer, folder / "peers" / peer.name)
        if program is None:
            continue
        pairs = [(_own(scene, model, folder), _theirs(peer, program, scene, folder, models)) for _ in range(rounds)]
        for own, other in pairs:
            print(
                f"unet {encoder} {side}²: geoseg {own.wall_s:.1f} s ({own.cpu_s:.1f} CPU s), {peer.name} "
                f"{other.wall_s:.1f} s ({other.cpu_s:.1f} CPU s); {own.peak_mb:.0f} and {other.peak_mb:.0f} MB",
                flush=True,
            )
        wall = statistics.median(other.wall_s / own.wall_s for own, other in pairs)
        cpu = statistics.median(other.cpu_s / own.cpu_s for own, other in pairs)
        tell("peers", f"{peer.name} over geoseg, on the clock,", wall, peer.wanted, least=True)
        tell("peers", f"{peer.name} over geoseg, CPU seconds,", cpu, peer.wanted, least=True)


def _own(scene: Path, model: Path, folder: Path) -> Cost:
    return geoseg("predict", scene, folder / "own.geojson", "-m", model, "--overwrite", "--fresh", "-q")


def _theirs(peer: Peer, program: Path, scene: Path, folder: Path, models: dict[str, str]) -> Cost:
    out = folder / f"{peer.name}.geojson"
    out.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        filled = {"scene": scene, "folder": work, "out": out, **models}
        command = [str(program), *(text.format(**filled) for text in peer.arguments)]
        cost = run(*command)
        wrote = list(Path(work).rglob(peer.wrote)) if peer.wrote else [out]
        if not (wrote and wrote[0].exists()):
            raise RuntimeError(f"{' '.join(command)} wrote nothing.")
    return cost


def _exported(model: Path) -> dict[str, str]:
    """Return the model as others take it: as ONNX and as TorchScript, with its scaling and a softmax inside."""
    bundle = read_bundle(model)
    onnx, script = model.with_suffix(".onnx"), model.with_suffix(".torchscript")
    if not onnx.exists():
        geoseg("export", model, onnx, "--tile", str(_TILE), "-q")
    if not script.exists():
        scaling = spec_of(bundle.description).normalisation
        assert scaling is not None
        offset, scale = (torch.tensor(values)[:, None, None] for values in (scaling.offset, scaling.scale))
        whole = _Probabilities(module_of(bundle), offset, scale).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that are fixed from now on, and of what others still need
            torch.jit.trace(whole, torch.zeros(1, len(offset), _TILE, _TILE)).save(str(script))
    return {"onnx": str(onnx), "script": str(script), "classes": str(len(bundle.description.classes))}


class _Probabilities(torch.nn.Module):
    """From pixel values (N, C, H, W) to probabilities (N, K, H, W)."""

    def __init__(self, module: torch.nn.Module, offset: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.module, self.offset, self.scale = module, offset, scale

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return them."""
        return torch.softmax(self.module((pixels - self.offset) / self.scale), 1)


def _installed(peer: Peer, environment: Path) -> Path | None:
    """Return the tool's program in an environment of its own; None, with a message, where that cannot be made."""
    program, mark = environment / "bin" / peer.program, environment / "installed"
    if mark.exists():
        return program
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", *peer.packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason was given"]
            print(f"{peer.name} is left out, for it could not be installed: {lines[-1]}", flush=True)
            return None
    mark.touch()
    return program
