"""What is taken for a path, for an object in storage, and for neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from geoseg.errors import OutputError
from geoseg.places import S3Place, below, place_of


def test_an_address_is_taken_apart_as_a_path_is() -> None:
    place = place_of("s3://maps/2024/town.labels.tif", new=True)
    assert place == S3Place("maps", "2024/town.labels.tif")
    assert place.new
    assert (place.name, place.stem, place.suffix) == ("town.labels.tif", "town.labels", ".tif")
    assert str(place) == "s3://maps/2024/town.labels.tif"
    assert place.gdal_name == "/vsis3/maps/2024/town.labels.tif"
    assert place.with_suffix(".qml") == S3Place("maps", "2024/town.labels.qml")
    assert not place.with_suffix(".qml").new
    assert place.parent / "x" / "y" == S3Place("maps", "2024/x/y")
    assert place.parent.parent == place.parent.parent.parent == S3Place("maps", "")
    assert str(S3Place("maps", "")) == "s3://maps"
    assert S3Place("maps", "").name == "maps"
    assert place_of("S3://maps/out/") == S3Place("maps", "out")


def test_what_is_below_a_folder() -> None:
    folder = place_of("s3://maps/a")
    assert below(folder / "b" / "c.tif", folder) == "b/c.tif"
    assert below(folder / "c.tif", S3Place("maps", "")) == "a/c.tif"
    assert below(Path("x/y.tif"), Path("x")) == "y.tif"
    for other in (place_of("s3://maps/ab/c.tif"), place_of("s3://other/a/c.tif"), Path("a/c.tif")):
        with pytest.raises(ValueError, match="is not in"):
            below(other, folder)
    with pytest.raises(ValueError, match="is not in"):
        below(folder, Path("a"))


@pytest.mark.parametrize("path", ["out.tif", "/a/b.gpkg", "a:b/c.tif", "odd:/c.tif", "C:/maps/out.tif", "s3/out.tif"])
def test_paths_stay_paths(path: str) -> None:
    assert place_of(path) == Path(path)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("gs://maps/out.tif", "copy it from there"),
        ("az://maps/out.tif", "copy it from there"),
        ("abfs://maps/out.tif", "copy it from there"),
        ("https://me:secret@host/out.tif?token=secret", "^https://host/out.tif is an address"),
        ("file:///tmp/out.tif", "give it as a path"),
        ("/vsis3/maps/out.tif", "s3://bucket"),
        ("/vsimem/out.tif", "give a path"),
        (Path("s3://maps/out.tif"), "give s3://"),
        ("s3://", "names no bucket"),
        ("s3:///out.tif", "names no bucket"),
        ("s3://maps/a//out.tif", "a part ''"),
        ("s3://maps/../out.tif", "a part '..'"),
    ],
)
def test_other_addresses_are_refused_in_one_sentence(path: str | Path, told: str) -> None:
    with pytest.raises(OutputError, match=told) as caught:
        place_of(path)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
