"""A whole engine in a folder of its own, with names that no other test has, and what tests do with it again and again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import owned
from insula.drivers.driver import Channel, Streams
from insula.engine.contract import Instance, State
from insula.engine.node import NodeEngine
from insula.engine.settings import EnginePaths, EngineSettings
from insula.images import machine
from insula.model.instance import InstanceConfig, MachineConfig

IMAGE = "insula/busybox"
SERVE_DEADLINE_S = 60.0


class Home:
    """Where an engine lives: short paths (Unix sockets), unique names. `engine()` opens it, as often as wanted."""

    def __init__(self, folder: Path | None = None) -> None:
        self.tag = folder.name.rpartition("-")[2] if folder else secrets.token_hex(3)
        self.folder = folder or Path(tempfile.gettempdir()) / f"insula-eng-{self.tag}"
        self.folder.mkdir(exist_ok=True)
        self.paths = EnginePaths(data=self.folder / "d", runtime=self.folder / "r")
        owned.note(str(self.folder), "e" + self.tag[:5], f"engine_{self.tag}", f"engine-{self.tag}")
        octets = bytes.fromhex(self.tag)
        self.settings = EngineSettings(
            prefix="e" + self.tag[:5],
            table=f"engine_{self.tag}",
            cgroup=f"engine-{self.tag}",
            default_subnet=f"10.{octets[0]}.{octets[1]}.0/24",
        )

    @classmethod
    def at(cls, folder: str) -> Home:
        """The same place, as another process sees it."""
        return cls(Path(folder))

    def traces(self) -> dict[str, list[str]]:
        """What this engine has in the kernel now: mounts, interfaces, control groups, processes."""
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        links = [link.name for link in Path("/sys/class/net").iterdir()]
        groups = Path("/sys/fs/cgroup").glob(f"{self.settings.cgroup}")
        old_groups = Path("/sys/fs/cgroup").glob(f"*/{self.settings.cgroup}")
        processes = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    entry.name.isdigit()
                    and int(entry.name) != os.getpid()
                    and str(self.folder).encode() in (entry / "cmdline").read_bytes()
                ):
                    processes.append(entry.name)
        found = {
            "mounts": [mount for mount in mounts if mount.startswith(str(self.folder))],
            "interfaces": [name for name in links if name.startswith(self.settings.prefix)],
            "control groups": [str(path) for path in (*groups, *old_groups)],
            "processes": processes,
        }
        return {what: things for what, things in found.items() if things}

    async def open(self) -> NodeEngine:
        """Open and recover it."""
        engine = await NodeEngine.open(self.paths, self.settings)
        try:
            await engine.recover()
        except BaseException:
            await engine.close()
            raise
        return engine

    def delete(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def home() -> Iterator[Home]:
    """A place for an engine, deleted afterwards."""
    place = Home()
    try:
        yield place
    finally:
        place.delete()


@contextlib.asynccontextmanager
async def opened(place: Home, *, destroy: bool = True, demo: bool = True) -> AsyncIterator[NodeEngine]:
    """An open engine with the demo image; destroyed afterwards."""
    engine = await place.open()
    try:
        if demo and not await engine.images.list():
            await engine.images.add_demo()
        yield engine
    finally:
        await (engine.destroy() if destroy else engine.close())


def config(*command: str, **more: object) -> InstanceConfig:
    """A container of the demo image, without a network unless asked for one."""
    return InstanceConfig(**{"name": "", "image": IMAGE, "command": command, "network_mode": "none", **more})  # type: ignore[arg-type]


def direct_machine(**more: object) -> InstanceConfig:
    """The demo machine, its kernel booted directly."""
    hardware = MachineConfig(
        memory_bytes=160 * 1024 * 1024,
        graphics=False,
        kernel_image=machine.NAME,
        kernel_path=machine.KERNEL_PATH,
        initrd_path=machine.INITRD_PATH,
        kernel_args=machine.KERNEL_ARGUMENTS,
        hostname="vmhost",
    )
    return InstanceConfig(**{"name": "machine", "driver": "vm", "machine": hardware, **more})  # type: ignore[arg-type]


async def collect(streams: Streams) -> dict[Channel, bytes]:
    """All that comes until the end."""
    found = {Channel.STDOUT: b"", Channel.STDERR: b""}
    async for channel, data in streams.read():
        found[channel] += data
    return found


async def run(engine: NodeEngine, wanted: InstanceConfig, stdin: bytes | None = None) -> tuple[State, bytes, bytes]:
    """As `docker run` does it: create, attach, wait, start. Returns the last state, stdout and stderr."""
    instance = await engine.create(wanted)
    streams = await engine.attach(instance.id)
    try:
        ending = asyncio.create_task(engine.wait(instance.id, "removed" if wanted.auto_remove else "next-exit"))
        await asyncio.sleep(0)
        await engine.start(instance.id)
        reading = asyncio.create_task(collect(streams))
        if stdin is not None:
            await streams.write(stdin)
            await streams.close_stdin()
        async with asyncio.timeout(30):
            output, state = await reading, await ending
    finally:
        await streams.close()
    return state, output[Channel.STDOUT], output[Channel.STDERR]


async def until(engine: NodeEngine, id: str, name: str, *, timeout_s: float = 15.0) -> Instance:
    """Wait for a state."""
    async with asyncio.timeout(timeout_s):
        while (instance := await engine.get(id)).state.name != name:
            await asyncio.sleep(0.01)
    return instance


async def fetch_page(host: str, port: int, deadline_s: float = 10.0) -> bytes:
    """One HTTP GET, tried until somebody answers."""
    async with asyncio.timeout(deadline_s):
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            try:
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                data = await reader.read()
            finally:
                writer.close()
                await asyncio.gather(writer.wait_closed(), return_exceptions=True)
            if data:
                return data
