"""Giving files to a client: a folder by fsutil's protocol (`--output type=local`), or one file (`type=tar`, `docker`, `oci`).

Source: fsutil's `send.go`; BuildKit's `session/filesync` (`FileSend`, metadata names).
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from itertools import islice
from pathlib import Path

from insula.api.docker.buildkit.gomode import to_go
from insula.api.docker.buildkit.messages import BytesMessage
from insula.api.docker.buildkit.progress import Part
from insula.api.docker.buildkit.session_messages import Kind, Packet, Stat
from insula.api.docker.buildkit.sessions import Session
from insula.api.grpc.status import Code, RpcFault
from insula.api.grpc.stream import Stream
from insula.errors import AlreadyExists, InsulaError, Invalid
from insula.host.rootfd import open_in
from insula.model.protobuf import decode, encode
from insula.tasks import finish, in_thread

METHOD = "/moby.filesync.v1.FileSend/DiffCopy"
_CHUNK = 256 * 1024
_BATCH = 512


def _metadata(exporter: int, words: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    named = [(f"exporter-md-{name}", value) for name, value in words]
    return [("buildkit-attachable-exporter-id", str(exporter)), *named]


async def send_file(
    session: Session, exporter: int, chunks: AsyncIterator[bytes], words: Sequence[tuple[str, str]], part: Part
) -> None:
    """One file. Raises Unsupported, AlreadyExists, RpcFault."""
    sent = 0
    method = session.need(METHOD)
    async with session.connection.call(method, _metadata(exporter, words)) as stream:
        async with aclosing(chunks) as source:  # type: ignore[type-var]  # every source is a generator
            async for chunk in source:
                for at in range(0, len(chunk), _CHUNK):
                    await stream.send(encode(BytesMessage(chunk[at : at + _CHUNK])))
                sent += len(chunk)
                part.set(sent)
        await stream.end()
        try:
            while await stream.recv() is not None:
                pass
        except RpcFault as fault:
            if fault.code == Code.ALREADY_EXISTS:
                raise AlreadyExists(str(fault)) from None
            raise


# --- a folder -------------------------------------------------------------------------------------------------------


def walk(root: str, prefix: str = "") -> Iterator[Stat]:
    """Every entry below a folder in the protocol's order, named below `prefix`; sockets are left out. Blocks. Raises Invalid."""
    inodes: dict[tuple[int, int], str] = {}
    yield from _walk(root, prefix, inodes)


def _walk(folder: str, name: str, inodes: dict[tuple[int, int], str]) -> Iterator[Stat]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
    for entry in entries:
        path = f"{name}/{entry.name}" if name else entry.name
        told = _stat(entry, path, inodes)
        if told is not None:
            yield told
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, path, inodes)


def _stat(entry: os.DirEntry[str], path: str, inodes: dict[tuple[int, int], str]) -> Stat | None:
    found = entry.stat(follow_symlinks=False)
    if stat.S_ISSOCK(found.st_mode):
        return None
    _check_text(path)
    link, size = "", 0
    if stat.S_ISLNK(found.st_mode):
        link = os.fspath(Path(entry.path).readlink())
        _check_text(link)
    elif stat.S_ISREG(found.st_mode):
        size = found.st_size
        if found.st_nlink > 1:
            link = inodes.setdefault((found.st_dev, found.st_ino), path)
            link = "" if link == path else link
    return Stat(
        path=path,
        mode=to_go(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        size=size,
        mtime_ns=found.st_mtime_ns,
        linkname=link,
        devmajor=os.major(found.st_rdev),
        devminor=os.minor(found.st_rdev),
    )


def _check_text(name: str) -> None:
    if any("\ud800" <= each <= "\udfff" for each in name):
        raise Invalid(f"the name {os.fsencode(name)!r} is not UTF-8 and cannot be sent: use type=tar")


async def send_folders(session: Session, exporter: int, folders: Sequence[tuple[str, str]], part: Part) -> None:
    """Folders of this host, each below a prefix (empty for a single one). Raises Unsupported, RpcFault, OSError."""
    method = session.need(METHOD)
    async with session.connection.call(method, _metadata(exporter)) as stream:
        sender = _Sender(stream, part)
        asked = asyncio.create_task(sender.hear(), name="filesend/hear")
        try:
            for prefix, root in folders:
                await sender.list(prefix, root)
            await stream.send(encode(Packet(kind=Kind.STAT)))
            await sender.serve()
        finally:
            await finish(asked)
        await stream.send(encode(Packet(kind=Kind.FIN)))
        await stream.end()
        while await stream.recv() is not None:
            pass


class _Sender:
    """The numbers of what was told, and the files that the client asks for."""

    def __init__(self, stream: Stream, part: Part) -> None:
        self._stream, self._part = stream, part
        self._files: dict[int, tuple[str, str]] = {}
        self._number = 0
        self._sent = 0
        self._asked: asyncio.Queue[int | InsulaError | None] = asyncio.Queue()

    async def hear(self) -> None:
        """What the client asks for, until it has all or something went wrong."""
        try:
            while (message := await self._stream.recv()) is not None:
                packet = decode(message, Packet)
                if packet.kind == Kind.ERROR:
                    raise Invalid(f"error from receiver: {packet.data.decode(errors='replace')}")
                if packet.kind == Kind.FIN:
                    break
                self._asked.put_nowait(packet.id)
            self._asked.put_nowait(None)
        except InsulaError as fault:
            self._asked.put_nowait(fault)

    async def list(self, prefix: str, root: str) -> None:
        """Tell a folder's entries, a batch at a time."""
        entries = walk(root, prefix)
        if prefix:
            found = await in_thread(os.stat, root)
            await self._tell(Stat(path=prefix, mode=to_go(found.st_mode), mtime_ns=found.st_mtime_ns), root, prefix)
        while batch := await in_thread(_take, entries):
            for entry in batch:
                await self._tell(entry, root, prefix)

    async def _tell(self, entry: Stat, root: str, prefix: str) -> None:
        if entry.size and not entry.linkname:
            self._files[self._number] = (root, entry.path[len(prefix) + 1 :] if prefix else entry.path)
        elif not entry.linkname:
            self._files[self._number] = ("", "")
        self._number += 1
        await self._stream.send(encode(Packet(kind=Kind.STAT, stat=entry)))

    async def serve(self) -> None:
        """Until the client has all that it asked for. Raises what `hear` met."""
        while (asked := await self._asked.get()) is not None:
            if isinstance(asked, InsulaError):
                raise asked
            await self._file(asked)

    async def _file(self, number: int) -> None:
        if number not in self._files:
            raise Invalid(f"invalid file id {number}")
        root, path = self._files.pop(number)
        file = await in_thread(_open, root, path) if root else None
        try:
            while file is not None and (data := await in_thread(os.read, file, _CHUNK)):
                await self._stream.send(encode(Packet(kind=Kind.DATA, id=number, data=data)))
                self._sent += len(data)
                self._part.set(self._sent)
        finally:
            if file is not None:
                os.close(file)
        await self._stream.send(encode(Packet(kind=Kind.DATA, id=number)))


def _take(entries: Iterator[Stat]) -> list[Stat]:
    return list(islice(entries, _BATCH))


def _open(root: str, path: str) -> int:
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_in(folder, path, os.O_RDONLY | os.O_NOFOLLOW)
    finally:
        os.close(folder)
