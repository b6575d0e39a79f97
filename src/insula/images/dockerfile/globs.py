"""Patterns of paths: `*`, `?`, `[a-z]` within a part, `**` across parts. Matching takes time in proportion to the pattern times
the path, whatever the pattern: patterns come from strangers, and a backtracking matcher would be theirs to stall.

A state is a set of positions in the path, kept as the bits of one number.
"""

from __future__ import annotations

import re

from msgspec import Struct

from insula.errors import Invalid

_WILD = re.compile(r"[*?\[\\]")


class _Set(Struct, frozen=True):
    """One character out of some. `pairs` are ranges, both ends included."""

    pairs: tuple[tuple[str, str], ...]
    negated: bool = False

    def has(self, character: str) -> bool:
        return any(low <= character <= high for low, high in self.pairs) != self.negated and character != "/"


_STAR, _DEEP, _DEEP_FOLDER, _ONE = object(), object(), object(), object()


def is_wild(path: str) -> bool:
    """Whether a source is a pattern."""
    return _WILD.search(path) is not None


def places_of(text: str) -> dict[str, int]:
    """For each character of a text where it stands, as the bits of a number."""
    found: dict[str, int] = {}
    for at, each in enumerate(text):
        found[each] = found.get(each, 0) | 1 << at
    return found


class Glob:
    """One pattern, compiled. Raises Invalid."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._tokens = [] if not is_wild(pattern) else _tokens(pattern)
        self._plain = not self._tokens

    def matches(self, path: str) -> bool:
        """Whether it stands for the whole path."""
        return path == self.pattern if self._plain else self._ends(path) >> len(path) & 1 == 1

    def matches_above(self, path: str) -> bool:
        """Whether it stands for the path or for a folder above it."""
        if self._plain:
            return path == self.pattern or path.startswith(self.pattern + "/")
        ends = self._ends(path)
        return bool(ends) and (
            ends >> len(path) & 1 == 1 or any(ends >> at & 1 for at, each in enumerate(path) if each == "/")
        )

    def _ends(self, path: str) -> int:
        """Where a match that begins at the path's begin may end."""
        size = len(path)
        every = (1 << (size + 1)) - 1
        places = places_of(path)
        slashes = places.get("/", 0)
        others = (1 << size) - 1 & ~slashes
        here = 1
        for token in self._tokens:
            if not here:
                return 0
            if token is _STAR:
                # Adding carries a bit through a run of ones: every position up to the next slash.
                here |= others ^ (others + (here & others))
            elif token is _DEEP:
                here = every & -(here & -here)
            elif token is _DEEP_FOLDER:
                here |= (slashes & -(here & -here)) << 1
            elif token is _ONE:
                here = (here & others) << 1
            elif isinstance(token, _Set):
                here = sum((here & places[each]) << 1 for each in places if token.has(each))
            else:
                here = (here & places.get(str(token), 0)) << 1
        return here


def _tokens(pattern: str) -> list[object]:
    found: list[object] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if pattern.startswith("**", position):
            while pattern.startswith("*", position):
                position += 1
            folder = pattern.startswith("/", position)
            position += folder
            found.append(_DEEP_FOLDER if folder else _DEEP)
            continue
        position += 1
        if character == "*":
            found.append(_STAR)
        elif character == "?":
            found.append(_ONE)
        elif character == "[":
            token, position = _read_set(pattern, position)
            found.append(token)
        elif character == "\\" and position < len(pattern):
            found.append(pattern[position])
            position += 1
        else:
            found.append(character)
    return found


def _read_set(pattern: str, position: int) -> tuple[_Set, int]:
    """A set, `position` behind its bracket."""
    start = position
    negated = pattern.startswith("^", position)
    position += negated
    pairs: list[tuple[str, str]] = []

    def one() -> str:
        nonlocal position
        if pattern.startswith("\\", position):
            position += 1
        if position >= len(pattern):
            raise Invalid(f"syntax error in pattern: {pattern[: start + 100]!r}")
        position += 1
        return pattern[position - 1]

    while not pairs or not pattern.startswith("]", position):
        low = high = one()
        if pattern.startswith("-", position) and not pattern.startswith("-]", position):
            position += 1
            high = one()
        pairs.append((low, high))
    return _Set(tuple(pairs), negated), position + 1
