"""Names of volumes, disks and their owners. They become names of folders and files, so they are checked first."""

from __future__ import annotations

import re
import secrets

from insula.errors import Invalid

_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_PART = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_MAX = 255


def check_volume(name: str) -> str:
    """A volume's name. Raises Invalid with Docker's sentences."""
    if len(name) == 1:
        raise Invalid(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters",
            field="Name",
        )
    if not _VOLUME.fullmatch(name) or len(name) > _MAX:
        raise Invalid(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path',
            field="Name",
        )
    return name


def check_part(name: str, what: str) -> str:
    """A disk's or owner's name: one part of a path. Raises Invalid."""
    if not _PART.fullmatch(name):
        raise Invalid(f"{name!r} cannot be the name of a {what}: letters, digits, and then also . _ -", field="name")
    return name


def anonymous() -> str:
    """A new name for a volume that nobody named: 64 hexadecimal digits."""
    return secrets.token_hex(32)
