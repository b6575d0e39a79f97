"""The messages of the services that a client offers on its session: files, credentials, secrets, agents.

Source: fsutil's `wire.proto` and `stat.proto`; BuildKit's `auth.proto`, `secrets.proto`, `ssh.proto`, `upload.proto`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated

from msgspec import Struct


class Stat(Struct, frozen=True):
    """One entry of a tree. `mode` is Go's `os.FileMode`, `mtime_ns` since 1970."""

    path: Annotated[str, 1] = ""
    mode: Annotated[int, 2] = 0
    uid: Annotated[int, 3] = 0
    gid: Annotated[int, 4] = 0
    size: Annotated[int, 5] = 0
    mtime_ns: Annotated[int, 6] = 0
    linkname: Annotated[str, 7] = ""
    devmajor: Annotated[int, 8] = 0
    devminor: Annotated[int, 9] = 0
    xattrs: Annotated[Mapping[str, bytes], 10] = {}


class Kind(IntEnum):
    """Of a packet."""

    STAT = 0
    REQUEST = 1
    DATA = 2
    FIN = 3
    ERROR = 4


class Packet(Struct, frozen=True):
    """One packet of fsutil's protocol."""

    kind: Annotated[int, 1] = 0
    stat: Annotated[Stat | None, 2] = None
    id: Annotated[int, 3] = 0
    data: Annotated[bytes, 4] = b""


class CredentialsRequest(Struct, frozen=True):
    """Auth.Credentials."""

    host: Annotated[str, 1] = ""


class CredentialsResponse(Struct, frozen=True):
    """A user name may be empty: then the secret is an identity token."""

    username: Annotated[str, 1] = ""
    secret: Annotated[str, 2] = ""


class SecretRequest(Struct, frozen=True):
    """Secrets.GetSecret."""

    id: Annotated[str, 1] = ""


class SecretResponse(Struct, frozen=True):
    """Its bytes."""

    data: Annotated[bytes, 1] = b""


class AgentRequest(Struct, frozen=True):
    """SSH.CheckAgent."""

    id: Annotated[str, 1] = ""
