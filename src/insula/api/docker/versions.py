"""The versions of the Docker Engine API that this door speaks, and how one is chosen.

A client puts the version in the path (`/v1.50/containers/json`); without one the newest is meant. Answers differ little
between versions; handlers compare `Call.version` where they do. Source: the Docker Engine API's version history.
"""

from __future__ import annotations

from insula.errors import Invalid

Version = tuple[int, int]

NEWEST: Version = (1, 51)
OLDEST: Version = (1, 24)


def dotted(version: Version) -> str:
    """As the wire writes it."""
    return f"{version[0]}.{version[1]}"


def split(path: str) -> tuple[Version, str]:
    """The version asked for and the path behind it. Raises Invalid with the Docker Engine's sentences."""
    if not (path.startswith("/v") and path[2:3].isdigit()):
        return NEWEST, path
    word, slash, rest = path[2:].partition("/")
    major, dot, minor = word.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal() and word.isascii() and len(word) < 16):
        return NEWEST, path
    version = (int(major), int(minor))
    if version > NEWEST:
        raise Invalid(
            f"client version {word} is too new. Maximum supported API version is {dotted(NEWEST)}", field="version"
        )
    if version < OLDEST:
        raise Invalid(
            f"client version {word} is too old. Minimum supported API version is {dotted(OLDEST)}, "
            "please upgrade your client to a newer version",
            field="version",
        )
    return version, slash + rest
