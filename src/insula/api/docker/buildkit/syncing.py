"""Asking a client for a folder of its own over its session.

Source: BuildKit's `session/filesync/filesync.go` (metadata names, and how other than ASCII is said in headers).
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote_plus

from insula.api.docker.buildkit.contexts import Place
from insula.api.docker.buildkit.receiving import Report, receive
from insula.api.docker.buildkit.sessions import Session
from insula.api.grpc.status import Code, RpcFault
from insula.errors import Invalid

METHOD = "/moby.filesync.v1.FileSync/DiffCopy"


def metadata(folder: str, follow: Sequence[str], excludes: Sequence[str]) -> list[tuple[str, str]]:
    """The headers of a call. `follow` are the only paths that are wanted (links are followed to what they mean)."""
    found: list[tuple[str, str]] = []
    for name, values in (("dir-name", [folder]), ("exclude-patterns", excludes), ("followpaths", follow)):
        encoded = not all(value.isascii() for value in values)
        found += [(name, quote_plus(value) if encoded else value) for value in values]
        if encoded:
            found.append((f"{name}-encoded", "1"))
    for _, value in found:
        if any(ord(character) < 0x20 or character == "\x7f" for character in value):
            raise Invalid(f"{value!r} has a control character and cannot be asked for")
    return found


async def synchronize(
    session: Session,
    place: Place,
    folder: str,
    *,
    follow: Sequence[str] = (),
    excludes: Sequence[str] = (),
    report: Report,
) -> int:
    """Bring a tree in line with a client's folder. Returns its size in bytes. Raises Invalid, NotFound, Unsupported, RpcFault."""
    method = session.need(METHOD)
    try:
        async with session.connection.call(method, metadata(folder, follow, excludes)) as stream:
            return await receive(stream, place.tree, place.staging, report)
    except RpcFault as fault:
        if fault.code == Code.UNKNOWN:
            raise Invalid(str(fault)) from None
        raise


def key_of(session: Session, folder: str) -> str:
    """What tells that a later build sends the same folder; nothing where the client does not say."""
    return f"{folder}:{session.shared_key}" if session.shared_key else ""
