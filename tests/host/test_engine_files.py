"""Files of an instance from outside, stopped and running: never a step outside of its root."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.engine_support import Home, config, home, opened, run
from insula.engine.node import NodeEngine
from insula.errors import Forbidden, InsulaError, Invalid, NotFound
from insula.host.mounts import mount_points
from insula.model.instance import MountConfig, Security

pytestmark = pytest.mark.root


@pytest.fixture
def place():
    with home() as made:
        yield made


@pytest.fixture
async def engine(place: Home):
    async with opened(place) as made:
        yield made


async def stream(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 1000):
        yield data[begin : begin + 1000]


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def file(name: str, data: bytes = b"x", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


async def fetch(engine: NodeEngine, id: str, path: str) -> dict[str, tarfile.TarInfo]:
    data = b"".join([chunk async for chunk in engine.get_archive(id, path)])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member for member in archive}


async def made(engine: NodeEngine, *, running: bool, **more: object) -> str:
    instance = await engine.create(config("sleep", "60", **more))
    if running:
        await engine.start(instance.id)
    return instance.id


@pytest.mark.parametrize("running", [False, True])
async def test_there_and_back(engine: NodeEngine, running: bool) -> None:
    id = await made(engine, running=running)
    folder = tarfile.TarInfo("d")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o750
    link = tarfile.TarInfo("d/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("d/hard")
    hard.type, hard.linkname = tarfile.LNKTYPE, "d/f"
    archive = tar((folder, b""), file("d/f", b"content", mode=0o4755, uid=7, gid=8), (link, b""), (hard, b""))
    await engine.put_archive(id, "/root", stream(archive))
    found = await fetch(engine, id, "/root/d")
    assert set(found) == {"d", "d/f", "d/hard", "d/link"}
    one = found["d/f"] if found["d/f"].isreg() else found["d/hard"]
    assert (one.mode, one.uid, one.gid, one.size) == (0o4755, 7, 8, 7)
    assert {found["d/f"].type, found["d/hard"].type} == {tarfile.REGTYPE, tarfile.LNKTYPE}
    assert found["d/link"].linkname == "/etc/passwd"
    status = await engine.stat_path(id, "/root/d/f")
    assert (status.name, status.size, status.mode) == ("f", 7, 1 << 23 | 0o755)
    assert (await engine.stat_path(id, "/root/d")).mode == 1 << 31 | 0o750
    linked = await engine.stat_path(id, "/root/d/link")
    assert (linked.link_target, linked.mode >> 27) == ("/etc/passwd", 1)
    assert (await engine.stat_path(id, "/")).name == "/"
    for missing in ("/nowhere", "/etc/passwd/x"):
        with pytest.raises(NotFound, match=f"Could not find the file {missing} in container"):
            await engine.stat_path(id, missing)
        with pytest.raises(NotFound):
            await fetch(engine, id, missing)
    with pytest.raises(Invalid, match="extraction point is not a directory"):
        await engine.put_archive(id, "/etc/passwd", stream(archive))


@pytest.mark.parametrize("running", [False, True])
async def test_links_lead_nowhere_else(engine: NodeEngine, place: Home, running: bool, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("host")
    id = await made(engine, running=running)
    away = tarfile.TarInfo("away")
    away.type, away.linkname = tarfile.SYMTYPE, str(secret)
    up = tarfile.TarInfo("up")
    up.type, up.linkname = tarfile.SYMTYPE, "../" * 30 + str(secret)
    await engine.put_archive(id, "/", stream(tar((away, b""), (up, b""))))
    for path in ("/away/key", "/up/key", "/away/", "/up/.", "/../../../.." + str(secret) + "/key"):
        with pytest.raises(NotFound):
            await fetch(engine, id, path)
    with pytest.raises(NotFound):
        await engine.put_archive(id, "/away", stream(tar(file("planted"))))
    assert sorted(os.listdir(secret)) == ["key"]


@pytest.mark.parametrize("running", [False, True])
async def test_an_archive_reaches_into_what_is_mounted(engine: NodeEngine, running: bool, tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir()
    (tmp_path / "one").write_text("as it was")
    mounts = (
        MountConfig(kind="volume", target="/made/here", source="reached"),
        MountConfig(kind="bind", target="/fixed", source=str(tmp_path / "fixed"), readonly=True),
        MountConfig(kind="bind", target="/new/one", source=str(tmp_path / "one")),
    )
    id = await made(engine, running=running, mounts=mounts)
    away = tarfile.TarInfo("link")
    away.type, away.linkname = tarfile.SYMTYPE, "/made/here"
    await engine.put_archive(id, "/", stream(tar(file("made/here/f", b"1"), (away, b""))))
    await engine.put_archive(id, "/link", stream(tar(file("g", b"2"))))
    assert sorted(os.listdir((await engine.volumes.get("reached")).path)) == ["f", "g"]
    assert set(await fetch(engine, id, "/made")) == {"made", "made/here", "made/here/f", "made/here/g"}
    assert (await engine.stat_path(id, "/new/one")).size == len("as it was")
    with pytest.raises(InsulaError):
        await engine.put_archive(id, "/", stream(tar(file("fixed/f"))))
    assert os.listdir(tmp_path / "fixed") == []
    assert not [point for point in mount_points() if "fixed" in point.target or "made/here" in point.target]


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/../out"])
async def test_an_archive_that_climbs_is_refused(engine: NodeEngine, name: str) -> None:
    id = await made(engine, running=False)
    with pytest.raises(Invalid):
        await engine.put_archive(id, "/root", stream(tar(file(name))))
    with pytest.raises(NotFound):
        await engine.stat_path(id, "/out")


async def test_a_torn_archive_is_refused(engine: NodeEngine) -> None:
    id = await made(engine, running=False)
    with pytest.raises(Invalid):
        await engine.put_archive(id, "/root", stream(tar(file("a", b"y" * 5000))[:3000]))


async def test_what_is_mounted_is_seen_whether_it_runs_or_not(engine: NodeEngine, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("bound")
    mounts = (
        MountConfig(kind="bind", target="/bound", source=str(tmp_path), readonly=True),
        MountConfig(kind="volume", target="/vol", source="vol"),
    )
    id = await made(engine, running=False, mounts=mounts)
    for _ in range(2):
        assert (await engine.stat_path(id, "/bound/in")).size == 5
        await engine.put_archive(id, "/vol", stream(tar(file("f"))))
        assert "f" in await fetch(engine, id, "/vol/f")
        with pytest.raises(Forbidden, match="mounted volume is marked read-only"):
            await engine.put_archive(id, "/bound", stream(tar(file("f"))))
        await engine.start(id)
    assert os.listdir((await engine.volumes.get("vol")).path) == ["f"]


async def test_a_read_only_root_takes_no_files(engine: NodeEngine) -> None:
    id = await made(engine, running=False, security=Security(readonly_rootfs=True))
    with pytest.raises(Forbidden, match="container rootfs is marked read-only"):
        await engine.put_archive(id, "/root", stream(tar(file("f"))))


async def test_no_overwriting_of_folders(engine: NodeEngine) -> None:
    id = await made(engine, running=False)
    with pytest.raises(Invalid):
        await engine.put_archive(id, "/", stream(tar(file("etc"))), no_overwrite_dir=True)
    assert (await engine.stat_path(id, "/etc")).mode >> 31


async def test_changes_export_and_usage(engine: NodeEngine) -> None:
    instance = await engine.create(
        config("sh", "-c", "echo 12345 > /new; rm /etc/group; echo x >> /etc/passwd; mkdir -p /d/e")
    )
    ended = engine.wait(instance.id, "next-exit")
    await engine.start(instance.id)
    await ended
    found = dict(await engine.changes(instance.id))
    assert found.items() >= {"/new": 1, "/etc/group": 2, "/etc/passwd": 0, "/etc": 0, "/d": 1, "/d/e": 1}.items()
    assert not any(path.startswith("/bin") for path in found)
    own, whole = await engine.disk_usage(instance.id)
    assert 6 <= own < 65536
    assert whole > own
    data = b"".join([chunk async for chunk in engine.export(instance.id)])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name for member in archive}
    assert {"new", "d/e", "bin/sh"} <= members
    assert "etc/group" not in members


async def test_a_stopped_instance_is_not_left_mounted(engine: NodeEngine, place: Home) -> None:
    instance = await engine.create(config("true"))
    ended = engine.wait(instance.id, "next-exit")
    await engine.start(instance.id)
    await ended
    await engine.stat_path(instance.id, "/etc")
    assert not [mount for mount in place.traces().get("mounts", []) if "rootfs" in mount]


async def test_commit(engine: NodeEngine) -> None:
    instance = await engine.create(config("sh", "-c", "echo kept > /kept", env=("A=1",), working_dir="/root"))
    ended = engine.wait(instance.id, "next-exit")
    await engine.start(instance.id)
    await ended
    image = await engine.commit(instance.id, "mine:1", message="m", author="me", config={"Cmd": ["cat", "/kept"]})
    assert image.config.command == ("cat", "/kept")
    assert "A=1" in image.config.env
    state, out, _ = await run(engine, config(image="mine:1", auto_remove=True))
    assert (state.exit_code, out) == (0, b"kept\n")
