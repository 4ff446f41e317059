"""Numbers with a bounded count of decimals, held as whole multiples of the last one.

Whole numbers compare exactly, so that two outlines that share a point before rounding share it afterwards, and their
texts have one form only: no trailing zeros, no exponent, never "-0".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Veltkamp's constant, which splits a double into two halves of 26 bits.
_SPLIT = 134_217_729.0
# A product this close to a half may have been rounded onto its wrong side; coordinates below 10⁴ with 9 decimals have
# products whose error is under a thousandth.
_DOUBT = 1e-2


def scaled(values: NDArray[np.float64], decimals: int) -> NDArray[np.int64]:
    """Return how many units of the last decimal each value is, rounded correctly, halves to even.

    What is rounded is the exact value of the double, as ``format(value, ".7f")`` does it; rounding the product with
    10**decimals would go wrong next to a half.  The error of the product is had exactly (Dekker, A floating-point
    technique for extending the available precision, 1971, section 5).

    Args:
        values: finite, any shape; at most 10**4 in size.
        decimals: 0 to 9.

    Returns:
        int64 of the same shape.
    """
    unit = 10.0**decimals
    product = values * unit
    whole = np.rint(product)
    beside = product - whole
    doubtful = np.nonzero(np.abs(np.abs(beside) - 0.5) < _DOUBT)
    if doubtful[0].size:
        part, nearest = beside[doubtful], whole[doubtful]
        sign = np.where(part < 0, -1.0, 1.0)
        over = (np.abs(part) - 0.5) + sign * _error_of_product(values[doubtful], unit, product[doubtful])
        up = (over > 0) | ((over == 0) & (nearest % 2 != 0))
        whole[doubtful] = nearest + np.where(up, sign, 0.0)
    return whole.astype(np.int64)


def unscaled(units: NDArray[np.int64], decimals: int) -> NDArray[np.float64]:
    """Return the doubles that a reader makes of the decimal numbers; none is a negative zero."""
    return units / 10.0**decimals


def text_of(units: int, decimals: int) -> str:
    """Return the decimal number ``units`` / 10**``decimals`` without trailing zeros.

    >>> text_of(-1050000, 7), text_of(30, 1), text_of(0, 7)
    ('-0.105', '3', '0')
    """
    whole, fraction = divmod(abs(units), 10**decimals)
    sign = "-" if units < 0 else ""
    return f"{sign}{whole}.{fraction:0{decimals}d}".rstrip("0") if fraction else f"{sign}{whole}"


def _error_of_product(values: NDArray[np.float64], unit: float, product: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the exact ``values`` × ``unit`` − ``product``, where ``product`` is the former rounded to a double."""
    high, low = _halves(values)
    unit_high, unit_low = _halves(np.float64(unit))
    return ((high * unit_high - product) + high * unit_low + low * unit_high) + low * unit_low


def _halves(values: NDArray[np.float64] | np.float64) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    stretched = values * _SPLIT
    high = stretched - (stretched - values)
    return np.asarray(high), np.asarray(values - high)
