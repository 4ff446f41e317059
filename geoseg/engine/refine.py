"""Labels of an earlier stage, from any source, brought to the edges of the image: a refiner run over the scene."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from geoseg.bundle import read_bundle
from geoseg.engine.assemble import Outputs, is_same_file
from geoseg.engine.plan import Recipe
from geoseg.engine.predict import Options, Report, execute, make_plan
from geoseg.engine.prior import PriorFile
from geoseg.engine.run import Progress
from geoseg.errors import ConfigError, OutputError
from geoseg.segmenters.loading import resolve_bundle

if TYPE_CHECKING:
    from geoseg.scene import Scene


def refine(
    scene: str | os.PathLike[str] | Scene,
    rough: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    class_field: str | None = None,
    one_class: str | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    **changes: object,
) -> Report:
    """Refine labels with the image below them, and write class polygons (or labels, for .tif).

    Args:
        scene: path, URL, or an opened scene.
        rough: the labels, a raster or vector file, in any CRS and on any grid; pixels in no polygon are background.
        out: see :func:`geoseg.predict`.
        model: path, URL or name of the bundle of a refiner.
        class_field: attribute of polygons that tells their class.
        one_class: class of all polygons of a file that tells none.
        options: see :class:`geoseg.engine.predict.Options`.
        progress: called with a stage, steps done, and steps in all.
        changes: single fields of the options.

    Raises:
        SceneError, LabelsError, BundleError, ConfigError, OutputError: bad input, before any work.
        RunError: the run could not be finished; the same call goes on from there.
    """
    options = replace(options or Options(), **changes)  # type: ignore[arg-type]
    if options.refine is not None:
        raise ConfigError("labels are refined once: name one refiner, with -m.")
    outputs = Outputs.check(out, options)
    for name in outputs.files:
        if is_same_file(name, rough):
            raise OutputError(f"{name} is what is to be refined: give the output another name.")
    path = os.path.abspath(resolve_bundle(model))
    recipe = Recipe((), options.tta, (path, read_bundle(path).digest), options.refine_by)
    source = PriorFile(os.fspath(rough), class_field, one_class)
    plan, notes = make_plan(scene, outputs, recipe, recipe.build(), options, progress, source)
    return execute(plan, outputs, options, notes, progress)
