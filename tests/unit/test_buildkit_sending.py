"""Results given to a client, folders and files, and looked into: what a receiver of the same protocol makes of them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from insula.api.docker.buildkit import looking
from insula.api.docker.buildkit.messages import BytesMessage
from insula.api.docker.buildkit.progress import Told
from insula.api.docker.buildkit.receiving import receive
from insula.api.docker.buildkit.sending import METHOD, send_file, send_folders
from insula.api.docker.buildkit.sessions import Session
from insula.api.grpc.connection import Connection, Method
from insula.api.grpc.status import Code, RpcFault
from insula.api.grpc.stream import Stream
from insula.errors import AlreadyExists, Invalid, NotFound, Unsupported
from insula.model.protobuf import decode
from unit.test_grpc import ends


@asynccontextmanager
async def client_with(methods: Mapping[str, Method]) -> AsyncIterator[Session]:
    here, there = ends()
    server, connection = Connection(there, methods), Connection(here)
    tasks = [asyncio.create_task(server.run()), asyncio.create_task(connection.run())]
    try:
        yield Session("id", "name", "", methods, connection)
    finally:
        here.leave()
        there.leave()
        await asyncio.gather(*tasks)


class Receiver:
    """A client that takes a folder."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.staging = folder / "tree", folder / "staging"
        self.tree.mkdir()
        self.staging.mkdir()

    async def serve(self, stream: Stream) -> None:
        assert stream.metadata("buildkit-attachable-exporter-id") == ["3"]

        class NoEnd:  # a server ends a call with its status
            metadata, recv, send, waiting = stream.metadata, stream.recv, stream.send, stream.waiting

            async def end(self) -> None:
                return

        await receive(NoEnd(), self.tree, self.staging, lambda _: None)  # type: ignore[arg-type]


async def test_folders_arrive_as_they_are(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d" / "deep").mkdir(parents=True)
    (root / "d" / "deep" / "big").write_bytes(os.urandom(2_000_000))
    (root / "d" / "set").write_bytes(b"x")
    (root / "d" / "set").chmod(0o4755)
    (root / "d-more").write_bytes(b"")
    os.link(root / "d" / "set", root / "linked")
    (root / "away").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as left_out:
        left_out.bind(str(root / "socket"))
        receiver = Receiver(tmp_path)
        async with client_with({METHOD: receiver.serve}) as session:
            part = Told().part("", "copying")
            await asyncio.wait_for(send_folders(session, 3, [("", str(root))], part), 20)
    tree = receiver.tree
    assert sorted(os.listdir(tree)) == ["away", "d", "d-more", "linked", "pipe"]
    assert (tree / "d/deep/big").read_bytes() == (root / "d/deep/big").read_bytes()
    assert (tree / "d/set").stat().st_mode == (root / "d/set").stat().st_mode
    assert (tree / "linked").stat().st_ino == (tree / "d/set").stat().st_ino
    assert os.readlink(tree / "away") == "/etc"
    assert (tree / "d").stat().st_mtime_ns == (root / "d").stat().st_mtime_ns


async def test_a_name_that_cannot_be_said(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "new\nline").write_text("fine")
    receiver = Receiver(tmp_path)
    async with client_with({METHOD: receiver.serve}) as session:
        await asyncio.wait_for(send_folders(session, 3, [("", str(root))], Told().part("", "copying")), 20)
    assert os.listdir(receiver.tree) == ["new\nline"]
    Path(os.fsdecode(os.fsencode(root) + b"/\xff")).write_text("not said")
    async with client_with({METHOD: receiver.serve}) as session:
        with pytest.raises(Invalid, match="not UTF-8"):
            await asyncio.wait_for(send_folders(session, 3, [("", str(root))], Told().part("", "copying")), 20)


async def test_several_folders_each_below_its_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text(name)
    receiver = Receiver(tmp_path)
    async with client_with({METHOD: receiver.serve}) as session:
        folders = [("linux_amd64", str(tmp_path / "one")), ("linux_arm64", str(tmp_path / "two"))]
        await asyncio.wait_for(send_folders(session, 3, folders, Told().part("", "copying")), 20)
    assert (receiver.tree / "linux_arm64" / "sub" / "file").read_text() == "two"
    assert sorted(os.listdir(receiver.tree)) == ["linux_amd64", "linux_arm64"]


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_a_file_with_words_about_it() -> None:
    got = bytearray()

    async def take(stream: Stream) -> None:
        assert stream.metadata("exporter-md-image.name") == ["a:1"]
        while (message := await stream.recv()) is not None:
            got.extend(decode(message, BytesMessage).data)

    async def refuse(stream: Stream) -> None:
        raise RpcFault(Code.ALREADY_EXISTS, "target already exists")

    big, part = os.urandom(1_000_000), Told().part("", "sending tarball")
    async with client_with({METHOD: take}) as session:
        await send_file(session, 0, _chunks(b"head", big), [("image.name", "a:1")], part)
    assert bytes(got) == b"head" + big
    async with client_with({METHOD: refuse}) as session:
        with pytest.raises(AlreadyExists, match="target already exists"):
            await send_file(session, 0, _chunks(b"x"), [], part)
    async with client_with({}) as session:
        with pytest.raises(Unsupported):
            await send_file(session, 0, _chunks(b"x"), [], part)


def test_looking_stays_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_bytes(b"inside")
    (root / "link").symlink_to("/etc/passwd")
    (root / "up").symlink_to("../../../../etc")
    os.mkfifo(root / "pipe")
    assert looking.read(str(root), "/link", 0, 0) == b"inside"
    assert looking.read(str(root), "up/passwd", 2, 3) == b"sid"
    assert [each.path for each in looking.entries(str(root), "/", "*i*")] == ["link", "pipe"]
    assert looking.entries(str(root), "/", "link")[0].linkname == "/etc/passwd"
    assert looking.entry(str(root), "/etc/passwd").size == 6
    for path in ("/gone", "/etc/../../../gone"):
        with pytest.raises(NotFound):
            looking.read(str(root), path, 0, 0)
    for path in ("/etc", "/pipe"):
        with pytest.raises(Invalid):
            looking.read(str(root), path, 0, 0)
