"""Tables of value names: CSV and JSON that users write, and the one sentence for those that are wrong."""

import json

import pytest

from geoseg.errors import LabelsError
from geoseg.vector.value_names import read_value_names


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_with_titles_quotes_and_colours(tmp_path):
    text = '\ufeffvalue,name,color\n 7 ,"Wald, dicht",#00AA00\n\n0,background\n3,Straße,\n'
    classes = read_value_names(write(tmp_path / "a.csv", text), nodata=9)
    assert [(c.id, c.name, c.background) for c in classes] == [
        (7, "Wald, dicht", False),
        (0, "background", True),
        (3, "Straße", False),
    ]
    assert classes[0].color == "#00aa00"
    assert len({c.color for c in classes}) == 3
    assert classes.nodata == 9


def test_json_of_both_forms(tmp_path):
    text = json.dumps({"2": "water", "5": {"name": "roof", "color": "#D55E00"}, "0": {"name": "Background"}})
    classes = read_value_names(write(tmp_path / "a.json", text))
    assert [(c.id, c.name, c.background) for c in classes] == [
        (2, "water", False),
        (5, "roof", False),
        (0, "Background", True),
    ]
    assert classes[1].color == "#d55e00"
    assert classes.nodata == 255


@pytest.mark.parametrize(
    ("name", "text", "where", "what"),
    [
        ("a.csv", "1,road\nx,roof\n", "line 2", "'x' is not a whole number"),
        ("a.csv", "1.5,road\n", "line 1", "'1.5' is not a whole number"),
        ("a.csv", "1,road\n1,roof\n", "line 2", "1 stands at line 1"),
        ("a.csv", "value,name\n1,road\n2,road\n", "line 3", "'road' stands at line 2"),
        ("a.csv", "1,road,red\n", "line 1", "'red'"),
        ("a.csv", "1,road\n2\n", "line 2", "'2' has 1 columns"),
        ("a.csv", "1,a,#000000,b\n", "line 1", "4 columns"),
        ("a.csv", "1,road\n300,roof\n", "line 2", "300"),
        ("a.csv", "1,road\n-1,roof\n", "line 2", "-1"),
        ("a.csv", "1, \n", "line 1", "name"),
        ("a.csv", '1,road\n2,"roof\n', "line 2", "not CSV"),
        ("a.csv", "\n", "a.csv", "names no values"),
        ("a.json", '{"1": "road",\n}', "line 2", "not JSON"),
        ("a.json", '["road"]', "a.json", "no JSON object"),
        ("a.json", '{"1": 5}', "value 1", "the name 5"),
        ("a.json", '{"1": {"name": "road", "colour": "#000000"}}', "value 1", "'colour'"),
        ("a.json", '{"1": {"color": "#000000"}}', "value 1", "no name"),
        ("a.json", '{"1": {"name": "road", "color": 3}}', "value 1", "the colour 3"),
        ("a.json", '{"1": "road", "1": "roof"}', "value 1", "1 stands at"),
        ("a.json", '{"one": "road"}', "value one", "'one' is not a whole number"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path, name, text, where, what):
    with pytest.raises(LabelsError) as error:
        read_value_names(write(tmp_path / name, text))
    said = str(error.value)
    assert name in said
    assert where in said
    assert what in said
    assert "\n" not in said


def test_a_table_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(LabelsError, match=r"no\.csv cannot be read"):
        read_value_names(tmp_path / "no.csv")
    (tmp_path / "bytes.csv").write_bytes(b"1,\xff\xfe\n")
    with pytest.raises(LabelsError, match=r"bytes\.csv cannot be read"):
        read_value_names(tmp_path / "bytes.csv")
