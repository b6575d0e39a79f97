"""conmon(8): the small program that holds a container while Insula comes and goes.

It runs the OCI runtime, keeps the container's standard streams or terminal, writes the log and the exit code, and serves an
attach socket. It puts itself into its own session and becomes a child of pid 1, so neither `kill -9` of Insula nor a
signal to Insula's process group touches it.

Files in `bundle`: `attach` (socket, see drivers/oci/streams.py), `ctl` (fifo taking `1 HEIGHT WIDTH` for a resize),
`conmon.pid`, `container.pid`; in `persist`: `exit` (the exit code), `oom` (when the kernel killed for want of memory). What
it says to us comes through the sync pipe: one JSON object a line, whose `data` is the pid of the container, or -1 with the
runtime's words in `message`; for an exec there comes a second one with the exit code.
The facts are from conmon's source (conmon.c, conn_sock.c, ctrl.c, parent_pipe_fd.c) for versions 2.0.30 to 2.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from insula.errors import DeadlineExceeded, HostFault
from insula.host import pidfd, spawn
from insula.host.pidfd import ProcessId

LARGEST_SIDE = 1000  # conmon refuses a terminal wider or higher than this
LONGEST_TMPDIR = 80  # it makes a Unix socket there, whose path has 107 bytes at most


class Launch(Struct, frozen=True, kw_only=True):
    """One run of conmon. With `exec_spec` (the path of an OCI process) it starts a process beside an existing container."""

    conmon: str
    runtime: str
    runtime_root: str
    id: str
    uuid: str
    name: str
    bundle: str
    persist: str
    log_path: str = ""  # empty: nothing is logged
    journal: bool = False  # also to systemd's journal
    tag: str = ""
    terminal: bool = False
    stdin: bool = False
    leave_stdin_open: bool = False
    exec_spec: str = ""


class Report(Struct, frozen=True):
    """One message of the sync pipe: `data` is a pid, -1 for a failure, or an exit code."""

    data: int
    message: str = ""


def arguments(launch: Launch) -> list[str]:
    """The command line. Raises HostFault for a log path that conmon would misread."""
    if ":" in launch.log_path:
        raise HostFault(f"conmon cannot write to a log whose path holds a colon: {launch.log_path}")
    argv = [launch.conmon, "--api-version", "1", "-c", launch.id, "-u", launch.uuid, "-n", launch.name]
    argv += ["-r", launch.runtime, "--runtime-arg=--root", f"--runtime-arg={launch.runtime_root}"]
    argv += ["-b", launch.bundle, "--persist-dir", launch.persist, "--full-attach", "--no-sync-log"]
    argv += ["-p", f"{launch.bundle}/container.pid", "-P", f"{launch.bundle}/conmon.pid"]
    argv += ["-l", f"k8s-file:{launch.log_path}" if launch.log_path else "none"]
    argv += ["-l", "journald"] if launch.journal else []
    argv += ["--log-tag", launch.tag] if launch.journal and launch.tag else []
    argv += ["-t"] if launch.terminal else []
    argv += ["-i"] if launch.stdin else []
    argv += ["--leave-stdin-open"] if launch.leave_stdin_open else []
    argv += ["--exec", "--exec-attach", "--exec-process-spec", launch.exec_spec] if launch.exec_spec else []
    return argv


def parse_report(line: bytes) -> Report:
    """One line of the sync pipe. Older versions say `pid` for `data`. Raises HostFault for anything else."""
    try:
        fields = msgspec.json.decode(line)
        return Report(int(fields.get("data", fields.get("pid", -1))), str(fields.get("message") or ""))
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError) as fault:
        raise HostFault(f"conmon said something unexpected: {line[:200]!r}") from fault


class Pipe:
    """The reading end of a pipe with lines of JSON."""

    def __init__(self) -> None:
        self.fd, self.far = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.far, True)
        self._rest = b""

    def close_far(self) -> None:
        """Close the end that the child has."""
        if self.far >= 0:
            os.close(self.far)
            self.far = -1

    def close(self) -> None:
        """Close both ends."""
        self.close_far()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def next(self) -> Report | None:
        """The next message; None when conmon closed its end."""
        while b"\n" not in self._rest:
            await readable(self.fd)
            with contextlib.suppress(BlockingIOError):
                if not (chunk := os.read(self.fd, 65536)):
                    return None
                self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return parse_report(line)


async def readable(fd: int) -> None:
    """Return when the descriptor can be read (or has come to its end)."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, pidfd.wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


class Started(Struct, frozen=True):
    """A container, or an exec in one: its first process and the conmon that holds it."""

    process: ProcessId | None  # None: it has ended already
    pid: int
    monitor: ProcessId | None


def environment(tmpdir: str = "") -> dict[str, str]:
    """What conmon and the runtime see."""
    env = dict(spawn.ENVIRONMENT)
    if tmpdir and len(tmpdir) <= LONGEST_TMPDIR:
        env["TMPDIR"] = tmpdir
    return env


def launch(plan: Launch, pipes: Mapping[str, int], *, tmpdir: str = "") -> spawn.Child:
    """Start conmon with the given ends of pipes, by the names of its environment variables. The child that is returned is
    the outer process, which ends as soon as the real one has been forked off. It runs in the bundle: on version 1 control
    groups conmon writes a second `oom` mark into its current folder."""
    env = environment(tmpdir) | {name: str(fd) for name, fd in pipes.items()}
    return spawn.start(arguments(plan), env=env, cwd=plan.bundle, pass_fds=tuple(pipes.values()), new_session=True)


async def create(plan: Launch, *, deadline_s: float = 60.0, tmpdir: str = "") -> Started:
    """Make a container that waits to be started. Raises RuntimeRefused with the runtime's words, HostFault when conmon itself
    failed, DeadlineExceeded."""
    pipe = Pipe()
    child = None
    try:
        child = launch(plan, {"_OCI_SYNCPIPE": pipe.far}, tmpdir=tmpdir)
        pipe.close_far()
        child.let_go()
        return started(plan, await first_report(plan, pipe, deadline_s))
    except BaseException:
        if child:  # when the outer process has ended, the pid file of the inner one is there to find it by
            await pidfd.settle(child.wait())
        raise
    finally:
        pipe.close()


async def first_report(plan: Launch, pipe: Pipe, deadline_s: float) -> int:
    """The pid that the first message brings. Raises as `create` does."""
    try:
        report = await asyncio.wait_for(pipe.next(), deadline_s)
    except TimeoutError as fault:
        argv = spawn.command(arguments(plan))
        raise DeadlineExceeded(f"{plan.runtime} did not answer within {deadline_s:g} s: {argv}") from fault
    if report is None:
        raise HostFault("conmon ended without a word.", command=spawn.command(arguments(plan)))
    if report.data < 0:
        raise RuntimeRefused(report.message.strip(), command=spawn.command(arguments(plan)), code=-report.data)
    return report.data


def started(plan: Launch, pid: int) -> Started:
    """Name the processes behind a pid while they are there."""
    monitor = monitor_of(Path(plan.bundle)) or pidfd.identify(pidfd.parent(pid))
    return Started(pidfd.identify(pid), pid, monitor)


class RuntimeRefused(HostFault):
    """The OCI runtime would not make or start a container; the message is its standard error."""


def monitor_of(bundle: Path) -> ProcessId | None:
    """The conmon that belongs to a bundle, by its pid file; checked by its command line, for the pid may be another's now."""
    pid = read_number(bundle / "conmon.pid")
    process = pidfd.identify(pid) if pid else None
    if process is None:
        return None
    with contextlib.suppress(OSError):
        if str(bundle).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return process
    return None


def end_all(bundle: Path) -> None:
    """Kill what holds a bundle, with its children, and wait for their end, in a thread of the caller's. Where no pid file tells
    who that is (whoever started conmon was killed a moment ago), command lines are searched, until none is left that
    might fork another."""
    if monitor := monitor_of(bundle):
        pidfd.end([monitor, *pidfd.children(monitor)])
    elif bundle.exists() and not (bundle / "conmon.pid").exists():
        while holders := _holders(str(bundle).encode()):
            pidfd.end([*holders, *(child for holder in holders for child in pidfd.children(holder))])


def _holders(word: bytes) -> list[ProcessId]:
    """conmon and runtime processes with this word on their command line."""
    found = []
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and word in Path(entry.path, "cmdline").read_bytes().split(b"\0"):
                found.append(pidfd.identify(int(entry.name)))
    return [process for process in found if process]


def read_number(path: Path) -> int | None:
    """The number that a file holds; None when there is no such file or it is not yet written."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def control(bundle: Path, message: str) -> None:
    """Write one line into the control fifo. Raises HostFault when conmon is not there to read it."""
    try:
        fd = os.open(bundle / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        if fault.errno in (errno.ENXIO, errno.ENOENT):
            raise HostFault("The terminal cannot be reached: its monitor (conmon) has ended.") from fault
        raise
    try:
        os.write(fd, message.encode())
    finally:
        os.close(fd)


def resize(bundle: Path, width: int, height: int) -> None:
    """Set the terminal's size in characters, cut to what conmon takes."""
    control(bundle, f"1 {min(height, LARGEST_SIDE)} {min(width, LARGEST_SIDE)}\n")


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path of the same file that fits into a Unix socket's address (107 bytes)."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    fd = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
