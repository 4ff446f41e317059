"""``geoseg.view``: outputs as a web map."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from geoseg.errors import ConfigError, OutputError
from geoseg.looking.found import find
from geoseg.looking.tiles import write_tiles
from geoseg.looking.web_map import Opened, opened, page
from geoseg.outputs.staging import check_place, staged, writing

Progress = Callable[[str, int, int], None]

# In the folder of a map.
PAGE, TILES = "index.html", "tiles"


@dataclass(frozen=True)
class Looked:
    """What was written: the file to open, and what a user should know, in sentences."""

    file: Path
    notes: tuple[str, ...]


def view(
    outputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    scene: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Looked:
    """Write a web map of outputs that a browser opens without a network: scene, labels, polygons, confidence.

    Args:
        outputs: what geoseg has written, vector files or rasters; a folder stands for the outputs in it.  What a
            layer definition or project beside them names together with them is shown too.
        out: the page, ``.html``, which holds all it shows; or a folder for a page and, beside it, the scene in tiles,
            for scenes of more than some 4000 pixels a side.  By default a page beside the first output.
        scene: the rasters that the outputs were made of, where no project tells.
        overwrite: replace a page that exists.
        progress: called with a stage, steps done, and steps in all.

    Raises:
        ConfigError: nothing to look at, or ``out`` has another suffix.
        SceneError: a file cannot be read, or has no place on a web map.
        LabelsError: a label raster is damaged.
        OutputError: the page exists or cannot be written.
    """
    found = find(listed(outputs), listed(scene))
    path = Path(out) if out is not None else found.first.with_suffix(".html")
    folder = path.suffix.lower() not in {".html", ".htm"}
    if folder and path.suffix and not path.is_dir():
        raise ConfigError(f"{path} is to be a web page or a folder: let its name end in .html, or give it no suffix.")
    if folder:
        _check_folder(path, overwrite)
    else:
        check_place(path, overwrite)
    _tell(progress, "reading outputs", 0, 1)
    this = opened(found)
    _tell(progress, "reading outputs", 1, 1)
    title = found.first.name
    with staged(path) as temporary, writing(path):
        if folder:
            left_out = _write_folder(this, title, temporary, progress)
            if path.is_dir():
                shutil.rmtree(path)
        else:
            _tell(progress, "writing map", 0, 1)
            text, left_out = page(this, title)
            temporary.write_text(text, encoding="utf-8", newline="\n")
            _tell(progress, "writing map", 1, 1)
    return Looked(path / PAGE if folder else path, (*found.notes, *left_out))


def _write_folder(this: Opened, title: str, folder: Path, progress: Progress | None) -> list[str]:
    """Write a page and, beside it, the scenes in tiles; returns what is left out."""
    scenes = []
    for number, scene in enumerate(this.scenes):
        step = partial(_tell, progress, f"tiles of scene {number + 1}")
        scenes.append(write_tiles(scene, this.frame, folder / TILES / str(number), f"{TILES}/{number}", step))
    folder.mkdir(exist_ok=True)
    text, left_out = page(this, title, scenes)
    (folder / PAGE).write_text(text, encoding="utf-8", newline="\n")
    return left_out


def _check_folder(path: Path, overwrite: bool) -> None:
    """Refuse a folder for a map that holds anything else.

    Raises:
        OutputError: it does, or may not be replaced, or what holds it is missing or not writable.
    """
    if path.is_dir():
        inside = {each.name for each in path.iterdir()}
        if inside - {PAGE, TILES}:
            raise OutputError(f"{path} holds other files than a map: give a new folder, or a file name in .html.")
        if inside and not overwrite:
            raise OutputError(f"{path} exists already: choose another name or pass --overwrite.")
        path = path / PAGE
    check_place(path, overwrite)


def listed(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """Return one path or several as a list."""
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _tell(progress: Progress | None, stage: str, done: int, of: int) -> None:
    if progress:
        progress(stage, done, of)
