"""``geoseg.view``: outputs as a web map."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from geoseg.errors import ConfigError
from geoseg.looking.found import find
from geoseg.looking.web_map import opened, page
from geoseg.outputs.staging import check_place, staged, writing

Progress = Callable[[str, int, int], None]


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
        out: the page, ``.html``; by default beside the first output, under its stem.
        scene: the rasters that the outputs were made of, where no project tells.
        overwrite: replace a page that exists.
        progress: called with a stage, steps done, and steps in all.

    Raises:
        ConfigError: nothing to look at, or ``out`` is no page.
        SceneError: a file cannot be read, or has no place on a web map.
        LabelsError: a label raster is damaged.
        OutputError: the page exists or cannot be written.
    """
    found = find(_listed(outputs), _listed(scene))
    path = Path(out) if out is not None else found.first.with_suffix(".html")
    if path.suffix.lower() not in {".html", ".htm"}:
        raise ConfigError(f"{path} is to be a web page: let its name end in .html.")
    check_place(path, overwrite)
    _tell(progress, "reading outputs", 0)
    this = opened(found)
    _tell(progress, "reading outputs", 1)
    _tell(progress, "writing map", 0)
    text, left_out = page(this, found.first.name)
    with staged(path) as temporary, writing(path):
        temporary.write_text(text, encoding="utf-8", newline="\n")
    _tell(progress, "writing map", 1)
    return Looked(path, (*found.notes, *left_out))


def _listed(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _tell(progress: Progress | None, stage: str, done: int) -> None:
    if progress:
        progress(stage, done, 1)
