"""What is known of a container from its handle and the files around it: phases without forking a runtime.

Files in the instance's folder: `bundle/` (config.json and conmon's files), `persist/` (exit code, oom mark), `exec/ID/` for
each running exec, in the same form.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from insula import clock
from insula.drivers.driver import Exit, Handle, Phase, Status
from insula.drivers.oci.runtime import Runtime
from insula.host import cgroups, conmon, pidfd
from insula.host.cgroups import Group, Layout
from insula.host.pidfd import ProcessId

KILLED = 128 + 9
RESTARTED = 255  # what Docker says of containers that ran when the machine went down


class Data(Struct, frozen=True, kw_only=True):
    """The `data` of a handle, version 1."""

    pid: int
    pid_start: int
    monitor: int
    monitor_start: int
    boot: str
    runtime: str
    runtime_path: str
    runtime_root: str
    group: str  # the control group's path, without a leading slash
    tty: bool = False
    stdin: bool = False
    closes_stdin: bool = False


class Container(Struct, frozen=True, kw_only=True):
    """A handle, read."""

    id: str
    directory: Path
    data: Data
    group: Group

    @property
    def bundle(self) -> Path:
        """The OCI bundle, with conmon's files."""
        return self.directory / "bundle"

    @property
    def init(self) -> ProcessId:
        """The first process."""
        return ProcessId(self.data.pid, self.data.pid_start)

    @property
    def monitor(self) -> ProcessId:
        """Its conmon."""
        return ProcessId(self.data.monitor, self.data.monitor_start)

    @property
    def runtime(self) -> Runtime:
        """The runtime that made it, which stays the one whatever is preferred now."""
        return Runtime(name=self.data.runtime, path=self.data.runtime_path, root=self.data.runtime_root)


def read_handle(handle: Handle, layout: Layout) -> Container:
    """Understand a handle."""
    data = msgspec.convert(handle.data, Data)
    group = Group(layout=layout, path=data.group)
    return Container(id=handle.id, directory=Path(handle.directory), data=data, group=group)


def exit_of(container: Container) -> Exit | None:
    """How it ended, by what conmon wrote; None when it has not."""
    persist = container.directory / "persist"
    code = conmon.read_number(persist / "exit")
    if code is None:
        return None
    oom = (persist / "oom").exists() or cgroups.oom_kills(container.group) > 0
    moment = datetime.fromtimestamp((persist / "exit").stat().st_mtime, UTC)
    return Exit(code=code, oom_killed=oom, finished_at=clock.rfc3339_nano(moment))


def lost(code: int, message: str) -> Exit:
    """An end that nobody saw."""
    return Exit(code=code, finished_at=clock.rfc3339_nano(clock.now()), message=message)


def status(container: Container) -> Status:
    """The phase now. A container whose conmon has died is counted as ended: nobody holds its streams and its exit code."""
    if done := exit_of(container):
        return Status(phase=Phase.EXITED, exit=done)
    if not container.bundle.is_dir():
        return Status(phase=Phase.GONE)
    if container.data.boot != pidfd.boot_id():
        return Status(phase=Phase.EXITED, exit=lost(RESTARTED, "the machine was restarted"))
    if not pidfd.alive(container.monitor):
        done = exit_of(container) or lost(KILLED, "its monitor (conmon) died")
        return Status(phase=Phase.EXITED, exit=done)
    if (container.runtime.state(container.id) / "exec.fifo").exists():
        return Status(phase=Phase.CREATED, pid=container.data.pid)
    phase = Phase.PAUSED if cgroups.frozen(container.group) else Phase.RUNNING
    return Status(phase=phase, pid=container.data.pid)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file in one go under its final name's folder."""
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(value))
    temporary.rename(path)
