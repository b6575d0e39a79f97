"""The OCI runtimes that can be used, and what is done to a container without forking them.

`runc start` is no more than opening the fifo on which the container's init waits and taking one byte out of it (libcontainer's
`exec.fifo`), which saves 10 ms. crun's fifo works the other way round, and crun starts in 2 ms, so it is run.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from msgspec import Struct

from insula.drivers.oci.faults import refusal
from insula.errors import DeadlineExceeded, HostFault
from insula.host import pidfd, spawn
from insula.host.conmon import readable
from insula.host.pidfd import ProcessId

PREFERRED = ("crun", "runc")
START_DEADLINE_S = 30.0
EXEC_DEADLINE_S = 5.0


class Runtime(Struct, frozen=True, kw_only=True):
    """A runtime program and the folder in which it keeps its state."""

    name: str
    path: str
    root: str
    conmon: str = ""
    version: str = ""

    def state(self, id: str) -> Path:
        """The runtime's own folder for one container."""
        return Path(self.root, id)

    def command(self, *words: str) -> list[str]:
        """A command line of this runtime."""
        return [self.path, "--root", self.root, *words]


def find(program: str) -> str:
    """The path of a helper program, empty when it is not installed."""
    return shutil.which(program, path=spawn.ENVIRONMENT["PATH"] + ":/usr/libexec/podman:/usr/libexec/crio") or ""


async def start(runtime: Runtime, id: str, init: ProcessId) -> None:
    """Let a created container run. Raises HostFault when its init has died, DeadlineExceeded."""
    fifo = runtime.state(id) / "exec.fifo"
    if runtime.name == "runc" and fifo.exists():
        await _start_by_fifo(fifo, init)
        return
    argv = runtime.command("start", id)
    done = await spawn.run(argv, deadline_s=START_DEADLINE_S, check=False)
    if done.code != 0:
        raise refusal(done.stderr.decode(errors="replace"), "start", spawn.command(argv))


async def _start_by_fifo(fifo: Path, init: ProcessId) -> None:
    """Take the byte that the waiting init writes; then the fifo goes, as the sign that the container was started."""
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        ready, dead = asyncio.ensure_future(readable(fd)), asyncio.ensure_future(pidfd.gone(init))
        try:
            await asyncio.wait({ready, dead}, timeout=START_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done() and not dead.done():
                raise DeadlineExceeded(f"The container's init did not answer within {START_DEADLINE_S:g} s.")
        finally:
            ready.cancel()
            dead.cancel()
            await asyncio.wait({ready, dead})
        if not _take(fd):
            raise HostFault("cannot start a container that has stopped", code=128)
    finally:
        os.close(fd)
    fifo.unlink(missing_ok=True)


async def own_program(runtime: Runtime, id: str, init: ProcessId) -> None:
    """Return when a container that was started runs its own program and no longer the runtime's init, which would answer a
    signal in its own way: that of runc, a Go program and the first of its pid namespace, ends with code 2 on any. The kernel
    tells nobody of an execve, which is a few milliseconds away here."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + EXEC_DEADLINE_S
    while _is_init(runtime, init.pid) and not (runtime.state(id) / "exec.fifo").exists() and loop.time() < limit:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def _is_init(runtime: Runtime, pid: int) -> bool:
    """Whether a process still is the runtime's: runc says so in its name; else by the program, which is the installed one or a
    copy of it in memory."""
    try:
        if Path(f"/proc/{pid}/comm").read_bytes().startswith(b"runc:["):
            return True
        program = Path(f"/proc/{pid}/exe")
        return program.samefile(runtime.path) or "/memfd:" in str(program.readlink())
    except OSError:
        return False


def _take(fd: int) -> bytes:
    try:
        return os.read(fd, 16)
    except BlockingIOError:
        return b""


async def version(path: str) -> str:
    """The first line of `--version`: `runc version 1.1.5`."""
    done = await spawn.run([path, "--version"], deadline_s=10, check=False)
    lines = done.stdout.decode(errors="replace").splitlines()
    return lines[0].strip() if lines else ""
