"""``geoseg adapt``: a trained model moved to scenes of another region that have no labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoseg.bundle import Description, read_bundle
from geoseg.errors import BundleError, ConfigError
from geoseg.segmenters.loading import resolve_bundle
from geoseg.training.adaptation_config import STATISTICS, Method
from geoseg.training.config import check, set_value
from geoseg.training.fit import Progress, train

# Of the loop, where neither the model's own training nor the caller says another.
_LOOP = {
    "steps": 200,
    "batch": 4,
    "lr": 1e-3,
    "warmup": 20,
    "clip": 1.0,
    "average": 0.97,
    "validate_every": 50,
}
_CARD = "Moved by {method} to scenes without labels; what else stands here is told of the model that was moved."
# What is taken over from the training of the model.
_KEPT = ("patch", "encoder_lr", "weight_decay")


@dataclass(frozen=True)
class AdaptReport:
    """What an adaptation came to.

    Attributes:
        model: the bundle.
        method: by which it was adapted.
        steps: how many were done, those before an interruption included.
        kept: after how many the weights were taken; 0 for those of the given model.
        resumed: the step from which an interrupted run was taken up; None for a new run.
        scores: of ``source``, and ``target`` where labels were given, ``before`` and ``after``: ``mean_iou``, ``iou``
            by class, ``accuracy``, ``pixels``.
        seconds: of this run.
    """

    model: str
    method: str
    steps: int
    kept: int
    resumed: int | None
    scores: dict[str, dict[str, dict[str, Any]]]
    seconds: float


def adapt(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    sources: Sequence[tuple[str | os.PathLike[str], str | os.PathLike[str]]],
    targets: Sequence[str | os.PathLike[str]],
    target_labels: Sequence[str | os.PathLike[str] | None] = (),
    method: Method = "self-training",
    validation: str | tuple[float, float] | None = None,
    class_field: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    workdir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> AdaptReport:
    """Move a trained model to scenes of another region without labels, and write it as a bundle.

    No label of a target has a part in it: the weights after a fixed number of steps are kept, averaged over the last,
    unless the mean IoU on the sources' validation has fallen by more than ``adaptation.most_lost``: then the latest
    that had not.  The same call after an interruption goes on from the last checkpoint.

    Args:
        model: a path, URL, or the name of one that ships with geoseg.
        output: of the adapted bundle.
        sources: scenes with their labels, such as the model was trained on.
        targets: scenes to move to.
        target_labels: of the targets, one for each or None, to report scores and for nothing else.
        method: see :class:`geoseg.training.adaptation_config.AdaptationConfig`.
        validation: a vector file, or shares of the sources' width, where they are judged and not trained on.
        class_field: attribute of vector labels that says their class; by default as the model was trained.
        settings: further ones by path, such as ``{"training.steps": 500}``; they win.
        overwrite: replace an existing bundle.
        fresh: throw away what an interrupted run left.
        workdir: folder of the checkpoints; by default a hidden one beside the output, removed at the end.
        progress: told the stage, steps done, and steps in all.
        tell: told in words what each validation found.

    Raises:
        BundleError: the model cannot be used, or is of a kind that cannot be adapted.
        ConfigError: settings have faults.
        SceneError: a scene that cannot be used, or that has other bands than the sources.
        LabelsError: labels that cannot be used.
        OutputError: the bundle cannot be written.
        RunError: no memory, a loss that is no number, or the checkpoints of another run.
    """
    if target_labels and len(target_labels) != len(targets):
        raise ConfigError(
            f"{len(target_labels)} files of target labels were given for {len(targets)} targets: give one for each, "
            "or none."
        )
    path = resolve_bundle(model)
    given = _from_model(path, method)
    data = given["data"]
    area = None if validation is None else validation if isinstance(validation, str) else list(validation)
    data["scenes"] = [{"image": _text(scene), "labels": _text(own), "validation": area} for scene, own in sources]
    if class_field is not None:
        data["class_field"] = class_field
    labels = [None if each is None else _text(each) for each in target_labels] or [None] * len(targets)
    given["adaptation"]["targets"] = [
        {"image": _text(scene), "labels": own} for scene, own in zip(targets, labels, strict=True)
    ]
    for key, value in (settings or {}).items():
        set_value(given, key, value)
    report = train(
        check(given), output, overwrite=overwrite, fresh=fresh, workdir=workdir, progress=progress, tell=tell
    )
    scores, kept = report.figures["scores"], report.figures["step"]
    return AdaptReport(report.model, method, report.steps, kept, report.resumed, scores, report.seconds)


def _text(path: str | os.PathLike[str]) -> str:
    return os.fspath(path)


def _from_model(path: str, method: Method) -> dict[str, Any]:
    """Return the settings that a model brings along: its classes, bands, network, and how its patches were varied.

    Raises:
        BundleError: it is no network that maps the pixels of a tile to classes.
    """
    about: Description = read_bundle(path).description
    if about.method != "network":
        raise BundleError(
            f"{path} holds a {about.method} model, which cannot be adapted: give one that maps the pixels of a tile to "
            "classes."
        )
    trained = about.training.get("config", {})
    loop = {**_LOOP, **{key: trained["training"][key] for key in _KEPT if key in trained.get("training", {})}}
    if method in STATISTICS:
        loop["average"] = 0.0
    kept = ("class_field", "ignore", "all_touched", "repair", "border_m", "border_class")
    data = {key: trained["data"][key] for key in kept if key in trained.get("data", {})}
    classes = [record.model_dump() for record in about.classes]
    given: dict[str, Any] = {
        "data": {**data, "classes": classes, "resolution": about.resolution, "scaling": "scene"},
        "network": {"name": about.settings["name"], "start": str(Path(path).resolve())},
        "training": loop,
        "adaptation": {"method": method},
        "licence": about.licence,
        "card": {**about.card, "adaptation": _CARD.format(method=method)},
    }
    given.update({key: trained[key] for key in ("loss", "sampling", "augment") if key in trained})
    return given
