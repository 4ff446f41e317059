"""Tables of coarse classes: the shipped ones, columns, intervals, what is left out, and what cannot teach."""

import numpy as np
import pytest

from geoseg.classes import Classes
from geoseg.errors import ConfigError, GeosegWarning, LabelsError, OutputError
from geoseg.training.coarse_tables import NLCD_CLASSES, read_table, write_table

LAND = Classes.parse(NLCD_CLASSES)
TWO = Classes.parse("ground,roof")


def written(path, text):
    path.write_text(text)
    return str(path)


def test_the_public_table():
    """Figures of the notebook and of its tuned means, as the released code has them."""
    table = read_table("nlcd", LAND)
    assert table.classes == ("water", "tree canopy", "low vegetation", "impervious")
    row = table.codes.index("22")
    np.testing.assert_allclose(table.means[row], np.array([0.01, 0.31, 0.34, 0.35]) / 1.01)
    assert table.deviations[row].tolist() == [0.06, 0.24, 0.21, 0.18]
    assert table.names[row] == "developed, low intensity"
    assert table.weights[table.codes.index("81")] == 0.5
    # Rows without figures are left out, and so are codes that are no class.
    assert not {"0", "12", "51", "255"} & set(table.codes)
    assert {"0", "12", "51", "255"} <= set(table.unusable)
    np.testing.assert_allclose(table.means.sum(1), 1)
    tuned = read_table("nlcd", LAND, means="tuned")
    np.testing.assert_allclose(tuned.means[row], [0.007937, 0.246032, 0.269841, 0.47619], atol=1e-5)
    assert np.array_equal(tuned.deviations, table.deviations)


def test_the_table_of_delaware():
    table = read_table("nlcd-delaware", LAND)
    assert len(table.codes) == 15
    assert (table.weights == 1).all()
    np.testing.assert_allclose(table.means[table.codes.index("24")], [0.0050, 0.0129, 0.0790, 0.9031], atol=1e-4)
    apart, least, pair = table.telling(range(15))
    assert apart > 1.2
    assert least > 0.1
    assert pair


def test_one_class_has_what_the_others_leave(tmp_path):
    path = written(tmp_path / "t.csv", "code,mean_roof,sd_roof\n0,0,0\n3,0.65,0.08\n")
    table = read_table(path, TWO)
    assert table.means.tolist() == [[1, 0], [0.35, 0.65]]
    assert table.deviations.tolist() == [[0, 0], [0.08, 0.08]]
    assert table.weights.tolist() == [1, 1]


def test_definitions_give_the_middle_and_the_spread_of_an_interval(tmp_path):
    path = written(tmp_path / "t.csv", "code,name,low_roof,high_roof\n22,low,0.2,0.49\n24,high,0.8,1\n")
    table = read_table(path, TWO)
    np.testing.assert_allclose(table.means, [[0.655, 0.345], [0.1, 0.9]])
    np.testing.assert_allclose(table.deviations, np.array([[0.29, 0.29], [0.2, 0.2]]) / np.sqrt(12))
    np.testing.assert_allclose(read_table(path, TWO, intervals=True).deviations, [[0.145, 0.145], [0.1, 0.1]])


def test_shares_that_do_not_sum_to_one_are_scaled_with_a_warning(tmp_path):
    path = written(tmp_path / "t.csv", "code,mean_ground,mean_roof,sd_ground,sd_roof\n1,0.5,0.3,0.1,0.1\n2,0,1,0,0\n")
    with pytest.warns(GeosegWarning, match=r"shares of coarse class 1 sum to 0.800"):
        table = read_table(path, TWO)
    np.testing.assert_allclose(table.means[0], [0.625, 0.375])


def test_what_is_written_is_read_back(tmp_path):
    table = read_table("nlcd", LAND)
    write_table(table, tmp_path / "t.csv")
    again = read_table(str(tmp_path / "t.csv"), LAND)
    assert again.codes == table.codes
    assert again.names == table.names
    assert np.array_equal(again.weights, table.weights)
    np.testing.assert_allclose(again.means, table.means, atol=1e-6)
    np.testing.assert_allclose(again.deviations, table.deviations, atol=1e-6)
    with pytest.raises(OutputError, match="exists"):
        write_table(table, tmp_path / "t.csv")


def test_rows_that_cannot_tell_classes_apart_are_warned_of_with_numbers(tmp_path):
    three = Classes.parse("water,grass,roof")
    head = "code,mean_water,mean_grass,mean_roof,sd_water,sd_grass,sd_roof\n"
    path = written(
        tmp_path / "t.csv", head + "1,0.4,0.4,0.2,0.1,0.1,0.1\n2,0.2,0.2,0.6,0.1,0.1,0.1\n3,0.1,0.1,0.8,0,0,0\n"
    )
    table = read_table(path, three)
    with pytest.warns(GeosegWarning, match=r"at most 0.735 apart.*by 0.000: below 0.05 .* of water and grass"):
        table.warn_if_blind(range(3))
    # One coarse class alone tells nothing.
    with pytest.warns(GeosegWarning, match=r"1 coarse classes .*at most 0.000 apart"):
        table.warn_if_blind([0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no coarse class"),
        ("value,mean_roof,sd_roof\n1,0,0\n", "no column `code`"),
        ("code,mean_roof\n1,0.2\n", "no columns mean_ground and sd_ground, nor those of roof"),
        ("code,mean_roof,sd_roof\n1,0.2,x\n", "has 'x' in column 'sd_roof'"),
        ("code,mean_roof,sd_roof\n1,20,5\n", "a share of 20: give shares from 0 to 1, not per cent"),
        ("code,mean_roof,sd_roof\n1,0.1,0.1\n1,0.2,0.1\n", "coarse class 1 twice"),
        ("code,low_roof,high_roof\n1,0.5,0.2\n", "ends below its start"),
        ("code,usable,mean_roof,sd_roof\n1,0,0.1,0.1\n", "0 usable coarse classes"),
        ("code,mean_ground,mean_roof,sd_ground,sd_roof\n1,0,0,0,0\n", "shares of coarse class 1 are all 0"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, message):
    with pytest.raises(LabelsError, match=message):
        read_table(written(tmp_path / "t.csv", text), TWO)


def test_a_missing_file_names_the_shipped_ones(tmp_path):
    with pytest.raises(LabelsError, match="give a CSV file, or one of nlcd, nlcd-delaware"):
        read_table(str(tmp_path / "none.csv"), TWO)


def test_weights_by_code():
    table = read_table("nlcd", LAND).weighted({81: 0, "11": 2})
    assert table.weights[table.codes.index("81")] == 0
    assert table.weights[table.codes.index("11")] == 2
    with pytest.raises(ConfigError, match="no coarse class named '111'"):
        table.weighted({111: 1})
    with pytest.raises(ConfigError, match="weight of coarse class 11 is -1"):
        table.weighted({11: -1})
