"""The daemon as other commands see it: one process per root, guarded by a lock, ended by a signal.

The lock is an open file description lock (fcntl_locking(2)) on the lock file, held for as long as the process lives, so a
crash frees it; asking who holds it does not take it, so that a `status` never stands in the way of an `up`. The file holds
what the daemon serves as one line of JSON, from the first moment on: `ready` tells a daemon that is still starting.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import time
from typing import IO

import msgspec
from msgspec import Struct

from insula.cli.paths import Paths
from insula.errors import Conflict, DeadlineExceeded, Forbidden, HostFault, Invalid, Unavailable

READY_S = 60.0
STOP_S = 60.0
_LONGEST_ROOT = 75  # unix(7) gives a socket's path 107 bytes, and the deepest socket is 29 below the root
_LOCK = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class Serving(Struct, frozen=True, kw_only=True):
    """What the lock file says of the running daemon. `unit` is the systemd unit that it runs as, if any."""

    pid: int
    version: str
    node: str = ""
    api: str = ""
    docker: str = ""
    docker_tcp: tuple[str, ...] = ()
    unit: str = ""
    ready: bool = True


class AlreadyRuns(Conflict):
    """The lock is held."""


def serving(paths: Paths) -> Serving | None:
    """The running daemon, ready or not; None when there is none."""
    for _ in range(50):
        try:
            with paths.lock.open("rb") as file:
                if not _held(file):
                    return None
                line, newline, _rest = file.read().partition(b"\n")
        except FileNotFoundError:
            return None
        if newline and line != b"null":
            with contextlib.suppress(msgspec.DecodeError):
                return msgspec.json.decode(line, type=Serving)
        time.sleep(0.01)  # it took the lock a moment ago and is about to write
    raise Unavailable(f"{paths.lock} is held by a process that does not say what it is")


def _held(file: IO[bytes]) -> bool:
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _LOCK)
    kind: int = struct.unpack_from("h", answer)[0]
    return kind != fcntl.F_UNLCK


def need_root() -> None:
    """Raises Forbidden for everybody else."""
    if os.geteuid() != 0:
        raise Forbidden("Insula needs root for namespaces, mounts and the firewall", hint="try again with sudo")


def locked(paths: Paths) -> IO[bytes]:
    """Take the lock. Raises AlreadyRuns when another process has it, Forbidden for somebody who is not root, Invalid for a
    root whose path is too long for sockets below it."""
    need_root()
    if len(os.fsencode(paths.root)) > _LONGEST_ROOT:
        raise Invalid(
            f"the path {paths.root} is too long: sockets below it would pass the kernel's limit",
            hint=f"--root takes at most {_LONGEST_ROOT} bytes",
        )
    paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    file = paths.lock.open("a+b")
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _LOCK)
    except BlockingIOError:
        file.close()
        raise AlreadyRuns(f"Insula already runs here ({paths.lock} is held)", hint="see: insula status") from None
    return file


def write(file: IO[bytes], said: Serving | None) -> None:
    """Say what is served; None when it ends."""
    line = msgspec.json.encode(said) + b"\n"
    with open(f"/proc/self/fd/{file.fileno()}", "r+b", buffering=0) as plain:  # `file` itself appends
        os.pwrite(plain.fileno(), line, 0)
        plain.truncate(len(line))


def need_running(paths: Paths) -> Serving:
    """The running daemon, waiting for one that is starting. Raises Unavailable saying how to start it."""
    found = serving(paths)
    if found is not None and not found.ready:
        found = wait_ready(paths)
    if found is None:
        raise Unavailable("Insula does not run here", hint=f"start it with: insula up --detach{root_flag(paths)}")
    return found


def wait_ready(paths: Paths, deadline_s: float = READY_S) -> Serving | None:
    """Wait for a daemon that somebody else is starting; None when it gave up. Raises DeadlineExceeded."""
    deadline = time.monotonic() + deadline_s
    while (found := serving(paths)) is not None and not found.ready:
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"Insula (pid {found.pid}) has been starting for over {deadline_s:.0f} s")
        time.sleep(0.02)
    return found


def root_flag(paths: Paths) -> str:
    """What a suggested command has to carry, with a leading space."""
    return f" --root {paths.root}" if paths.root else ""


def stop(paths: Paths) -> bool:
    """End the daemon and wait until it has let go; workloads go on. Says whether one ran. One that does not end in time is
    killed: it is made to be."""
    running = serving(paths)
    if running is None:
        return False
    need_root()
    if running.unit:
        systemctl("stop", running.unit)
    else:
        _end(running.pid)
    if serving(paths) is not None:
        raise DeadlineExceeded(f"Insula (pid {running.pid}) did not end within {STOP_S:.0f} s")
    return True


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 5.0)):
                signal.pidfd_send_signal(descriptor, number)
                if select.select([descriptor], [], [], patience_s)[0]:
                    return
        finally:
            os.close(descriptor)


def systemctl(*words: str) -> None:
    """Run systemctl(1). Raises HostFault with what it said."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=STOP_S + 30, check=False)
    if done.returncode != 0:
        command = " ".join(("systemctl", *words))
        raise HostFault(f"systemd refused: {done.stderr.strip() or done.returncode}", command=command)
