"""The image store: names, archives, instances, sweeping, and being killed."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard
from tests.contract.images_support import (
    chunks,
    collect,
    config_of,
    docker_archive,
    layer_tar,
    left_over,
    oci_parts,
    sha256,
    tar_of,
)

from insula.errors import Conflict, HostFault, Invalid, NotFound, Unsupported
from insula.host import mounts
from insula.images import bounded, flushing
from insula.images.build import FileEntry
from insula.images.contract import ImageStore, Use
from insula.images.store import NodeImages

pytestmark = pytest.mark.root

BASE = layer_tar(
    {"etc": None, "etc/a": b"base", "etc/b": b"base", "d": None, "d/old": b"1", "bin": None, "bin/x": b"#!"}
)
UPPER = layer_tar({"etc/a": b"upper", "etc/.wh.b": b"", "d/.wh..wh..opq": b"", "d/new": b"2"})


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[NodeImages]:
    store = await NodeImages.open(tmp_path / "data")
    await store.recover()
    yield store
    mounts.unmount_below(tmp_path)
    await store.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def test_is_an_image_store(images: NodeImages) -> None:
    store: ImageStore = images
    assert await store.list() == []


async def test_the_demo_image_is_deterministic_and_runs(images: NodeImages, tmp_path: Path) -> None:
    image = await images.add_demo()
    assert image.names == ("busybox:latest", "insula/busybox:latest")
    assert image.config.command == ("sh",)
    other = await NodeImages.open(tmp_path / "other")
    assert (await other.add_demo()).id == image.id
    await other.close()
    rootfs = await images.mount(image, "demo")
    shown = subprocess.run(
        ["chroot", rootfs.path, "/usr/bin/env", "id", "-un"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "root\n"
    assert stat.S_IMODE((Path(rootfs.path) / "tmp").stat().st_mode) == 0o1777
    await images.unmount("demo", remove=True)


async def test_the_short_demo_name_is_left_to_its_owner(images: NodeImages) -> None:
    (mine,) = await images.load(chunks(docker_archive([BASE], ["busybox:latest"])))
    image = await images.add_demo()
    assert image.names == ("insula/busybox:latest",)
    assert (await images.get("busybox")).id == mine.id


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: zstandard.ZstdCompressor().compress(data)])
async def test_loads_docker_archives(images: NodeImages, pack: object) -> None:
    (image,) = await images.load(chunks(pack(docker_archive([BASE, UPPER], ["demo:1", "quay.example/d:2"]))))  # type: ignore[operator]
    assert image.names == ("demo:1", "quay.example/d:2")
    assert image.layers == (sha256(BASE), sha256(UPPER))
    assert (await images.get("demo:1")).config.command == ("sh",)
    rootfs = await images.mount(image, "i1")
    root = Path(rootfs.path)
    assert (root / "etc/a").read_text() == "upper"
    assert not (root / "etc/b").exists()
    assert os.listdir(root / "d") == ["new"]
    assert (root / "bin/x").read_text() == "#!"
    await images.unmount("i1", remove=True)


async def test_loads_oci_layouts_and_compressed_layers(images: NodeImages) -> None:
    packed = [gzip.compress(BASE), zstandard.ZstdCompressor().compress(UPPER)]
    parts = oci_parts(packed, "oci:1")
    config = config_of([BASE, UPPER])
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": {"digest": sha256(config), "size": len(config)},
            "layers": [{"digest": sha256(each), "size": len(each)} for each in packed],
        }
    ).encode()
    index = json.loads(parts["index.json"] or b"")
    index["manifests"][0] |= {"digest": sha256(manifest), "size": len(manifest)}
    parts["index.json"] = json.dumps(index).encode()
    for blob in (config, manifest):
        parts["blobs/" + sha256(blob).replace(":", "/")] = blob
    (image,) = await images.load(chunks(tar_of(parts)))
    assert image.names == ("oci:1",)
    assert image.id == sha256(config)
    path = await images.file(image, "/etc/a")
    assert Path(path).read_text() == "upper"
    with pytest.raises(NotFound):
        await images.file(image, "/etc/b")
    with pytest.raises(NotFound):
        await images.file(image, "/d/old")
    assert (await images.file(image, "/bin")).endswith("/bin/x")  # the only file of a folder stands for it


@pytest.mark.parametrize(
    "case", ["layer", "blob", "size", "missing", "config", "count", "windows", "noise", "empty", "v1", "cut"]
)
async def test_archives_that_lie_leave_nothing(images: NodeImages, data: Path, case: str) -> None:
    archive = {
        "layer": docker_archive([UPPER], ["x:1"], config=config_of([BASE])),
        "blob": tar_of({**oci_parts([BASE], "x:1"), "blobs/" + sha256(BASE).replace(":", "/"): UPPER}),
        "size": tar_of(
            {
                **(parts := oci_parts([BASE], "x:1")),
                "index.json": (parts["index.json"] or b"").replace(b'"size": ', b'"size": 1'),
            }
        ),
        "missing": tar_of({"manifest.json": b'[{"Config":"c.json","RepoTags":null,"Layers":["../../etc/passwd"]}]'}),
        "config": docker_archive([BASE], ["x:1"], config=b"{"),
        "count": docker_archive([BASE, UPPER], ["x:1"], config=config_of([BASE])),
        "windows": docker_archive([BASE], ["x:1"], config=config_of([BASE], os="windows")),
        "noise": os.urandom(100_000),
        "empty": tar_of({"readme": b""}),
        "v1": tar_of({"repositories": b"{}"}),
        "cut": docker_archive([os.urandom(500_000)], ["x:1"])[:300_000],
    }[case]
    with pytest.raises((Invalid, Unsupported)) as fault:
        await images.load(chunks(archive))
    assert len(str(fault.value)) > 15
    assert await images.list() == []
    assert left_over(data) == []


async def test_a_bomb_in_a_layer_leaves_nothing(
    images: NodeImages, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded.Bounded.__init__, "__kwdefaults__", {"bomb_floor_bytes": 1 << 20})

    def build() -> bytes:
        bomb = layer_tar({"zeros": bytes(32 << 20)})
        manifest = [{"Config": "c", "RepoTags": ["x:1"], "Layers": ["l"]}]
        return tar_of(
            {"c": config_of([bomb]), "l": gzip.compress(bomb), "manifest.json": json.dumps(manifest).encode()}
        )

    archive = await asyncio.to_thread(build)
    with pytest.raises(Invalid, match="decompression bomb"):
        await images.load(chunks(archive))
    assert left_over(data) == []


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(images: NodeImages, data: Path) -> None:
    archive = docker_archive([os.urandom(1_000_000)], ["x:1"])

    async def broken() -> AsyncIterator[bytes]:
        yield archive[:400_000]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await images.load(broken())
    assert left_over(data) == []

    async def silent() -> AsyncIterator[bytes]:
        yield archive[:400_000]
        await asyncio.Event().wait()

    task = asyncio.create_task(images.load(silent()))  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left_over(data) == []


async def test_a_full_disk_is_a_clear_fault(images: NodeImages, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounts.tmpfs(str(small), size_bytes=80 << 20)
    try:
        store = await NodeImages.open(small)
        archive = await asyncio.to_thread(lambda: docker_archive([layer_tar({"x": os.urandom(30 << 20)})], ["x:1"]))
        with pytest.raises(HostFault, match=r"(?i)no space left on device"):
            await store.load(chunks(archive, 1 << 20))
        assert await store.list() == [] and left_over(small) == []
        (image,) = await store.load(chunks(docker_archive([BASE], ["ok:1"])))
        assert image.names == ("ok:1",)
        await store.close()
    finally:
        mounts.unmount(small)


async def test_saved_archives_load_with_the_same_ids(images: NodeImages, tmp_path: Path) -> None:
    await images.load(chunks(docker_archive([BASE, UPPER], ["a:1", "a:2"])))
    demo = await images.add_demo()
    archive = await collect(images.save(["a", demo.id]))
    other = await NodeImages.open(tmp_path / "other")
    loaded = await other.load(chunks(archive))
    assert [image.names for image in loaded] == [("a:1", "a:2"), ()]
    assert {image.id for image in loaded} == {image.id for image in await images.list()}
    await other.close()
    with pytest.raises(NotFound, match="No such image: nope"):
        await collect(images.save(["nope"]))
    stream = images.save(["a"])
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await images.remove("a:1", force=True)  # the broken off save holds nothing


async def test_names_move_and_images_dangle(images: NodeImages) -> None:
    (first,) = await images.load(chunks(docker_archive([BASE], ["x:1"])))
    (second,) = await images.load(chunks(docker_archive([UPPER], ["x:1"])))
    assert (await images.get("x:1")).id == second.id
    assert (await images.get(first.id)).names == ()
    await images.tag(first.id[7:19], "y")
    assert (await images.get("y:latest")).id == first.id
    for wrong in ("Y", "../y", "y@" + first.id):
        with pytest.raises(Invalid):
            await images.tag("x:1", wrong)
    with pytest.raises(NotFound, match="No such image: z:latest"):
        await images.tag("z", "w")


async def test_removal_frees_what_nothing_else_needs(images: NodeImages, data: Path) -> None:
    (one,) = await images.load(chunks(docker_archive([BASE], ["one:1"])))
    (two,) = await images.load(chunks(docker_archive([BASE, UPPER], ["two:1"])))
    removed = await images.remove("two:1")
    assert removed[:2] == [("untagged", "two:1"), ("deleted", two.id)] and len(removed) == 3
    assert len(os.listdir(data / "layers")) == 1
    with pytest.raises(Conflict, match="must force"):
        await images.remove("one:1", uses=[Use(image=one.id, instance="f" * 64)])
    with pytest.raises(Conflict, match="must force"):
        await images.remove("one:1", uses=[Use(image=one.id, instance="f" * 64, files=True)])
    await images.remove("one:1")
    assert await images.list() == [] and left_over(data) == []


async def test_an_instance_keeps_its_layers(images: NodeImages, data: Path) -> None:
    (image,) = await images.load(chunks(docker_archive([BASE], ["x:1"])))
    rootfs = await images.mount(image, "i1")
    gone = await images.remove("x:1", force=True, uses=[Use(image=image.id, instance="i1")])
    assert gone == [("untagged", "x:1"), ("deleted", image.id)] and await images.list() == []
    with pytest.raises(NotFound):
        await images.get(image.id)
    assert (await images.held(image.id)).names == ()
    assert (Path(rootfs.path) / "etc/a").read_text() == "base"
    assert len(os.listdir(data / "layers")) == 1
    await images.unmount("i1", remove=False)
    again = await NodeImages.open(data)
    await again.recover()
    assert await again.mount(await again.held(image.id), "i1") == rootfs
    await again.unmount("i1", remove=True)
    await again.unmount("i1", remove=True)
    assert left_over(data) == []  # the last instance takes the image along
    with pytest.raises(NotFound):
        await again.held(image.id)
    await again.close()


async def test_mounts_are_taken_back_after_a_crash(images: NodeImages, data: Path) -> None:
    (image,) = await images.load(chunks(docker_archive([BASE], ["x:1"])))
    rootfs = await images.mount(image, "i1")
    (Path(rootfs.path) / "new").write_text("kept")
    again = await NodeImages.open(data)
    await again.recover()
    assert await again.mount(image, "i1") == rootfs == await again.rootfs("i1")
    assert len(mounts.mount_points(rootfs.path)) == 1
    await again.unmount("i1", remove=False)
    await again.mount(image, "i1", volatile=True)
    await again.unmount("i1", remove=False)
    assert await again.mount(image, "i1") == rootfs  # also over the traces of a volatile mount
    assert (Path(rootfs.path) / "new").read_text() == "kept"
    await again.unmount("i1", remove=True)
    assert not mounts.is_mounted(rootfs.path)
    await again.close()
    with pytest.raises(Invalid):
        await images.mount(image, "../x")


async def test_the_root_folder_is_the_images(images: NodeImages) -> None:
    layer = layer_tar({"./": None, "x": b""})
    (image,) = await images.load(chunks(docker_archive([layer, UPPER], ["x:1"])))
    rootfs = await images.mount(image, "i1")
    assert stat.S_IMODE(Path(rootfs.path).stat().st_mode) == 0o755
    await images.unmount("i1", remove=True)


async def test_an_image_of_120_layers_mounts(images: NodeImages) -> None:
    layers = [layer_tar({f"f{number}": str(number).encode(), "top": str(number).encode()}) for number in range(120)]
    (image,) = await images.load(chunks(docker_archive(layers, ["deep:1"])))
    rootfs = await images.mount(image, "deep")
    root = Path(rootfs.path)
    assert (root / "top").read_text() == "119" and len(os.listdir(root)) == 121
    (root / "top").write_text("changed")
    await images.unmount("deep", remove=True)


async def test_an_image_without_layers_mounts(images: NodeImages) -> None:
    (image,) = await images.load(chunks(docker_archive([], ["scratch:1"])))
    rootfs = await images.mount(image, "i1")
    (Path(rootfs.path) / "x").write_text("1")
    assert os.listdir(rootfs.upper) == ["x"]
    await images.unmount("i1", remove=True)


async def test_commits_what_changed(images: NodeImages) -> None:
    (base,) = await images.load(chunks(docker_archive([BASE], ["x:1"])))
    rootfs = await images.mount(base, "i1")
    root = Path(rootfs.path)
    (root / "etc/a").unlink()
    (root / "d/old").unlink()
    (root / "d").rmdir()
    (root / "d").mkdir()
    (root / "d/fresh").write_text("f")
    (root / "new").write_bytes(b"n" * 100_000)
    os.link(root / "new", root / "linked")
    (root / "tool").write_text("")
    (root / "tool").chmod(0o4755)
    os.chown(root / "tool", 5, 6)
    (root / "tool").chmod(0o4755)
    (root / "sym").symlink_to("/etc/b")
    os.mkfifo(root / "pipe")
    os.setxattr(root / "tool", "user.k", b"\xff\x00v")
    history = {"created_by": "sh", "comment": "why", "author": "me"}
    image = await images.commit(rootfs.upper, base=base, name="y:1", config={"Cmd": ["new"]}, history=history)
    await images.unmount("i1", remove=True)
    assert image.names == ("y:1",) and image.config.command == ("new",) and len(image.layers) == 2
    rows = await images.history("y:1")
    assert [row["CreatedBy"] for row in rows] == ["sh", "layer 0"]
    assert rows[0]["Comment"] == "why" and rows[0]["Id"] == image.id and rows[0]["Size"] == 100_001
    rootfs = await images.mount(image, "i2")
    root = Path(rootfs.path)
    assert sorted(os.listdir(root)) == ["bin", "d", "etc", "linked", "new", "pipe", "sym", "tool"]
    assert os.listdir(root / "etc") == ["b"] and os.listdir(root / "d") == ["fresh"]
    assert (root / "linked").stat().st_nlink == 2
    status = (root / "tool").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4755, 5, 6)
    assert os.getxattr(root / "tool", "user.k") == b"\xff\x00v"
    assert os.readlink(root / "sym") == "/etc/b"
    await images.unmount("i2", remove=True)
    await images.remove("x:1")
    assert (await images.get("y:1")).id == image.id


async def test_imports_a_root_file_system(images: NodeImages, data: Path) -> None:
    image = await images.import_rootfs(
        chunks(gzip.compress(BASE)), name="mine", changes=["CMD echo hi", "ENV A=1"], message="hello"
    )
    assert image.names == ("mine:latest",) and image.layers == (sha256(BASE),)
    assert image.config.command == ("/bin/sh", "-c", "echo hi") and image.config.env == ("A=1",)
    assert (await images.history("mine"))[0]["Comment"] == "hello"
    await images.remove("mine")
    with pytest.raises(Invalid):
        await images.import_rootfs(chunks(b"no tar" * 1000), name="bad")
    with pytest.raises(Invalid, match="RUN is not a valid change command"):
        await images.import_rootfs(chunks(BASE), name="bad", changes=["RUN x"])
    assert left_over(data) == []


async def test_images_from_files(images: NodeImages, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(100_000))
    entries = [FileEntry(path="disk/disk.img", source=str(disk), uid=107, gid=107), FileEntry(path="note", data=b"n")]
    image = await images.add_files_image("insula/disk:1", entries, {"Labels": {"k": "v"}})
    assert image.config.labels == {"k": "v"}
    path = await images.file(image, "/disk")
    assert path == await images.file(image, "disk/disk.img")
    assert Path(path).read_bytes() == disk.read_bytes() and Path(path).stat().st_uid == 107
    assert (await images.add_files_image("insula/disk:2", entries, {"Labels": {"k": "v"}})).id == image.id


async def test_symlinks_in_images_do_not_lead_to_the_host(images: NodeImages) -> None:
    entries = [
        FileEntry(path="etc/real", data=b"inside"),
        FileEntry(path="absolute", link="/etc/real"),
        FileEntry(path="up", link="../../../../etc/real"),
        FileEntry(path="host", link="/etc/hostname"),
        FileEntry(path="loop", link="loop"),
        FileEntry(path="folder", link="/etc"),
    ]
    image = await images.add_files_image("x:1", entries, {})
    for path in ("/absolute", "up", "/folder/real", "/folder/../absolute", "//etc/./real"):
        assert Path(await images.file(image, path)).read_text() == "inside"
    for path in ("/host", "/loop", "/etc/real/x", "/../../../../etc/hostname", "/missing"):
        with pytest.raises(NotFound):
            await images.file(image, path)


async def test_the_same_layers_at_once_are_unpacked_once(images: NodeImages, data: Path) -> None:
    archives = [docker_archive([BASE, UPPER], [f"x:{number}"]) for number in range(6)]
    loaded = await asyncio.gather(*(images.load(chunks(archive)) for archive in archives))
    assert len({image.id for (image,) in loaded}) == 1
    assert (await images.get("x:0")).names == tuple(f"x:{number}" for number in range(6))
    assert len(os.listdir(data / "layers")) == 2


async def test_unsafe_layers_of_an_earlier_boot_are_made_again(images: NodeImages, data: Path) -> None:
    (image,) = await images.load(chunks(docker_archive([BASE], ["x:1"])))
    await images.close()
    (chain,) = os.listdir(data / "layers")
    record = data / "layers" / chain / "layer.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"boot": "another"}))
    (data / "layers" / chain / "diff/etc/a").write_text("")  # as a crash leaves it
    (data / "layers/half").mkdir()
    again = await NodeImages.open(data)
    await again.recover()
    assert os.listdir(data / "layers") == []
    assert Path(await again.file(image, "/etc/a")).read_text() == "base"
    await again.close()


async def test_an_image_that_lost_content_does_not_harm_the_others(images: NodeImages, data: Path) -> None:
    (good,) = await images.load(chunks(docker_archive([BASE], ["good:1"])))
    await images.load(chunks(docker_archive([BASE, UPPER], ["bad:1"])))
    (data / "blobs/sha256" / sha256(UPPER).removeprefix("sha256:")).write_bytes(b"")
    again = await NodeImages.open(data)
    await again.recover()
    assert [image.id for image in await again.list()] == [good.id]
    with pytest.raises(NotFound, match="No such image: bad:1"):
        await again.get("bad:1")
    await again.close()


async def test_layers_become_safe_by_themselves(
    images: NodeImages, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushing, "QUIET_S", 0.05)
    await images.load(chunks(docker_archive([BASE], ["x:1"])))
    (chain,) = os.listdir(data / "layers")
    deadline = time.monotonic() + 20
    while json.loads((data / "layers" / chain / "layer.json").read_text())["boot"] and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert json.loads((data / "layers" / chain / "layer.json").read_text())["boot"] == ""
    while '"boot":"' in (data / "images.json").read_text().replace('"boot":""', "") and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert {entry["boot"] for entry in json.loads((data / "images.json").read_text())["images"].values()} == {""}


@pytest.mark.parametrize("after_ms", [5, 20, 40, 60, 90, 130, 200])
async def test_killed_at_any_moment_of_a_load(images: NodeImages, data: Path, tmp_path: Path, after_ms: int) -> None:
    files: dict[str, bytes | None] = {f"d{number}/f": os.urandom(2000) for number in range(1500)}
    archive = tmp_path / "archive.tar"
    archive.write_bytes(docker_archive([layer_tar(files), UPPER], ["x:1"]))
    await images.close()
    script = """
        import asyncio, sys
        from pathlib import Path
        from insula.images.store import NodeImages
        async def main():
            store = await NodeImages.open(Path(sys.argv[1]))
            await store.recover()
            print("ready", flush=True)
            async def chunks():
                with open(sys.argv[2], "rb") as file:
                    while data := file.read(100_000):
                        yield data
            await store.load(chunks())
            print("loaded", flush=True)
        asyncio.run(main())
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(data), str(archive)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    await asyncio.to_thread(child.stdout.readline)
    await asyncio.sleep(after_ms / 1000)
    child.send_signal(signal.SIGKILL)
    said = await asyncio.to_thread(child.stdout.read)
    child.stdout.close()
    child.wait()
    again = await NodeImages.open(data)
    await again.recover()
    assert os.listdir(data / "tmp") == []
    if "loaded" in said:
        assert (await again.get("x:1")).names == ("x:1",)
    elif not await again.list():
        assert left_over(data) == []
    (image,) = await again.load(chunks(archive.read_bytes()))
    rootfs = await again.mount(image, "i1")
    assert (Path(rootfs.path) / "d1499/f").read_bytes() == files["d1499/f"]
    await again.unmount("i1", remove=True)
    await again.close()
