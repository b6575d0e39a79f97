"""Kubernetes quantities: `500m`, `1.5Gi`, `2e3`. Exact: values are fractions, never floats.

Source: the Quantity type of the Kubernetes API conventions (apimachinery/pkg/api/resource): decimal suffixes n u m k M G T P E,
binary suffixes Ki Mi Gi Ti Pi Ei, or a decimal exponent.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from insula.errors import Invalid

_FORM = re.compile(
    r"([+-]?)(\d+(?:\.\d*)?|\.\d+)(?:([eE][+-]?\d{1,3})|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))?\Z", re.ASCII
)
DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
MAX_LENGTH = 64


def parse_quantity(value: Any) -> Fraction:
    """The exact value. Integers are accepted as they are, as JSON may carry them. Raises Invalid."""
    if isinstance(value, Fraction):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Fraction(value)
    text = str(value) if isinstance(value, (str, float)) else ""
    if not text or len(text) > MAX_LENGTH:
        raise _unreadable(value)
    return _parse(text)


@lru_cache(4096)  # the same few amounts come again and again
def _parse(text: str) -> Fraction:
    match = _FORM.match(text)
    if match is None:
        raise _unreadable(text)
    sign, number, exponent, suffix = match.groups()
    scale = Fraction(10) ** int(exponent[1:]) if exponent else _scale(suffix or "")
    exact = Fraction(number if number[-1] != "." else number[:-1]) * scale
    return -exact if sign == "-" else exact


def _unreadable(value: Any) -> Invalid:
    return Invalid(
        f"quantity {str(value)[:MAX_LENGTH]!r} must match a number with a suffix such as 500m, 2, 1.5Gi or 1e3"
    )


def _scale(suffix: str) -> Fraction:
    return Fraction(2) ** BINARY[suffix] if suffix in BINARY else Fraction(10) ** DECIMAL[suffix]


def is_quantity(value: Any) -> bool:
    """Whether `parse_quantity` would accept it."""
    try:
        parse_quantity(value)
    except Invalid:
        return False
    return True


def format_bytes(count: int) -> str:
    """A whole number of bytes with the largest binary suffix that keeps it exact."""
    for suffix, bits in reversed(BINARY.items()):
        if count and count % (1 << bits) == 0:
            return f"{count >> bits}{suffix}"
    return str(count)


def format_milli(milli: int) -> str:
    """CPU in millicores as `2` or `1500m`."""
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"
