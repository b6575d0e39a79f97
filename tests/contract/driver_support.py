"""What the driver contract is tested with: a `Case` for each level, which knows how to say the same few workloads to it.

Another driver joins by writing a Case and adding it to `CASES`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

import owned
from insula.drivers.driver import Channel, Driver, Handle, Streams
from insula.drivers.microvm import MicrovmDriver
from insula.drivers.oci import OciDriver
from insula.drivers.oci.runtime import Runtime
from insula.host import cgroups, conmon, pidfd
from insula.host.cgroups import Group
from insula.model.instance import Guest, InstanceSpec, Process

if TYPE_CHECKING:
    from insula.images.machine import MachineFiles

APPLETS = (
    "sh",
    "true",
    "false",
    "cat",
    "echo",
    "sleep",
    "ls",
    "id",
    "head",
    "tr",
    "dd",
    "stty",
    "env",
    "kill",
    "wc",
    "ps",
    "tail",
)


class Case(Protocol):
    """One level, as the contract tests use it."""

    name: str

    def driver(self) -> Driver:
        """A fresh driver over the same runtime folder: as after a restart of Insula."""
        ...

    def forever(self) -> InstanceSpec:
        """Runs until SIGTERM, then ends."""
        ...

    def stubborn(self) -> InstanceSpec:
        """Runs and ignores SIGTERM."""
        ...

    def ends(self, code: int) -> InstanceSpec:
        """Ends by itself with this code."""
        ...

    def says(self, text: str) -> InstanceSpec:
        """Writes a line to standard output and ends with 0."""
        ...

    async def ready(self, handle: Handle) -> None:
        """Return when what `forever` or `stubborn` made listens to signals."""
        ...

    def leftovers(self) -> list[str]:
        """What is still there of anything made: files of the runtime, control groups, processes."""
        ...

    async def close(self) -> None:
        """Let go of all drivers made."""
        ...


class OciCase:
    """Containers of the host's busybox."""

    name = "oci"
    _runtime: Runtime | None = None

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.folder = folder
        self.parent = f"insula-test-{secrets.token_hex(4)}"
        owned.note(self.parent)
        self.runtime = Runtime(
            name=runtime.name, path=runtime.path, root=str(folder / "run" / runtime.name), conmon=runtime.conmon
        )
        self.made: list[OciDriver] = []
        self.rootfs = folder / "rootfs"
        (self.rootfs / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", self.rootfs / "bin" / "busybox")
        for applet in APPLETS:
            (self.rootfs / "bin" / applet).symlink_to("busybox")

    @classmethod
    async def make(cls, folder: Path) -> OciCase:
        """Probe once for all tests of this process. INSULA_TEST_RUNTIME names a runtime other than the first that works."""
        if cls._runtime is None:
            found = await OciDriver(folder / "run", runtime=os.environ.get("INSULA_TEST_RUNTIME")).probe()
            assert found.available, found.notes
            cls._runtime = Runtime(
                name=found.facts["runtime"],
                path=found.facts["runtime_path"],
                root="",
                conmon=shutil.which("conmon") or "",
            )
        return cls(folder, cls._runtime)

    def driver(self) -> OciDriver:
        driver = OciDriver(self.folder / "run", cgroup_parent=self.parent)
        driver.adopt(self.runtime)
        self.made.append(driver)
        return driver

    def spec(self, *args: str, **fields: Any) -> InstanceSpec:
        """A container running `args`; fields of Process and of InstanceSpec may be mixed."""
        known = set(Process.__struct_fields__)
        process = Process(
            args=args, env=("PATH=/bin", "HOME=/"), **{k: fields.pop(k) for k in list(fields) if k in known}
        )
        id = secrets.token_hex(32)
        directory = self.folder / "instances" / id
        directory.mkdir(parents=True)
        return InstanceSpec(
            id=id,
            name=id[:12],
            directory=str(directory),
            log_path=str(directory / "log"),
            rootfs=str(self.rootfs),
            process=process,
            **fields,
        )

    def shell(self, script: str, **fields: Any) -> InstanceSpec:
        """A container running a shell script."""
        return self.spec("/bin/sh", "-c", script, **fields)

    def forever(self) -> InstanceSpec:
        return self.shell("trap 'exit 0' TERM; echo ready; while :; do sleep 1000 & wait $!; done")

    def stubborn(self) -> InstanceSpec:
        return self.shell("trap '' TERM; echo ready; sleep 1000")

    def ends(self, code: int) -> InstanceSpec:
        return self.shell(f"exit {code}")

    def says(self, text: str) -> InstanceSpec:
        return self.spec("/bin/echo", text)

    async def ready(self, handle: Handle) -> None:
        for _ in range(2000):
            if b"ready" in Path(handle.directory, "log").read_bytes():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it did not get ready")

    def leftovers(self) -> list[str]:
        left = [str(path) for path in Path(self.runtime.root).glob("[!.]*")]  # crun keeps compiled filters in .cache
        left += [str(p) for p in (self.folder / "instances").glob("*/*") if p.name in ("bundle", "exec", "persist")]
        layout = cgroups.detect()
        for root in layout.roots.values():
            left += [str(path) for path in Path(root, self.parent).glob("*") if path.is_dir()]
        left += [f"conmon {pid}" for pid in monitors(str(self.folder))]
        return left

    async def close(self) -> None:
        for driver in self.made:
            await driver.close()
        for path in (self.folder / "instances").glob("*/bundle"):
            if process := conmon.monitor_of(path):
                pidfd.end([process])
        cgroups.remove(Group(layout=cgroups.detect(), path=self.parent))


def monitors(word: str) -> list[int]:
    """Running conmons whose command line has this word in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if command.split("\0")[0].endswith("conmon") and word in command:
                found.append(int(entry.name))
    return found


async def collect(streams: Streams) -> tuple[bytes, bytes]:
    """All output until the end: standard output, standard error."""
    parts: dict[Channel, list[bytes]] = {Channel.STDOUT: [], Channel.STDERR: []}
    async for channel, data in streams.read():
        parts[channel].append(data)
    return b"".join(parts[Channel.STDOUT]), b"".join(parts[Channel.STDERR])


async def until(streams: Streams, mark: bytes) -> bytes:
    """Output until it holds `mark`."""
    seen = b""
    async for _, data in streams.read():
        seen += data
        if mark in seen:
            return seen
    raise AssertionError(f"{mark!r} did not come, only {seen!r}")


def _guest_files() -> MachineFiles:
    """Loaded on a thread, and only here: other users of this file have no builder of machines."""
    from host.vm_support import demo_machine

    return demo_machine()


class MicrovmCase(OciCase):
    """The same containers, each in a machine of its own."""

    name = "microvm"
    guest: Guest

    @classmethod
    async def make(cls, folder: Path) -> MicrovmCase:
        made = cls(folder, (await OciCase.make(folder / "probe")).runtime)
        built = await asyncio.to_thread(_guest_files)
        made.guest = Guest(kernel=str(built.kernel), initrd=str(built.image_initrd))
        made.runtime = msgspec.structs.replace(made.runtime, root=str(folder / "run" / "microvm" / made.runtime.name))
        return made

    def driver(self) -> MicrovmDriver:  # type: ignore[override]
        driver = MicrovmDriver(self.folder / "run")
        self.others.append(driver)
        return driver

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        super().__init__(folder, runtime)
        self.others: list[MicrovmDriver] = []

    def spec(self, *args: str, **fields: Any) -> InstanceSpec:
        return super().spec(*args, guest=self.guest, cgroup_parent=self.parent, **fields)

    def leftovers(self) -> list[str]:
        kept = [str(p) for p in (self.folder / "instances").glob("*/*") if p.name in ("sandbox", "run", "machine.json")]
        return [*super().leftovers(), *kept]

    async def close(self) -> None:
        for driver in self.others:
            await driver.close()
        await super().close()


CASES: dict[str, Callable[[Path], Awaitable[Any]]] = {"oci": OciCase.make, "microvm": MicrovmCase.make}


async def open_case(name: str, folder: Path) -> AsyncIterator[Any]:
    """A fixture's body: the case, and afterwards the assertion that nothing is left."""
    if os.geteuid() != 0:
        return
    case = await CASES[name](folder)
    try:
        yield case
        left = case.leftovers()
    finally:
        await case.close()
    assert not left, f"left behind: {left}"
