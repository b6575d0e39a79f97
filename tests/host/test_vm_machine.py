"""Real machines under QEMU: the demo image booted, used, stopped, and taken back after Insula was killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from host.vm_support import MIB, demo_machine, expect, machine_spec, remove, until_logged
from insula.drivers.driver import Capability, Handle, Phase
from insula.drivers.vm import VmDriver
from insula.drivers.vm.create import pidfile_of
from insula.drivers.vm.machine import data_of
from insula.errors import Conflict, HostFault, Unsupported
from insula.host import pidfd, qemu
from insula.host.qmp import Monitor
from insula.images.machine import MachineFiles
from insula.model.instance import Disk, InstanceSpec, MachineConfig, Resources
from insula.volumes.seed import seed_iso

pytestmark = [pytest.mark.root, pytest.mark.vm]

Make = Callable[..., Awaitable[tuple[InstanceSpec, Handle]]]


@pytest.fixture(scope="module")
def demo() -> MachineFiles:
    return demo_machine()


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[VmDriver]:
    made = VmDriver(tmp_path / "run")
    yield made
    await made.close()


@pytest.fixture
async def make(driver: VmDriver, tmp_path: Path) -> AsyncIterator[Make]:
    """Create machines that are removed after the test, whatever happened to them."""
    made: list[tuple[InstanceSpec, Handle]] = []

    async def create(spec: InstanceSpec) -> tuple[InstanceSpec, Handle]:
        handle = await driver.create(spec)
        made.append((spec, handle))
        return spec, handle

    yield create
    for spec, handle in made:
        await remove(driver, handle, spec)


def booting(folder: Path, demo: MachineFiles, **more: object) -> InstanceSpec:
    return machine_spec(folder, kernel=str(demo.kernel), initrd=str(demo.initrd), **more)  # type: ignore[arg-type]


async def test_a_machine_boots_to_a_login_and_obeys_its_power_button(
    driver: VmDriver, make: Make, tmp_path: Path, demo: MachineFiles
) -> None:
    spec, handle = await make(booting(tmp_path, demo))
    assert (await driver.recover(handle)).phase is Phase.CREATED
    streams = await driver.attach(handle)
    reader, writer = await asyncio.open_unix_connection(await driver.console(handle, Capability.CONSOLE))

    pid = await driver.start(handle)
    assert (await driver.recover(handle)).pid == pid
    assert Path(f"/proc/{pid}/status").read_text().split("Uid:\t")[1].split("\t")[0] != "0"
    await expect(reader, b"login: ")
    writer.write(b"root\n")
    await expect(reader, b"# ")
    writer.write(b"wget -q -O - http://127.0.0.1/; id -u\n")
    page = await expect(reader, b"\r\n0\r\n")
    assert b"<h1>Hello from insula-linux</h1>" in page

    seen = b""
    async for _, chunk in streams.read():  # the second viewer saw all of it from the first byte on
        seen += chunk
        if b"</h1>" in seen:
            break
    assert seen.index(b"login: ") < seen.index(b"Hello from insula-linux")
    await streams.close()
    writer.close()

    stats = await driver.stats(handle)
    assert stats.cpu_total_ns > 0
    assert stats.memory_bytes > 16 * MIB
    assert await driver.pids(handle) == [pid]
    waiting = asyncio.create_task(driver.wait(handle))
    end = await driver.stop(handle, signal.SIGTERM, 30)
    assert (end.code, end.message) == (0, "")
    assert (await waiting).code == 0
    assert (await driver.recover(handle)).phase is Phase.EXITED
    assert b"login: " in Path(spec.log_path).read_bytes()
    with pytest.raises(Conflict):
        await driver.pause(handle)


async def test_a_disk_boots_by_bios(driver: VmDriver, make: Make, tmp_path: Path, demo: MachineFiles) -> None:
    disk = Disk(name="root", path=str(demo.disk), format="raw", readonly=True, serial="D1")
    spec, handle = await make(machine_spec(tmp_path, disks=(disk,)))
    await driver.start(handle)
    await until_logged(spec.log_path, b"login: ")
    assert (await driver.stats(handle)).read_bytes > 10 * MIB


async def test_a_cdrom_on_sata_boots(driver: VmDriver, make: Make, tmp_path: Path, demo: MachineFiles) -> None:
    disk = Disk(name="cd", path=str(demo.disk), format="raw", bus="sata", cdrom=True)
    spec, handle = await make(machine_spec(tmp_path, disks=(disk,)))
    await driver.start(handle)
    await until_logged(spec.log_path, b"login: ")


async def test_the_demo_machine_reads_its_cloud_init_seed(
    driver: VmDriver, make: Make, tmp_path: Path, demo: MachineFiles
) -> None:
    user_data = """#cloud-config
hostname: seeded
password: "s3cret"
packages: [vim]
runcmd:
- echo "from runcmd $(hostname)"
- [echo, flow, list]
- 'echo quoted'
"""
    seed = tmp_path / "seed.iso"
    seed.write_bytes(seed_iso({"user-data": user_data, "meta-data": "local-hostname: other\n"}))
    disk = Disk(name="seed", path=str(seed), format="raw", readonly=True)
    spec, handle = await make(booting(tmp_path, demo, disks=(disk,)))
    await driver.start(handle)
    seen = await until_logged(spec.log_path, b"seeded login: ")
    for line in (b"from runcmd seeded", b"flow list", b"quoted", b"packages is not supported by this machine"):
        assert line in seen
    streams = await driver.attach(handle)
    await streams.write(b"root\n")
    await until_logged(spec.log_path, b"Password: ")
    await streams.write(b"s3cret\n")
    await until_logged(spec.log_path, b"root@seeded")
    await streams.close()


async def test_a_microvm_boots_on_kvm_and_is_refused_without(
    driver: VmDriver, make: Make, tmp_path: Path, demo: MachineFiles
) -> None:
    config = MachineConfig(machine_type="microvm", memory_bytes=160 * MIB)
    spec = booting(tmp_path, demo, config=config)
    if (await driver.probe()).facts["accelerator"] == "tcg":
        with pytest.raises(Unsupported, match="needs KVM"):
            await driver.create(spec)
        return
    _, handle = await make(spec)
    await driver.start(handle)
    await until_logged(spec.log_path, b"login: ")
    with pytest.raises(Conflict, match="no graphics card"):
        await driver.console(handle, Capability.VNC)
    assert (await driver.stop(handle, signal.SIGTERM, 20)).code == 0


async def test_after_a_crash_of_insula_a_new_driver_takes_the_machine_back(
    driver: VmDriver, make: Make, tmp_path: Path, demo: MachineFiles
) -> None:
    spec, handle = await make(booting(tmp_path, demo))
    pid = await driver.start(handle)
    await until_logged(spec.log_path, b"login: ")
    await driver.close()  # the connections go, as with the process

    stored = msgspec.json.decode(msgspec.json.encode(handle), type=Handle)
    again = VmDriver(tmp_path / "run")
    status = await again.recover(stored)
    assert (status.phase, status.pid) == (Phase.RUNNING, pid)
    reader, writer = await asyncio.open_unix_connection(await again.console(stored, Capability.CONSOLE))
    writer.write(b"\n")
    await expect(reader, b"login: ")
    writer.close()
    waiting = asyncio.create_task(again.wait(stored))
    assert (await again.stop(stored, signal.SIGTERM, 30)).code == 0
    assert (await waiting).code == 0
    await again.close()


async def test_an_end_that_nobody_saw_is_told_afterwards(
    driver: VmDriver, make: Make, tmp_path: Path, demo: MachineFiles
) -> None:
    spec, handle = await make(booting(tmp_path, demo))
    await driver.start(handle)
    await until_logged(spec.log_path, b"login: ")
    await driver.close()
    monitor = await Monitor.connect(data_of(handle).socket("monitor"))
    await monitor.execute("system_powerdown")
    async with asyncio.timeout(30):
        while (await monitor.execute("query-status"))["status"] != "shutdown":
            await asyncio.sleep(0.1)
    await monitor.close()

    again = VmDriver(tmp_path / "run")
    status = await again.recover(handle)
    assert status.phase is Phase.EXITED
    assert status.exit is not None
    assert status.exit.code == 0
    assert (await again.wait(handle)).code == 0
    assert not pidfd.alive(data_of(handle).process)
    await again.close()


async def test_a_panic_ends_with_code_1(driver: VmDriver, make: Make, tmp_path: Path, demo: MachineFiles) -> None:
    spec, handle = await make(booting(tmp_path, demo))
    await driver.start(handle)
    await until_logged(spec.log_path, b"login: ")
    streams = await driver.attach(handle)
    await streams.write(b"root\n")
    await until_logged(spec.log_path, b"# ")
    await streams.write(b"echo c >/proc/sysrq-trigger\n")
    end = await asyncio.wait_for(driver.wait(handle), 30)
    await streams.close()
    assert (end.code, end.message) == (1, "The guest's kernel panicked.")


async def test_pause_reset_and_the_plug(driver: VmDriver, make: Make, tmp_path: Path) -> None:
    _, handle = await make(machine_spec(tmp_path))  # nothing to boot: the firmware is guest enough
    await driver.start(handle)
    await driver.pause(handle)
    assert (await driver.recover(handle)).phase is Phase.PAUSED
    with pytest.raises(Conflict):
        await driver.pause(handle)
    await driver.resume(handle)
    assert (await driver.recover(handle)).phase is Phase.RUNNING
    with pytest.raises(Conflict):
        await driver.resume(handle)
    await driver.reset(handle)
    with pytest.raises(Unsupported, match="signal 10"):
        await driver.kill(handle, signal.SIGUSR1)
    waiting = asyncio.create_task(driver.wait(handle))
    await driver.kill(handle, signal.SIGKILL)
    assert (await waiting).code == 137
    assert (await driver.stop(handle, signal.SIGTERM, 10)).code == 137


async def test_qemu_killed_from_outside(driver: VmDriver, make: Make, tmp_path: Path) -> None:
    _, handle = await make(machine_spec(tmp_path))
    pid = await driver.start(handle)
    waiting = asyncio.create_task(driver.wait(handle))
    os.kill(pid, signal.SIGKILL)
    end = await asyncio.wait_for(waiting, 5)
    assert end.code == 137
    assert "without a word" in end.message
    await driver.delete(handle)
    await driver.delete(handle)


async def test_vnc_answers_rfb(driver: VmDriver, make: Make, tmp_path: Path) -> None:
    _, handle = await make(machine_spec(tmp_path, config=MachineConfig(memory_bytes=64 * MIB)))
    reader, writer = await asyncio.open_unix_connection(await driver.console(handle, Capability.VNC))
    assert await asyncio.wait_for(reader.readexactly(4), 10) == b"RFB "
    writer.close()


async def test_create_again_after_a_crash_in_the_middle(driver: VmDriver, make: Make, tmp_path: Path) -> None:
    spec = machine_spec(tmp_path)
    lost = await driver.create(spec)  # the ledger never heard of it
    _, handle = await make(spec)
    assert handle.data["pid"] != lost.data["pid"]
    assert not pidfd.alive(data_of(lost).process)
    assert [found.pid for found in qemu.find_strays(pidfile_of(spec.directory))] == [handle.data["pid"]]


async def test_what_qemu_refuses_is_told_and_leaves_nothing(driver: VmDriver, tmp_path: Path) -> None:
    spec = machine_spec(tmp_path, disks=(Disk(name="gone", path="/nonexistent/disk", format="raw"),))
    with pytest.raises(HostFault, match="No such file or directory") as caught:
        await driver.create(spec)
    assert caught.value.command is not None
    assert not qemu.find_strays(pidfile_of(spec.directory))
    handle = Handle(
        driver="vm",
        id=spec.id,
        directory=spec.directory,
        data={
            "pid": 0, "start": 0, "boot": "", "sockets": str(tmp_path / "run/vm" / spec.id[:12]), "screen": False,
            "cgroup": f"{spec.cgroup_parent}/{spec.id}", "accelerator": "tcg", "memory_bytes": 0,
        },
    )  # fmt: skip
    await remove(driver, handle, spec)


async def test_limits_hold_for_qemu(driver: VmDriver, make: Make, tmp_path: Path) -> None:
    limits = Resources(cpu_quota_us=50_000, cpu_period_us=100_000, memory_bytes=512 * MIB)
    _, handle = await make(machine_spec(tmp_path, resources=limits))
    assert (await driver.stats(handle)).memory_limit_bytes == 512 * MIB
    await driver.update(handle, Resources(memory_bytes=600 * MIB))
    assert (await driver.stats(handle)).memory_limit_bytes == 600 * MIB


async def test_a_stuck_viewer_does_not_hold_up_the_guest(
    driver: VmDriver, make: Make, tmp_path: Path, demo: MachineFiles
) -> None:
    spec, handle = await make(booting(tmp_path, demo))
    stuck = socket.socket(socket.AF_UNIX)
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    stuck.connect(await driver.console(handle, Capability.CONSOLE))
    await driver.start(handle)
    await until_logged(spec.log_path, b"login: ")
    streams = await driver.attach(handle)
    await streams.write(b"root\n")
    await until_logged(spec.log_path, b"# ")
    await streams.write(b"yes 0123456789012345678901234567890123456789 | head -c 1600000; echo; echo do''ne\n")
    await until_logged(spec.log_path, b"done\r\n", 60)
    await streams.close()
    stuck.close()


async def test_overhead_beyond_raw_qemu_is_small(driver: VmDriver, make: Make, tmp_path: Path) -> None:
    """The budget is 100 ms from start to the first guest instruction beyond what QEMU itself needs."""
    await driver.probe()
    _, handle = await make(machine_spec(tmp_path))
    argv = Path(f"/proc/{handle.data['pid']}/cmdline").read_bytes().decode().split("\0")[:-1]
    raw = await asyncio.to_thread(_raw_qemu_s, argv, tmp_path)
    began = time.monotonic()
    _, handle = await make(machine_spec(tmp_path))
    await driver.start(handle)
    ours = time.monotonic() - began
    print(f"raw QEMU {raw * 1000:.0f} ms, through the driver {ours * 1000:.0f} ms")
    assert ours - raw < 0.3  # a generous bound for a busy machine; `make bench` measures the budget


def _raw_qemu_s(argv: list[str], folder: Path) -> float:
    """The same QEMU started bare: until its monitor answers `cont`."""
    plain = [word for word in argv if word != "-S"]
    plain[plain.index("-pidfile") + 1] = str(folder / "raw.pid")
    listeners = []
    for index, word in enumerate(plain):
        if word.startswith("socket,id="):
            listener = qemu.listen(str(folder / f"raw{len(listeners)}"))
            fd = word.split("fd=")[1].split(",")[0]
            plain[index] = word.replace(f"fd={fd}", f"fd={listener.fileno()}")
            listeners.append(listener)
    fds = [listener.fileno() for listener in listeners]
    began = time.monotonic()
    child = subprocess.Popen(plain, pass_fds=fds, stderr=sys.stderr)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / "raw0"))
            client.settimeout(20)
            client.recv(4096)
            client.sendall(b'{"execute":"qmp_capabilities"}{"execute":"cont"}')
            answers = b""
            while answers.count(b'"return"') < 2:
                answers += client.recv(4096)
        return time.monotonic() - began
    finally:
        child.kill()
        child.wait()
        for listener in listeners:
            listener.close()
