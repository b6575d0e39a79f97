"""The engine as its users see it: the Docker door, the agent, the command line. One node's instances.

An Instance is an `InstanceConfig` (what was asked, in the ledger) with a `State` (what is). Names and unique id prefixes are
accepted wherever an id is. Sentences of NotFound and Conflict follow the Docker Engine's where it has one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct, field

from insula.drivers.driver import Capability, Channel, ProcessRow, Stats, Streams
from insula.engine.building.contract import Builder
from insula.images.contract import Image, ImageStore, Use
from insula.model.instance import (
    InstanceConfig,
    MountConfig,
    NetworkAttachment,
    Process,
    Resources,
    RestartPolicy,
)
from insula.networks.contract import Endpoint, Networks, Published
from insula.volumes.contract import Volumes

StateName = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]


class HealthResult(Struct, frozen=True, kw_only=True):
    """One health check that was run. Times are RFC 3339; exit code 0 is healthy, -1 a check that did not come to its end."""

    start: str
    end: str
    exit_code: int
    output: str = ""


class Health(Struct, frozen=True, kw_only=True):
    """What health checks found: `status` is "" for an instance without any; `log` holds the newest five, oldest first."""

    status: Literal["", "starting", "healthy", "unhealthy"] = ""
    failing_streak: int = 0
    log: tuple[HealthResult, ...] = ()


class State(Struct, frozen=True, kw_only=True):
    """How an instance is. Times are RFC 3339 with nanoseconds, empty when it has not happened."""

    name: StateName = "created"
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    started_at: str = ""
    finished_at: str = ""
    restart_count: int = 0
    health: str = ""  # "", starting, healthy, unhealthy
    failing_streak: int = 0
    health_log: tuple[HealthResult, ...] = ()


class Instance(Struct, frozen=True, kw_only=True):
    """All that is known of an instance now."""

    id: str
    config: InstanceConfig
    state: State
    created: str
    image: Image | None = None
    endpoints: tuple[Endpoint, ...] = ()
    published: tuple[Published, ...] = ()
    mounts: tuple[ResolvedMount, ...] = ()
    folder: str = ""  # the files made for it: hosts, hostname, resolv.conf
    log_path: str = ""  # empty when it keeps no log
    rootfs: str = ""
    upper: str = ""  # the writable layer of its root file system
    lowers: tuple[str, ...] = ()  # the layers below, the topmost first
    execs: tuple[str, ...] = ()  # the execs that are recorded or run now; only where one instance is asked for


class ResolvedMount(Struct, frozen=True, kw_only=True):
    """A mount as it was carried out; `volume` names the volume behind it, if any."""

    config: MountConfig
    source: str
    volume: str = ""


class SandboxConfig(Struct, frozen=True, kw_only=True):
    """Namespaces that several instances share: a pod's network (and IPC, UTS) without a process to hold them."""

    id: str
    hostname: str = ""
    network: str = "default"  # or "host", "none"
    aliases: tuple[str, ...] = ()
    ports: tuple[Any, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    sysctls: dict[str, str] = field(default_factory=dict)


class Sandbox(Struct, frozen=True, kw_only=True):
    """A made sandbox."""

    config: SandboxConfig
    netns: str
    address: str


class LogLine(Struct, frozen=True, kw_only=True):
    """A piece of output as it was written. `partial`: the line goes on in the next piece."""

    time: str
    channel: Channel
    data: bytes
    partial: bool = False


class Event(Struct, frozen=True, kw_only=True):
    """Something happened on this node, in Docker's words: type container, action start, actor id with attributes."""

    type: Literal["container", "image", "network", "volume", "daemon", "builder"]
    action: str
    id: str
    attributes: dict[str, str] = field(default_factory=dict)
    time_ns: int = 0


class Exec(Struct, frozen=True, kw_only=True):
    """One exec of an instance."""

    id: str
    instance: str
    process: Process
    pid: int = 0
    running: bool = False
    exit_code: int | None = None


class PathStat(Struct, frozen=True, kw_only=True):
    """What `docker cp` asks of a path: `mode` in Go's os.FileMode bits, `link_target` for a symlink."""

    name: str
    size: int
    mode: int
    mtime: str
    link_target: str = ""


class Engine(Protocol):
    """One node's engine."""

    images: ImageStore
    networks: Networks
    volumes: Volumes

    @property
    def builder(self) -> Builder:
        """What builds images here."""
        ...

    # life cycle
    async def create(self, config: InstanceConfig) -> Instance:
        """Record it and prepare what can be (root file system, volumes). Raises NotFound (image), Conflict (name), Invalid."""
        ...

    async def start(self, id: str) -> Instance:
        """Run it. A running one is left alone. Raises Conflict, HostFault (with Docker's exit code 125-127 in `code`)."""
        ...

    async def stop(self, id: str, *, timeout_s: float | None = None, signal: str = "") -> Instance:
        """Ask it to end, then kill it. The user's wish: restart policies do not bring it back."""
        ...

    async def kill(self, id: str, signal: str = "KILL") -> None:
        """Signal it. Raises Conflict when it does not run."""
        ...

    async def restart(self, id: str, *, timeout_s: float | None = None) -> Instance:
        """Stop and start."""
        ...

    async def pause(self, id: str) -> None:
        """Freeze it."""
        ...

    async def unpause(self, id: str) -> None:
        """Thaw it."""
        ...

    async def reset(self, id: str) -> None:
        """Press a machine's reset button."""
        ...

    async def wait(self, id: str, condition: Literal["not-running", "next-exit", "removed"] = "not-running") -> State:
        """Return its state when the condition holds. `not-running` holds at each end, also one that a restart follows."""
        ...

    async def remove(self, id: str, *, force: bool = False, volumes: bool = False) -> None:
        """Delete it with its root file system and logs. Raises Conflict while it runs, unless forced."""
        ...

    async def rename(self, id: str, name: str) -> None:
        """Give it another name."""
        ...

    async def unlink(self, id: str, alias: str) -> None:
        """Take one of its links away. Raises NotFound."""
        ...

    async def update(
        self, id: str, *, resources: Resources | None = None, restart: RestartPolicy | None = None
    ) -> Instance:
        """Change its envelope or restart policy."""
        ...

    async def connect(self, id: str, attachment: NetworkAttachment) -> None:
        """Put it on one more network, at once when it runs and at each later start. Raises NotFound, Forbidden when it is on
        it already, Invalid when it has no network of its own, Invalid (address)."""
        ...

    async def disconnect(self, id: str, network: str, *, force: bool = False) -> None:
        """Take it off a network, now and for later starts. `force` also when the ledger does not know it there. Raises NotFound,
        Conflict when it is not on it."""
        ...

    # looking
    async def get(self, id: str) -> Instance:
        """Raises NotFound (`No such container: X`)."""
        ...

    async def list(self) -> Sequence[Instance]:
        """All, newest first."""
        ...

    async def image_uses(self) -> Sequence[Use]:
        """Which images instances need, machines' disks and kernels too: for `ImageStore.remove`."""
        ...

    async def stats(self, id: str) -> Stats:
        """Counters now; zeros for one that does not run."""
        ...

    async def pids(self, id: str) -> Sequence[int]:
        """Host pids of all its processes."""
        ...

    async def processes(self, id: str) -> Sequence[ProcessRow] | None:
        """All its processes where they run on a kernel of their own; None where they are the host's, as `pids` tells."""
        ...

    def logs(
        self,
        id: str,
        *,
        follow: bool = False,
        since: str = "",
        until: str = "",
        tail: int | None = None,
    ) -> AsyncIterator[LogLine]:
        """Its output, oldest first; with `follow` until it ends. Raises Unsupported (at once) when it keeps no log."""
        ...

    def events(self, *, since_ns: int | None = None, until_ns: int | None = None) -> AsyncIterator[Event]:
        """Past events from memory, then live ones until `until_ns` or closed."""
        ...

    def publish(self, event: Event) -> None:
        """Tell listeners of something that a door did past the engine: an image pulled, a volume made. `time_ns` is set here."""
        ...

    # streams
    async def attach(self, id: str) -> Streams:
        """Connect to the first process. Also before `start`: the streams begin with its first byte. They end with the process,
        whether it is started again or not. Raises Conflict while it waits to be started again."""
        ...

    async def resize(self, id: str, width: int, height: int) -> None:
        """Set its terminal's size."""
        ...

    async def exec_create(self, id: str, process: Process, *, user: str = "", env: Sequence[str] = ()) -> Exec:
        """Record an exec; user names are looked up inside the instance."""
        ...

    async def exec_start(self, exec_id: str) -> Streams:
        """Run it."""
        ...

    async def exec_resize(self, exec_id: str, width: int, height: int) -> None:
        """Set its terminal's size."""
        ...

    async def exec_get(self, exec_id: str) -> Exec:
        """Raises NotFound (`No such exec instance: X`)."""
        ...

    async def exec_wait(self, exec_id: str) -> int:
        """Its exit code."""
        ...

    async def exec_kill(self, exec_id: str, signal: str = "KILL") -> None:
        """Signal it; one that does not run is left alone. Raises NotFound, Invalid (signal)."""
        ...

    async def console(self, id: str, kind: Capability) -> str:
        """Path of the Unix socket with a machine's serial line or VNC."""
        ...

    # files
    async def stat_path(self, id: str, path: str) -> PathStat:
        """For `docker cp`, inside the instance's root."""
        ...

    def get_archive(self, id: str, path: str) -> AsyncIterator[bytes]:
        """A tar of a path inside."""
        ...

    async def put_archive(
        self,
        id: str,
        path: str,
        archive: AsyncIterator[bytes],
        *,
        no_overwrite_dir: bool = False,
        as_user: bool = False,
    ) -> None:
        """Unpack a tar into a folder inside; never outside of the root, whatever the archive says. `as_user`: all of it is
        owned by the user of the instance."""
        ...

    async def changes(self, id: str) -> Sequence[tuple[str, int]]:
        """Paths changed since the image: 0 modified, 1 added, 2 deleted."""
        ...

    async def disk_usage(self, id: str) -> tuple[int, int]:
        """Bytes of its writable layer, and of its whole root file system."""
        ...

    def export(self, id: str) -> AsyncIterator[bytes]:
        """A tar of the whole root file system."""
        ...

    async def commit(
        self,
        id: str,
        name: str,
        *,
        message: str = "",
        author: str = "",
        pause: bool = True,
        config: dict[str, Any] | None = None,
    ) -> Image:
        """Make an image of it."""
        ...

    # sandboxes: what pods share
    async def make_sandbox(self, config: SandboxConfig) -> Sandbox:
        """Make it, or return the one of that id."""
        ...

    async def get_sandbox(self, id: str) -> Sandbox:
        """Raises NotFound."""
        ...

    async def list_sandboxes(self) -> Sequence[Sandbox]:
        """All."""
        ...

    async def remove_sandbox(self, id: str) -> None:
        """Remove it; its instances are gone already. Repeatable."""
        ...

    # the node
    async def probe(self) -> dict[str, Any]:
        """Driver name to what its probe found."""
        ...

    async def recover(self) -> None:
        """At start, before any other call: take back what runs, finish or undo what was half done."""
        ...

    async def close(self) -> None:
        """Let go of everything; workloads go on."""
        ...

    async def destroy(self, *, grace_s: float = 0) -> None:
        """Stop every workload and take every trace of this engine out of the kernel: processes, mounts, interfaces, rules,
        control groups. What is on disk stays, the stopped instances too: the next `recover` is as after a reboot, restart
        policies bring back what they cover. Containers get their stop signal and `grace_s` seconds before they are killed,
        machines have their plug pulled. Closes the engine."""
        ...
