"""What is to be looked at: outputs as they were named, what belongs to them, and the scene below them."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from geoseg.classes import Classes
from geoseg.engine.label_sides import is_vector
from geoseg.errors import ConfigError, GeosegError, SceneError
from geoseg.outputs.cog import CONFIDENCE_NODATA, read_classes
from geoseg.outputs.polygons import suffixes
from geoseg.places import is_storage
from geoseg.source import band_names, gdal_environment, is_remote, open_raster, resolve

Kind = Literal["scene", "labels", "confidence", "uncertainty"]

_DEFINITIONS = (".qlr", ".qgs")
_RASTERS = {".tif", ".tiff"}
# What else of a run may be looked at; a definition names a handful of files.
_MOST_BYTES = 8 << 20


@dataclass
class Found:
    """Files by what they are, in the order in which they were named; paths as GDAL opens them.

    Attributes:
        polygons: vector files.
        labels: label rasters with their classes.
        doubts: confidence and uncertainty rasters, and which of these.
        scenes: rasters that the outputs were made of.
        notes: what a user should know.
    """

    polygons: list[Path] = field(default_factory=list)
    labels: list[tuple[str, Classes]] = field(default_factory=list)
    doubts: list[tuple[str, Kind]] = field(default_factory=list)
    scenes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> Path:
        """The output that names the picture."""
        return self.polygons[0] if self.polygons else Path((self.labels or self.doubts)[0][0])


def find(outputs: Sequence[str | os.PathLike[str]], scenes: Sequence[str | os.PathLike[str]] = ()) -> Found:
    """Tell outputs apart, and add what a layer definition or project in their folder names together with them.

    Args:
        outputs: vector files and rasters; a folder stands for the outputs in it.  A raster that is no output of
            geoseg's is taken for a scene.
        scenes: rasters to show below them.

    Raises:
        ConfigError: there is nothing to look at.
        SceneError: a file is missing or unreadable.
        LabelsError: a label raster is damaged.
    """
    found = Found(scenes=[resolve(scene) for scene in scenes])
    named = [path for output in outputs for path in _named(os.fspath(output))]
    for path in named:
        _add(found, path)
    companions = list(dict.fromkeys(other for path in named for other in _companions(Path(path))))
    for companion in companions:
        if _knows(found, companion):
            continue
        try:
            _add(found, companion)
        except GeosegError as error:
            found.notes.append(f"{error} It is not shown.")
            continue
        if companion in found.scenes:
            found.notes.append(f"the scene is {companion}, as a project beside the outputs tells.")
    if not (found.polygons or found.labels or found.doubts):
        raise ConfigError("there is no output among these files: name polygons or labels that geoseg has written.")
    if not found.scenes:
        found.notes.append("no scene is shown below the outputs: name it with --scene.")
    return found


def _named(output: str) -> list[str]:
    """Return the files that an argument stands for."""
    if is_storage(output):
        raise ConfigError(f"{output} is in object storage: copy it here and look at the copy.")
    if not os.path.isdir(output):
        return [output]
    inside = sorted(path for path in Path(output).iterdir() if path.suffix.lower() in {*suffixes(), *_RASTERS})
    if not inside:
        raise ConfigError(f"the folder {output} holds no outputs: name one with .gpkg, .geojson, .tif or the like.")
    return [str(path) for path in inside]


def _add(found: Found, path: str) -> None:
    if is_vector(path):
        if not os.path.exists(path):
            raise SceneError(f"{path} does not exist: check the path.")
        found.polygons.append(Path(path).absolute())
        return
    name = resolve(path)
    classes = None if is_remote(name) else _classes(name)
    if classes is not None:
        found.labels.append((name, classes))
        return
    kind = raster_kind(name)
    if kind == "scene":
        if not _knows(found, name):
            found.scenes.append(name)
    else:
        found.doubts.append((name, kind))


def _classes(name: str) -> Classes | None:
    open_raster(name).close()  # says in one sentence what is wrong with it
    return read_classes(name)


def raster_kind(name: str) -> Kind:
    """Return what a raster without classes shows.

    Raises:
        SceneError: it cannot be opened.
    """
    with gdal_environment(name), open_raster(name) as dataset:
        if dataset.dtypes[0] != "float32" or dataset.nodatavals[0] != CONFIDENCE_NODATA:
            return "scene"
        if dataset.descriptions[0] is None:
            return "confidence" if dataset.count == 1 else "scene"
        return "uncertainty" if band_names(dataset)[0] == "entropy" else "scene"


def _knows(found: Found, path: str) -> bool:
    every = [*map(str, found.polygons), *(p for p, _ in found.labels), *(p for p, _ in found.doubts), *found.scenes]
    return any(other == path or (os.path.exists(other) and _same(other, path)) for other in every)


def _same(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _companions(output: Path) -> Iterator[str]:
    """Yield the local files that a layer definition or project beside an output names besides it."""
    folder = output.absolute().parent
    if is_remote(str(output)) or not folder.is_dir():
        return
    for definition in sorted(path for path in folder.iterdir() if path.suffix.lower() in _DEFINITIONS):
        sources = [source for source in _sources(definition) if os.path.isfile(source)]
        if any(_same(source, str(output)) for source in sources):
            yield from (source for source in sources if not _same(source, str(output)))


def _sources(definition: Path) -> Iterable[str]:
    """Return the paths of the layers in a definition; what is damaged names none."""
    try:
        if definition.stat().st_size > _MOST_BYTES:
            return
        root = ET.parse(definition).getroot()
    except (OSError, ET.ParseError):
        return
    for layer in root.iter("maplayer"):
        source = (layer.findtext("datasource") or "").partition("|")[0].strip()
        if source and "://" not in source and not source.startswith("/vsi"):
            yield os.path.normpath(definition.parent.absolute() / source)
