"""What all handlers of the Docker door share: the engine, what this node is called, and what the door itself remembers."""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from insula.engine.contract import Engine
from insula.errors import Invalid
from insula.host import cgroups, limits

# The names under which Docker's own runtimes are known all mean the operating-system level.
_ALIASES = {"": "oci", "runc": "oci", "crun": "oci", "io.containerd.runc.v2": "oci", "insula": "oci", "vm": "microvm"}
_KEPT_EXECS = 4096


class NodeInfo(Struct, frozen=True, kw_only=True):
    """What this node is, for `docker info` and `docker version`. `labels` are `key=value`."""

    id: str
    name: str
    version: str
    data_root: str
    labels: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    cgroup_driver: str = "cgroupfs"


class ExecWords(Struct, frozen=True, kw_only=True):
    """What a client said when it created an exec, beyond what the engine needs."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    user: str = ""
    detach_keys: str = ""


class Door:
    """One door onto one engine."""

    def __init__(self, engine: Engine, info: NodeInfo) -> None:
        self.engine = engine
        self.info = info
        layout = cgroups.detect()
        self.limits = limits.detect(layout)
        self.cgroup_version = layout.version
        self.cgroupns = "private" if self.cgroup_version == 2 else "host"  # dockerd's default of --cgroupns
        self._drivers: frozenset[str] | None = None
        self._execs: OrderedDict[str, ExecWords] = OrderedDict()

    async def drivers(self) -> frozenset[str]:
        """The levels that this node has, asked once."""
        if self._drivers is None:
            self._drivers = frozenset(await self.engine.probe())
        return self._drivers

    async def driver_of(self, runtime: str) -> str:
        """The level behind `--runtime`. Raises Invalid with the Docker Engine's sentence."""
        name = _ALIASES.get(runtime, runtime)
        if name == "oci" or name in await self.drivers():
            return name
        raise Invalid(f"unknown or invalid runtime name: {runtime}", field="HostConfig.Runtime")

    def remember_exec(self, exec_id: str, words: ExecWords) -> None:
        """Keep it, and forget the oldest of very many."""
        self._execs[exec_id] = words
        while len(self._execs) > _KEPT_EXECS:
            self._execs.popitem(last=False)

    def exec_words(self, exec_id: str) -> ExecWords:
        """Defaults for an exec that another door made, or that was made before a restart."""
        return self._execs.get(exec_id, ExecWords())
