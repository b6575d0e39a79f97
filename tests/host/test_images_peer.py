"""Archives exchanged with a real dockerd: what it saves we load, what we save it loads."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.images_support import chunks, collect, docker_archive, layer_tar

from insula.host import mounts
from insula.images.store import NodeImages

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.skipif(not shutil.which("dockerd"), reason="dockerd (package docker.io) is not installed"),
]


class Peer:
    """A private dockerd."""

    def __init__(self, folder: Path) -> None:
        self.socket = f"unix://{folder}/docker.sock"
        self._folder = folder

    async def docker(self, *arguments: str, stdin: bytes = b"") -> bytes:
        argv = ["docker", "-H", self.socket, *arguments]
        done = await asyncio.to_thread(subprocess.run, argv, input=stdin, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    # A folder of its own: below pytest's, the path of containerd's socket is longer than the 107 bytes that unix(7) allows.
    folder = Path(tempfile.mkdtemp(prefix="insula-peer-"))
    found = Peer(folder)
    argv = [
        "dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-H", found.socket,
        "-p", f"{folder}/pid", "--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false",
    ]  # fmt: skip
    log = (folder / "log").open("wb")
    child = await asyncio.to_thread(subprocess.Popen, argv, stdout=log, stderr=log)
    log.close()
    try:
        for _ in range(300):
            if child.poll() is not None:
                break
            asked = ["docker", "-H", found.socket, "version"]
            if not (await asyncio.to_thread(subprocess.run, asked, capture_output=True)).returncode:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.skip("dockerd does not start here")
        if child.poll() is not None:
            pytest.skip(f"dockerd does not start here: {(folder / 'log').read_text()[-300:]}")
        yield found
    finally:
        child.terminate()
        await asyncio.to_thread(child.wait, 30)
        mounts.unmount_below(folder)
        await asyncio.to_thread(shutil.rmtree, folder)


async def test_archives_go_both_ways(peer: Peer, tmp_path: Path) -> None:
    store = await NodeImages.open(tmp_path / "data")
    demo = await store.add_demo()
    base = layer_tar({"etc": None, "etc/a": b"1", "etc/b": b"1"})
    upper = layer_tar({"etc/.wh.a": b"", "etc/b": b"2"})
    (stacked,) = await store.load(chunks(docker_archive([base, upper], ["stacked:1", "stacked:2"])))
    ours = await collect(store.save(["busybox:latest", "insula/busybox", "stacked"]))
    said = (await peer.docker("load", stdin=ours)).decode()
    assert {line.removeprefix("Loaded image: ") for line in said.splitlines()} == {
        "busybox:latest", "insula/busybox:latest", "stacked:1", "stacked:2",
    }  # fmt: skip
    listed = (await peer.docker("images", "--no-trunc", "-q")).decode().split()
    assert set(listed) == {demo.id, stacked.id}

    theirs = await peer.docker("save", "busybox:latest", "stacked:1")
    other = await NodeImages.open(tmp_path / "other")
    loaded = await other.load(chunks(theirs, 1 << 20))
    assert {image.id for image in loaded} == {demo.id, stacked.id}
    image = await other.get("stacked:1")
    assert Path(await other.file(image, "/etc/b")).read_text() == "2"
    await peer.docker("import", "-", "imported:1", stdin=base)
    (imported,) = await other.load(chunks(await peer.docker("save", "imported:1")))
    assert imported.names == ("imported:1",) and Path(await other.file(imported, "/etc/a")).read_text() == "1"
    await store.close()
    await other.close()
