"""RUN: a container on top of what a stage has come to; what it wrote becomes a layer.

The container belongs to the engine like any other (owner `build`): networks, limits, recovery after a crash are the engine's.
What a run needs beside its root file system (secrets, other stages, caches) is bound in and taken away afterwards.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from msgspec import Struct

from insula.drivers.driver import Channel, Streams
from insula.engine.building.contract import BuildFault, BuildRequest
from insula.engine.building.frame import Frame
from insula.engine.building.saying import failed_run
from insula.engine.building.stubs import Stubs
from insula.engine.building.telling import Told
from insula.engine.contract import Engine, Instance
from insula.engine.records import BUILD
from insula.errors import HostFault, InsulaError, Unsupported
from insula.host.threads import to_end
from insula.images.drafts import Drafts, Sealed
from insula.model.instance import InstanceConfig, MountConfig
from insula.tasks import in_thread

_ALWAYS = ("/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


class Job(Struct, frozen=True, kw_only=True):
    """What to run. `mounts` are binds and tmpfs, resolved; `network` as the request has it."""

    words: tuple[str, ...]
    env: tuple[str, ...] = ()
    mounts: tuple[MountConfig, ...] = ()
    network: str = "default"


async def run(engine: Engine, drafts: Drafts, request: BuildRequest, frame: Frame, job: Job, told: Told) -> Sealed:
    """Run it. Raises BuildFault (it failed), HostFault (it could not be started), NotFound (a network)."""
    config = {name: frame.config[name] for name in ("Env", "User", "WorkingDir") if frame.config.get(name)}
    image = drafts.announce(frame.state, config, frame.platform)
    async with AsyncExitStack() as undo:
        undo.callback(drafts.forget, image)
        # Whoever cancels in the middle does not learn the id, yet the engine carries what it began to its end.
        making = asyncio.ensure_future(engine.create(_config(request, image.id, job)))
        undo.push_async_callback(_remove, engine, making, told)
        id = (await asyncio.shield(making)).id
        told.change(container=id)
        stubs = await in_thread(Stubs.look, (await engine.get(id)).rootfs, _targets(job))
        await _to_end(engine, id, job, request, told)
        upper = await drafts.upper(id)
        await in_thread(stubs.clear, upper)
        sealed = drafts.seal_copy(upper, frame.state) if request.keep_containers else drafts.seal(id, frame.state)
        result = await sealed
        if request.keep_containers:
            undo.pop_all()
        return result
    raise AssertionError("unreachable")


def _targets(job: Job) -> tuple[str, ...]:
    return (*_ALWAYS, *(mount.target for mount in job.mounts))


def _config(request: BuildRequest, image: str, job: Job) -> InstanceConfig:
    network, _, peer = job.network.partition(":")
    return InstanceConfig(
        name="",
        owner="docker" if request.keep_containers else BUILD,
        image=image,
        command=job.words,
        env=job.env,
        hostname=request.hostname,
        mounts=job.mounts,
        network_mode=f"instance:{peer}" if network == "container" else job.network or "default",
        extra_hosts=request.extra_hosts,
        shm_size_bytes=request.shm_size_bytes,
        resources=request.resources,
        ulimits=request.ulimits,
        cgroup_parent=request.cgroup_parent,
        log_driver="none",
        labels={},
    )


async def _to_end(engine: Engine, id: str, job: Job, request: BuildRequest, told: Told) -> None:
    streams = await engine.attach(id)
    reader = asyncio.create_task(_pass_on(streams, told), name=f"build output {id[:12]}")
    try:
        try:
            await engine.start(id)
        except HostFault as fault:
            if fault.code in (126, 127):
                raise BuildFault(fault.message) from fault
            raise
        ended = await engine.wait(id)
        await reader
    finally:
        reader.cancel()
        await asyncio.wait([reader])
        await streams.close()
    if ended.oom_killed:
        told.warn("the step was killed for using more memory than it may")
    if ended.exit_code != 0:
        raise BuildFault(failed_run(request.dialect, job.words, ended.exit_code), code=ended.exit_code)


async def _pass_on(streams: Streams, told: Told) -> None:
    async for channel, data in streams.read():
        told.log(2 if channel is Channel.STDERR else 1, data)


async def _remove(engine: Engine, making: asyncio.Future[Instance], told: Told) -> None:
    await to_end(asyncio.wait([making]))
    if making.cancelled() or making.exception() is not None:
        return
    try:
        await to_end(engine.remove(making.result().id, force=True, volumes=True))
    except InsulaError as fault:
        told.warn(f"the container of this step could not be removed: {fault.message}")
    else:
        told.change(container_removed=True)


# --- secrets ------------------------------------------------------------------------------------------------------


def write_secret(folder: Path, data: bytes, *, mode: int, uid: int, gid: int) -> str:
    """A file below the runtime folder, which is in memory. Blocks."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / secrets.token_hex(8)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, data)
        os.fchown(file, uid, gid)
        os.fchmod(file, mode)
    finally:
        os.close(file)
    return str(path)


def check_socket(path: str) -> str:
    """An agent's socket. Raises Unsupported."""
    if not stat.S_ISSOCK(Path(path).stat().st_mode):
        raise Unsupported(f"{path} is no Unix socket, so no SSH agent answers there")
    return path


def tmpfs(target: str, size_bytes: int | None, **more: Any) -> MountConfig:
    """A tmpfs in a RUN."""
    return MountConfig(kind="tmpfs", target=target, size_bytes=size_bytes, options=("exec",), **more)


def bind(source: str, target: str, *, readonly: bool) -> MountConfig:
    """A folder or file in a RUN."""
    return MountConfig(kind="bind", source=source, target=target, readonly=readonly)
