"""Sums of losses as text: written and read back, and what is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import ConfigError
from geoseg.losses import create, names
from geoseg.losses.entries import ENTRIES
from geoseg.losses.expression import Term, parse

RESERVED = {"true", "false", "none", "nan", "inf", "infinity"}
WORDS = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(lambda word: word not in RESERVED)
NUMBERS = st.integers(-1000, 1000) | st.floats(allow_nan=False, allow_infinity=False)
SINGLE = NUMBERS | st.booleans() | st.none() | WORDS
SPACES = st.sampled_from(["", " ", "  "])


@st.composite
def terms(draw):
    name = draw(st.sampled_from(names()))
    options = {}
    if ENTRIES[name].info.options:
        value = SINGLE | st.lists(SINGLE, min_size=1, max_size=4).map(tuple)
        options = draw(st.dictionaries(st.sampled_from(ENTRIES[name].info.options), value, max_size=3))
    return Term(name, draw(st.floats(0, 1e30)), options)


def text_of(value):
    if isinstance(value, tuple):
        return "/".join(map(text_of, value)) + ("/" if len(value) == 1 else "")
    return (
        {True: "true", False: "false", None: "none"}[value]
        if value is None or value is True or value is False
        else str(value)
    )


@given(st.lists(terms(), min_size=1, max_size=4).filter(lambda each: any(term.weight > 0 for term in each)), st.data())
def test_what_is_written_is_read(wanted, data):
    space = lambda: data.draw(SPACES)  # noqa: E731 - a short name for a long line
    parts = []
    for term in wanted:
        inside = ",".join(f"{space()}{key}{space()}={space()}{text_of(value)}" for key, value in term.options.items())
        weight = "" if term.weight == 1 and data.draw(st.booleans()) else f"{term.weight!r}{space()}*"
        brackets = f"[{inside}]" if inside or data.draw(st.booleans()) else ""
        parts.append(f"{space()}{weight}{space()}{term.name}{space()}{brackets}{space()}")
    found = parse("+".join(parts))
    assert found == tuple(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert [type(value) for value in one.options.values()] == [type(value) for value in other.options.values()]


def test_plus_signs_in_exponents_and_brackets_are_none_between_terms():
    assert parse("1e+2*ce+2E+0*focal[gamma=2e+0]") == (Term("ce", 100.0), Term("focal", 2.0, {"gamma": 2.0}))
    assert parse("dice+ce") == (Term("dice"), Term("ce"))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "the loss '' has a part '' that is no loss; write a sum of names with weights, such as ce+0.5*aaf"),
        ("ce+", "the loss 'ce+' has a part '' that is no loss"),
        ("+ce", "has a part '' that is no loss"),
        ("0.5*", "has a part '0.5*' that is no loss"),
        ("2*3*ce", "has a part '2*3*ce' that is no loss"),
        ("ce[", "has a part 'ce[' that is no loss"),
        ("aaf[margin=[2]]", "has a part 'aaf[margin=[2]]' that is no loss"),
        ("dicee", "'dicee'"),
        ("ce+dize", "dice"),
        ("-1*ce", "the weight of loss ce is '-1': give a number of 0 or more"),
        ("nan*ce", "the weight of loss ce is 'nan'"),
        ("inf*ce", "the weight of loss ce is 'inf'"),
        ("half*ce", "the weight of loss ce is 'half'"),
        ("*ce", "the weight of loss ce is ''"),
        ("0*ce+0*dice", "the loss '0*ce+0*dice' has no term with a weight above 0"),
        ("ce[gamma=2]", "gamma"),
        ("focal[gama=2]", "gamma"),
        ("focal[gamma]", "loss focal has 'gamma' in its brackets: write option=value"),
        ("focal[gamma=]", "loss focal has 'gamma=' in its brackets"),
        ("focal[gamma=2,gamma=3]", "loss focal has gamma twice in its brackets: give it once"),
    ],
)
def test_what_is_no_sum_is_refused(expression, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(expression)


@pytest.mark.parametrize(
    ("expression", "options", "message"),
    [
        ("ce", {"num_classes": 1}, "the number of classes of a loss is 1: give a whole number of 2 or more"),
        ("ce", {"num_classes": True}, "the number of classes of a loss is True"),
        ("ce", {"num_classes": 2.0}, "the number of classes of a loss is 2.0"),
        ("ce", {"ignore_index": 1}, "the ignored label is 1: give a whole number that is no class's"),
        ("ce", {"ignore_index": None}, "the ignored label is None"),
        ("ce+dice", {"gamma": 2}, "gamma"),
        ("focal[gamma=much]", {}, "loss focal cannot be made with gamma='much': "),
        (
            "ce[class_weights=1/2]",
            {},
            "class_weights are [1.0, 2.0]: give one number of 0 or more for each of 3 classes",
        ),
        ("ce[class_weights=0/0/0]", {}, "class_weights are [0.0, 0.0, 0.0]"),
        ("ce[label_smoothing=1]", {}, "label_smoothing is 1: give a share of 0 or more and below 1"),
        ("focal[gamma=0.5]", {}, "gamma of focal is 0.5: give 0, or a number from 1 to 100"),
        ("tversky[gamma=0.5]", {}, "gamma of an area loss is 0.5: give a number of 1 or more"),
        ("dice[smooth=-1]", {}, "smooth of an area loss is -1: give a number of 0 or more"),
        ("ohem[threshold=0]", {}, "threshold of ohem is 0"),
    ],
)
def test_losses_that_cannot_be_made(expression, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        create(expression, **{"num_classes": 3, **options})


def test_options_go_to_the_losses_that_take_them_and_brackets_win():
    found = create("focal[gamma=3]+tversky+ce", num_classes=3, gamma=2, class_weights=[1, 2, 3])
    assert found.losses[0].gamma == 3
    assert found.losses[1]._loss.gamma == 2
    assert found.losses[2].class_weights.tolist() == [1, 2, 3]
