"""Segmentation without a model: a method is fitted to the scene, then run over it like any other method."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from geoseg.engine.assemble import Outputs, is_same_file
from geoseg.engine.plan import augmented
from geoseg.engine.predict import Options, Report, at_model_resolution, execute, make_plan
from geoseg.engine.run import Progress
from geoseg.engine.scribbles import ScribbleFile
from geoseg.errors import ConfigError, OutputError, unknown_name
from geoseg.scene import Scene, open_scene
from geoseg.vector.value_names import read_value_items

if TYPE_CHECKING:
    from geoseg.segmenters.fit_settings import FitSettings
    from geoseg.segmenters.fitted import FittedSegmenter

METHODS = ("feature-clustering", "superpixel-backprop", "active-contour")


def cluster(
    scene: str | os.PathLike[str] | Scene,
    out: str | os.PathLike[str],
    *,
    method: str = "feature-clustering",
    settings: FitSettings | Mapping[str, Any] | None = None,
    scribbles: str | os.PathLike[str] | None = None,
    scribble_field: str = "class",
    references: Sequence[str | os.PathLike[str] | Scene] = (),
    names: str | os.PathLike[str] | None = None,
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
        settings: of the method, or some of them by name.
        scribbles: vector file of marks on the scene, whose names become segments; not for active-contour.
        scribble_field: the attribute that names the marks.
        references: scenes to fit to in place of this one.
        names: table of names for the segments, see :func:`geoseg.engine.naming.name`.
        save_model: also write the fitted method as a bundle, to be used with :func:`geoseg.predict` on other scenes.
        options: see :class:`geoseg.engine.predict.Options`.
        progress: called with a stage, steps done, and steps in all.
        changes: single fields of the options.

    Raises:
        SceneError, LabelsError, ConfigError, OutputError: bad input, before any work.
        RunError: the run could not be finished; the same call goes on from there.
    """
    from geoseg.outputs.staging import check_place
    from geoseg.segmenters.fitted import FittedState

    if method not in METHODS:
        raise ConfigError(unknown_name("clustering method", method, METHODS))
    options = replace(options or Options(), **changes)  # type: ignore[arg-type]
    outputs = Outputs.check(out, options)
    if save_model is not None:
        check_place(save_model, options.overwrite)
    called = () if names is None else read_value_items(names)
    own = (
        scene
        if isinstance(scene, Scene)
        else open_scene(scene, bands=options.bands, nodata=options.nodata, elsewhere=options.allow_vrt_elsewhere)
    )
    if save_model is not None and is_same_file(save_model, own.path):
        raise OutputError(f"{save_model} is the scene itself: give the model another name.")
    segmenter = segmenter_for(
        method,
        settings,
        bands=own.band_names,
        scribbles=None if scribbles is None else ScribbleFile(os.fspath(scribbles), scribble_field),
        names=called,
        progress=None if progress is None else lambda done, total: progress("fitting", done, total),
    )
    opened = [
        each
        if isinstance(each, Scene)
        else open_scene(each, bands=options.bands, nodata=options.nodata, elsewhere=options.allow_vrt_elsewhere)
        for each in references
    ]
    segmenter.references = tuple(at_model_resolution(each, segmenter.spec, options)[0] for each in opened)
    chosen = augmented(segmenter) if options.tta else segmenter
    plan, notes = make_plan(own, outputs, chosen, chosen, options, progress)
    if save_model is not None and isinstance(plan.state, FittedState):
        plan.state.save(save_model, overwrite=options.overwrite)
    report = execute(plan, outputs, options, notes, progress)
    return report if save_model is None else replace(report, files=(*report.files, os.fspath(save_model)))


def segmenter_for(
    method: str,
    settings: FitSettings | Mapping[str, Any] | None = None,
    *,
    scribbles: ScribbleFile | None = None,
    **others: Any,
) -> FittedSegmenter:
    """Return the segmenter of a method that is fitted to scenes.

    Args:
        method: one of :data:`METHODS`.
        settings: of the method, or some of them by name.
        scribbles: marks on the scene.
        others: what :class:`geoseg.segmenters.fitted.FittedSegmenter` takes.

    Raises:
        ConfigError: settings of another method, or that the method refuses; scribbles for an active contour.
    """
    from geoseg.segmenters.fit_settings import FitSettings

    if method == "active-contour":
        from geoseg.segmenters.active_contour import ActiveContour
        from geoseg.segmenters.active_contour_fit import ActiveContourSettings

        if scribbles is not None:
            raise ConfigError("an active contour follows brightness, not scribbles: use feature-clustering with them.")
        if not isinstance(settings, FitSettings):
            settings = ActiveContourSettings.with_settings(**(settings or {}))
        if not isinstance(settings, ActiveContourSettings):
            raise ConfigError(f"{type(settings).__name__} are not for {method}: give ActiveContourSettings.")
        return ActiveContour(settings, **others)
    from geoseg.segmenters.clustering import METHODS as SMOOTHED
    from geoseg.segmenters.clustering import FeatureClustering
    from geoseg.segmenters.clustering_fit import ClusteringSettings

    if not isinstance(settings, FitSettings):
        smoothing = next(kind for kind, name in SMOOTHED.items() if name == method)
        settings = ClusteringSettings.with_settings(**{**(settings or {}), "smoothing": smoothing})
    if not isinstance(settings, ClusteringSettings) or SMOOTHED[settings.smoothing] != method:
        raise ConfigError(f"these settings are not for {method}: give ClusteringSettings with its smoothing.")
    return FeatureClustering(settings, scribbles=scribbles, **others)
