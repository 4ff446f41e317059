"""Numbers are rounded correctly and have one text, which is also what the standard library says."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geoseg.outputs.decimals import scaled, text_of, unscaled

COORDINATES = st.one_of(
    st.floats(-400, 400),
    # Halves of the last decimal, exactly (binary fractions) and as nearly as a double can be.
    st.integers(-(2**20), 2**20).map(lambda n: n / 2**13),
    st.integers(-4 * 10**9, 4 * 10**9).map(lambda n: (n + 0.5) / 1e7),
    st.integers(-4 * 10**11, 4 * 10**11).map(lambda n: (n + 0.5) / 1e9),
    st.sampled_from([0.0, -0.0, -1e-9, 1e-300, 180.0, -180.0, 90.0]),
)


def reference(value: float, decimals: int) -> str:
    """Round by the standard library's exact arithmetic."""
    text = format(value, f".{decimals}f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


@given(arrays(float, st.integers(0, 40), elements=COORDINATES), st.integers(0, 9))
def test_texts_are_those_of_exact_rounding(values, decimals):
    units = scaled(values, decimals)
    assert [text_of(unit, decimals) for unit in units.tolist()] == [reference(v, decimals) for v in values.tolist()]


@given(st.integers(0, 2**32 - 1), st.integers(7, 9))
def test_next_to_halves_the_exact_value_decides(seed, decimals):
    # The doubles around a half, a bit to either side.
    rng = np.random.default_rng(seed)
    values = (rng.integers(-180 * 10**decimals, 180 * 10**decimals, 200) + 0.5) / 10**decimals
    values = np.concatenate([values, np.nextafter(values, 1e3), np.nextafter(values, -1e3)])
    units = scaled(values, decimals)
    assert [text_of(unit, decimals) for unit in units.tolist()] == [reference(v, decimals) for v in values.tolist()]


@given(arrays(float, 20, elements=COORDINATES), st.integers(0, 9))
def test_readers_get_the_number_that_was_meant(values, decimals):
    units = scaled(values, decimals)
    read = unscaled(units, decimals)
    np.testing.assert_array_equal(read, [float(text_of(unit, decimals)) for unit in units.tolist()])
    np.testing.assert_array_equal(scaled(read, decimals), units)
    assert not np.signbit(read[units == 0]).any()


def test_shapes_are_kept():
    assert scaled(np.full((3, 2), 0.25), 1).tolist() == [[2, 2]] * 3
