"""Real inputs changed at random, given to the commands: each ends soon, in one sentence, and touches nothing else."""

from __future__ import annotations

import json
import os
import random
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_raster
from tests.hostile import mutations

SEED = os.environ.get("GEOSEG_FUZZ_SEED", "1")
_CASES, _FEW = 1000, 38
_MOST_SECONDS = 10
_IMPORTS = 50
_MOST_BYTES = 2 << 30

Change = Callable[[bytes, random.Random], bytes]


def _raster_text(name: str) -> str:
    return (
        '<VRTDataset rasterXSize="96" rasterYSize="80"><SRS>EPSG:32645</SRS><GeoTransform>350000,0.5,0,3060000,0,-0.5'
        "</GeoTransform>"
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">{name}'
            f'</SourceFilename><SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" xSize="96" ySize="80"/>'
            f'<DstRect xOff="0" yOff="0" xSize="96" ySize="80"/></SimpleSource></VRTRasterBand>'
            for band in (1, 2, 3)
        )
        + "</VRTDataset>"
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, plain) -> Path:
    """A folder with one sound input of each kind."""
    import geopandas
    import shapely
    import torch

    folder = tmp_path_factory.mktemp("inputs")
    random_ = np.random.default_rng(5)
    image = random_.integers(1, 255, (3, 80, 96), dtype=np.uint8)
    write_raster(folder / "scene.tif", image, nodata=0)
    write_raster(folder / "tiled.tif", image, tiled=True, blockxsize=32, blockysize=32, compress="deflate")
    write_raster(folder / "labels.tif", (image[0] // 64).astype(np.uint8))
    (folder / "scene.vrt").write_text(_raster_text("scene.tif"))
    (folder / "pam.xml").write_text(
        '<PAMDataset><Metadata><MDI key="A">1</MDI></Metadata><PAMRasterBand band="1"><CategoryNames><Category>a'
        "</Category><Category>b</Category></CategoryNames><Description>red</Description></PAMRasterBand></PAMDataset>"
    )
    shapes = [shapely.box(350_002, 3_059_965, 350_020, 3_059_990), shapely.box(350_025, 3_059_970, 350_040, 3_059_995)]
    frame = geopandas.GeoDataFrame({"class": ["roof", "road"]}, geometry=shapes, crs="EPSG:32645")
    frame.to_crs(4326).to_file(folder / "area.geojson")
    frame.to_file(folder / "area.gpkg")
    shutil.copy(plain, folder / "model.safetensors")
    from geoseg.bundle import read_bundle

    tensors = {name: torch.from_numpy(value) for name, value in read_bundle(plain).tensors().items()}
    torch.save({"state_dict": tensors}, folder / "weights.pt")
    (folder / "names.csv").write_text("value,name,color\n0,background,#d9d9d9\n1,roof,#d55e00\n2,road\n3,tree\n")
    (folder / "names.json").write_text(
        '{"0": "background", "1": {"name": "a", "color": "#d55e00"}, "2": "b", "3": "c"}'
    )
    (folder / "table.csv").write_text(
        "code,name,weight,mean_background,mean_roof,mean_road,mean_tree,sd_background,sd_roof,sd_road,sd_tree\n"
        + "".join(f"{code},class {code},1,0.4,0.3,0.2,0.1,0.1,0.1,0.1,0.1\n" for code in range(4))
    )
    (folder / "train.yaml").write_text(
        "data:\n  scenes:\n  - image: scene.tif\n    labels: area.geojson\n    validation: [0.75, 1]\n"
        "  classes: background,roof,road\n  class_field: class\n  bands: [1, 2, 3]\n  resolution: 0.5\n"
        "network:\n  name: plainconv\naugment:\n  scale: [0.9, 1.1]\ntraining:\n  steps: 12\n  batch: 4\n  lr: 0.01\n"
    )
    item = {
        **{
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": "one",
            "collection": "c",
            "links": [],
            "bbox": [87, 27, 88, 28],
        },
        **{"properties": {"datetime": "2024-01-01T00:00:00Z"}, "geometry": None},
        "assets": {"image": {"href": "scene.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]}},
    }
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item], "links": []}))
    (folder / "list.csv").write_text("scene,name\nscene.tif,first\n./scene.tif,=cmd()\n")
    return folder


# Kind, file that is changed, how, and the command; {} is the changed file, IN and OUT are folders.
_PREDICT = ("-m", "IN/model.safetensors", "-q", "--device", "cpu")
_VECTORIZE = ("vectorize", "IN/labels.tif", "OUT/a.gpkg", "-q")
_CLASSES = ("--classes", "background,roof,road,tree")
_TARGETS: tuple[tuple[str, str, Change | None, tuple[str, ...]], ...] = (
    ("bundle", "model.safetensors", mutations.of_bundle, ("info", "{}")),
    (
        "bundle",
        "model.safetensors",
        mutations.of_bundle,
        ("predict", "IN/scene.tif", "OUT/a.tif", "-m", "{}", "-q"),
    ),
    ("config", "train.yaml", mutations.of_yaml, ("config", "{}")),
    (
        *("checkpoint", "weights.pt", None),
        ("import", "{}", "-o", "OUT/m.safetensors", "--network", "plainconv", "--classes", "a,b,c,d,e", "--halo", "20"),
    ),
    ("scene", "scene.tif", mutations.of_tiff, ("info", "{}")),
    ("scene", "scene.tif", mutations.of_tiff, ("predict", "{}", "OUT/a.gpkg", *_PREDICT)),
    ("scene", "tiled.tif", mutations.of_tiff, ("predict", "{}", "OUT/a.geojson", *_PREDICT)),
    ("labels", "labels.tif", mutations.of_tiff, ("vectorize", "{}", "OUT/a.geojson", "-q")),
    ("vrt", "scene.vrt", mutations.of_text, ("predict", "{}", "OUT/a.geojson", *_PREDICT)),
    ("pam", "pam.xml", mutations.of_text, ("vectorize", "IN/labels.tif", "OUT/a.geojson", "-q")),
    ("area", "area.geojson", mutations.of_json, ("predict", "IN/scene.tif", "OUT/a.tif", "--aoi", "{}", *_PREDICT)),
    ("area", "area.gpkg", mutations.of_bytes, ("predict", "IN/scene.tif", "OUT/a.tif", "--aoi", "{}", *_PREDICT)),
    (
        *("reference", "area.geojson", mutations.of_json),
        ("evaluate", "IN/labels.tif", "{}", "--classes", "background,roof,road,tree", "--html", "OUT/a.html", "-q"),
    ),
    ("reference", "area.gpkg", mutations.of_bytes, ("evaluate", "{}", "IN/area.gpkg", "-q")),
    (
        "names",
        "names.csv",
        mutations.of_text,
        (*_VECTORIZE, "--names", "{}"),
    ),
    (
        "names",
        "names.json",
        mutations.of_json,
        (*_VECTORIZE, "--names", "{}"),
    ),
    (
        *("table", "table.csv", mutations.of_text),
        ("coarse-check", "IN/labels.tif", "IN/labels.tif", "OUT/a.tif", "--table", "{}", "-q", *_CLASSES),
    ),
    ("items", "items.json", mutations.of_json, ("batch", "{}", "OUT/b", *_PREDICT)),
    ("list", "list.csv", mutations.of_text, ("batch", "{}", "OUT/b", *_PREDICT)),
)


class _Child:
    """The process that runs the commands, started again when it died."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._process: subprocess.Popen[str] | None = None
        self._known: set[str] = set()

    def run(self, arguments: list[str], folder: Path, log: Path, seconds: float) -> str | None:
        """Return what went wrong."""
        process = self._started()
        # The first run of a command in a process imports what it needs.
        seconds += 0 if arguments[0] in self._known else _IMPORTS
        self._known.add(arguments[0])
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"arguments": arguments, "folder": str(folder), "log": str(log)}) + "\n")
        process.stdin.flush()
        ends = time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while not ready.select(0.02):
                if self._resident(process) > _MOST_BYTES:
                    self.stop()
                    return "took more than 2 GB of memory"
                if time.monotonic() > ends:
                    self.stop()
                    return f"took longer than {seconds} s"
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self._process = None
            return f"died with {code}"
        answer = json.loads(line)
        told = log.read_text(errors="replace")
        if answer["code"] not in (0, 1, 2):
            return f"ended with {answer['code']}"
        if answer["peak"] > _MOST_BYTES:
            return f"took {answer['peak'] >> 20} MB"
        strange = "Traceback" in told or "unexpectedly" in told or "most likely a fault" in told
        return told if strange or (answer["code"] and not told) else None

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._known.clear()
            own = {"HOME": str(self.home / "home"), "TMPDIR": str(self.home / "tmp"), "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("child.py"))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **own}, cwd=self.home,
            )  # fmt: skip
        return self._process

    @staticmethod
    def _resident(process: subprocess.Popen[str]) -> int:
        try:
            return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        except (OSError, IndexError):
            return 0


def _listed(folder: Path, out: Path) -> set[str]:
    """Return all files but the outputs; Dask keeps locks in the folder for temporary files."""
    found = {str(path) for path in folder.rglob("*") if out not in path.parents}
    return {path for path in found if "dask-scratch-space" not in path}


def _changed(kind: str, name: str, change: Change | None, inputs: Path, place: Path, chance: random.Random) -> Path:
    """Write the inputs of a case into ``place`` and return the one that is changed."""
    place.mkdir(parents=True)
    for path in inputs.iterdir():
        if path.suffix != ".xml":
            os.link(path, place / path.name)
    content = (inputs / name).read_bytes()
    canary = str(place / "canary")
    made = mutations.of_checkpoint(content, chance, canary) if change is None else change(content, chance)
    path = place / ("labels.tif.aux.xml" if kind == "pam" else f"changed{Path(name).suffix}")
    path.write_bytes(made)
    return path


def _check(cases: int, inputs: Path, tmp_path: Path, only: str | None = None) -> None:
    print(f"seed {SEED}: GEOSEG_FUZZ_SEED sets another")
    root = tmp_path / "a" / "b" / "c"
    for name in ("home", "tmp", "cwd"):
        (root / name).mkdir(parents=True)
    child = _Child(root)
    faults = []
    try:
        for number in range(cases):
            target = _TARGETS[number % len(_TARGETS)]
            kind, name, change, command = target
            if only not in (None, kind):
                continue
            chance = random.Random(f"{SEED}-{number}")
            case = root / "case"
            out, log = case / "out", tmp_path / "log"
            path = _changed(kind, name, change, inputs, case / "in", chance)
            out.mkdir()
            arguments = [
                part.replace("{}", str(path)).replace("IN", str(case / "in")).replace("OUT", str(out))
                for part in command
            ]
            before = _listed(tmp_path, out) | {str(log)}
            fault = child.run(arguments, root / "cwd", log, _MOST_SECONDS)
            stray = sorted(_listed(tmp_path, out) - before)
            if fault is None and stray:
                fault = f"left {stray[:3]}"
            if fault is not None:
                kept = tmp_path.parent / f"kept-{SEED}-{number}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(case, kept)
                faults.append(f"case {number} ({kind}; {kept}): {' '.join(arguments)}\n    {fault[-600:]}")
            for left in stray:
                shutil.rmtree(left, ignore_errors=True) if os.path.isdir(left) else Path(left).unlink(missing_ok=True)
            shutil.rmtree(case)
    finally:
        child.stop()
    assert not faults, f"{len(faults)} of {cases} cases, seed {SEED}:\n" + "\n".join(faults)


def test_a_few_hostile_inputs_end_in_a_sentence(inputs, tmp_path):
    _check(_FEW, inputs, tmp_path)


@pytest.mark.slow
def test_a_thousand_hostile_inputs_end_in_a_sentence(inputs, tmp_path):
    _check(int(os.environ.get("GEOSEG_FUZZ_CASES", _CASES)), inputs, tmp_path, os.environ.get("GEOSEG_FUZZ_KIND"))
