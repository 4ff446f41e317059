"""What ``geoseg predict`` costs beside other tools, with the same weights on the same scene, from GeoTIFF to GeoJSON.

Each tool gets an environment of its own, made here; one that cannot be installed is left out with a message.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from geoseg.scene import open_scene
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
        arguments: of the program; ``{scene}``, ``{model}`` (ONNX, tiles of 512 pixels) and ``{out}`` are filled in.
        wanted: how many times as fast geoseg is to be, at least, in CPU seconds and on the clock.
    """

    name: str
    packages: tuple[str, ...]
    program: str
    arguments: tuple[str, ...]
    wanted: float


PEERS = (
    Peer(
        "GeoDeep",
        ("geodeep==0.9.13",),
        "geodeep",
        ("{scene}", "{model}", "-t", "geojson", "-o", "{out}", "-r", str(_CENTIMETRES), "-q"),
        wanted=1.6,
    ),
)


def main(folder: Path, side: int = 4096, encoder: str = "resnet18", rounds: int = 3) -> None:
    """Print, for each tool that can be installed, its wall and CPU seconds over geoseg's, interleaved."""
    scene, model = write_scene(folder / f"scene_{side}.tif", side), write_model(folder, encoder)
    assert round(100 * min(open_scene(scene).resolution)) == _CENTIMETRES
    exported = folder / f"unet_{encoder}.onnx"
    if not exported.exists():
        geoseg("export", model, exported, "--tile", str(_TILE), "-q")
    for peer in PEERS:
        program = _installed(peer, folder / "peers" / peer.name)
        if program is None:
            continue
        filled = {"scene": scene, "model": exported, "out": folder / f"{peer.name}.geojson"}
        command = [str(program), *(text.format(**filled) for text in peer.arguments)]
        pairs = [(_own(scene, model, folder), _theirs(command, filled["out"])) for _ in range(rounds)]
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
    given = ("-m", model, "--engine", "openvino", "--overwrite", "--fresh", "-q")
    return geoseg("predict", scene, folder / "own.geojson", *given)


def _theirs(command: list[str], out: Path) -> Cost:
    out.unlink(missing_ok=True)
    cost = run(*command)
    if not out.exists():
        raise RuntimeError(f"{' '.join(command)} wrote nothing.")
    return cost


def _installed(peer: Peer, environment: Path) -> Path | None:
    """Return the tool's program in an environment of its own; None, with a message, where that cannot be made."""
    program = environment / "bin" / peer.program
    if program.exists():
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
    return program
