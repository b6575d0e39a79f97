"""What the engine writes down: the entries of the ledger. Frozen; a change is a copy (`msgspec.structs.replace`).

An `Entry` is one instance: what was asked, how far it got (`stage`, see `lifecycle.py`), and what is needed to take it back
after a crash. It is written *before* the work it announces, so that nothing on this node lacks an entry that names it.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field

from insula.drivers.driver import Handle
from insula.engine.contract import Health, ResolvedMount, SandboxConfig
from insula.model.instance import InstanceConfig

BUILD = "build"  # the owner of instances that carry out a step of a build


class Stage(StrEnum):
    """How far an instance got. The `*ING` stages are promises: a crash in one is finished or undone by recovery."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"  # it ended; what it held on this node is being let go
    EXITED = "exited"
    REMOVING = "removing"


class StopWish(Struct, frozen=True, kw_only=True):
    """A stop that somebody asked for and that is under way: enough to finish it after a crash."""

    signal: int
    grace_s: float


class Entry(Struct, frozen=True, kw_only=True):
    """One instance in the ledger. Times are RFC 3339, empty when it has not happened."""

    id: str
    config: InstanceConfig
    created: str
    stage: Stage = Stage.CREATING
    image: str = ""  # the image's id: a tag may move, an instance's image does not
    machine_images: dict[str, str] = field(default_factory=dict)  # likewise of disks and kernels: reference to id
    mounts: tuple[ResolvedMount, ...] = ()
    anonymous_volumes: tuple[str, ...] = ()
    rootfs: str = ""
    upper: str = ""
    lowers: tuple[str, ...] = ()
    netns: str = ""  # of its own, "" when it shares another's or has none
    handle: Handle | None = None
    boot_id: str = ""  # the boot of the kernel in which it was last started
    pid: int = 0
    paused: bool = False
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    started_at: str = ""
    finished_at: str = ""
    restart_count: int = 0
    user_stopped: bool = False  # the user's wish: restart policies do not bring it back
    stopping: StopWish | None = None
    health: Health = Health()  # as of the last change of its status
    remove_volumes: bool = False  # how far a removal that is under way goes

    @property
    def name(self) -> str:
        """The name, without Docker's leading slash."""
        return self.config.name

    @property
    def fleeting(self) -> bool:
        """Nobody wants its root file system after a crash of the machine: its writable layer is never synced."""
        return self.config.auto_remove or self.config.owner == BUILD


class SandboxEntry(Struct, frozen=True, kw_only=True):
    """One sandbox in the ledger. `ready` is False while it is being made or removed."""

    config: SandboxConfig
    created: str
    ready: bool = False
    netns: str = ""
    address: str = ""
    ipcns: str = ""
    utsns: str = ""
    shm: str = ""
    boot_id: str = ""

    @property
    def id(self) -> str:
        """The id that its maker chose."""
        return self.config.id
