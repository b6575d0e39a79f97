"""One level's contract. A driver is one file or folder in this package that exports `DRIVER`, a factory.

The engine asks a driver only for what `capabilities` advertises. A `Handle` is all that a driver needs to find a running
instance again after Insula was killed: the engine stores it in the ledger before `start` and gives it to `recover`.

Who may call what: the engine alone, one verb per instance at a time, except `wait`, `attach`, `exec` and `stats`, which run
beside others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

from msgspec import Struct, field

from insula.host.cgroupstats import DeviceCount
from insula.model.instance import InstanceConfig, InstanceSpec, Process, Resources


class Capability(StrEnum):
    """What a driver can do beyond the required verbs."""

    ATTACH = "attach"  # streams of the first process
    EXEC = "exec"  # more processes inside
    PAUSE = "pause"
    UPDATE = "update"  # change resources of a running instance
    STATS = "stats"
    TOP = "top"
    CONSOLE = "console"  # a serial line: raw bytes both ways
    VNC = "vnc"  # a graphical screen: the RFB protocol
    RESET = "reset"
    SNAPSHOT = "snapshot"
    MIGRATE = "migrate"
    HOTPLUG = "hotplug"
    GUEST = "guest"  # runs a container image on a kernel of its own, which it wants in `InstanceSpec.guest`
    PROCESSES = "processes"  # lists the processes inside, which the host does not see


LogFormat = Literal["conmon", "raw"]
"""What a driver writes to `InstanceSpec.log_path`: conmon's lines with time and channel (`host/conmonlog.py`), or the bytes as
they came. Both append, and go on appending when the file's head is taken away."""


class Probe(Struct, frozen=True, kw_only=True):
    """What this machine offers to a driver. `notes` are sentences for `insula doctor`."""

    available: bool
    version: str = ""
    notes: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)  # runtime, accelerator, ...


class Handle(Struct, frozen=True, kw_only=True):
    """How to find an instance again. `version` rises when `data` changes shape; old shapes stay readable."""

    driver: str
    id: str
    directory: str
    version: int = 1
    data: dict[str, Any] = field(default_factory=dict)


class Phase(StrEnum):
    """What the kernel says of an instance, as opposed to what was asked."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"
    GONE = "gone"


class Status(Struct, frozen=True, kw_only=True):
    """The phase found, with the first process's pid on the host (0 when there is none)."""

    phase: Phase
    pid: int = 0
    exit: Exit | None = None


class Exit(Struct, frozen=True, kw_only=True):
    """How an instance or exec ended. `code` as a shell counts it: 128 + signal for a killed one."""

    code: int
    oom_killed: bool = False
    finished_at: str = ""  # RFC 3339
    message: str = ""


class Stats(Struct, frozen=True, kw_only=True):
    """One reading of the counters. Bytes and nanoseconds; totals since the start."""

    cpu_total_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_detail: dict[str, int] = field(default_factory=dict)
    pids: int = 0
    pids_limit: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    memory_max_bytes: int = 0  # the most that was used; 0 where nobody counts it (version 2)
    percpu_ns: tuple[int, ...] = ()  # likewise
    periods: int = 0  # in which its CPU quota was at work
    io_bytes: tuple[DeviceCount, ...] = ()  # by device; empty where only the sums above are known
    io_operations: tuple[DeviceCount, ...] = ()


class ProcessRow(Struct, frozen=True, kw_only=True):
    """One process inside, for a list. Times in seconds; `state` as ps(1) shows it, `terminal` empty for none."""

    pid: int
    parent: int = 0
    uid: int = 0
    command: str = ""
    name: str = ""
    state: str = ""
    terminal: str = ""
    cpu_s: float = 0.0
    age_s: float = 0.0
    memory_bytes: int = 0
    virtual_bytes: int = 0


class Channel(StrEnum):
    """Which stream a chunk came from."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Streams(Protocol):
    """A live connection to the streams of a process. Closing it never harms the process."""

    def read(self) -> AsyncIterator[tuple[Channel, bytes]]:
        """Chunks until the process closes its output or ends. With a TTY everything is STDOUT."""
        ...

    async def write(self, data: bytes) -> None:
        """Write to the process's stdin; waits while the process does not read."""
        ...

    async def close_stdin(self) -> None:
        """Give the process an end of file."""
        ...

    async def close(self) -> None:
        """Let go of the streams."""
        ...


class ExecHandle(Protocol):
    """A process started beside the first one."""

    pid: int

    @property
    def streams(self) -> Streams:
        """Its streams, connected before the process ran its first instruction."""
        ...

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters."""
        ...

    async def wait(self) -> Exit:
        """Its exit, once."""
        ...

    async def kill(self, signal: int) -> None:
        """Signal it."""
        ...


@runtime_checkable
class KeepsExecs(Protocol):
    """A driver whose execs go on when Insula ends, and can be found again."""

    async def execs(self, handle: Handle) -> Sequence[tuple[str, Process, ExecHandle]]:
        """After a restart of Insula: (id, what was asked, handle) of every exec that was started and not yet waited for to
        its end. Their streams are lost."""
        ...


class Driver(Protocol):
    """Required verbs first; those after `recover` are called only when advertised."""

    name: str
    level: int
    summary: str
    log_format: LogFormat
    capabilities: frozenset[Capability]

    async def probe(self) -> Probe:
        """Find out by trying, not by looking, what works here. Cached by the caller."""
        ...

    async def create(self, spec: InstanceSpec) -> Handle:
        """Make everything but run nothing of the instance's own: after this, `attach` misses no byte of output.
        Can be repeated after a crash: what a killed attempt left is removed first."""
        ...

    async def start(self, handle: Handle) -> int:
        """Run it. Returns the first process's pid on the host."""
        ...

    async def kill(self, handle: Handle, signal: int) -> None:
        """Send a signal to the first process (a machine: SIGTERM presses the power button, SIGKILL pulls the plug)."""
        ...

    async def stop(self, handle: Handle, signal: int, grace_s: float) -> Exit:
        """Signal, wait up to `grace_s` seconds, then kill. Returns how it ended."""
        ...

    async def wait(self, handle: Handle) -> Exit:
        """Return when it has ended; at once if it already has. No polling: pidfd or the monitor's exit file."""
        ...

    async def recover(self, handle: Handle) -> Status:
        """After a restart of Insula: find it again and say how it is. Must work from the handle alone."""
        ...

    async def delete(self, handle: Handle) -> None:
        """Remove all traces of an ended instance: runtime state, cgroup, sockets. Repeatable; unknown is fine."""
        ...

    async def attach(self, handle: Handle) -> Streams:
        """Connect to the first process's streams (from CREATED on)."""
        ...

    async def resize(self, handle: Handle, width: int, height: int) -> None:
        """Set the size of the first process's terminal."""
        ...

    async def exec(self, handle: Handle, exec_id: str, process: Process) -> ExecHandle:
        """Start one more process inside."""
        ...

    async def pause(self, handle: Handle) -> None:
        """Freeze it."""
        ...

    async def resume(self, handle: Handle) -> None:
        """Thaw it."""
        ...

    async def update(self, handle: Handle, resources: Resources) -> None:
        """Change its envelope while it runs."""
        ...

    async def stats(self, handle: Handle) -> Stats:
        """Read its counters."""
        ...

    async def pids(self, handle: Handle) -> list[int]:
        """All its processes, as pids of the host."""
        ...

    async def console(self, handle: Handle, kind: Capability) -> str:
        """The path of a Unix socket carrying CONSOLE or VNC bytes."""
        ...

    async def reset(self, handle: Handle) -> None:
        """Press the reset button."""
        ...

    async def close(self) -> None:
        """Let go of what this process holds (streams, connections, waiting); instances go on."""
        ...


class GuestDriver(Driver, Protocol):
    """What drivers with GUEST and PROCESSES have besides."""

    async def processes(self, handle: Handle) -> list[ProcessRow]:
        """All its processes, as they are inside (PROCESSES)."""
        ...

    def check(self, config: InstanceConfig) -> None:
        """Refuse what this level cannot give, before anything is made (GUEST). Raises Unsupported naming the field."""
        ...
