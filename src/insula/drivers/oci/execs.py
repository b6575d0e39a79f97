"""Processes started beside a container's first one: conmon again, in exec mode, with files of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from insula import clock
from insula.drivers.driver import Exit
from insula.drivers.oci import faults, state, streams
from insula.drivers.oci.spec import process_object
from insula.drivers.oci.state import Container
from insula.drivers.oci.streams import AttachedStreams
from insula.errors import DeadlineExceeded, HostFault, Unavailable
from insula.host import capabilities, conmon, pidfd
from insula.host.conmon import Launch, Pipe, RuntimeRefused
from insula.host.pidfd import ProcessId
from insula.model.instance import Process
from insula.tasks import in_thread

DEADLINE_S = 60.0
WISH = "asked.json"  # the process as the engine asked for it


class HeldExec:
    """An exec by the files of its conmon: what can be known and done of one that was started before Insula was. `ExecHandle`
    of the driver contract, without streams."""

    def __init__(self, folder: Path, process: ProcessId | None, pid: int, monitor: ProcessId | None = None) -> None:
        self.pid = pid
        self._folder = folder
        self._process = process
        self._monitor = monitor
        self._exit = asyncio.ensure_future(self._follow())

    @property
    def streams(self) -> AttachedStreams:
        """Raises Unavailable: they ended with the Insula that had them."""
        raise Unavailable("the streams of this exec ended when Insula was restarted")

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters. Nothing happens when it has ended."""
        with contextlib.suppress(HostFault):
            conmon.resize(self._folder, width, height)

    async def wait(self) -> Exit:
        """Its exit. May be asked again."""
        return await asyncio.shield(self._exit)

    async def ended_within(self, deadline_s: float) -> None:
        """Return when it has ended, at the latest after the deadline."""
        await asyncio.wait({self._exit}, timeout=deadline_s)

    async def kill(self, signal: int) -> None:
        """Signal it."""
        if self._process:
            pidfd.send(self._process, signal)

    def on_end(self, call: Callable[[HeldExec], None]) -> None:
        """Have something called when it has ended."""
        self._exit.add_done_callback(lambda _: call(self))

    async def let_go(self) -> None:
        """Insula ends: the process goes on."""
        self._exit.cancel()
        await asyncio.wait({self._exit})

    async def _follow(self) -> Exit:
        """Wait for conmon, which ends right after it wrote the exit code, then remove the files."""
        if self._monitor:
            await pidfd.gone(self._monitor)
        return await self._ended(conmon.read_number(self._folder / "persist" / "exit"))

    async def _ended(self, code: int | None) -> Exit:
        await in_thread(shutil.rmtree, self._folder, ignore_errors=True)
        if code is None:
            return state.lost(state.KILLED, "its monitor (conmon) died")
        return Exit(code=code, finished_at=clock.rfc3339_nano(clock.now()))


class RunningExec(HeldExec):
    """One that this Insula started: with its streams, and told of its end."""

    def __init__(
        self, folder: Path, process: ProcessId | None, pid: int, attached: AttachedStreams, pipe: Pipe
    ) -> None:
        self._attached = attached
        self._pipe = pipe
        super().__init__(folder, process, pid)

    @property
    def streams(self) -> AttachedStreams:
        """Its streams, connected before it ran."""
        return self._attached

    async def _follow(self) -> Exit:
        """Wait for the exit code in conmon's second message, then remove the files."""
        try:
            if self._process:
                await pidfd.gone(self._process)
            self._attached.drain()
            report = await self._pipe.next()
        finally:
            self._pipe.close()
        code = report.data if report and report.data >= 0 else conmon.read_number(self._folder / "persist" / "exit")
        return await self._ended(code)

    async def let_go(self) -> None:
        """Insula ends: close what is open here, the process goes on."""
        await super().let_go()
        self._pipe.close()
        self._attached.abandon()


def process_spec(config: dict[str, Any], process: Process, bounding: tuple[str, ...]) -> dict[str, Any]:
    """The OCI process of an exec: the capabilities and limits of the container, or all capabilities when privileged."""
    first = config["process"]
    caps = bounding if process.privileged else first["capabilities"]["bounding"]
    result = process_object(process, caps, bool(first.get("noNewPrivileges")) and not process.privileged)
    return result | {key: first[key] for key in ("apparmorProfile", "rlimits", "oomScoreAdj") if key in first}


def plan(container: Container, exec_id: str, folder: Path, process: Process, conmon_path: str) -> Launch:
    """How conmon is run for an exec."""
    return Launch(
        conmon=conmon_path,
        runtime=container.data.runtime_path,
        runtime_root=container.data.runtime_root,
        id=container.id,
        uuid=exec_id,
        name=exec_id[:12],
        bundle=str(folder),
        persist=str(folder / "persist"),
        terminal=process.tty,
        stdin=process.open_stdin,
        leave_stdin_open=process.tty,
        exec_spec=str(folder / "process.json"),
    )


def _prepare(container: Container, folder: Path, process: Process) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "persist").mkdir(parents=True, mode=0o700)
    config = msgspec.json.decode((container.bundle / "config.json").read_bytes())
    state.write_json(folder / "process.json", process_spec(config, process, capabilities.bounding()))
    state.write_json(folder / WISH, msgspec.to_builtins(process))


async def found(container: Container) -> list[tuple[str, Process, HeldExec]]:
    """Execs that an Insula before this one started, ended ones too that it did not see end. One whose start was cut short, of
    which nobody was told, is ended."""
    return [
        (folder.name, process, HeldExec(folder, first, first.pid if first else 0, monitor))
        for folder, process, first, monitor in await in_thread(_kept, container.directory / "exec")
    ]


def _kept(base: Path) -> list[tuple[Path, Process, ProcessId | None, ProcessId | None]]:
    kept = []
    for folder in base.glob("*"):
        pid = conmon.read_number(folder / "container.pid")
        try:
            process = msgspec.json.decode((folder / WISH).read_bytes(), type=Process)
        except (OSError, msgspec.MsgspecError):
            pid = None
        if pid is None:
            conmon.end_all(folder)
            shutil.rmtree(folder, ignore_errors=True)
            continue
        monitor = conmon.monitor_of(folder)
        below = pidfd.children(monitor) if monitor else ()
        kept.append((folder, process, next((child for child in below if child.pid == pid), None), monitor))
    return kept


async def start(container: Container, exec_id: str, process: Process, conmon_path: str, tmpdir: str) -> RunningExec:
    """Start a process. conmon opens its socket and says so on the attach pipe, we connect, then one byte on the start pipe
    lets the runtime run: so no byte of output is missed. Raises HostFault with Docker's words and exit code."""
    folder = container.directory / "exec" / exec_id
    await in_thread(_prepare, container, folder, process)
    launch = plan(container, exec_id, folder, process, conmon_path)
    sync, ready, (start_read, start_write) = Pipe(), Pipe(), os.pipe2(os.O_CLOEXEC)
    async with contextlib.AsyncExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        undo.callback(sync.close)
        with contextlib.ExitStack() as ends:
            ends.callback(ready.close)
            ends.callback(os.close, start_write)
            with contextlib.ExitStack() as far_ends:
                far_ends.callback(os.close, start_read)
                far_ends.callback(sync.close_far)
                far_ends.callback(ready.close_far)
                os.write(start_write, b"\n")  # conmon first waits to be placed into a control group
                pipes = {"_OCI_SYNCPIPE": sync.far, "_OCI_ATTACHPIPE": ready.far, "_OCI_STARTPIPE": start_read}
                conmon.launch(launch, pipes, tmpdir=tmpdir).let_go()
            await _answer(launch, ready)
            attached = await streams.connect(folder, closes_stdin=not process.tty, stdin=process.open_stdin, only=True)
            undo.callback(attached.abandon)
            os.write(start_write, b"\n")
        try:
            pid = await conmon.first_report(launch, sync, DEADLINE_S)
        except RuntimeRefused as fault:
            raise faults.refusal(fault.message, "exec", fault.command) from fault
        undo.pop_all()
    return RunningExec(folder, pidfd.identify(pid), pid, attached, sync)


async def _answer(launch: Launch, ready: Pipe) -> None:
    try:
        report = await asyncio.wait_for(ready.next(), DEADLINE_S)
    except TimeoutError as fault:
        raise DeadlineExceeded(f"conmon did not open its socket within {DEADLINE_S:g} s.") from fault
    if report is None or report.data != 0:
        raise HostFault("conmon ended before it opened its socket.", command=" ".join(conmon.arguments(launch)))
