"""Volumes and disks of a node: names, copy-up, machine disks, and disk images that are not what they seem."""

from __future__ import annotations

import asyncio
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard
from tests.contract.images_support import chunks

from insula.errors import Conflict, HostFault, Invalid, NotFound, TooLarge, Unsupported
from insula.host import mounts
from insula.host.mounts import mount_points
from insula.model.instance import DiskConfig
from insula.volumes.contract import Volumes
from insula.volumes.diskfile import probe
from insula.volumes.store import NodeVolumes

pytestmark = pytest.mark.root


@pytest.fixture
async def volumes(tmp_path: Path) -> NodeVolumes:
    return await NodeVolumes.open(tmp_path / "data")


@pytest.fixture(scope="module")
def qcow2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small disk with some data in it."""
    folder = tmp_path_factory.mktemp("qcow2")
    (folder / "raw").write_bytes(os.urandom(1 << 20) + bytes(3 << 20))
    path = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(folder / "raw"), str(path)], check=True)
    return path


async def test_is_a_volume_store(volumes: NodeVolumes) -> None:
    store: Volumes = volumes
    assert await store.list() == []


async def test_volumes_come_and_go(volumes: NodeVolumes, tmp_path: Path) -> None:
    made = await volumes.create("data", labels={"k": "v"})
    assert (made.labels, made.driver, made.anonymous) == ({"k": "v"}, "local", False)
    assert await volumes.create("data", labels={"other": "x"}) == made
    assert Path(made.path).is_dir()
    nameless = await volumes.create()
    assert len(nameless.name) == 64 and nameless.anonymous
    again = await NodeVolumes.open(tmp_path / "data")
    assert list(await again.list()) == sorted([made, nameless], key=lambda volume: volume.name)
    (Path(made.path) / "deep/er").mkdir(parents=True)
    await again.remove("data")
    with pytest.raises(NotFound, match="get data: no such volume"):
        await again.get("data")
    with pytest.raises(NotFound):
        await again.remove("data")
    assert len(os.listdir(tmp_path / "data/volumes")) == 1


@pytest.mark.parametrize("name", ["a", "../x", "a/b", ".a", "-a", "a b", "a\0b", "ü1", "x" * 256, "a\n"])
async def test_hostile_names(volumes: NodeVolumes, name: str) -> None:
    with pytest.raises(Invalid, match=r"includes invalid characters for a local volume name|volume name is too short"):
        await volumes.create(name)
    with pytest.raises(Invalid):
        await volumes.make_disk(name if len(name) > 1 else "/", DiskConfig(name="x", kind="empty", size_bytes=1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"foo": "bar"}, 'create v1: invalid option: "foo"'),
        ({"type": "tmpfs"}, 'create v1: missing required option: "device"'),
        ({"device": "tmpfs"}, 'create v1: missing required option: "type"'),
        ({"o": "size=1m"}, 'create v1: missing required option: "device"'),
        ({"size": "10m"}, "create v1: quota size requested but no quota support"),
    ],
)
async def test_options_that_cannot_be(volumes: NodeVolumes, options: dict[str, str], sentence: str) -> None:
    with pytest.raises(Invalid, match=re.escape(sentence)):
        await volumes.create("v1", options=options)
    assert await volumes.list() == []


async def test_what_options_name_is_mounted_while_it_is_used(volumes: NodeVolumes) -> None:
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=5,nosuid"}
    made = await volumes.create("mem", options=options, labels={"a": "b"})
    assert (made.options, (await volumes.create("mem", options={"type": "x", "device": "y"})).options) == (
        options,
        options,
    )
    await volumes.take("mem", "one")
    await volumes.take("mem", "two")
    await volumes.take("mem", "one")
    try:
        (point,) = mount_points(made.path)
        assert (point.kind, "nosuid" in point.options, "uid=5" in point.super_options) == ("tmpfs", True, True)
        with pytest.raises(Conflict, match="remove mem: volume has active mounts"):
            await volumes.remove("mem")
        await volumes.leave("one")
        assert mount_points(made.path)
    finally:
        await volumes.leave("two")
    assert mount_points(made.path) == []
    await volumes.leave("two")
    await volumes.remove("mem")


async def test_a_folder_of_the_host_as_a_volume(volumes: NodeVolumes, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("x")
    made = await volumes.create("host", options={"type": "none", "o": "bind,ro", "device": str(tmp_path / "there")})
    await volumes.take("host", "one")
    try:
        assert (Path(made.path) / "file").read_text() == "x"
        with pytest.raises(OSError, match="Read-only"):
            (Path(made.path) / "new").touch()
    finally:
        await volumes.leave("one")
    gone = await volumes.create("gone", options={"type": "none", "o": "bind", "device": "/nonexistent-folder"})
    with pytest.raises(HostFault) as caught:
        await volumes.take("gone", "one")
    assert caught.value.message == (
        f"error while mounting volume '{gone.path}': failed to mount local volume: mount /nonexistent-folder:{gone.path}, "
        "flags: 0x1000: no such file or directory"
    )


async def test_a_restart_knows_who_uses_what(volumes: NodeVolumes, tmp_path: Path) -> None:
    options = {"type": "tmpfs", "device": "tmpfs"}
    used, idle = await volumes.create("used", options=options), await volumes.create("idle", options=options)
    await volumes.take("used", "one")
    await volumes.take("idle", "two")
    again = await NodeVolumes.open(tmp_path / "data")
    await again.recover({"used": ["one"]})
    assert mount_points(used.path) and not mount_points(idle.path)
    await again.leave("one")
    assert not mount_points(used.path)


async def test_two_clients_make_one_volume(volumes: NodeVolumes) -> None:
    made = await asyncio.gather(*(volumes.create("same") for _ in range(10)))
    assert len(set(map(repr, made))) == 1


async def test_what_was_half_made_or_half_removed_is_gone(volumes: NodeVolumes, tmp_path: Path) -> None:
    (tmp_path / "data/volumes/half/_data").mkdir(parents=True)
    again = await NodeVolumes.open(tmp_path / "data")
    assert await again.list() == [] and not (tmp_path / "data/volumes/half").exists()


def fill(source: Path) -> None:
    (source / "folder").mkdir(parents=True)
    (source / "folder/file").write_bytes(b"x" * 5000)
    os.link(source / "folder/file", source / "linked")
    (source / "sym").symlink_to("/etc/passwd")
    (source / "su").write_text("")
    os.chown(source / "su", 7, 8)
    (source / "su").chmod(0o4750)
    os.setxattr(source / "su", "user.k", b"v")
    os.mkfifo(source / "pipe")
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with (source / "sparse").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(2 << 20)
        file.write(b"middle")
    source.chmod(0o1777)
    os.chown(source, 5, 6)
    os.utime(source / "folder", (1000, 1000))


async def test_copy_up_keeps_everything(volumes: NodeVolumes, tmp_path: Path) -> None:
    source = tmp_path / "source"
    fill(source)
    volume = await volumes.create("data")
    await volumes.populate(volume, str(source))
    copy = Path(volume.path)
    status = copy.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o1777, 5, 6)
    assert (copy / "linked").stat().st_ino == (copy / "folder/file").stat().st_ino
    assert os.readlink(copy / "sym") == "/etc/passwd"
    status = (copy / "su").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4750, 7, 8)
    assert os.getxattr(copy / "su", "user.k") == b"v"
    assert (copy / "null").stat().st_rdev == os.makedev(1, 3)
    assert (copy / "folder").stat().st_mtime == 1000
    assert (copy / "sparse").read_bytes() == (source / "sparse").read_bytes()
    assert (copy / "sparse").stat().st_blocks < 1000
    (copy / "mine").write_text("")
    (source / "later").write_text("")
    await volumes.populate(volume, str(source))
    assert not (copy / "later").exists()  # it was not empty any more


async def test_a_copy_that_was_killed_is_done_again(volumes: NodeVolumes, tmp_path: Path) -> None:
    source = tmp_path / "source"
    fill(source)
    volume = await volumes.create("data")
    (Path(volume.path) / "half").mkdir()
    (Path(volume.path).parent / "populating").touch()
    await volumes.populate(volume, str(source))
    assert not (Path(volume.path) / "half").exists() and (Path(volume.path) / "linked").exists()


async def test_disks_of_a_machine(volumes: NodeVolumes, qcow2: Path, tmp_path: Path) -> None:
    empty = await volumes.make_disk("vm1", DiskConfig(name="scratch", kind="empty", size_bytes=10 << 20))
    assert (empty.format, Path(empty.path).stat().st_size, Path(empty.path).stat().st_blocks) == ("raw", 10 << 20, 0)
    root = await volumes.make_disk("vm1", DiskConfig(name="root", kind="image", size_bytes=8 << 20), backing=str(qcow2))
    assert root.format == "qcow2" and not root.readonly
    info = subprocess.run(["qemu-img", "info", root.path], capture_output=True, text=True, check=True).stdout
    assert "virtual size: 8 MiB" in info and f"backing file: {qcow2}" in info and "backing file format: qcow2" in info
    before = Path(root.path).stat().st_ino
    assert await volumes.make_disk("vm1", DiskConfig(name="root", kind="image"), backing=str(qcow2)) == root
    assert Path(root.path).stat().st_ino == before
    cdrom = await volumes.make_disk("vm1", DiskConfig(name="cd", kind="image", cdrom=True), backing=str(qcow2))
    assert cdrom.path == str(qcow2) and cdrom.readonly
    file = await volumes.make_disk("vm1", DiskConfig(name="f", kind="file", source=empty.path))
    assert file.path == empty.path and not file.readonly
    with pytest.raises(Invalid, match="cannot be 512 bytes"):
        await volumes.make_disk("vm1", DiskConfig(name="small", kind="image", size_bytes=512), backing=str(qcow2))
    with pytest.raises(NotFound, match="there is no disk file"):
        await volumes.make_disk("vm1", DiskConfig(name="none", kind="file", source="/missing"))
    with pytest.raises(Invalid, match="not an absolute path"):
        await volumes.make_disk("vm1", DiskConfig(name="none", kind="file", source="x"))
    with pytest.raises(Invalid, match="needs a size"):
        await volumes.make_disk("vm1", DiskConfig(name="none", kind="empty"))
    await volumes.drop_disks("vm1")
    await volumes.drop_disks("vm1")
    assert not Path(root.path).exists() and qcow2.exists()


async def test_the_cloud_init_seed(volumes: NodeVolumes, tmp_path: Path) -> None:
    files = {"user-data": "#cloud-config\n", "meta-data": "instance-id: i-1\n", "network-config": "version: 2\n"}
    disk = await volumes.make_disk("vm1", DiskConfig(name="seed", kind="cloudinit", files=files))
    assert disk.readonly and disk.format == "raw" and stat.S_IMODE(Path(disk.path).stat().st_mode) == 0o600
    blkid = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "LABEL", disk.path], capture_output=True, text=True, check=True
    )
    assert blkid.stdout.strip() == "cidata"
    with pytest.raises(Invalid, match="cannot be a file of a cloud-init seed"):
        await volumes.make_disk("vm1", DiskConfig(name="bad", kind="cloudinit", files={"../x": ""}))
    if not shutil.which("isoinfo"):
        pytest.skip("isoinfo (package genisoimage) is not installed: the files are not read back")
    shown = {
        name: subprocess.run(
            ["isoinfo", "-R", "-x", f"/{name}", "-i", disk.path], capture_output=True, text=True
        ).stdout
        for name in files
    }
    assert shown == files


def damaged(path: Path, offset: int, data: bytes, target: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    target.write_bytes(content)
    return target


@pytest.mark.parametrize(
    ("offset", "data", "fault", "sentence"),
    [
        (4, struct.pack(">I", 9), Unsupported, "has version 9"),
        (8, struct.pack(">QI", 0x180, 8), Invalid, "backing file of its own"),
        (20, struct.pack(">I", 60), Invalid, r"clusters have 2\^60 bytes"),
        (24, struct.pack(">Q", 0), Invalid, "impossible size"),
        (24, struct.pack(">Q", 1 << 60), Invalid, "impossible size"),
        (24, struct.pack(">Q", 1 << 40), Invalid, "does not fit its size"),
        (32, struct.pack(">I", 2), Unsupported, "encrypted"),
        (36, struct.pack(">I", 1 << 31), Invalid, "does not fit its size"),
        (40, struct.pack(">Q", 1 << 50), Invalid, "truncated: its first table"),
        (48, struct.pack(">Q", 1 << 50), Invalid, "truncated: its reference counts"),
        (72, struct.pack(">Q", 2), Invalid, "marked as corrupt"),
        (72, struct.pack(">Q", 4), Invalid, "keeps its data in another file"),
        (72, struct.pack(">Q", 1 << 40), Unsupported, "unknown features"),
    ],
)
def test_hostile_qcow2_headers(
    qcow2: Path, tmp_path: Path, offset: int, data: bytes, fault: type[Exception], sentence: str
) -> None:
    with pytest.raises(fault, match=sentence):
        probe(str(damaged(qcow2, offset, data, tmp_path / "disk")))


@pytest.mark.parametrize("size", [0, 4, 71, 100, 1000, 100_000, 300_000])
def test_truncated_qcow2(qcow2: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "disk").write_bytes(qcow2.read_bytes()[:size])
    with pytest.raises(Invalid, match=r"truncated|empty"):
        probe(str(tmp_path / "disk"))


async def test_data_that_is_missing_at_the_end_is_found_by_the_deep_check(
    volumes: NodeVolumes, qcow2: Path, tmp_path: Path
) -> None:
    content = qcow2.read_bytes()
    target = tmp_path / "in.qcow2"
    await volumes.import_disk(chunks(content), str(target))
    assert target.read_bytes() == content
    with pytest.raises(Invalid, match="truncated or damaged"):
        await volumes.import_disk(chunks(content[: len(content) - 600_000]), str(tmp_path / "cut.qcow2"))
    assert sorted(os.listdir(tmp_path)) == ["data", "in.qcow2"]


@pytest.mark.parametrize(
    "magic", [b"KDMV", b"vhdxfile", b"conectix", b"# Disk DescriptorFile", bytes(64) + b"\x7f\x10\xda\xbe"]
)
def test_other_formats_are_named(tmp_path: Path, magic: bytes) -> None:
    (tmp_path / "disk").write_bytes(magic.ljust(4096, b"\0"))
    with pytest.raises(Unsupported, match="the disk is in"):
        probe(str(tmp_path / "disk"))


def test_truncated_raw_disks(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1000))
    with pytest.raises(Invalid, match="not a multiple of 512"):
        probe(str(disk))
    mbr = bytearray(1 << 20)
    mbr[510:512] = b"\x55\xaa"
    mbr[446:462] = struct.pack("<B3xB3xII", 0x80, 0x83, 2048, 8192)
    disk.write_bytes(mbr)
    with pytest.raises(Invalid, match="what is on it needs"):
        probe(str(disk))
    gpt = bytearray(1 << 20)
    gpt[512:520] = b"EFI PART"
    gpt[544:552] = struct.pack("<Q", 1 << 20)
    disk.write_bytes(gpt)
    with pytest.raises(Invalid, match="truncated"):
        probe(str(disk))
    disk.write_bytes(bytes(1 << 20))
    assert probe(str(disk)).format == "raw"


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, lzma.compress, lambda data: zstandard.ZstdCompressor().compress(data)]
)
async def test_imports_raw_disks_sparse(volumes: NodeVolumes, tmp_path: Path, pack: object) -> None:
    content = await asyncio.to_thread(lambda: os.urandom(100_000 - 100_000 % 512) + bytes(8 << 20))
    packed = await asyncio.to_thread(pack, content)  # type: ignore[arg-type]
    target = tmp_path / "disk.raw"
    await volumes.import_disk(chunks(packed), str(target))
    assert target.read_bytes() == content and target.stat().st_blocks * 512 < 300_000
    with pytest.raises(Conflict, match="already there"):
        await volumes.import_disk(chunks(packed), str(target))


async def test_imports_that_go_wrong_leave_nothing(volumes: NodeVolumes, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(100_000)
        raise ConnectionResetError("gone")

    target = str(tmp_path / "disk")
    bomb = await asyncio.to_thread(gzip.compress, bytes(64 << 20))
    with pytest.raises(ConnectionResetError):
        await volumes.import_disk(broken(), target)
    with pytest.raises(TooLarge, match="larger than the limit of 1048576 bytes"):
        await volumes.import_disk(chunks(bomb), target, max_bytes=1 << 20)
    with pytest.raises(Invalid, match="cut short"):
        await volumes.import_disk(chunks(gzip.compress(bytes(1 << 20))[:-9]), target)
    with pytest.raises(Invalid, match="empty"):
        await volumes.import_disk(chunks(b""), target)
    assert os.listdir(tmp_path) == ["data"]


async def test_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounts.tmpfs(str(small), size_bytes=2 << 20)
    try:
        volumes = await NodeVolumes.open(small)
        source = tmp_path / "source"
        source.mkdir()
        (source / "big").write_bytes(bytes(range(256)) * 16384)
        volume = await volumes.create("data")
        with pytest.raises(HostFault, match="No space left on device"):
            await volumes.populate(volume, str(source))
        with pytest.raises((HostFault, TooLarge), match=r"(?i)no space left on device"):
            await volumes.import_disk(chunks(os.urandom(4 << 20)), str(small / "disk"))
        await volumes.remove("data")
        assert sorted(os.listdir(small)) == ["disks", "volumes"]
    finally:
        mounts.unmount(small)
