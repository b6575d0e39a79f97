"""The daemon: one process per root, guarded by a lock; started in the foreground or detached, ended by a signal.

The lock file is held with flock(2) for as long as the process lives, so a crash frees it. It holds what the daemon serves as
JSON. A detached start waits on a pipe until the daemon says that it is ready or why it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import msgspec
import uvloop
from msgspec import Struct

from insula import __version__
from insula.cli import settings as settings_module
from insula.cli.errors import sentence
from insula.cli.paths import Paths
from insula.errors import Conflict, DeadlineExceeded, Forbidden, HostFault, InsulaError, Unavailable

log = logging.getLogger(__name__)
READY_S = 60.0
STOP_S = 60.0


class Serving(Struct, frozen=True, kw_only=True):
    """What the lock file says of the running daemon."""

    pid: int
    version: str
    node: str
    api: str
    docker: str


def serving(paths: Paths) -> Serving | None:
    """The running daemon, or None."""
    try:
        with paths.lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return msgspec.json.decode(file.read() or b"null", type=Serving | None)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return None


def locked(paths: Paths) -> IO[bytes]:
    """Take the lock. Raises Conflict when another daemon has it, Forbidden for somebody who is not root."""
    if os.geteuid() != 0:
        raise Forbidden("Insula needs root for namespaces, mounts and the firewall", hint="try again with sudo")
    paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    file = paths.lock.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Conflict(f"Insula already runs here ({paths.lock} is held)", hint="see: insula status") from None
    return file


def _write(file: IO[bytes], said: Serving | None) -> None:
    file.seek(0)
    file.truncate()
    file.write(msgspec.json.encode(said))
    file.flush()


def foreground(paths: Paths, ready_fd: int | None = None) -> None:
    """Run until SIGTERM or SIGINT. Faults before readiness go to `ready_fd` as well, where there is one."""
    try:
        with locked(paths) as file:
            settings = settings_module.load(paths.config)
            logging.basicConfig(
                level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
            )
            paths.data.mkdir(mode=0o711, parents=True, exist_ok=True)
            uvloop.run(_serve(paths, settings, file, ready_fd))
            _write(file, None)
    except InsulaError as fault:
        _tell(ready_fd, {"error": sentence(fault)})
        raise
    except BaseException as fault:
        _tell(ready_fd, {"error": f"{type(fault).__name__}: {fault}"})
        raise


async def _serve(paths: Paths, settings: settings_module.Settings, file: IO[bytes], ready_fd: int | None) -> None:
    from insula.cli.assemble import (
        assembled,  # the doors and loops are a second of imports that other commands never need
    )

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    began = time.monotonic()
    async with assembled(paths, settings) as running:
        said = Serving(pid=os.getpid(), version=__version__, node=running.node, api=running.api, docker=running.docker)
        _write(file, said)
        gc.collect()
        gc.freeze()
        log.info("ready", extra={"seconds": round(time.monotonic() - began, 2)})
        _tell(ready_fd, {"ready": msgspec.to_builtins(said)})
        _notify("READY=1")
        await stop.wait()
        _notify("STOPPING=1")


def _tell(ready_fd: int | None, message: dict[str, Any]) -> None:
    if ready_fd is not None:
        with contextlib.suppress(OSError):
            os.write(ready_fd, msgspec.json.encode(message) + b"\n")
            os.close(ready_fd)


def _notify(state: str) -> None:
    """sd_notify(3), where systemd started us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, contextlib.suppress(OSError):
            notify.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def detached(paths: Paths) -> Serving:
    """Start a daemon in the background and wait until it is ready. Raises what it says when it cannot start."""
    if os.geteuid() != 0:
        raise Forbidden("Insula needs root for namespaces, mounts and the firewall", hint="try again with sudo")
    paths.log.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    reader, writer = os.pipe()
    argv = [
        sys.executable,
        "-m",
        "insula.cli",
        *(["--root", paths.root] if paths.root else []),
        "up",
        "--ready-fd",
        str(writer),
    ]
    with paths.log.open("ab") as log_file:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=(writer,),
            start_new_session=True,
            cwd="/",
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        )
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = _first_line(pipe)
    if "ready" in answer:
        child.returncode = 0  # it goes on without us
        return msgspec.convert(answer["ready"], Serving)
    raise HostFault(answer.get("error") or f"Insula did not start; its log says why: {paths.log}")


def _first_line(pipe: IO[bytes]) -> dict[str, Any]:
    readable, _, _ = select.select([pipe], [], [], READY_S)
    if not readable:
        raise DeadlineExceeded(f"Insula was not ready within {READY_S:.0f} s")
    line = pipe.readline()
    found: dict[str, Any] = msgspec.json.decode(line) if line.strip() else {}
    return found


def stop(paths: Paths) -> bool:
    """End the daemon and wait until it has let go; workloads go on. Says whether one ran."""
    running = serving(paths)
    if running is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while serving(paths) is not None:
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"Insula (pid {running.pid}) did not end within {STOP_S:.0f} s")
        time.sleep(0.02)
    return True


def need_running(paths: Paths) -> Serving:
    """The running daemon. Raises Unavailable saying how to start it."""
    found = serving(paths)
    if found is None:
        root = f" --root {paths.root}" if paths.root else ""
        raise Unavailable("Insula does not run here", hint=f"start it with: insula up --detach{root}")
    return found


def log_tail(paths: Paths, lines: int = 5) -> str:
    """The last words of the daemon's log."""
    path: Path = paths.log
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
