"""Bringing a tree on this disk in line with a client's, fetching only what changed: the receiving side of fsutil's protocol.

The sender tells every entry, parents first and in order; the receiver asks for the files that it lacks by their number in that
sequence; contents come in pieces; FIN ends it. Entries are validated before anything is touched, and each file is written
beside the tree and renamed into it, so a tree on disk never holds a part of a file, whenever we die. A file counts as unchanged
when size, time, and mode are, as for rsync.

Source: fsutil's `receive.go` (the protocol is described there).
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from insula.api.docker.buildkit.gomode import to_unix
from insula.api.docker.buildkit.session_messages import Kind, Packet, Stat
from insula.api.grpc.stream import Stream
from insula.errors import Invalid, TooLarge
from insula.host.rmtree import remove_tree
from insula.model.protobuf import decode, encode
from insula.tasks import finish, in_thread

ENTRIES_LIMIT = 1_000_000
NAMES_LIMIT_BYTES = 256 * 1024 * 1024
_BATCH_BYTES = 1024 * 1024
_BATCH_PACKETS = 256
_KEPT_XATTRS = ("user.", "security.capability")
Report = Callable[[int], None]


async def receive(stream: Stream, tree: Path, staging: Path, report: Report) -> int:
    """Make `tree` what the sender has; `staging` is an empty folder beside it. `report` hears how many bytes came so far.
    Returns the size of all files. Raises Invalid, TooLarge, RpcFault, OSError (the disk)."""
    told = _Told(report)
    entries = await _listing(stream, told)
    wanted = await in_thread(prepare, tree, entries)
    asking = asyncio.create_task(_ask(stream, wanted), name="filesync/ask")
    try:
        await _fetch(stream, _Writer(tree, staging, entries, wanted), told)
    finally:
        await finish(asking)
    await in_thread(complete, tree, entries)
    await stream.send(encode(Packet(kind=Kind.FIN)))
    await stream.end()
    while (message := await stream.recv()) is not None:
        _checked(message)
    return sum(entry.size for entry in entries if not entry.linkname)


class _Told:
    """Counts what came."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._bytes = 0

    def add(self, size: int) -> None:
        """One packet."""
        self._bytes += size
        self._report(self._bytes)


def _checked(message: bytes) -> Packet:
    packet = decode(message, Packet)
    if packet.kind == Kind.ERROR:
        raise Invalid(f"error from sender: {packet.data.decode(errors='replace')}")
    return packet


async def _listing(stream: Stream, told: _Told) -> list[Stat]:
    entries: list[Stat] = []
    order, names = Order(), 0
    while (message := await stream.recv()) is not None:
        told.add(len(message))
        packet = _checked(message)
        if packet.kind != Kind.STAT:
            raise Invalid("a file of the context was sent before it was asked for")
        if packet.stat is None:
            return entries
        order.check(packet.stat)
        entries.append(packet.stat)
        names += len(packet.stat.path)
        if len(entries) > ENTRIES_LIMIT or names > NAMES_LIMIT_BYTES:
            raise TooLarge(
                f"the context has more than {ENTRIES_LIMIT} entries or too long names; exclude some in .dockerignore"
            )
    raise Invalid("the sender of a context left in the middle of its list")


class Order:
    """Holds a sender to the protocol: clean relative paths, each folder before what is in it, each name once and in order,
    hard links only to files that were told before. So every parent of an entry is a real folder of this very list."""

    def __init__(self) -> None:
        self._open: list[tuple[str, str]] = [("", "")]  # folders from the root down, with the last name in each
        self._files: set[str] = set()

    def check(self, entry: Stat) -> None:
        """The next entry. Raises Invalid."""
        folder, _, name = entry.path.rpartition("/")
        if not name or name in (".", "..") or "\0" in entry.path or entry.path.startswith("/"):
            raise Invalid(f"the context has an entry of the name {entry.path!r}, which is not allowed")
        while self._open and self._open[-1][0] != folder:
            self._open.pop()
        if not self._open or self._open[-1][1] >= name:
            raise Invalid(f"changes out of order: {entry.path!r} was told in the wrong place")
        self._open[-1] = (folder, name)
        kind = stat.S_IFMT(to_unix(entry.mode))
        if kind == stat.S_IFDIR:
            self._open.append((entry.path, ""))
        elif kind == stat.S_IFREG:
            if entry.linkname and entry.linkname not in self._files:
                raise Invalid(f"{entry.path!r} is a hard link to {entry.linkname!r}, which was not sent before it")
            self._files.add(entry.path)
        elif kind not in (stat.S_IFLNK, stat.S_IFIFO):
            raise Invalid(f"{entry.path!r} in the context is a device or a socket: exclude it in .dockerignore")


# --- the tree on disk: all of this blocks ---------------------------------------------------------------------------


def prepare(tree: Path, entries: Sequence[Stat]) -> dict[int, Stat]:
    """Drop what is gone or has become something else, make folders, links and FIFOs. Returns the files to fetch by number."""
    told = {entry.path: entry for entry in entries}
    _drop(str(tree), "", told)
    wanted: dict[int, Stat] = {}
    for number, entry in enumerate(entries):
        path = f"{tree}/{entry.path}"
        mode = to_unix(entry.mode)
        if stat.S_ISREG(mode):
            if not entry.linkname and not _same_file(path, entry):
                wanted[number] = entry
        elif not os.path.lexists(path):
            _make(path, mode, entry)
    return wanted


def _drop(tree: str, folder: str, told: dict[str, Stat]) -> None:
    """What is on disk and was not told, or told as another kind of thing."""
    with os.scandir(f"{tree}/{folder}" if folder else tree) as found:
        entries = list(found)
    for each in entries:
        path = f"{folder}/{each.name}" if folder else each.name
        entry = told.get(path)
        keep = entry is not None and _same_kind(each, entry)
        if each.is_dir(follow_symlinks=False):
            if keep:
                _drop(tree, path, told)
            else:
                remove_tree(each.path)
        elif not keep:
            Path(each.path).unlink()


def _same_kind(found: os.DirEntry[str], entry: Stat) -> bool:
    mode = to_unix(entry.mode)
    if stat.S_IFMT(found.stat(follow_symlinks=False).st_mode) != stat.S_IFMT(mode):
        return False
    return not stat.S_ISLNK(mode) or os.fspath(Path(found.path).readlink()) == os.fspath(Path(entry.linkname))


def _same_file(path: str, entry: Stat) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return (found.st_mode, found.st_size, found.st_mtime_ns) == (to_unix(entry.mode), entry.size, entry.mtime_ns)


def _make(path: str, mode: int, entry: Stat) -> None:
    if stat.S_ISDIR(mode):
        Path(path).mkdir(0o700)
    elif stat.S_ISLNK(mode):
        if not entry.linkname or "\0" in entry.linkname:
            raise Invalid(f"the symbolic link {entry.path!r} in the context leads nowhere")
        Path(path).symlink_to(entry.linkname)
    else:
        os.mkfifo(path, 0o600)


def complete(tree: Path, entries: Sequence[Stat]) -> None:
    """Hard links, and the modes and times of all that is no file; the innermost first, so that times of folders stay."""
    for entry in reversed(entries):
        path, mode = f"{tree}/{entry.path}", to_unix(entry.mode)
        if stat.S_ISREG(mode):
            if entry.linkname and not _linked(path, f"{tree}/{entry.linkname}"):
                Path(path).unlink(missing_ok=True)
                os.link(f"{tree}/{entry.linkname}", path, follow_symlinks=False)
            continue
        found = os.lstat(path)
        if not stat.S_ISLNK(mode) and stat.S_IMODE(found.st_mode) != stat.S_IMODE(mode):
            Path(path).chmod(stat.S_IMODE(mode))
        if found.st_mtime_ns != entry.mtime_ns:
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def _linked(path: str, other: str) -> bool:
    with suppress(FileNotFoundError):
        one, two = os.lstat(path), os.lstat(other)
        return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)
    return False


# --- contents -------------------------------------------------------------------------------------------------------


async def _ask(stream: Stream, wanted: dict[int, Stat]) -> None:
    for number in wanted:
        await stream.send(encode(Packet(kind=Kind.REQUEST, id=number)))


async def _fetch(stream: Stream, writer: _Writer, told: _Told) -> None:
    """Pieces of several files come mixed; they are written many at a time, off the event loop."""
    try:
        while writer.left:
            batch: list[Packet] = []
            size = 0
            while not batch or (stream.waiting() and size < _BATCH_BYTES and len(batch) < _BATCH_PACKETS):
                message = await stream.recv()
                if message is None:
                    raise Invalid("the sender of a context left in the middle of its files")
                told.add(len(message))
                packet = _checked(message)
                if packet.kind != Kind.DATA:
                    raise Invalid(f"a packet of kind {packet.kind} came where contents of files belong")
                batch.append(packet)
                size += len(packet.data)
            await in_thread(writer.write, batch)
    finally:
        await in_thread(writer.close)


class _Writer:
    """The files that are under way."""

    def __init__(self, tree: Path, staging: Path, entries: Sequence[Stat], wanted: dict[int, Stat]) -> None:
        self._tree, self._staging = tree, staging
        self.left = dict(wanted)
        self._open: dict[int, int] = {}

    def write(self, packets: Sequence[Packet]) -> None:
        """Blocks. An empty piece ends its file."""
        for packet in packets:
            if packet.id not in self.left:
                raise Invalid(f"invalid file request {packet.id}")
            if packet.id not in self._open:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._open[packet.id] = os.open(self._staging / str(packet.id), flags, 0o600)
            if packet.data:
                _write_all(self._open[packet.id], packet.data)
            else:
                self._ended(packet.id)

    def _ended(self, number: int) -> None:
        entry, file = self.left[number], self._open.pop(number)
        try:
            os.fchmod(file, stat.S_IMODE(to_unix(entry.mode)))
            for name, value in entry.xattrs.items():
                if name.startswith(_KEPT_XATTRS):
                    with suppress(OSError):  # a file system without them
                        os.setxattr(file, name, value)
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)
        (self._staging / str(number)).replace(self._tree / entry.path)
        del self.left[number]

    def close(self) -> None:
        """Let go of what is half there."""
        while self._open:
            number, file = self._open.popitem()
            os.close(file)
            (self._staging / str(number)).unlink(missing_ok=True)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(file, view) :]
