"""The `vm` driver: level 2, machines on QEMU. KVM where a probe shows that it runs guests, TCG otherwise.

QEMU holds the machine and outlives Insula; what this process keeps in memory can be made again from a handle. Log: the
serial line's bytes as they came (`log_format` "raw"), appended by QEMU itself to the instance's log file.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import NoReturn

from insula import tasks
from insula.drivers.driver import Capability, ExecHandle, Exit, Handle, LogFormat, Phase, Probe, Stats, Status, Streams
from insula.drivers.vm import create as steps
from insula.drivers.vm import envelope
from insula.drivers.vm.console import ConsoleStreams
from insula.drivers.vm.machine import (
    PULLED_PLUG,
    Data,
    Machine,
    data_of,
    end_of,
    has_traces,
    lost,
    read_exit,
)
from insula.drivers.vm.probe import Accelerators
from insula.drivers.vm.stats import OomCheck, combine, read_counters
from insula.errors import Conflict, InsulaError, Unavailable, Unsupported
from insula.host import cgroups, pidfd
from insula.host.cgroups import Group, Layout
from insula.model.instance import InstanceSpec, Process, Resources

_BUTTON = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPWR}
_PRESS_AGAIN_S = 3.0  # a guest that is still coming up has nobody yet to see the first press
_ADOPT_S = 10.0


class VmDriver:
    """See the module. `runtime_dir` holds sockets; its path must be short and may vanish at a reboot, as machines do."""

    name = "vm"
    level = 2
    summary = "virtual machines on QEMU, with KVM or emulated"
    log_format: LogFormat = "raw"
    capabilities = frozenset(
        {
            Capability.ATTACH,
            Capability.PAUSE,
            Capability.UPDATE,
            Capability.STATS,
            Capability.TOP,
            Capability.CONSOLE,
            Capability.VNC,
            Capability.RESET,
        }
    )

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir / "vm"
        self._accelerators = Accelerators(self._runtime_dir)
        self._machines: dict[str, Machine] = {}
        self._adopting = asyncio.Lock()
        self._layout: Layout | None = None

    async def probe(self) -> Probe:
        """Runs a tiny guest the first time after a boot (at most 1.5 s); no other verb but `create` waits for that."""
        try:
            found = await self._accelerators.find()
        except Unavailable as fault:
            return Probe(available=False, notes=(f"No virtual machines: {fault}.",))
        facts = {"accelerator": found.accelerator, "reason": found.reason, "binary": found.binary}
        return Probe(available=True, version=found.version.text, notes=(found.reason + ".",), facts=facts)

    async def create(self, spec: InstanceSpec) -> Handle:
        """QEMU runs, the guest does not yet."""
        await self._forget(spec.id)
        found = await self._accelerators.find()
        handle, monitor = await steps.create(spec, found, self._runtime_dir, await self._cgroups())
        try:
            self._machines[spec.id] = await Machine.adopt(handle, self._oom_check(handle), monitor=monitor)
        except BaseException:
            await monitor.close()
            await steps.end_strays(spec.directory)
            raise
        return handle

    async def start(self, handle: Handle) -> int:
        """Let the guest run."""
        machine = await self._machine(handle)
        await machine.let_run()
        return machine.data.pid

    async def kill(self, handle: Handle, signal: int) -> None:
        """SIGTERM, SIGINT, SIGHUP and SIGPWR press the power button, SIGKILL and SIGQUIT pull the plug."""
        machine = await self._machine(handle)
        await _signal(machine, signal)

    async def stop(self, handle: Handle, signal: int, grace_s: float) -> Exit:
        """Press the button, again every three seconds, until `grace_s` are over; then pull the plug."""
        machine = await self._running(handle)
        if machine is None:
            return await self._ended(handle)
        if grace_s > 0 and await machine.phase() in (Phase.RUNNING, Phase.PAUSED):
            await _press_until(machine, signal, grace_s)
        if not machine.exit.done():
            await machine.pull_plug()
        return await asyncio.shield(machine.exit)

    async def wait(self, handle: Handle) -> Exit:
        """0 when the guest shut itself down, 1 when its kernel panicked, 137 when the plug was pulled."""
        machine = await self._running(handle)
        return await asyncio.shield(machine.exit) if machine else await self._ended(handle)

    async def recover(self, handle: Handle) -> Status:
        """Find it by pid and start time, and connect again."""
        data = data_of(handle)
        machine = await self._running(handle)
        if machine is None:
            if not await tasks.in_thread(has_traces, handle.directory):
                return Status(phase=Phase.GONE)
            return Status(phase=Phase.EXITED, exit=await self._ended(handle))
        status = await machine.status() if machine.monitor.alive else ""
        if not status or end_of(status) is not None:
            return Status(phase=Phase.EXITED, exit=await asyncio.shield(machine.exit))
        return Status(phase=await machine.phase(), pid=data.pid)

    async def delete(self, handle: Handle) -> None:
        """Remove process, control group and sockets."""
        await self._forget(handle.id)
        data = data_of(handle)
        await steps.remove(handle.directory, Path(data.sockets), await self._group(data))

    async def attach(self, handle: Handle) -> Streams:
        """The serial line, as one of its viewers."""
        return await ConsoleStreams.connect((await self._machine(handle)).console)

    async def resize(self, handle: Handle, width: int, height: int) -> NoReturn:
        """A serial line does not know a size."""
        raise Unsupported("A machine's serial line has no size; use stty inside the guest.")

    async def exec(self, handle: Handle, exec_id: str, process: Process) -> ExecHandle:
        """Not without an agent in the guest."""
        raise Unsupported("Programs cannot be started inside a machine from outside; use its console.")

    async def pause(self, handle: Handle) -> None:
        """Stop its CPUs."""
        machine = await self._machine(handle)
        if await machine.phase() is not Phase.RUNNING:
            raise Conflict("The machine does not run, it cannot be paused.")
        await machine.execute("stop")

    async def resume(self, handle: Handle) -> None:
        """Let its CPUs go on."""
        machine = await self._machine(handle)
        if await machine.phase() is not Phase.PAUSED:
            raise Conflict("The machine is not paused.")
        await machine.execute("cont")

    async def update(self, handle: Handle, resources: Resources) -> None:
        """Change QEMU's limits; the hardware that the guest sees stays."""
        await tasks.in_thread(envelope.limit, await self._group(data_of(handle)), resources)

    async def stats(self, handle: Handle) -> Stats:
        """CPU, memory and processes as the host counts them for QEMU; disk traffic as the guest caused it."""
        machine = await self._machine(handle)
        blocks = await machine.execute("query-blockstats")
        counted = await tasks.in_thread(read_counters, await self._group(machine.data))
        return combine(counted, blocks, machine.data.memory_bytes)

    async def pids(self, handle: Handle) -> list[int]:
        """QEMU's."""
        return [(await self._machine(handle)).data.pid]

    async def console(self, handle: Handle, kind: Capability) -> str:
        """CONSOLE serves any number of viewers; VNC is QEMU's own."""
        machine = await self._machine(handle)
        if kind is Capability.CONSOLE:
            return machine.console.path
        if kind is not Capability.VNC:
            raise Unsupported(f"A machine has no {kind} socket; console and vnc are there.")
        if not machine.data.screen:
            raise Conflict("This machine has no graphics card, so no VNC.")
        return machine.data.socket("vnc")

    async def reset(self, handle: Handle) -> None:
        """As the button does; the guest is not asked."""
        await (await self._machine(handle)).execute("system_reset")

    async def close(self) -> None:
        """Let go of all machines; they go on."""
        for id in list(self._machines):
            await self._forget(id)

    async def _machine(self, handle: Handle) -> Machine:
        """Its live connection. Raises Conflict when it has ended."""
        machine = await self._running(handle)
        if machine is None or not machine.monitor.alive:
            raise Conflict("The machine has ended.")
        return machine

    async def _running(self, handle: Handle) -> Machine | None:
        """Its live connection, made again where it was lost; None when QEMU is gone."""
        async with self._adopting:
            machine = self._machines.get(handle.id)
            if machine is not None and machine.data != data_of(handle):
                await self._forget(handle.id)  # another start of the same instance
                machine = None
            if machine is not None and machine.exit.done():
                return None
            if (machine is not None and machine.monitor.alive) or not data_of(handle).here():
                return machine  # one whose QEMU is gone is about to settle how it ended
            if machine is not None:
                await self._forget(handle.id)
            return await self._adopt(handle)

    async def _adopt(self, handle: Handle) -> Machine | None:
        try:
            machine = await Machine.adopt(handle, self._oom_check(handle))
        except InsulaError:
            if not await pidfd.gone_within(data_of(handle).process, _ADOPT_S):
                raise
            return None
        self._machines[handle.id] = machine
        return machine

    async def _forget(self, id: str) -> None:
        if machine := self._machines.pop(id, None):
            await machine.close()

    async def _ended(self, handle: Handle) -> Exit:
        """How a machine ended whose QEMU is gone."""
        if end := await tasks.in_thread(read_exit, handle.directory):
            return end
        if not await tasks.in_thread(has_traces, handle.directory):
            return Exit(code=PULLED_PLUG, message="The machine was removed.")
        if data_of(handle).boot != pidfd.boot_id():
            return Exit(code=PULLED_PLUG, message="The host was restarted.")
        oom_killed = await tasks.in_thread(self._oom_check(handle))
        return await tasks.in_thread(lost, handle.directory, oom_killed)

    def _oom_check(self, handle: Handle) -> OomCheck:
        return OomCheck(self._layout or cgroups.detect(), data_of(handle).cgroup)

    async def _cgroups(self) -> Layout:
        if self._layout is None:
            self._layout = await tasks.in_thread(cgroups.detect)
        return self._layout

    async def _group(self, data: Data) -> Group:
        return Group(layout=await self._cgroups(), path=data.cgroup)


async def _signal(machine: Machine, signum: int) -> None:
    if signum in (signal.SIGKILL, signal.SIGQUIT):
        await machine.pull_plug()
    elif signum in _BUTTON:
        await machine.execute("system_powerdown")
    else:
        raise Unsupported(
            f"A machine does not take signal {signum}; SIGTERM presses its power button, SIGKILL pulls the plug."
        )


async def _press_until(machine: Machine, signum: int, grace_s: float) -> None:
    """Keep pressing the button until it ends or the time is over. A paused guest is let go, or it could not obey."""
    deadline = asyncio.get_running_loop().time() + grace_s
    if await machine.phase() is Phase.PAUSED:
        await machine.execute("cont")
    while not machine.exit.done():
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            return
        try:
            await _signal(machine, signum)
        except Unavailable:
            left = max(left, 1.0)  # it is ending: `exit` will tell
        await asyncio.wait([machine.exit], timeout=min(left, _PRESS_AGAIN_S))
