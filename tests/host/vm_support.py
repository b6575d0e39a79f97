"""What the tests of machines share: a kernel and an initramfs, unpacked once, and specifications for small machines."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import secrets
from pathlib import Path

import owned
from insula.drivers.driver import Handle
from insula.drivers.vm import VmDriver
from insula.host import cgroups
from insula.images.machine import MachineFiles, build
from insula.model.instance import Disk, InstanceSpec, MachineConfig, MachineSpec, Resources, Tap

MIB = 1024 * 1024


def machine_spec(
    folder: Path,
    *,
    kernel: str = "",
    initrd: str = "",
    kernel_args: str = "console=ttyS0 quiet",
    disks: tuple[Disk, ...] = (),
    taps: tuple[Tap, ...] = (),
    config: MachineConfig | None = None,
    resources: Resources | None = None,
    id: str = "",
) -> InstanceSpec:
    id = id or secrets.token_hex(32)
    owned.note(f"insula-test-{id[:8]}")
    directory = folder / id[:8]
    directory.mkdir(exist_ok=True)
    config = config or MachineConfig(memory_bytes=160 * MIB, graphics=False)
    machine = MachineSpec(
        config=config, disks=disks, taps=taps, kernel=kernel, initrd=initrd, kernel_args=kernel_args if kernel else ""
    )
    return InstanceSpec(
        id=id,
        name=f"vm-{id[:6]}",
        directory=str(directory),
        log_path=str(directory / "serial.log"),
        cgroup_parent=f"insula-test-{id[:8]}",
        resources=resources or Resources(),
        machine=machine,
    )


async def until_logged(path: str, text: bytes, deadline_s: float = 60) -> bytes:
    """Wait until the serial log holds a text."""
    async with asyncio.timeout(deadline_s):
        while True:
            data = Path(path).read_bytes() if Path(path).exists() else b""
            if text in data:
                return data
            await asyncio.sleep(0.05)


async def expect(reader: asyncio.StreamReader, text: bytes, deadline_s: float = 60) -> bytes:
    """Read from a console until a text was seen; everything read is returned."""
    seen = b""
    async with asyncio.timeout(deadline_s):
        while text not in seen:
            chunk = await reader.read(4096)
            if not chunk:
                raise EOFError(f"console ended; seen {seen[-500:]!r}")
            seen += chunk
    return seen


async def remove(driver: VmDriver, handle: Handle, spec: InstanceSpec) -> None:
    """End a machine and its traces, the parent control group too."""
    await driver.stop(handle, 15, 0)
    await driver.delete(handle)
    await driver.close()
    for root in set(cgroups.detect().roots.values()):
        with contextlib.suppress(FileNotFoundError):
            Path(root, spec.cgroup_parent).rmdir()


def demo_machine() -> MachineFiles:
    """The demo machine, built once per host and recipe; test processes beside this one wait for it."""
    cache = Path.home() / ".cache" / "insula-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return asyncio.run(build(cache))
