"""Which class is which: by name, by number, and what is refused."""

from __future__ import annotations

import pytest

from geoseg.classes import Classes
from geoseg.engine.class_matching import Entry, Table, entries_of, match
from geoseg.errors import LabelsError


def _named(text: str, path: str = "named.tif") -> Table:
    return Table(path, entries_of(Classes.parse(text)))


def _numbers(*values: int) -> Table:
    return Table("numbers.tif", tuple(Entry(v, v) for v in values))


def _polygons(*names: str) -> Table:
    return Table("polygons.gpkg", tuple(Entry(name, name=name) for name in names), fills=True)


def _match(reference, prediction, classes=None, ignore=()):
    return match(reference, prediction, classes=classes, ignore=ignore)


def test_names_meet_whatever_their_numbers():
    found = _match(_named("water,roof"), _named("background,Roof,water"))
    names = [c.name for c in found.classes]
    assert [names[found.reference[value]] for value in (0, 1)] == ["water", "roof"]
    assert [names[found.prediction[value]] for value in (0, 1, 2)] == ["background", "roof", "water"]
    assert len({c.id for c in found.classes}) == 3
    assert names[found.background] == "background"


def test_a_class_that_one_side_alone_knows_is_kept():
    found = _match(_named("background,roof,shed"), _named("background,roof"))
    assert [c.name for c in found.classes] == ["background", "roof", "shed"]


def test_numbers_take_the_names_of_the_other_side():
    found = _match(_numbers(0, 2), _named("background,roof,road"))
    assert [c.name for c in found.classes] == ["background", "roof", "road"]
    assert found.reference == {0: 0, 2: 2}


def test_numbers_alone_are_numbered():
    found = _match(_numbers(3, 0), _numbers(5, 0))
    assert [(c.id, c.name) for c in found.classes] == [(0, "background"), (3, "class 3"), (5, "class 5")]


def test_a_mask_and_polygons_of_one_class_meet():
    found = _match(_polygons("building"), _numbers(0, 1))
    assert [(c.id, c.name) for c in found.classes] == [(0, "background"), (1, "building")]
    assert (found.reference, found.prediction, found.background) == ({"building": 1}, {0: 0, 1: 1}, 0)


def test_polygons_without_classes_are_of_the_one_class_there_is():
    bare = Table("bare.gpkg", (), fills=True)
    for other in (_named("background,roof"), _numbers(0, 4)):
        found = _match(bare, other)
        assert found.reference == {None: 1}
        assert len(found.classes) == 2
    with pytest.raises(LabelsError, match=r"bare.gpkg does not tell the class of its polygons: .* --class-field"):
        _match(bare, _named("background,roof,road"))
    with pytest.raises(LabelsError, match="does not tell"):
        _match(bare, Table("other.gpkg", (), fills=True))


@pytest.mark.parametrize("reference", [_named("background,roof,road"), _numbers(0, 3), _polygons("roof", "road")])
def test_a_prediction_of_nothing_is_background_all_over(reference):
    found = _match(reference, Table("empty.gpkg", (), fills=True, empty=True))
    assert found.prediction == {}
    assert found.background == 0
    assert len(found.classes) == len(reference.entries) + (reference.path == "polygons.gpkg")


def test_polygons_leave_a_background_in_front():
    found = _match(_polygons("roof", "road"), _polygons("road"))
    assert (found.classes[0].name, found.classes[0].id, found.background) == ("background", 0, 0)
    assert found.prediction["road"] == found.reference["road"] > 0


def test_a_table_rules_both():
    found = _match(_numbers(0, 2), _polygons("road"), classes=Classes.parse("background,roof,road"))
    assert (found.reference, found.prediction) == ({0: 0, 2: 2}, {"road": 2})
    with pytest.raises(LabelsError, match=r"numbers.tif has the class 9, which is not in the class table \(0, 1\)"):
        _match(_numbers(0, 9), _numbers(0, 1), classes=Classes.parse("background,roof"))


def test_a_table_renames_numbers_that_had_other_names():
    found = _match(_named("background,toit"), _named("background,roof"), classes=Classes.parse("background,building"))
    assert [c.name for c in found.classes] == ["background", "building"]
    assert found.reference == found.prediction == {0: 0, 1: 1}


def test_ignored_classes_are_no_class():
    found = _match(_named("background,roof,unknown"), _named("background,roof"), ignore=["unknown"])
    assert found.reference == {0: 0, 1: 1, 2: None}
    assert len(found.classes) == 2
    with pytest.raises(LabelsError, match="--ignore leaves no class of"):
        _match(_numbers(1), _numbers(1), ignore=["1"])


@pytest.mark.parametrize(
    ("reference", "prediction", "message"),
    [
        (
            _numbers(0, 9),
            _named("background,roof"),
            "numbers.tif has the class value 9, which is not in the class tabl",
        ),
        (_polygons("roof", "road"), _numbers(0, 1, 2), "one has names and the other numbers: say with --classes"),
        (_named("background,roof"), _polygons("house"), "no class of polygons.gpkg .* is called like one of named.tif"),
    ],
)
def test_what_cannot_be_brought_together_is_refused(reference, prediction, message):
    with pytest.raises(LabelsError, match=message):
        _match(reference, prediction)
