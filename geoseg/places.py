"""Places of outputs: a path, or an object in S3 storage."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from geoseg.errors import OutputError
from geoseg.fetching import without_secrets

# Of a URL; ``pathlib`` makes one slash of two.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(//?)", re.I)
_KNOWN = {"s3", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "ftp", "file", "hdfs"}
_WAYS: dict[str, str] = {
    **dict.fromkeys(("http", "https"), "give a path or s3://bucket/name"),
    "file": "give it as a path",
}


@dataclass(frozen=True)
class S3Place:
    """An object in S3 storage, or what is called a folder there; the part of ``pathlib``'s names that is needed.

    Attributes:
        bucket: its name.
        key: without a slash at either end; empty for the bucket itself.
        new: whether the object is only to be written where there is none.
    """

    bucket: str
    key: str
    new: bool = field(default=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> S3Place:
        """Return what ``s3://bucket/key`` names.

        Raises:
            OutputError: no bucket, or a key that a file system would read otherwise.
        """
        bucket, _, key = text.partition("://")[2].partition("/")
        key = key.removesuffix("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
            raise OutputError(f"{text} names no bucket: write it as s3://bucket/name.")
        strange = [part for part in key.split("/") if part in {"", ".", ".."}] if key else []
        if strange:
            raise OutputError(f"{text} has a part {strange[0]!r} between its slashes: give a plain name.")
        return cls(bucket, key)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".removesuffix("/")

    @property
    def gdal_name(self) -> str:
        """What GDAL calls it."""
        return f"/vsis3/{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """The last part of the key, or the bucket."""
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> S3Place:
        """What holds it; the bucket holds itself."""
        return S3Place(self.bucket, self.key.rpartition("/")[0])

    def __truediv__(self, name: str) -> S3Place:
        return S3Place(self.bucket, f"{self.key}/{name}" if self.key else name)

    def with_name(self, name: str) -> S3Place:
        """Return a neighbour of another name."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> S3Place:
        """Return a neighbour of another suffix."""
        return self.with_name(PurePosixPath(self.name).with_suffix(suffix).name)

    def absolute(self) -> S3Place:
        """Return itself: it always is."""
        return self

    def below(self, folder: S3Place) -> str:
        """Return the key as seen from a folder that holds it.

        Raises:
            ValueError: it does not.
        """
        prefix = f"{folder.key}/" if folder.key else ""
        if folder.bucket != self.bucket or not self.key.startswith(prefix):
            raise ValueError(f"{self} is not in {folder}")
        return self.key[len(prefix) :]


Place = Path | S3Place


def place_of(path: str | os.PathLike[str] | S3Place, *, new: bool = False) -> Place:
    """Return the place that a path or an ``s3://`` address names.

    Args:
        path: either, or a place.
        new: see :class:`S3Place`.

    Raises:
        OutputError: an address of another kind, to which nothing can be written.
    """
    if isinstance(path, S3Place):
        return replace(path, new=new)
    text = os.fspath(path)
    if text.startswith("/vsi"):
        raise OutputError(f"{text} is a name of GDAL's, which outputs are not written by: give a path or s3://bucket/…")
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if found is None or (found[2] == "/" and scheme not in _KNOWN):
        return Path(text)
    if found[2] == "/":
        raise OutputError(f"{text} has lost a slash, as addresses do in a Path: give {scheme}://… as text.")
    if scheme == "s3":
        return replace(S3Place.parse(text), new=new)
    way = _WAYS.get(scheme, "give a path or s3://bucket/name, and copy it from there")
    raise OutputError(f"{without_secrets(text)} is an address that outputs cannot be written to: {way}.")


def as_place(path: str | os.PathLike[str] | S3Place) -> Place:
    """Return a place as it is, and anything else as a path."""
    return path if isinstance(path, S3Place) else Path(path)


def is_storage(path: str) -> bool:
    """Whether a place, as text, is in S3 storage."""
    return path.lower().startswith("s3://")


def below(place: Place, folder: Place) -> str:
    """Return the path of a place from a folder that holds it, with slashes.

    Raises:
        ValueError: it does not.
    """
    if isinstance(place, S3Place):
        if not isinstance(folder, S3Place):
            raise ValueError(f"{place} is not in {folder}")
        return place.below(folder)
    if isinstance(folder, S3Place):
        raise ValueError(f"{place} is not in {folder}")
    return place.absolute().relative_to(folder.absolute()).as_posix()
