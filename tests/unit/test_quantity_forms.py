"""Quantities are exact, and everything else is refused with a sentence."""

from __future__ import annotations

from fractions import Fraction

import pytest

from insula.errors import Invalid
from insula.model.quantity import format_bytes, format_milli, is_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("500m", Fraction(1, 2)),
        ("1.5Gi", 3 * 2**29),
        ("2e3", 2000),
        ("1E", 10**18),
        ("-3k", -3000),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        (7, 7),
        ("100n", Fraction(1, 10**7)),
    ],
)
def test_values_are_exact(text: object, value: object) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1GiB", "0x10", "NaN", True, None, "1" * 100, "\uff11", "1e9999"])
def test_everything_else_is_refused(text: object) -> None:
    assert not is_quantity(text)
    with pytest.raises(Invalid):
        parse_quantity(text)


def test_formats() -> None:
    assert format_bytes(3 << 30) == "3Gi"
    assert format_bytes(1000) == "1000"
    assert format_milli(1500) == "1500m"
    assert format_milli(2000) == "2"
