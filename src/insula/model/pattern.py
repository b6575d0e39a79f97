"""Regular expressions of clients. Ones that could take a backtracking engine very long are refused."""

from __future__ import annotations

import re

from insula.errors import Invalid

_LONGEST = 256
_MOST_REPEATS = 4


def compile_pattern(text: str) -> re.Pattern[str]:
    """Raises Invalid."""
    repeats = len(re.findall(r"[*+?{]", text))
    if len(text) > _LONGEST or repeats > _MOST_REPEATS or re.search(r"\)[*+?{]|\\\d|\(\?", text):
        raise Invalid(f"the pattern {text[:_LONGEST]!r} is too complex", field="filters")
    try:
        return re.compile(text)
    except (re.error, RecursionError) as fault:
        raise Invalid(f"invalid pattern {text!r}: {fault}", field="filters") from fault
