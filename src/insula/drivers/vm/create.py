"""The steps from a specification to a QEMU that waits, stopped, for `cont`. Each step pushes its undo."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from insula import tasks
from insula.drivers.driver import Handle
from insula.drivers.vm import envelope
from insula.drivers.vm.argv import qemu_arguments
from insula.drivers.vm.launch import Firmware, Launch, has_screen
from insula.drivers.vm.machine import Data, remove_traces, stderr_file
from insula.drivers.vm.probe import Found
from insula.errors import HostFault, Invalid, Unavailable
from insula.host import cgroups, pidfd, qemu, spawn
from insula.host.cgroups import Group, Layout
from insula.host.pidfd import ProcessId
from insula.host.qmp import Monitor
from insula.model.instance import InstanceSpec, MachineSpec

# Users of machines: one per machine, out of the range that systemd leaves to nobody (its UIDS-GIDS: 1879048192 and up).
_FIRST_UID = 0x7000_0000
_UIDS = 0x0F00_0000


def uid_of(id: str) -> int:
    """The user that a machine's QEMU runs as."""
    return _FIRST_UID + int(id[:16], 16) % _UIDS


def sockets_of(runtime_dir: Path, id: str) -> Path:
    """The folder of a machine's sockets: short, for a socket's path is."""
    return runtime_dir / id[:12]


def pidfile_of(directory: str) -> str:
    """QEMU's pid file, which also marks its command line."""
    return str(Path(directory, "qemu.pid"))


def group_of(layout: Layout, spec: InstanceSpec) -> Group:
    """The control group of a machine."""
    return Group(layout=layout, path=f"{spec.cgroup_parent.strip('/')}/{spec.id}")


def launch_of(
    spec: InstanceSpec, found: Found, sockets: Path, fds: tuple[int, int], firmware: Firmware | None
) -> Launch:
    """What QEMU is started with. Pure."""
    return Launch(
        binary=found.binary,
        version=(found.version.major, found.version.minor),
        accelerator=found.accelerator,
        id=spec.id,
        name=spec.name or spec.id[:12],
        monitor_fd=fds[0],
        serial_fd=fds[1],
        vnc=str(sockets / "vnc"),
        serial_log=spec.log_path,
        pidfile=pidfile_of(spec.directory),
        uid=uid_of(spec.id),
        firmware=firmware,
    )


async def create(spec: InstanceSpec, found: Found, runtime_dir: Path, layout: Layout) -> tuple[Handle, Monitor]:
    """Start QEMU with the guest stopped. Raises Invalid, Unsupported, HostFault with QEMU's last words."""
    machine, sockets = spec.machine, sockets_of(runtime_dir, spec.id)
    if machine is None:
        raise Invalid("A machine needs its hardware described.", field="machine")
    async with AsyncExitStack() as undo:
        await _clear(spec, sockets)
        undo.push_async_callback(remove, spec.directory, sockets, group_of(layout, spec))
        firmware = await tasks.in_thread(_firmware, spec.directory) if machine.config.firmware == "efi" else None
        lines = [undo.enter_context(qemu.listen(str(sockets / name))) for name in ("monitor", "line")]
        argv = qemu_arguments(
            machine, launch_of(spec, found, sockets, (lines[0].fileno(), lines[1].fileno()), firmware)
        )
        child = qemu.start(argv, pass_fds=[line.fileno() for line in lines], stderr_path=stderr_file(spec.directory))
        undo.push_async_callback(_stop, child)
        for line in lines:
            line.close()  # so that a QEMU that dies refuses us instead of leaving us waiting
        monitor, process = await _greet(spec, child, argv, sockets, layout)
        undo.push_async_callback(monitor.close)
        handle = Handle(
            driver="vm",
            id=spec.id,
            directory=spec.directory,
            data=msgspec.to_builtins(_data(spec, machine, process, sockets, found)),
        )
        undo.pop_all()
    return handle, monitor


def _data(spec: InstanceSpec, machine: MachineSpec, process: ProcessId, sockets: Path, found: Found) -> Data:
    return Data(
        pid=process.pid,
        start=process.start,
        boot=pidfd.boot_id(),
        sockets=str(sockets),
        cgroup=f"{spec.cgroup_parent.strip('/')}/{spec.id}",
        screen=has_screen(machine.config),
        accelerator=found.accelerator,
        memory_bytes=machine.config.memory_bytes,
        start_paused=machine.config.start_paused,
    )


async def _greet(
    spec: InstanceSpec, child: spawn.Child, argv: list[str], sockets: Path, layout: Layout
) -> tuple[Monitor, ProcessId]:
    """Connect to the new QEMU and, meanwhile, put it into its control group."""
    process = pidfd.identify(child.pid)
    entering = asyncio.create_task(
        tasks.in_thread(envelope.enter, group_of(layout, spec), child.pid, spec.resources), name="vm/cgroup"
    )
    try:
        monitor = await Monitor.connect(str(sockets / "monitor"), deadline_s=20)
        await monitor.execute("query-status")  # answered only when everything is set up
    except Unavailable as fault:
        await asyncio.wait([entering])
        words = qemu.last_words(stderr_file(spec.directory))
        raise HostFault(
            f"QEMU cannot start the machine {spec.name}: {words.splitlines()[-1] if words else fault}",
            command=spawn.command(argv),
            stderr=words,
        ) from fault
    except BaseException:
        await asyncio.wait([entering])
        raise
    try:
        await entering
        if process is None:
            raise HostFault(f"QEMU ended right after its start; see {stderr_file(spec.directory)}.")
    except BaseException:
        await monitor.close()
        raise
    return monitor, process


async def _stop(child: spawn.Child) -> None:
    child.kill(signal.SIGKILL)
    await child.wait()


async def _clear(spec: InstanceSpec, sockets: Path) -> None:
    """Remove what an attempt that was killed left, and make the folders."""
    await end_strays(spec.directory)

    def prepare() -> None:
        remove_traces(spec.directory)
        Path(pidfile_of(spec.directory)).unlink(missing_ok=True)
        sockets.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(sockets, ignore_errors=True)
        sockets.mkdir(mode=0o700)
        if spec.log_path:
            Path(spec.log_path).parent.mkdir(parents=True, exist_ok=True)

    await tasks.in_thread(prepare)


async def end_strays(directory: str) -> None:
    """Kill every QEMU of this folder. None is there in the ordinary case, and then only /proc is read."""
    for process in await tasks.in_thread(qemu.find_strays, pidfile_of(directory)):
        pidfd.send(process, signal.SIGKILL)
        await pidfd.gone(process)


def _firmware(directory: str) -> Firmware:
    code, template = qemu.find_firmware()
    variables = Path(directory, "uefi-variables.fd")
    if not variables.exists():  # they outlive a restart of the machine
        fresh = variables.with_suffix(f".{os.getpid()}.new")
        shutil.copyfile(template, fresh)
        fresh.rename(variables)
    return Firmware(code=code, variables=str(variables))


async def remove(directory: str, sockets: Path, group: Group) -> None:
    """Remove process, control group and sockets. Repeatable."""
    await end_strays(directory)
    await tasks.in_thread(cgroups.remove, group)
    await tasks.in_thread(shutil.rmtree, sockets, ignore_errors=True)
    await tasks.in_thread(Path(pidfile_of(directory)).unlink, missing_ok=True)
    await tasks.in_thread(remove_traces, directory)
