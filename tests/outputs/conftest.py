"""Polygons and rasters for the tests of outputs, and a disk that is too small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely

from geoseg.classes import Classes, LabelClass
from geoseg.vector.features import Features

CHECKER = Path(__file__).parents[1] / "qgis_check.py"


@pytest.fixture
def classes() -> Classes:
    """Names that break writers without escaping, a hole in the ids, and a background."""
    return Classes(
        (
            LabelClass(0, "background", "#d9d9d9", background=True),
            LabelClass(1, "a<b & \"c\" 'd'", "#e60000"),
            LabelClass(7, "Wäldchen 森 🌲", "#00a000"),
        )
    )


@pytest.fixture
def make_features():
    """Return a function that wraps polygons as Features, with attributes from an asymmetric formula."""

    def make(polygons, class_id=None) -> Features:
        geometry = np.empty(len(polygons), object)
        geometry[:] = list(polygons)
        number = np.arange(len(polygons))
        return Features(
            geometry=geometry,
            id=number + 1,
            class_id=np.resize([1, 7], len(polygons)) if class_id is None else np.asarray(class_id),
            area_m2=100.0 * number + 12.3456,
            perimeter_m=4.0 * number + 0.1251,
            confidence=np.where(number % 5 == 3, np.nan, 0.98765 / (1 + number)),
        )

    return make


@pytest.fixture
def blocks(make_features) -> Features:
    """Twelve by nine neighbouring blocks of 100 m with a hole in each third, in UTM zone 33."""
    polygons = []
    for row in range(9):
        for col in range(12):
            x, y = 500_000 + 100 * col, 5_400_000 - 100 * row
            holes = [shapely.box(x + 30, y - 70, x + 60, y - 40).exterior] if (row + col) % 3 == 0 else []
            polygons.append(shapely.Polygon(shapely.box(x, y - 100, x + 100, y).exterior, holes))
    return make_features(polygons)


@pytest.fixture(scope="session")
def utm33() -> pyproj.CRS:
    return pyproj.CRS(32633)


@pytest.fixture
def read():
    """Return a function that reads any vector format as a GeoDataFrame, ordered by id."""

    def read_any(path: Path):
        import geopandas

        if path.suffix == ".parquet":
            frame = geopandas.read_parquet(path)
        else:
            frame = pyogrio.read_dataframe(path, layer=pyogrio.list_layers(path)[0, 0])
        return frame.sort_values("id", ignore_index=True)

    return read_any


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 600 kB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def qgis(qgis_python):
    """Return a function that opens files in a headless QGIS and reports what a user would see."""

    def check(*arguments) -> dict:
        done = qgis_python(CHECKER, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return check
