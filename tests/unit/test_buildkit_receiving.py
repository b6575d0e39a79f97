"""fsutil's protocol from the receiving side: against a sender that behaves, one that tries to get out, and one that lies."""

from __future__ import annotations

import asyncio
import os
import stat
import string
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.api.docker.buildkit.contexts import Contexts
from insula.api.docker.buildkit.gomode import to_go, to_unix
from insula.api.docker.buildkit.receiving import Order, receive
from insula.api.docker.buildkit.sending import walk
from insula.api.docker.buildkit.session_messages import Kind, Packet, Stat
from insula.api.docker.buildkit.syncing import metadata
from insula.api.grpc.connection import Connection
from insula.api.grpc.stream import Stream
from insula.errors import Invalid
from insula.model.protobuf import decode, encode
from unit.test_grpc import ends

DIR, LINK, FIFO, SOCKET, DEVICE = 1 << 31, 1 << 27, 1 << 25, 1 << 24, 1 << 26


class Sender:
    """A client's folder as entries with contents; remembers what was asked for."""

    def __init__(self, entries: Sequence[Stat], contents: dict[str, bytes] | None = None) -> None:
        self.entries, self.contents = entries, contents or {}
        self.asked: list[str] = []

    async def serve(self, stream: Stream) -> None:
        for entry in self.entries:
            await stream.send(encode(Packet(kind=Kind.STAT, stat=entry)))
        await stream.send(encode(Packet(kind=Kind.STAT)))
        while (message := await stream.recv()) is not None:
            packet = decode(message, Packet)
            if packet.kind == Kind.FIN:
                await stream.send(encode(Packet(kind=Kind.FIN)))
                return
            path = self.entries[packet.id].path
            self.asked.append(path)
            await self.content(stream, packet.id, self.contents.get(path, b""))

    async def content(self, stream: Stream, number: int, data: bytes) -> None:
        for at in range(0, len(data), 32 * 1024):
            await stream.send(encode(Packet(kind=Kind.DATA, id=number, data=data[at : at + 32 * 1024])))
        await stream.send(encode(Packet(kind=Kind.DATA, id=number)))


@asynccontextmanager
async def connected(sender: Sender) -> AsyncIterator[Stream]:
    here, there = ends()
    server, client = Connection(there, {"/x": sender.serve}), Connection(here)
    tasks = [asyncio.create_task(server.run()), asyncio.create_task(client.run())]
    try:
        async with client.call("/x") as stream:
            yield stream
    finally:
        here.leave()
        there.leave()
        await asyncio.gather(*tasks)


async def bring(sender: Sender, folder: Path) -> int:
    """Into `folder`/tree; how many bytes were reported."""
    told = [0]
    (folder / "tree").mkdir(exist_ok=True)
    (folder / "staging").mkdir(exist_ok=True)
    async with connected(sender) as stream:
        async with asyncio.timeout(20):
            await receive(stream, folder / "tree", folder / "staging", told.append)
    assert list((folder / "staging").iterdir()) == []
    return told[-1]


def file(path: str, data: bytes = b"", mode: int = 0o644, mtime_ns: int = 1_700_000_000_123_456_789) -> Stat:
    return Stat(path=path, mode=mode, size=len(data), mtime_ns=mtime_ns)


async def test_a_tree_arrives_whole_and_then_only_changes(tmp_path: Path) -> None:
    big = os.urandom(3_000_000)
    contents = {"a": b"hello", "d/big": big, "d/set": b"#!"}
    entries = [
        file("a", b"hello", 0o600),
        Stat(path="d", mode=DIR | 0o750, mtime_ns=5_000_000_000),
        file("d/big", big),
        Stat(path="d/hard", mode=0o644, size=len(big), mtime_ns=1_700_000_000_123_456_789, linkname="d/big"),
        Stat(path="d/link", mode=LINK | 0o777, linkname="../../etc/passwd"),
        Stat(path="d/pipe", mode=FIFO | 0o640),
        file("d/set", b"#!", 1 << 23 | 0o755),
        file("d-after", b""),
    ]
    first = Sender(entries, contents)
    assert await bring(first, tmp_path) > len(big)
    assert first.asked == ["a", "d/big", "d/set", "d-after"]
    tree = tmp_path / "tree"
    assert (tree / "a").read_bytes() == b"hello" and (tree / "d/big").read_bytes() == big
    assert (tree / "d/hard").stat().st_ino == (tree / "d/big").stat().st_ino
    assert os.readlink(tree / "d/link") == "../../etc/passwd"
    assert stat.S_ISFIFO((tree / "d/pipe").stat().st_mode)
    assert (tree / "d/set").stat().st_mode & 0o7777 == 0o4755
    assert (tree / "d").stat().st_mtime_ns == 5_000_000_000 and (tree / "d").stat().st_mode & 0o7777 == 0o750

    again = Sender(entries, contents)
    assert await bring(again, tmp_path) < 2000
    assert again.asked == []

    changed = [file("a", b"HELLO", 0o600, 1), *entries[1:3], file("d/link", b"now a file"), file("d-after", b"")]
    third = Sender(changed, contents | {"a": b"HELLO", "d/link": b"now a file"})
    await bring(third, tmp_path)
    assert third.asked == ["a", "d/link"]
    assert sorted(os.listdir(tree)) == ["a", "d", "d-after"] and sorted(os.listdir(tree / "d")) == ["big", "link"]
    assert (tree / "d/link").read_bytes() == b"now a file"

    await bring(Sender([Stat(path="a", mode=DIR | 0o755), file("a/b")]), tmp_path)
    assert sorted(os.listdir(tree)) == ["a"] and os.listdir(tree / "a") == ["b"]


@pytest.mark.parametrize(
    "entries",
    [
        [file("../out")],
        [file("/abs")],
        [file("a/../b")],
        [file("a//b")],
        [file("./a")],
        [file("")],
        [file(".")],
        [file("a\0b")],
        [file("a"), file("a")],
        [file("b"), file("a")],
        [file("d/x")],
        [file("d"), file("d/x")],
        [Stat(path="d", mode=LINK | 0o777, linkname="/etc"), file("d/passwd")],
        [Stat(path="d", mode=DIR), file("d/x"), Stat(path="e", mode=DIR), file("d/y")],
        [Stat(path="h", mode=0o644, linkname="/etc/passwd")],
        [Stat(path="h", mode=0o644, linkname="later"), file("later")],
        [Stat(path="l", mode=LINK, linkname="x"), Stat(path="m", mode=0o644, linkname="l")],
        [Stat(path="dev", mode=DEVICE | 0o666, devmajor=1, devminor=3)],
        [Stat(path="sock", mode=SOCKET | 0o666)],
        [Stat(path="l", mode=LINK | 0o777)],
    ],
)
async def test_what_would_get_out_is_refused(entries: list[Stat], tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        await bring(Sender(entries), tmp_path)
    assert os.listdir(tmp_path / "tree") == []


async def test_a_link_that_was_there_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("kept")
    await bring(Sender([Stat(path="d", mode=LINK | 0o777, linkname=str(tmp_path / "outside"))]), tmp_path)
    await bring(Sender([Stat(path="d", mode=DIR | 0o755), file("d/x", b"1")], {"d/x": b"1"}), tmp_path)
    assert os.listdir(tmp_path / "outside") == ["kept"]
    assert (tmp_path / "tree/d/x").read_bytes() == b"1"


class Liar(Sender):
    """Sends what was not asked for."""

    async def content(self, stream: Stream, number: int, data: bytes) -> None:
        await stream.send(encode(Packet(kind=Kind.DATA, id=number + 7, data=b"x")))


class Quitter(Sender):
    """Leaves in the middle."""

    async def content(self, stream: Stream, number: int, data: bytes) -> None:
        await stream.send(encode(Packet(kind=Kind.DATA, id=number, data=b"half")))
        await stream.send(encode(Packet(kind=Kind.ERROR, data=b"disk on fire")))


@pytest.mark.parametrize("kind, sentence", [(Liar, "invalid file request 7"), (Quitter, "disk on fire")])
async def test_senders_that_do_not_behave(kind: type[Sender], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=sentence):
        await bring(kind([file("a", b"whole")], {"a": b"whole"}), tmp_path)
    assert os.listdir(tmp_path / "tree") == [] and os.listdir(tmp_path / "staging") == []


_names = st.text(string.ascii_letters + "-._ é€", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
_trees = st.recursive(
    st.binary(max_size=20), lambda inner: st.dictionaries(_names, inner, max_size=4), max_leaves=20
).filter(lambda tree: isinstance(tree, dict))


def _lay(folder: Path, tree: dict[str, object]) -> None:
    for name, inner in tree.items():
        if isinstance(inner, dict):
            (folder / name).mkdir()
            _lay(folder / name, inner)
        else:
            assert isinstance(inner, bytes)
            (folder / name).write_bytes(inner)


@given(_trees)
@settings(max_examples=40, deadline=None)
def test_what_we_list_is_in_the_order_that_we_demand(tree: dict[str, object]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        _lay(Path(folder), tree)
        order = Order()
        for entry in walk(folder):
            order.check(entry)


def test_modes_of_go() -> None:
    for mode in (0o100644, 0o40755, 0o120777, 0o104755, 0o102755, 0o41777, 0o10640, 0o20600, 0o60600):
        assert to_unix(to_go(mode)) == mode
    assert to_go(0o40755) == 0x800001ED and to_go(0o120777) == 134218239  # as a real client sends them


def test_metadata_of_a_call() -> None:
    assert metadata("context", ["a", "b"], ["*.log"]) == [
        ("dir-name", "context"),
        ("exclude-patterns", "*.log"),
        ("followpaths", "a"),
        ("followpaths", "b"),
    ]
    assert ("followpaths", "%C3%A4+b") in metadata("context", ["ä b"], [])
    with pytest.raises(Invalid):
        metadata("context", ["a\nb"], [])


async def test_a_tree_belongs_to_one_build_at_a_time(tmp_path: Path) -> None:
    contexts = Contexts(tmp_path)
    async with contexts.place("key") as one, contexts.place("key") as two, contexts.place("") as three:
        assert len({one.tree, two.tree, three.tree}) == 3
        (one.tree / "file").write_text("x")
        (two.tree / "file").write_text("y")
    async with contexts.place("key") as again:
        assert (again.tree / "file").read_text() == "x"
        (kept,) = await contexts.all()
        assert kept.in_use and kept.size_bytes == 1
        await contexts.remove(kept.id)
        assert again.tree.exists()
    (kept,) = await contexts.all()
    await contexts.remove(kept.id)
    assert await contexts.all() == [] and os.listdir(tmp_path / "passing") == []


async def test_trees_are_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insula.api.docker.buildkit.contexts.KEPT_BYTES", 100)
    contexts = Contexts(tmp_path)
    for number, size in enumerate((40, 40, 40)):
        async with contexts.place(f"key{number}") as place:
            contexts.sized(place, size)
        os.utime(place.tree, (number, number))
    assert sorted(kept.size_bytes for kept in await contexts.all()) == [40, 40]
    async with contexts.place("large") as place:
        contexts.sized(place, 1000)
    assert await contexts.all() == []
