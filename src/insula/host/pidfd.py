"""Processes without races: a pid is used only together with its start time, and signals and waits go through a pidfd.

A pid alone may have been given to another process since it was written down; pid and start time (pidfd_open(2), field 22 of
proc_pid_stat(5)) name one process for as long as the machine runs, which `boot_id` tells apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path

from msgspec import Struct


class ProcessId(Struct, frozen=True):
    """One process: pid, and start time in clock ticks since boot."""

    pid: int
    start: int


def boot_id() -> str:
    """Changes at every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    """The fields of proc_pid_stat(5) from the third (state) on; the name may hold blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def identify(pid: int) -> ProcessId | None:
    """Name the process that has this pid now; None when there is none."""
    fields = _stat(pid) if pid > 0 else None
    return ProcessId(pid, int(fields[19])) if fields else None


def parent(pid: int) -> int:
    """The pid of its parent, 0 when it is gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def alive(process: ProcessId) -> bool:
    """Whether it runs; a zombie has ended."""
    fields = _stat(process.pid) if process.pid > 0 else None
    return fields is not None and int(fields[19]) == process.start and fields[0] not in "ZX"


def open_fd(process: ProcessId) -> int | None:
    """A pidfd that the caller closes; None when the process is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except (ProcessLookupError, ValueError, OSError):
        return None
    if identify(process.pid) != process:
        os.close(fd)
        return None
    return fd


def send(process: ProcessId, signum: int) -> bool:
    """Signal it. False when it is gone."""
    fd = open_fd(process)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def wake(future: asyncio.Future[None]) -> None:
    """Let whoever waits go on. Repeatable."""
    if not future.done():
        future.set_result(None)


async def gone(process: ProcessId) -> None:
    """Return when it has ended, at once if it has. Holds one descriptor meanwhile."""
    fd = open_fd(process)
    if fd is None:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, wake, ended)
    try:
        await ended
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def gone_within(process: ProcessId, deadline_s: float) -> bool:
    """Whether it ended within `deadline_s` seconds."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gone(process), deadline_s)
        return True
    return False


def children(process: ProcessId) -> list[ProcessId]:
    """Its children now (proc_pid_task_children(5))."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    return [child for child in map(identify, found) if child]


def end(processes: Sequence[ProcessId], *, deadline_s: float = 5.0) -> None:
    """Kill them and wait for their end, in a thread of the caller's. Returns after the deadline in any case."""
    limit = time.monotonic() + deadline_s
    fds = [fd for fd in map(open_fd, processes) if fd is not None]
    try:
        for fd in fds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        for fd in fds:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(max(0.0, limit - time.monotonic()) * 1000)
    finally:
        for fd in fds:
            os.close(fd)


async def settle(work: Awaitable[object]) -> None:
    """Finish work that must not be left half done although the caller is being cancelled (reaping a child)."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
