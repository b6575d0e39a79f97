"""`.dockerignore`: which files of a context take part in a build.

Patterns are the Dockerfile reference's (".dockerignore file"): one for each line; `!` takes files back in; the last pattern
that matches decides. A pattern that matches a folder matches all below it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from insula.errors import Invalid
from insula.images.dockerfile.globs import Glob

MAX_PATTERNS = 10_000


def read_patterns(text: str) -> tuple[str, ...]:
    """The patterns of a file in their order, cleaned. Raises Invalid."""
    found = []
    for line in text.removeprefix("\ufeff").splitlines():
        pattern = line.strip()
        if not pattern or line.startswith("#"):
            continue
        sign = ""
        if pattern.startswith("!"):
            sign, pattern = "!", pattern[1:].strip()
        if not pattern:
            raise Invalid('illegal exclusion pattern: "!"', field=".dockerignore")
        found.append(sign + (posixpath.normpath(pattern).lstrip("/") or "."))
    if len(found) > MAX_PATTERNS:
        raise Invalid(f"there are more than {MAX_PATTERNS} patterns", field=".dockerignore")
    return tuple(found)


class Matcher:
    """Patterns, compiled. Raises Invalid."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._rules = [(each.startswith("!"), Glob(each.removeprefix("!").strip("/"))) for each in patterns]
        self.has_exceptions = any(keeps for keeps, _ in self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def ignores(self, path: str) -> bool:
        """Whether a relative path, or a folder above it, is left out."""
        out = False
        for keeps, glob in self._rules:
            if keeps == out and glob.matches_above(path):
                out = not keeps
        return out
