"""Segmentation without a model: a clustering is fitted to the scene, then run over it like any other method."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from geoseg.engine.assemble import Outputs, is_same_file
from geoseg.engine.plan import augmented
from geoseg.engine.predict import Options, Report, execute, make_plan
from geoseg.engine.run import Progress
from geoseg.errors import ConfigError, OutputError, unknown_name
from geoseg.scene import Scene, open_scene

if TYPE_CHECKING:
    from geoseg.segmenters.clustering_fit import ClusteringSettings

METHODS = ("feature-clustering",)


def cluster(
    scene: str | os.PathLike[str] | Scene,
    out: str | os.PathLike[str],
    *,
    method: str = "feature-clustering",
    settings: ClusteringSettings | None = None,
    save_model: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    **changes: object,
) -> Report:
    """Segment a scene without labels or a model, and write the segments as polygons (or labels, for .tif).

    The method is fitted once to a sample of the scene, then applied everywhere, so one id means one thing.

    Args:
        scene: path, URL, or an opened scene.
        out: see :func:`geoseg.predict`.
        method: one of :data:`METHODS`.
        settings: of the method.
        save_model: also write the fitted method as a bundle, to be used with :func:`geoseg.predict` on other scenes.
        options: see :class:`geoseg.engine.predict.Options`.
        progress: called with a stage, steps done, and steps in all.
        changes: single fields of the options.

    Raises:
        SceneError, ConfigError, OutputError: bad input, before any work.
        RunError: the run could not be finished; the same call goes on from there.
    """
    from geoseg.outputs.staging import check_place
    from geoseg.segmenters.clustering import ClusteringState, FeatureClustering, save
    from geoseg.segmenters.clustering_fit import ClusteringSettings

    if method not in METHODS:
        raise ConfigError(unknown_name("clustering method", method, METHODS))
    options = replace(options or Options(), **changes)  # type: ignore[arg-type]
    outputs = Outputs.check(out, options)
    if save_model is not None:
        check_place(save_model, options.overwrite)
    own = scene if isinstance(scene, Scene) else open_scene(scene, bands=options.bands, nodata=options.nodata)
    if save_model is not None and is_same_file(save_model, own.path):
        raise OutputError(f"{save_model} is the scene itself: give the model another name.")
    segmenter = FeatureClustering(
        settings or ClusteringSettings(),
        bands=own.band_names,
        progress=None if progress is None else lambda done, total: progress("fitting", done, total),
    )
    chosen = augmented(segmenter) if options.tta else segmenter
    plan, notes = make_plan(own, outputs, chosen, chosen, options, progress)
    if save_model is not None and isinstance(plan.state, ClusteringState):
        save(plan.state, save_model, overwrite=options.overwrite)
    report = execute(plan, outputs, options, notes, progress)
    return report if save_model is None else replace(report, files=(*report.files, os.fspath(save_model)))
