"""A model written for other programs: as an ONNX file, or as a STAC item that describes it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.bundle import Bundle, read_bundle
from geoseg.errors import ConfigError, OutputError
from geoseg.outputs.staging import check_place, staged, writing
from geoseg.segmenters.loading import resolve_bundle

if TYPE_CHECKING:
    from geoseg.bundle import Description
    from geoseg.normalisation import Normalisation


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        file: its path.
        kind: ``onnx`` or ``stac``.
        model: the bundle that it was made of.
        description: what the file says of the model.
        any_size: whether an ONNX file takes tiles of any size.
        notes: what a user should know.
    """

    file: str
    kind: str
    model: str
    description: Description
    any_size: bool = False
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return a plain record; sizes in pixels, resolution in metres."""
        about = self.description
        return {
            "kind": self.kind,
            "model": self.model,
            "bands": about.bands,
            "resolution": about.resolution,
            "classes": [item.name for item in about.class_table()],
            "tile": None if self.any_size else about.tile,
            "halo": about.halo,
            "licence": about.licence,
        }


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    scene: str | os.PathLike[str] | None = None,
    tile: int | None = None,
    any_size: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write a model as ONNX (``.onnx``), or describe it as a STAC item (``.json``).

    Args:
        model: path, URL or name of a bundle.
        out: the file; its suffix chooses.
        scene: for ONNX and a model that measures the scaling of its bands on each scene: whose scaling it is to keep.
        tile: for ONNX, side of its tiles in pixels; by default the model's.
        any_size: for ONNX, let it take tiles of any size.
        overwrite: replace ``out``.

    Raises:
        BundleError: the model cannot be read, is not one network, or cannot be written as ONNX.
        SceneError: the scene cannot be read, or has other bands.
        ConfigError: an option makes no sense, or a library is missing.
        OutputError: ``out`` has another suffix, exists, or cannot be written.
    """
    target = Path(out)
    suffix = target.suffix.lower()
    if suffix not in (".onnx", ".json"):
        raise OutputError(f"{target} does not say as what {os.fspath(model)} is to be written: give .onnx or .json.")
    if suffix == ".json" and (scene is not None or tile is not None or any_size):
        raise ConfigError("--scene, --tile and --any-size are for ONNX files: leave them out.")
    check_place(target, overwrite)
    bundle = read_bundle(resolve_bundle(model))
    if target.exists() and os.path.samefile(target, bundle.path):
        raise OutputError(f"{target} is the model itself: give the output another name.")
    if suffix == ".json":
        return _described(bundle, target, os.fspath(model))
    from geoseg.segmenters.onnx_export import onnx_of

    scaling = None if scene is None else _scaling_of(scene, bundle)
    data, about = onnx_of(bundle, scaling=scaling, tile=tile, any_size=any_size)
    with staged(target) as temporary, writing(target):
        temporary.write_bytes(data)
    return Exported(str(target), "onnx", bundle.path, about, any_size, tuple(_notes(about)))


def _scaling_of(scene: str | os.PathLike[str], bundle: Bundle) -> Normalisation:
    """Return the scaling that a model measures on a scene at its resolution, as a run over the scene would.

    Raises:
        SceneError: the scene cannot be read, or has other bands.
        ConfigError: the model has a scaling of its own.
    """
    from geoseg.engine.predict import Options, at_model_resolution, with_bands_of
    from geoseg.normalisation import Normalisation
    from geoseg.scene import open_scene
    from geoseg.segmenters.network import spec_of

    if bundle.description.normalisation is not None:
        raise ConfigError(f"{bundle.path} has a scaling of its bands: leave --scene out.")
    spec, options = spec_of(bundle.description), Options()
    at, _ = at_model_resolution(with_bands_of(open_scene(scene), spec, options), spec, options)
    return Normalisation.of(at.statistics(), "standard")


def _notes(about: Description) -> list[str]:
    notes = [f"the licence of the model is {about.licence}."]
    if about.resolution is None:
        notes.append("the model has no ground resolution; GeoDeep then works at 0.1 m per pixel unless told otherwise.")
    if len(about.bands) != 3:
        notes.append(f"the model takes {len(about.bands)} bands; GeoDeep runs models of three alone.")
    return notes


def _described(bundle: Bundle, target: Path, name: str) -> Exported:
    from geoseg.outputs.stac_model import write_model_item

    write_model_item(target, bundle, Path(name).stem)
    return Exported(str(target), "stac", bundle.path, bundle.description, notes=_licence_note(bundle))


def _licence_note(bundle: Bundle) -> tuple[str, ...]:
    return (f"the licence of the model is {bundle.description.licence}.",)
