"""Mounts of instances: volumes with options, subpaths, read-only with all below, how mounts spread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.engine_support import Home, config, home, opened, run
from insula.engine.node import NodeEngine
from insula.errors import HostFault, NotFound
from insula.host import mounts
from insula.model.instance import MountConfig

pytestmark = pytest.mark.root

TMPFS = {"type": "tmpfs", "device": "tmpfs", "o": "size=2m"}
LONG = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.02; done")


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


@pytest.fixture
async def engine(place: Home):
    async with opened(place) as made:
        yield made


def volume(name: str, target: str, **more: object) -> MountConfig:
    return MountConfig(kind="volume", source=name, target=target, **more)  # type: ignore[arg-type]


async def test_a_volume_with_options_is_mounted_while_it_is_used(engine: NodeEngine) -> None:
    made = await engine.volumes.create("mem", options=TMPFS)
    first, second = [
        await engine.create(config(*LONG, name=name, mounts=(volume("mem", "/data"),))) for name in ("a", "b")
    ]
    assert not mounts.is_mounted(made.path)
    await engine.start(first.id)
    await engine.start(second.id)
    _, out, _ = await run(engine, config("grep", " /data ", "/proc/mounts", mounts=(volume("mem", "/data"),)))
    assert out.startswith(b"tmpfs /data tmpfs rw,") and b"size=2048k" in out
    await engine.stop(first.id, timeout_s=0)
    assert mounts.is_mounted(made.path)
    await engine.stop(second.id, timeout_s=0)
    assert not mounts.is_mounted(made.path)


async def test_a_restart_keeps_what_runs_and_drops_the_rest(place: Home) -> None:
    async with opened(place, destroy=False) as engine:
        used, idle = [await engine.volumes.create(name, options=TMPFS) for name in ("used", "idle")]
        made = await engine.create(config(*LONG, name="a", mounts=(volume("used", "/data"),)))
        await engine.start(made.id)
        await engine.volumes.take("idle", "somebody")
    async with opened(place) as again:
        assert mounts.is_mounted(used.path) and not mounts.is_mounted(idle.path)
        await again.stop(made.id, timeout_s=0)
        assert not mounts.is_mounted(used.path)


async def test_a_start_that_cannot_mount_is_undone(engine: NodeEngine) -> None:
    await engine.volumes.create("gone", options={"type": "none", "o": "bind", "device": "/nonexistent-folder"})
    made = await engine.create(config("true", mounts=(volume("gone", "/data"),)))
    with pytest.raises(HostFault, match="failed to mount local volume: mount /nonexistent-folder:"):
        await engine.start(made.id)
    state = (await engine.get(made.id)).state
    assert (state.name, "no such file or directory" in state.error) == ("created", True)


async def test_a_subpath_stays_inside_of_its_volume(engine: NodeEngine) -> None:
    made = await engine.volumes.create("data")
    inside = Path(made.path) / "sub"
    inside.mkdir()
    (inside / "file").write_text("mine")
    mount = volume("data", "/mnt", subpath="sub")
    _, out, _ = await run(engine, config("cat", "/mnt/file", mounts=(mount,)))
    assert out == b"mine"
    wanted = await engine.create(config("ls", "/mnt", name="later", mounts=(mount,)))
    inside.rename(Path(made.path) / "other")
    inside.symlink_to("/etc")  # as a container that writes to the volume could
    with pytest.raises(NotFound, match="cannot access path"):
        await engine.start(wanted.id)
    inside.unlink()
    inside.symlink_to("other")
    state, out, _ = await run(engine, config("cat", "/mnt/file", mounts=(mount,)))
    assert (state.exit_code, out) == (0, b"mine")


async def test_what_is_mounted_below_is_read_only_too(engine: NodeEngine, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    mounts.tmpfs(str(below))
    try:
        for kind, code in (("", 1), ("must", 1), ("never", 0)):
            mount = MountConfig(kind="bind", source=str(tmp_path), target="/m", readonly=True, readonly_below=kind)  # type: ignore[arg-type]
            state, _, _ = await run(engine, config("sh", "-c", f"touch /m/below/{os.getpid()}", mounts=(mount,)))
            assert state.exit_code == code, kind
        alone = MountConfig(kind="bind", source=str(tmp_path), target="/m", options=("bind",))
        _, out, _ = await run(engine, config("ls", "/m/below", mounts=(alone,)))
        assert out == b""
    finally:
        mounts.unmount(below)


async def test_mounts_spread_where_the_host_lets_them(engine: NodeEngine, tmp_path: Path) -> None:
    folder = tmp_path / "spread"
    folder.mkdir()
    mounts.bind(str(folder), str(folder), propagation="private")
    try:
        bind = MountConfig(kind="bind", source=str(folder), target="/m", propagation="rslave")
        made = await engine.create(config("true", mounts=(bind,)))
        with pytest.raises(HostFault, match="but it is not a shared or slave mount"):
            await engine.start(made.id)
        mounts.set_propagation(str(folder), "shared")
        (folder / "late").mkdir()
        started = await engine.start((await engine.create(config(*LONG, mounts=(bind,)))).id)
        mounts.tmpfs(str(folder / "late"))
        (folder / "late/seen").touch()
        try:
            assert Path(f"/proc/{started.state.pid}/root/m/late/seen").exists()
        finally:
            await engine.stop(started.id, timeout_s=0)
            mounts.unmount(folder / "late", lazy=True)
    finally:
        mounts.unmount(folder, lazy=True)
