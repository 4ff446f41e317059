"""What a training run is told: checked as a whole before anything is read, and kept in the bundle it makes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from geoseg.classes import Classes
from geoseg.errors import ConfigError, LabelsError, one_line
from geoseg.parsing import read_yaml_file
from geoseg.training.adaptation_config import AdaptationConfig
from geoseg.training.coarse_config import CoarseConfig
from geoseg.training.variation_config import (
    AugmentConfig,
    DamageConfig,
    MixConfig,
    SaliencyConfig,
    SamplingConfig,
    Section,
    StagesConfig,
)

# More patches of more pixels than this are a slip of the pen.
_LARGEST_PATCH = 8192
_MISSING = "is missing"
# Suffixes of vector files; labels of any other name are rasters.
VECTOR = (".geojson", ".json", ".geojsonl", ".gpkg", ".fgb", ".shp", ".parquet", ".kml", ".gml", ".zip", ".sqlite")


class SceneConfig(Section):
    """One scene with its labels.

    Attributes:
        image: the raster.
        coarse: for each of ``coarse.sources`` a raster of coarse classes or a vector file of polygons, in any CRS; null
            where the scene has none.
        labels: a vector file of polygons in any CRS, or a raster of class ids; may be left out where there is
            ``coarse``.
        train: where patches are drawn: a vector file, or ``[from, to]`` as shares of the scene's width; None for all
            that ``validation`` leaves.
        validation: where the network is judged, likewise; nothing of it is trained on.  None for nowhere.
    """

    image: str
    coarse: list[str | None] = Field(default_factory=list)
    labels: str | None = None
    train: str | tuple[float, float] | None = None
    validation: str | tuple[float, float] | None = None

    @field_validator("coarse", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("labels")
    @classmethod
    def _needed(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and not any(info.data.get("coarse", [True])):
            raise ValueError(_MISSING)
        return value

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _area(cls, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        numbers = isinstance(value, Sequence) and all(isinstance(v, int | float) for v in value)
        if not numbers or len(value) != 2 or not 0 <= value[0] < value[1] <= 1:
            raise ValueError("give a vector file, or two rising shares of the width such as [0, 0.8]")
        return tuple(float(v) for v in value)


class DataConfig(Section):
    """Scenes, labels, and what the labels mean.

    Attributes:
        folder: paths are relative to it; by default the folder of the configuration file.
        scenes: to draw patches from.
        validation_scenes: to judge the network on, whole.
        bands: indices (from 1) or names; all but alpha by default.
        resolution: true ground metres per pixel; by default that of the first scene.
        classes: ``name[:#rrggbb],…`` with ids from 0, or a list of records with ``id`` and ``name``.
        class_field: attribute of vector labels that says the class, by id or name; without it all polygons are of the
            one class that is not background.
        ignore: values of it, or of a label raster, that stand for "not known" (255 and nodata always do).
        all_touched: a polygon takes every pixel it touches, not those alone whose centre it holds.
        repair: mend invalid polygons instead of refusing them.
        allow_vrt_elsewhere: let images that are VRTs refer to files outside of their folder, and to servers.
        border_m: where two polygons come nearer than this, the pixels between are a border; 0 for none.
        border_class: the class of such borders; None leaves them out of the loss.
        scaling: ``model`` scales the bands of all scenes alike, as measured on those that are trained on; ``scene``
            scales each scene by its own mean and deviation, also in use, which evens out light and cameras but makes
            what is found depend on how much of the land a scene shows.
    """

    folder: str | None = None
    scenes: list[SceneConfig] = Field(min_length=1)
    validation_scenes: list[SceneConfig] = Field(default_factory=list)
    bands: list[int | str] | None = None
    resolution: float | None = Field(default=None, gt=0)
    classes: list[dict[str, Any]]
    class_field: str | None = None
    ignore: list[int | str] = Field(default_factory=list)
    all_touched: bool = False
    repair: bool = False
    allow_vrt_elsewhere: bool = False
    border_m: float = Field(default=0.0, ge=0)
    border_class: str | None = None
    scaling: Literal["model", "scene"] = "model"

    @field_validator("classes", mode="before")
    @classmethod
    def _class_table(cls, value: Any) -> Any:
        try:
            if isinstance(value, str):
                return Classes.parse(value).as_dicts()
            if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
                return Classes.parse(",".join(value)).as_dicts()
            return Classes.from_dicts(value).as_dicts()
        except (LabelsError, TypeError, ValueError) as error:
            raise ValueError(one_line(error).rstrip(".")) from error

    @model_validator(mode="after")
    def _border(self) -> DataConfig:
        if self.border_class is not None and self.border_class not in [c.name for c in self.table()]:
            raise ValueError(f"border_class {self.border_class!r} is none of the classes")
        if len(self.classes) < 2:
            raise ValueError("one class alone leaves nothing to learn: give at least two, such as background,building")
        return self

    def table(self) -> Classes:
        """Return the classes."""
        return Classes.from_dicts(self.classes)


class NetworkConfig(Section):
    """The network and what it starts from.

    Attributes:
        name: one of ``geoseg networks``.
        encoder: any timm encoder; the network's own by default.
        pretrained: start the encoder from ImageNet weights, which are downloaded.
        encoder_weights: a file of weights for the encoder, or a bundle of a network with the same one, in place of a
            download.
        start: a bundle of the same network to go on from; its scaling of the bands is kept.
        freeze_steps: the encoder stays as it is for so many steps.
        options: what else the network's builder takes.
    """

    name: str = "unet"
    encoder: str | None = None
    pretrained: bool = False
    encoder_weights: str | None = None
    start: str | None = None
    freeze_steps: int = Field(default=0, ge=0)
    options: dict[str, Any] = Field(default_factory=dict)


class LoopConfig(Section):
    """The loop: steps, optimiser, validation and checkpoints.

    Attributes:
        steps: optimiser steps.
        batch: patches a step and device.
        accumulate: batches whose gradients make one step.
        patch: side in pixels.
        optimiser: ``adamw``, ``adam`` or ``sgd``.
        lr: largest learning rate.
        encoder_lr: of the encoder, as a multiple of ``lr``.
        momentum: of ``sgd``.
        schedule: how the learning rate falls after ``warmup`` steps.
        clip: largest norm of the gradient; 0 for any.
        average: decay of the running average of weights that is judged and kept (EMA), such as 0.99; 0 for none.
        seed: of everything that is drawn.
        device: ``auto``, ``cpu`` or ``cuda``.
        devices: how many; more than one train in parallel (DDP).
        precision: ``auto`` is bfloat16 on GPUs that have it.
        workers: threads that read patches ahead.
        validate_every: steps; 0 for the end alone.
        patience: stop when the mean IoU has not risen for so many validations; 0 for never.
        keep: the weights of the best validation, or the last.
        checkpoint_every: steps after which an interrupted run can go on; 0 for never.
        logs: folder for CSV and TensorBoard logs; None for none.
    """

    steps: int = Field(default=1000, gt=0)
    batch: int = Field(default=8, gt=0)
    accumulate: int = Field(default=1, gt=0)
    patch: int = Field(default=256, ge=8, le=_LARGEST_PATCH)
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    encoder_lr: float = Field(default=1.0, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: int = Field(default=0, ge=0)
    clip: float = Field(default=0.0, ge=0)
    average: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(default=1, gt=0)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    workers: int = Field(default=2, ge=0)
    validate_every: int = Field(default=0, ge=0)
    patience: int = Field(default=0, ge=0)
    keep: Literal["best", "last"] = "best"
    checkpoint_every: int = Field(default=100, ge=0)
    logs: str | None = None


class TrainConfig(Section):
    """All of a training run.

    Attributes:
        targets: ``fine`` compares each pixel with its label; ``coarse`` learns from the coarse labels of scenes, and
            from fine ones where there are any.
        coarse: what is known of coarse classes, and how they are learned from.
        loss: a sum of named losses such as ``ce+0.5*aaf``.
        licence: of the weights.
        card: what a user should know of the model, by heading, such as ``data`` and ``limits``; kept in the bundle.
        weights: number format that the bundle keeps them in; ``float16`` halves the file and rounds to three digits.
    """

    data: DataConfig
    targets: Literal["fine", "coarse"] = "fine"
    coarse: CoarseConfig = Field(default_factory=CoarseConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    loss: str = "ce"
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    mixing: MixConfig = Field(default_factory=MixConfig)
    damage: DamageConfig = Field(default_factory=DamageConfig)
    stages: StagesConfig = Field(default_factory=StagesConfig)
    saliency: SaliencyConfig = Field(default_factory=SaliencyConfig)
    adaptation: AdaptationConfig = Field(default_factory=AdaptationConfig)
    training: LoopConfig = Field(default_factory=LoopConfig)
    licence: str = "not stated"
    card: dict[str, str] = Field(default_factory=dict)
    weights: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _targets(self) -> TrainConfig:
        scenes = list(enumerate(self.data.scenes))
        count = len(self.coarse.sources)
        if self.targets == "fine":
            given = next((i for i, scene in scenes if any(scene.coarse)), None)
            if given is not None or count:
                place = "coarse.sources" if given is None else f"data.scenes.{given}.coarse"
                raise ValueError(f"{place} is given, but targets is fine: set targets to coarse to learn from it")
            return self
        if not count:
            raise ValueError("targets is coarse: give coarse.sources, a list of what is known of coarse classes")
        for i, scene in scenes:
            if scene.coarse and len(scene.coarse) != count:
                raise ValueError(
                    f"data.scenes.{i}.coarse has {len(scene.coarse)} files for the {count} coarse.sources: give one "
                    "for each, null where there is none"
                )
            if scene.validation is not None and scene.labels is None:
                raise ValueError(f"data.scenes.{i}.labels is missing: without them there is no validation")
        for number in range(count):
            if not any(number < len(scene.coarse) and scene.coarse[number] for _, scene in scenes):
                raise ValueError(f"no scene has a file for coarse.sources.{number}: name it in data.scenes")
        if self.mixing.alpha:
            raise ValueError(f"mixing.alpha is {self.mixing.alpha}, but blocks do not mix: leave it at 0")
        return self

    @model_validator(mode="after")
    def _adapted(self) -> TrainConfig:
        self.adaptation.check_with(
            start=self.network.start, labels=self.targets, devices=self.training.devices, average=self.training.average
        )
        return self

    def path(self, name: str) -> str:
        """Return a path of the configuration as the program opens it."""
        if self.data.folder is None or "://" in name or name.startswith("/vsi") or Path(name).is_absolute():
            return name
        return str(Path(self.data.folder) / name)

    def record(self) -> dict[str, Any]:
        """Return what a bundle keeps: all that made it, of files the names alone, for their folders are the maker's."""
        kept = self.model_dump(mode="json", exclude={"card"})
        del kept["data"]["folder"], kept["training"]["logs"], kept["training"]["workers"]
        for entry in (*kept["data"]["scenes"], *kept["data"]["validation_scenes"]):
            entry.update({key: Path(value).name for key, value in entry.items() if isinstance(value, str)})
            entry["coarse"] = [value and Path(value).name for value in entry["coarse"]]
            if not any(entry["coarse"]):
                del entry["coarse"]
        for entry in kept["adaptation"]["targets"]:
            entry.update({key: Path(value).name for key, value in entry.items() if value is not None})
        if not kept["adaptation"]["targets"]:
            del kept["adaptation"]
        for source in kept["coarse"]["sources"]:
            source["table"] = Path(source["table"]).name
        for section, key in (("network", "encoder_weights"), ("network", "start"), ("coarse", "teacher")):
            if kept[section][key] is not None:
                kept[section][key] = Path(kept[section][key]).name
        return kept


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the mapping in a YAML file, its ``data.folder`` set to be beside the file.

    Raises:
        ConfigError: it cannot be read, is no YAML or no mapping.
    """
    import yaml

    name = os.fspath(path)
    try:
        given = read_yaml_file(name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} cannot be read ({one_line(error)}): give a YAML file.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name} is not YAML that can be read: {one_line(error)}.") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{name} holds no settings: give a mapping with at least `data`.")
    data = given.get("data")
    if isinstance(data, dict):
        data["folder"] = str(Path(name).parent / str(data.get("folder") or "."))
    return given


def set_value(given: dict[str, Any], key: str, value: Any) -> None:
    """Set ``key``, a path such as ``training.steps`` or ``data.scenes.0.image``, in nested settings.

    Raises:
        ConfigError: the path goes through something that holds no settings.
    """
    place: Any = given
    parts = key.split(".")
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            where: Any = int(part)
        elif isinstance(place, dict):
            where = part
        else:
            raise ConfigError(f"{key!r} cannot be set: there is no {'.'.join(parts[: i + 1])!r} in the settings.")
        if last:
            place[where] = value
        else:
            if isinstance(place, dict) and place.get(where) is None:
                place[where] = {}
            place = place[where]


def check(given: Mapping[str, Any]) -> TrainConfig:
    """Return the checked configuration.

    Raises:
        ConfigError: anything is wrong; the message lists every fault with its path and value.
    """
    try:
        return TrainConfig.model_validate(given)
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors()]
    head = "the configuration has a fault" if len(faults) == 1 else f"the configuration has {len(faults)} faults"
    raise ConfigError(f"{head}: {'; '.join(faults)}.")


def _fault(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = sorted(_section(fault["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        return f"{path} is no setting ({hint})"
    if fault["type"] == "missing" or fault["msg"].endswith(_MISSING):
        return f"{path} is missing"
    told = fault["msg"].removeprefix("Value error, ")
    if not path:
        return str(told)
    given = "" if isinstance(fault["input"], dict) else f" = {fault['input']!r}"
    return f"{path}{given}: {told[0].lower()}{told[1:]}"


def _section(path: Sequence[Any]) -> type[BaseModel]:
    """Return the section that settings at ``path`` belong to."""
    section: type[BaseModel] = TrainConfig
    for part in path:
        if isinstance(part, int) or part not in section.model_fields:
            continue
        annotation = section.model_fields[part].annotation
        found = next((kind for kind in (annotation, *get_args(annotation)) if _is_section(kind)), None)
        if found is None:
            return section
        section = found
    return section


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
