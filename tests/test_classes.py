"""Class tables: parsing, round trips, refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.classes import Classes, LabelClass, default_color
from geoseg.errors import LabelsError

names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12)


@given(st.lists(names, min_size=1, max_size=20, unique=True), st.booleans())
def test_records_give_the_classes_back(called: list[str], background: bool) -> None:
    items = tuple(LabelClass(3 * i, name, default_color(i), background and i == 0) for i, name in enumerate(called))
    classes = Classes(items)
    assert Classes.from_dicts(classes.as_dicts()) == classes
    assert all(classes.by_id(item.id) is item and classes.find(item.name).name == item.name for item in items)


def test_a_list_of_names_is_read_with_colours_and_background() -> None:
    classes = Classes.parse("background, road:#FF0000,tree")
    assert [(c.id, c.name, c.background) for c in classes] == [
        (0, "background", True),
        (1, "road", False),
        (2, "tree", False),
    ]
    assert classes[1].rgb == (255, 0, 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "printable name"), ("a,a", "occurs twice"), ("a:red", "#rrggbb"), ("a,,b", "printable name")],
)
def test_bad_lists_are_refused(text: str, told: str) -> None:
    with pytest.raises(LabelsError, match=told):
        Classes.parse(text)


def test_ids_that_no_raster_could_hold_are_refused() -> None:
    with pytest.raises(LabelsError, match="0 to 254"):
        LabelClass(255, "snow", "#ffffff")


def test_unknown_values_and_names_are_told_with_what_is_known() -> None:
    classes = Classes.parse("a,b")
    with pytest.raises(LabelsError, match=r"label value 7 .* 0, 1"):
        classes.by_id(7)
    with pytest.raises(LabelsError, match="a, b"):
        classes.find("c")


def test_default_colours_differ() -> None:
    assert len({default_color(i) for i in range(100)}) == 100
