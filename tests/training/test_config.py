"""Configurations: all faults at once, each with its path and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from geoseg.errors import ConfigError
from geoseg.training.config import check, read_config, set_value

GOOD: dict[str, Any] = {
    "data": {"scenes": [{"image": "a.tif", "labels": "a.geojson"}], "classes": "background,roof:#d55e00"}
}


def faults(given: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check(given)
    return str(caught.value)


def test_every_fault_is_told_with_its_path_and_value() -> None:
    told = faults(
        {
            "data": {"scenes": [{"imag": "a.tif", "labels": 3}], "classes": "a,b", "resolution": -0.5},
            "training": {"steps": 0, "schedule": "cosin", "lrr": 1},
        }
    )
    assert told.startswith("the configuration has 7 faults: ")
    for part in (
        "data.scenes.0.image is missing",
        "data.scenes.0.labels = 3: ",
        "data.scenes.0.imag is no setting (did you mean image?)",
        "data.resolution = -0.5: ",
        "training.steps = 0: ",
        "training.schedule = 'cosin': ",
        "training.lrr is no setting (did you mean lr?)",
    ):
        assert part in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("data.classes", "only", "data.* one class alone"),
        ("data.classes", "a,a", "data.classes = 'a,a': class name 'a' occurs twice"),
        ("data.border_class", "fence", "border_class 'fence' is none of the classes"),
        ("data.scenes.0.validation", [0.9, 0.1], r"data.scenes.0.validation = \[0.9, 0.1\]: .*two rising shares"),
        ("data.scenes.0.train", [0.1, 2], "two rising shares"),
        ("augment.scale", [2, 1], "two positive factors"),
        ("training.patch", 4, "training.patch = 4"),
        ("training.lr", float("nan"), "training.lr = nan"),
        ("data.scenes", [], r"data.scenes = \[\]"),
        ("colour", 1, r"colour is no setting \(known: adaptation, augment, card, coarse, damage, data, "),
    ],
)
def test_what_makes_no_sense_is_refused(key: str, value: Any, told: str) -> None:
    given = {"data": {**GOOD["data"], "scenes": [dict(GOOD["data"]["scenes"][0])]}}
    set_value(given, key, value)
    with pytest.raises(ConfigError, match=told):
        check(given)


def test_classes_in_every_form() -> None:
    texts = ("background,roof:#d55e00", ["background", "roof:#d55e00"], check(GOOD).data.classes)
    assert len({repr(check({"data": {**GOOD["data"], "classes": text}}).data.table()) for text in texts}) == 1


def test_paths_are_beside_the_file_and_stay_out_of_the_record(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {folder: there, scenes: [{image: a.tif, labels: /b.tif}], classes: 'a,b'}")
    config = check(read_config(tmp_path / "c.yaml"))
    assert config.path("a.tif") == str(tmp_path / "there" / "a.tif")
    assert config.path("/b.tif") == "/b.tif"
    assert config.path("https://example.org/a.tif") == "https://example.org/a.tif"
    assert config.record()["data"]["scenes"][0] == {
        "image": "a.tif", "labels": "b.tif", "train": None, "validation": None,
    }  # fmt: skip
    assert str(tmp_path) not in repr(config.record())


def test_the_defaults_are_a_whole_record() -> None:
    config = check(GOOD)
    again = check({**config.record()})
    assert again.record() == config.record()


@pytest.mark.parametrize(
    ("text", "told"),
    [("- a", "holds no settings"), ("a: [", "is not YAML"), ("!!python/object/apply:os.system ['true']", "not YAML")],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


def test_a_value_is_set_only_where_settings_are() -> None:
    given: dict[str, Any] = {"data": {"scenes": [{}]}}
    set_value(given, "training.steps", 3)
    set_value(given, "data.scenes.0.image", "x.tif")
    assert given == {"data": {"scenes": [{"image": "x.tif"}]}, "training": {"steps": 3}}
    with pytest.raises(ConfigError, match=r"no 'data\.scenes\.1'"):
        set_value(given, "data.scenes.1.image", "x.tif")
