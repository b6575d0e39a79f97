"""One running machine as this process knows it: its monitor, its console, and how it ended.

What is true is kept by others: QEMU's own run state, its process, and `exit.json` once the end is known. This object can
be made again from a handle at any time (`Machine.adopt`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from insula import clock, tasks
from insula.drivers.driver import Exit, Handle, Phase
from insula.drivers.vm.console import Console
from insula.errors import InsulaError, Unavailable
from insula.host import pidfd, qemu
from insula.host.pidfd import ProcessId
from insula.host.qmp import Event, Monitor, Subscription
from insula.tasks import Tasks

QUIT_S = 5.0
PULLED_PLUG = 128 + signal.SIGKILL


class Data(Struct, frozen=True, kw_only=True):
    """What a handle's `data` holds, version 1. `boot` tells whether pid and start still mean anything."""

    pid: int
    start: int
    boot: str
    sockets: str  # folder of monitor, line, console and vnc
    cgroup: str
    screen: bool
    accelerator: str
    memory_bytes: int
    start_paused: bool = False

    @property
    def process(self) -> ProcessId:
        """QEMU's process."""
        return ProcessId(self.pid, self.start)

    def socket(self, name: str) -> str:
        """The path of one of the sockets."""
        return str(Path(self.sockets, name))

    def here(self) -> bool:
        """Whether QEMU runs."""
        return self.boot == pidfd.boot_id() and pidfd.alive(self.process)


def data_of(handle: Handle) -> Data:
    """Read a handle. Raises Unavailable for one of a newer Insula."""
    if handle.version != 1:
        raise Unavailable(
            f"The machine {handle.id[:12]} was started by a newer Insula (handle version {handle.version})."
        )
    return msgspec.convert(handle.data, Data)


def exit_file(directory: str) -> Path:
    """Where the way that a machine ended is kept."""
    return Path(directory, "exit.json")


def stderr_file(directory: str) -> str:
    """Where QEMU's own messages go."""
    return str(Path(directory, "qemu.log"))


def read_exit(directory: str) -> Exit | None:
    """How it ended, if that was written down."""
    try:
        return msgspec.json.decode(exit_file(directory).read_bytes(), type=Exit)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_exit(directory: str, end: Exit) -> None:
    """Write it down, whole or not at all."""
    file = exit_file(directory)
    fresh = file.with_suffix(f".{os.getpid()}.new")
    fresh.write_bytes(msgspec.json.encode(end))
    fresh.rename(file)


def has_traces(directory: str) -> bool:
    """Whether a machine was made here and not removed since."""
    return exit_file(directory).exists() or Path(stderr_file(directory)).exists()


def remove_traces(directory: str) -> None:
    """Remove what `create` and the end left; the log and UEFI's variables are the engine's. Repeatable."""
    exit_file(directory).unlink(missing_ok=True)
    Path(stderr_file(directory)).unlink(missing_ok=True)


# How QEMU's run states (QMP reference, RunState) look to the engine. An ended guest waits as a stopped QEMU.
_PHASES = {
    "prelaunch": Phase.CREATED,
    "inmigrate": Phase.CREATED,
    "running": Phase.RUNNING,
    "suspended": Phase.RUNNING,
    "shutdown": Phase.EXITED,
    "guest-panicked": Phase.EXITED,
    "internal-error": Phase.EXITED,
}


def phase_of(status: str) -> Phase:
    """The phase for a run state; every other one is a pause of some kind."""
    return _PHASES.get(status, Phase.PAUSED)


def end_of(status: str) -> tuple[int, str] | None:
    """Exit code and sentence when a run state means that the guest has ended."""
    match status:
        case "shutdown":
            return 0, ""
        case "guest-panicked":
            return 1, "The guest's kernel panicked."
        case "internal-error":
            return 1, "The accelerator could not go on with the guest (internal error)."
        case _:
            return None


class Machine:
    """A machine that runs, with its connections. `exit` is done when it has ended and QEMU is gone."""

    def __init__(self, handle: Handle, monitor: Monitor, oom_killed: Callable[[], bool]) -> None:
        self.handle = handle
        self.data = data_of(handle)
        self.monitor = monitor
        self.console = Console(self.data.socket("console"), self.data.socket("line"))
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._oom_killed = oom_killed
        self._tasks = Tasks(f"vm/{handle.id[:12]}")

    @classmethod
    async def adopt(cls, handle: Handle, oom_killed: Callable[[], bool], *, monitor: Monitor | None = None) -> Machine:
        """Connect to a QEMU that runs (again). Raises Unavailable, DeadlineExceeded."""
        if monitor is None:
            monitor = await Monitor.connect(data_of(handle).socket("monitor"))
        machine = cls(handle, monitor, oom_killed)
        events = monitor.subscribe()
        try:
            status = await machine.status()
            await machine.console.open()
        except BaseException:
            events.close()
            await machine.close()
            raise
        machine._tasks.spawn(machine._follow(events, status), "follow")
        return machine

    async def status(self) -> str:
        """QEMU's run state."""
        return str((await self.monitor.execute("query-status"))["status"])

    async def phase(self) -> Phase:
        """How it is. One that was started paused has not run an instruction yet, and QEMU cannot tell it from a new one."""
        phase = phase_of(await self.status())
        held = phase is Phase.CREATED and await tasks.in_thread(self._held_file.exists)
        return Phase.PAUSED if held else phase

    async def let_run(self) -> None:
        """Start the guest, or only count it as started when it shall begin paused."""
        if self.data.start_paused:
            await tasks.in_thread(self._held_file.touch)
        else:
            await self.monitor.execute("cont")

    @property
    def _held_file(self) -> Path:
        return Path(self.data.socket("held"))

    async def execute(self, command: str, **arguments: Any) -> Any:
        """One command to the monitor."""
        return await self.monitor.execute(command, **arguments)

    async def pull_plug(self) -> None:
        """End it now. It has ended when `exit` is done."""
        await self._finish(Exit(code=PULLED_PLUG, finished_at=_now()))

    async def close(self) -> None:
        """Let go of it; QEMU goes on."""
        await self._tasks.close()
        await self.console.close()
        await self.monitor.close()
        if not self.exit.done():
            self.exit.cancel()

    async def _follow(self, events: Subscription, status: str) -> None:
        """Wait for the end, by QEMU's word or by its process going away."""
        end = end_of(status)
        with contextlib.suppress(Unavailable):
            while end is None:
                end = await self._end_after(await events.next())
        events.close()
        if end is not None:
            await self._finish(Exit(code=end[0], finished_at=_now(), message=end[1]))
        elif not self.exit.done():
            await self._vanished()

    async def _end_after(self, event: Event) -> tuple[int, str] | None:
        if event.name == "STOP":
            return end_of(await self.status())
        if event.name == "SHUTDOWN" and event.data.get("reason") == "host-signal":
            return 128 + signal.SIGTERM, "QEMU was asked to end by a signal."
        return None

    async def _finish(self, end: Exit) -> None:
        """Write the end down, then end QEMU: a crash in between loses nothing."""
        directory = self.handle.directory
        known = await tasks.in_thread(read_exit, directory)
        if known is None:
            await tasks.in_thread(write_exit, directory, end)
        with contextlib.suppress(InsulaError):
            await self.monitor.execute("quit", deadline_s=QUIT_S)
        if not await pidfd.gone_within(self.data.process, QUIT_S):
            pidfd.send(self.data.process, signal.SIGKILL)
            await pidfd.gone(self.data.process)
        self._settle(known or end)

    async def _vanished(self) -> None:
        """The monitor is gone without a word: QEMU was killed, or it crashed, or only the connection broke."""
        await pidfd.gone(self.data.process)
        end = await tasks.in_thread(read_exit, self.handle.directory)
        if end is None:
            end = await tasks.in_thread(lost, self.handle.directory, self._oom_killed())
        self._settle(end)

    def _settle(self, end: Exit) -> None:
        if not self.exit.done():
            self.exit.set_result(end)


def lost(directory: str, oom_killed: bool) -> Exit:
    """The end of a QEMU that was killed from outside or crashed, with its last words; written down."""
    words = qemu.last_words(stderr_file(directory)).splitlines()
    why = (
        "The kernel killed QEMU for want of memory." if oom_killed else "QEMU ended without a word of the guest's end."
    )
    end = Exit(
        code=PULLED_PLUG,
        oom_killed=oom_killed,
        finished_at=_now(),
        message=f"{why} Its last words: {words[-1]}" if words else why,
    )
    write_exit(directory, end)
    return end


def _now() -> str:
    return clock.rfc3339_nano(clock.now())
