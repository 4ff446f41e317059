"""Fixtures that many tests share.  Rows count downwards, columns to the right; asymmetric images show any flip."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, settings

# Rounding differs between kernels for one thread and for several; the engine never uses one, so neither do the tests.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads that wait must sleep where several processes share the cores; spinning, they keep the others from working.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

settings.register_profile(
    "geoseg", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("geoseg")

DATA = Path(__file__).parent / "data"
# That of the distribution, which QGIS's packages belong to.
SYSTEM_PYTHON = "/usr/bin/python3"


def pytest_report_header() -> list[str]:
    """Tell which libraries the run stands on."""
    import importlib.metadata as metadata

    names = ("rasterio", "shapely", "pyproj", "pyogrio", "dask", "torch", "timm", "segmentation_models_pytorch")
    return [
        "geoseg on " + ", ".join(f"{name} {metadata.version(name)}" for name in names),
        f"GDAL {rasterio.gdal_version()}",
    ]


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real scenes that come with the tests."""
    return DATA


@pytest.fixture(scope="session")
def sample() -> Path:
    """The sample scene of the package: 2048 × 2048 RGB."""
    from geoseg.data import sample_scene

    return sample_scene()


def write_raster(
    path: Path, array: np.ndarray, *, transform: Affine | None = None, crs: Any = "EPSG:32645", **more: Any
) -> Path:
    """Write (C, H, W) or (H, W) as a GeoTIFF, by default north-up in UTM 45N with pixels of 0.5 m."""
    array = array if array.ndim == 3 else array[None]
    transform = transform or Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000)
    colorinterp = more.pop("colorinterp", None)
    descriptions = more.pop("descriptions", None)
    count, height, width = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", dtype=array.dtype, count=count, height=height, width=width, crs=crs,
        transform=transform, **more,
    ) as file:  # fmt: skip
        file.write(array)
        if colorinterp:
            file.colorinterp = colorinterp
        if descriptions:
            file.descriptions = descriptions
    return path


@pytest.fixture
def raster(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an array as a GeoTIFF called ``scene.tif`` (or ``name=``)."""

    def make(array: np.ndarray, name: str = "scene.tif", **more: Any) -> Path:
        return write_raster(tmp_path / name, array, **more)

    return make


def asymmetric(bands: int, height: int, width: int, dtype: str = "uint8") -> np.ndarray:
    """Return an image in which every pixel of a 200 × 200 neighbourhood differs: (C, H, W), values 1 to 200."""
    row, col = np.mgrid[:height, :width]
    return np.stack([(3 * row + 7 * col + row * col // 5 + 31 * b) % 200 + 1 for b in range(bands)]).astype(dtype)


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """A real scene of 440 × 600 pixels, with a hole of nodata (0) and a strip of it at the right edge."""
    with rasterio.open(sample) as source:
        window = rasterio.windows.Window(100, 200, 600, 440)
        array = np.maximum(source.read(window=window), 1)
        transform = source.window_transform(window)
        crs = source.crs
    array[:, 100:180, 300:420] = 0
    array[:, :, 560:] = 0
    array[0, 50:60, 50:60] = 0  # a band that is 0 alone is a measurement
    path = tmp_path_factory.mktemp("town") / "town.tif"
    return write_raster(path, array, transform=transform, crs=crs, nodata=0, tiled=True, blockxsize=256, blockysize=256)


@pytest.fixture(scope="session")
def piece(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Callable[..., Path]:
    """Return a function that gives a piece of the sample scene, written once for all tests that ask for the same.

    It takes height and width in pixels, and how many columns at the left hold no data (0); elsewhere 0 is 1.
    """
    folder = tmp_path_factory.mktemp("pieces")

    def cut(height: int, width: int, *, blank: int = 0, row: int = 500, col: int = 640) -> Path:
        path = folder / f"{row}_{col}_{height}_{width}_{blank}.tif"
        if not path.exists():
            with rasterio.open(sample) as source:
                window = rasterio.windows.Window(col, row, width, height)
                array, transform, crs = source.read(window=window), source.window_transform(window), source.crs
            array = np.maximum(array, 1) if blank else array
            array[:, :, :blank] = 0
            write_raster(path, array, transform=transform, crs=crs, **({"nodata": 0} if blank else {}))
        return path

    return cut


@pytest.fixture(scope="session")
def part(tmp_path_factory: pytest.TempPathFactory, town: Path) -> Path:
    """240 × 300 pixels of the town, with a part of its hole (rows 40 to 119, columns 70 to 189)."""
    path = tmp_path_factory.mktemp("part") / "part.tif"
    with rasterio.open(town) as file:
        window = rasterio.windows.Window(230, 60, 300, 240)
        profile = file.profile | {"width": 300, "height": 240, "transform": file.window_transform(window)}
        with rasterio.open(path, "w", **profile) as target:
            target.write(file.read(window=window))
    return path


def _bundle(path: Path, network: str, **options: Any) -> Path:
    from geoseg.bundle import write_bundle
    from geoseg.classes import Classes
    from geoseg.segmenters.network import new_bundle

    options.setdefault("bands", ["red", "green", "blue"])
    options.setdefault("classes", Classes.parse("background,roof,road,tree,water"))
    options.setdefault("encoder", None)
    options.setdefault("resolution", None)
    write_bundle(path, *new_bundle(network, **options))
    return path


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes an untrained bundle of a network, five classes unless told otherwise."""
    folder = tmp_path_factory.mktemp("bundles")
    made: dict[str, Path] = {}

    def make(network: str = "plainconv", **options: Any) -> Path:
        key = repr((network, sorted(options.items(), key=lambda item: item[0])))
        if key not in made:
            made[key] = _bundle(folder / f"{len(made)}.safetensors", network, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def plain(make_bundle: Callable[..., Path]) -> Path:
    """A small convolutional network whose receptive field fits its halo exactly: RGB, five classes."""
    return make_bundle("plainconv", tile=128)


@pytest.fixture(scope="session")
def qgis_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a script in the Python that QGIS belongs to, without a screen."""
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}

    def run(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
        command = [SYSTEM_PYTHON, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **more)

    if run("-c", "import qgis.core").returncode:
        pytest.skip(f"{SYSTEM_PYTHON} has no QGIS: install python3-qgis and qgis-providers")
    return run


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server: moto's, a process of its own on loopback."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    process = start_s3_server()
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.stdin.close()
    process.wait(timeout=30)


def start_s3_server(**environment: str) -> subprocess.Popen[str]:
    """Start a server of moto's that ends with its input, and prints its port."""
    code = (
        "import sys; from moto.server import ThreadedMotoServer; "
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False); server.start(); "
        "print(server.get_host_and_port()[1], flush=True); sys.stdin.read(); server.stop()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """A bucket on a server, and a client that is not geoseg's."""

    url: str
    bucket: str
    client: Any

    def __truediv__(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def names(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with ``prefix``, in order."""
        answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for item in answer.get("Contents", ())]

    def get(self, key: str) -> bytes:
        """Return what an object holds."""
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def put(self, key: str, data: bytes) -> None:
        """Put an object."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def unfinished(self) -> int:
        """Return the number of uploads in parts that were neither completed nor aborted."""
        return len(self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ()))


@pytest.fixture(scope="session")
def s3_client(s3_server: str) -> Any:
    """A client of that server."""
    import boto3

    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    return boto3.session.Session(**keys).client("s3", endpoint_url=s3_server)


_BUCKETS = itertools.count()


@pytest.fixture
def storage(s3_server: str, s3_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A new bucket, and the environment that leads to it; what is kept on this machine lies in ``tmp_path/cache``."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_MAX_ATTEMPTS": "2",
        "GEOSEG_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{next(_BUCKETS)}"
    s3_client.create_bucket(Bucket=bucket)
    return Storage(s3_server, bucket, s3_client)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB (needs the right to mount)."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here (it takes root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
