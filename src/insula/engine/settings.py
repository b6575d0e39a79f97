"""Where an engine keeps its things and what may be chosen about it."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from insula.images.registries import Registries


class EnginePaths(Struct, frozen=True, kw_only=True):
    """`data` survives a reboot (ledger, images, volumes, logs); `runtime` need not (sockets, pid files, mount points).

    Two engines with different paths, prefixes and tables live beside each other."""

    data: Path
    runtime: Path

    @property
    def ledger(self) -> Path:
        """The ledger's SQLite file."""
        return self.data / "engine" / "ledger.db"

    @property
    def instances(self) -> Path:
        """One folder per instance: its log and the files made for it."""
        return self.data / "engine" / "instances"

    @property
    def bundles(self) -> Path:
        """One folder per instance for its driver (`InstanceSpec.directory`)."""
        return self.runtime / "instances"

    @property
    def building(self) -> Path:
        """Secrets and scripts of build steps under way."""
        return self.runtime / "building"

    @property
    def sandboxes(self) -> Path:
        """One folder per sandbox: bound namespaces and the shared /dev/shm."""
        return self.runtime / "sandboxes"

    @property
    def subpaths(self) -> Path:
        """Where subpaths of volumes are bound while an instance is made. Never deleted with contents: they are the volumes'."""
        return self.runtime / "subpaths"


class EngineSettings(Struct, frozen=True, kw_only=True):
    """What may be chosen. `prefix` starts the names of interfaces, `table` is the nftables table, `cgroup` the parent of
    all instances. `stop_timeout_s` is Docker's: how long a stop waits before it kills."""

    prefix: str = "ins"
    table: str = "insula"
    cgroup: str = "insula"
    default_subnet: str = "10.88.0.0/16"
    default_subnet6: str = ""  # a subnet, "auto", or empty for none
    stop_timeout_s: float = 10.0
    registries: Registries = Registries()
    event_history: int = 1024
    event_backlog: int = 4096
